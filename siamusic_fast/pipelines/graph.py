"""The DALI graphs: read, crop, move to the device, compute features, augment; one definition for CPU and GPU.

read ─▶ int16 crop ─▶ [to GPU] ─▶ wave ─▶ |STFT| ─▶ spectrum ─▶ mel ─▶ dB ─▶ normalise ─▶ image
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.augment import AudioAugmentation, ImageAugmentation
from siamusic_fast.pipelines.dali import DataNode, dmath, fn, pipeline_def, types
from siamusic_fast.pipelines.draws import partners
from siamusic_fast.pipelines.mel import Normalisation, at_frames, log_mel, magnitudes, powers, to_float
from siamusic_fast.pipelines.recipes import Recipe
from siamusic_fast.pipelines.source import HEADER, Source, crop, length, read

_RESAMPLING_QUALITY = 28
"""Of DALI's scale, where 0 is 3 lobes of the sinc filter and 50 is 16: about 6, torchaudio's default."""


class Features(NamedTuple):
    """How a crop becomes a spectrogram, and where: `device` is "cpu" or "gpu"."""

    mel: MelConfig
    normalisation: Normalisation
    device: str


@pipeline_def(enable_conditionals=True)
def two_views(source: Source, recipe: Recipe, features: Features) -> tuple[DataNode, ...]:
    """Return two differently augmented views of the same random moment of every track."""
    wav, _ = read(source)
    position = fn.random.uniform(range=[0.0, 1.0])
    view_1, view_2 = _views(wav, position, recipe, features)
    return _channel_first(view_1, features), _channel_first(view_2, features)


@pipeline_def(enable_conditionals=True)
def original_and_views(source: Source, recipe: Recipe, features: Features) -> tuple[DataNode, ...]:
    """Return what `two_views` does, with the unaugmented crop before it."""
    wav, _ = read(source)
    position = fn.random.uniform(range=[0.0, 1.0])
    view_1, view_2 = _views(wav, position, recipe, features)
    original = _plain(wav, position, features)
    return tuple(_channel_first(image, features) for image in (original, view_1, view_2))


@pipeline_def
def labelled_crops(source: Source, features: Features) -> tuple[DataNode, ...]:
    """Return one random crop of every track and its label."""
    wav, label = read(source)
    image = _plain(wav, fn.random.uniform(range=[0.0, 1.0]), features)
    return _channel_first(image, features), _to_device(label, features)


@pipeline_def
def whole_tracks(source: Source, crops: int, features: Features) -> tuple[DataNode, ...]:
    """Return evenly spaced crops of every track, [crops, 1, n_mels, frames], and its label."""
    wav, label = read(source)
    positions = [0.5] if crops == 1 else [index / (crops - 1) for index in range(crops)]
    images = [_channel_first(_plain(wav, position, features), features) for position in positions]
    return fn.stack(*images), _to_device(label, features)


def _views(
    wav: DataNode, position: DataNode, recipe: Recipe, features: Features
) -> tuple[DataNode, DataNode]:
    audio_steps = [step for step in recipe if isinstance(step, AudioAugmentation)]
    image_steps = [step for step in recipe if isinstance(step, ImageAugmentation)]
    if audio_steps:
        window = _window(wav, position, audio_steps, features)
        images = [_from_audio(window, position, audio_steps, features) for _ in range(2)]
    else:
        images = [_plain(wav, position, features)] * 2  # computed once, augmented twice
    for step in image_steps:
        images = [step.image(image, features.mel) for image in images]
    return images[0], images[1]


def _plain(wav: DataNode, position: DataNode | float, features: Features) -> DataNode:
    """Return the spectrogram of a crop at `position`, [n_mels, frames, 1]."""
    audio = _to_device(crop(wav, features.mel.samples, position, skip=HEADER), features)
    return _image(powers(to_float(audio), features.mel), features)


def _window(
    wav: DataNode, position: DataNode, steps: list[AudioAugmentation], features: Features
) -> DataNode:
    """Return all the audio that a view may need: the longest crop of any `steps`, or the whole track."""
    reach = math.ceil(math.prod(step.reach for step in steps) * features.mel.samples)
    return crop(wav, dmath.min(length(wav) - HEADER, reach), position, skip=HEADER)


def _from_audio(
    window: DataNode, position: DataNode, steps: list[AudioAugmentation], features: Features
) -> DataNode:
    """Return the spectrogram of `window` at the tempo and pitch, and with the changes, that `steps` draw.

    With rate r and pitch k, r times as many samples are read and resampled to 1 / k of their number: the
    pitch is right, and frame j of the result lies at frame j r / k of the spectrogram.
    """
    mel = features.mel
    other = partners()
    partner = fn.permute_batch(window, indices=other)
    rate, pitch = _product(step.rate() for step in steps), _product(step.pitch() for step in steps)
    samples = mel.samples
    if not isinstance(rate, float):
        # A track too short for the tempo drawn, its own or its partner's, is played as fast as it allows.
        spare = fn.cast(dmath.min(length(window), length(partner)), dtype=types.FLOAT) / mel.samples
        rate = dmath.min(rate, spare)
        samples = fn.cast(dmath.floor(rate * mel.samples + 0.5), dtype=types.INT32)

    wave = to_float(_to_device(crop(window, samples, position), features))
    partner_position = fn.permute_batch(position, indices=other)
    partner_wave = to_float(_to_device(crop(partner, samples, partner_position), features))
    for step in steps:
        wave = step.wave(wave, partner_wave)
    if isinstance(rate, float) and isinstance(pitch, float):
        return _image(powers(wave, mel), features)  # no step changes them
    if pitch != 1.0:
        wave = fn.audio_resample(wave, scale=1.0 / pitch, quality=_RESAMPLING_QUALITY)
    spectrum = magnitudes(wave, mel)
    if rate != pitch:
        spectrum = at_frames(spectrum, rate / pitch, mel)
    return _image(spectrum * spectrum, features)


def _image(power: DataNode, features: Features) -> DataNode:
    """Return the normalised log-mels of `power`, float32 [n_mels, frames, 1]."""
    mean, deviation = features.normalisation
    image = (log_mel(power, features.mel) - mean) * (1.0 / deviation)
    return fn.reshape(image, shape=[features.mel.n_mels, features.mel.frames, 1], layout="HWC")


def _channel_first(image: DataNode, features: Features) -> DataNode:
    """Return [n_mels, frames, 1] as [1, n_mels, frames]: the same memory."""
    return fn.reshape(image, shape=[1, features.mel.n_mels, features.mel.frames], layout="CHW")


def _to_device(node: DataNode, features: Features) -> DataNode:
    return node.gpu() if features.device == "gpu" else node


def _product(factors: Iterable[DataNode | float]) -> DataNode | float:
    product: DataNode | float = 1.0
    for factor in factors:
        product = product * factor
    return product
