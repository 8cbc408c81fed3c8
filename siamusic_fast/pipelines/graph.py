"""The DALI graphs: read, crop, move to the device, compute features, augment; one definition for CPU and GPU.

read ─▶ int16 crop ─▶ [to GPU] ─▶ wave ─▶ |STFT| ─▶ spectrum ─▶ mel ─▶ dB ─▶ normalise ─▶ image
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.augment import AudioAugmentation, Augmentation, ImageAugmentation
from siamusic_fast.pipelines.dali import DataNode, dmath, fn, pipeline_def, types
from siamusic_fast.pipelines.draws import Draws, partners
from siamusic_fast.pipelines.mel import Normalisation, at_frames, log_mel, magnitudes, powers, to_float
from siamusic_fast.pipelines.options import Pairing
from siamusic_fast.pipelines.recipes import Recipe, step_name
from siamusic_fast.pipelines.resample import PITCH_QUALITY, RATE_QUALITY, resampled
from siamusic_fast.pipelines.source import Source, crop, length, read


class Features(NamedTuple):
    """How a crop becomes a spectrogram, and where: `device` is "cpu" or "gpu"."""

    mel: MelConfig
    normalisation: Normalisation
    device: str


class View(NamedTuple):
    """A view on its way through the graph."""

    image: DataNode
    """float32 [n_mels, frames, 1]."""
    wave: DataNode
    """What the spectrogram is of, float32 [samples]: it has the final pitch, and not yet the tempo."""
    tempo: DataNode | float
    """By how much the spectrum stage quickens it."""
    draws: Draws
    """All that was drawn, by step and name."""


@pipeline_def(enable_conditionals=True)
def two_views(source: Source, recipe: Recipe, features: Features, pairing: Pairing) -> tuple[DataNode, ...]:
    """Return two differently augmented views of every track, from a random moment or from two."""
    audio, _ = read(source, features.mel)
    positions = _positions(audio, source, features.mel, pairing)
    view_1, view_2 = _views(audio, positions, source, recipe, features)
    return _channel_first(view_1.image, features), _channel_first(view_2.image, features)


@pipeline_def(enable_conditionals=True)
def traced_views(
    source: Source, recipe: Recipe, features: Features, pairing: Pairing, names: list[str]
) -> tuple[DataNode, ...]:
    """Return what `two_views` does, and how it came to be; `names` is filled with the names of the outputs.

    They are view_1, view_2, and of each view: original, the unaugmented crop at its place; wave and tempo, as
    in `View`; position, from 0 to 1, where its crop lies; partner, the index of the track that wave mixing
    takes; and every draw, such as view_1.cutout.on and view_1.cutout.anchors.
    """
    audio, _ = read(source, features.mel)
    positions = _positions(audio, source, features.mel, pairing)
    views = _views(audio, positions, source, recipe, features)
    outputs = {}
    for index in range(2):
        name, view = f"view_{index + 1}", views[index]
        plain = _plain(audio, positions[index], source, features)
        outputs[name] = _channel_first(view.image, features)
        outputs[f"{name}.original"] = _channel_first(plain.image, features)
        outputs[f"{name}.wave"] = view.wave
        outputs[f"{name}.tempo"] = 1.0 * view.tempo + 0.0 * positions[index]  # a node, if it is 1 for all
        outputs[f"{name}.position"] = 1.0 * positions[index]
        for drawn in view.draws:
            outputs[f"{name}.{drawn}"] = view.draws[drawn]
    names.extend(outputs.keys())
    return tuple(outputs.values())


@pipeline_def(enable_conditionals=True)
def labelled_crops(source: Source, recipe: Recipe, features: Features) -> tuple[DataNode, ...]:
    """Return one random crop of every track, augmented, and its label."""
    audio, label = read(source, features.mel)
    position = fn.random.uniform(range=[0.0, 1.0])
    view = _views(audio, [position], source, recipe, features)[0]
    return _channel_first(view.image, features), _to_device(label, features)


@pipeline_def(enable_conditionals=True)
def whole_tracks(source: Source, crops: int, features: Features) -> tuple[DataNode, ...]:
    """Return evenly spaced crops of every track, [crops, 1, n_mels, frames], and its label."""
    audio, label = read(source, features.mel)
    positions = [0.5] if crops == 1 else [index / (crops - 1) for index in range(crops)]
    images = [
        _channel_first(_plain(audio, position, source, features).image, features) for position in positions
    ]
    return fn.stack(*images), _to_device(label, features)


@pipeline_def(enable_conditionals=True)
def labels_only(source: Source, features: Features) -> DataNode:
    """Return the label of every track, whose audio is found and not touched: the first stage by itself."""
    _, label = read(source, features.mel)
    return _to_device(label, features)


@pipeline_def(enable_conditionals=True)
def crops_only(source: Source, features: Features, crops: int) -> tuple[DataNode, ...]:
    """Return `crops` random int16 crops of every track: reading and moving, without features."""
    audio, _ = read(source, features.mel)
    span = source.span(features.mel)
    cut = [crop(audio, span, fn.random.uniform(range=[0.0, 1.0]), skip=source.header) for _ in range(crops)]
    return tuple(_to_device(pcm, features) for pcm in cut)


def _positions(audio: DataNode, source: Source, mel: MelConfig, pairing: Pairing) -> list[DataNode]:
    """Return where the crops of the two views lie, from 0, the start of the track, to 1, its end."""
    first = fn.random.uniform(range=[0.0, 1.0])
    if not pairing.independent:
        return [first, first]
    second = fn.random.uniform(range=[0.0, 1.0])
    if pairing.max_distance is None:
        return [first, second]
    spare = fn.cast(length(audio) - source.header - source.span(mel), dtype=types.FLOAT)
    reach = pairing.max_distance * source.rate / dmath.max(spare, 1.0)
    low, high = dmath.max(first - reach, 0.0), dmath.min(first + reach, 1.0)
    return [first, low + (high - low) * second]


def _views(
    audio: DataNode, positions: list[DataNode], source: Source, recipe: Recipe, features: Features
) -> list[View]:
    """Return a view for each of the `positions`; those at the same one share what can be shared."""
    audio_steps = [step for step in recipe if isinstance(step, AudioAugmentation)]
    image_steps = [step for step in recipe if isinstance(step, ImageAugmentation)]
    views = []
    for index in range(len(positions)):
        position = positions[index]
        if index == 0 or position is not positions[0]:
            base = (
                _window(audio, position, source, audio_steps, features)
                if audio_steps
                else _plain(audio, position, source, features)
            )
        view = _from_audio(base, position, source, audio_steps, features) if audio_steps else base
        views.append(_augmented(view, image_steps, features.mel))
    return views


def _augmented(view: View, steps: list[ImageAugmentation], mel: MelConfig) -> View:
    image, draws = view.image, dict(view.draws)
    for step in steps:
        drawn = step.draw(mel)
        image = step.image(image, drawn, mel)
        draws |= _named(drawn, step, draws)
    return view._replace(image=image, draws=draws)


def _plain(audio: DataNode, position: DataNode | float, source: Source, features: Features) -> View:
    """Return a crop at `position` as it is."""
    pcm = _to_device(crop(audio, source.span(features.mel), position, skip=source.header), features)
    wave = _of_crop_length(to_float(pcm), source, features.mel)
    return View(_image(powers(wave, features.mel), features), wave, 1.0, {})


def _window(
    audio: DataNode, position: DataNode, source: Source, steps: list[AudioAugmentation], features: Features
) -> DataNode:
    """Return all the audio that a view may need: the longest crop of any `steps`, or the whole track."""
    reach = math.ceil(math.prod(step.reach for step in steps) * source.span(features.mel))
    return crop(audio, dmath.min(length(audio) - source.header, reach), position, skip=source.header)


def _from_audio(
    window: DataNode, position: DataNode, source: Source, steps: list[AudioAugmentation], features: Features
) -> View:
    """Return `window` at the tempo and pitch, and with the changes, that `steps` draw.

    With rate r and pitch k, r times as many samples are read and resampled to 1 / k of their number: the
    pitch is right, and frame j of the result lies at frame j r / k of the spectrogram.
    """
    mel, span = features.mel, source.span(features.mel)
    draws: Draws = {}
    drawn = [step.draw(mel) for step in steps]
    for index in range(len(steps)):
        draws |= _named(drawn[index], steps[index], draws)
    rate = _product(steps[index].rate(drawn[index]) for index in range(len(steps)))
    pitch = _product(steps[index].pitch(drawn[index]) for index in range(len(steps)))

    mixes = any(step.mixes for step in steps)
    fewest = length(window)
    window = _to_device(window, features)
    if mixes:
        draws["partner"] = partners()
        partner = fn.permute_batch(window, indices=draws["partner"])
        partner_position = fn.permute_batch(position, indices=draws["partner"])
        fewest = dmath.min(fewest, fn.permute_batch(fewest, indices=draws["partner"]))
    samples = span
    if not isinstance(rate, float):
        # A track too short for the tempo drawn, its own or its partner's, is played as fast as it allows.
        rate = dmath.min(rate, fn.cast(fewest, dtype=types.FLOAT) / span)
        samples = fn.cast(dmath.floor(rate * span + 0.5), dtype=types.INT32)
    wave = to_float(crop(window, samples, position))
    partner_wave = to_float(crop(partner, samples, partner_position)) if mixes else wave
    for index in range(len(steps)):
        wave = steps[index].wave(wave, partner_wave, drawn[index])

    if isinstance(rate, float) and isinstance(pitch, float):
        wave = _of_crop_length(wave, source, mel)  # no step changes tempo or pitch
        return View(_image(powers(wave, mel), features), wave, 1.0, draws)
    ratio = mel.sample_rate / source.rate
    lowest = ratio / math.prod(step.highest_pitch for step in steps)
    if ratio != 1.0:
        wave = resampled(wave, ratio / pitch, lowest=lowest, mel=mel, quality=RATE_QUALITY)
        spectrum = at_frames(magnitudes(wave, mel), rate / pitch, mel)
    else:
        if pitch != 1.0:
            wave = resampled(wave, 1.0 / pitch, lowest=lowest, mel=mel, quality=PITCH_QUALITY)
        spectrum = magnitudes(wave, mel)
        if rate != pitch:
            spectrum = at_frames(spectrum, rate / pitch, mel)
    return View(_image(spectrum * spectrum, features), wave, rate / pitch, draws)


def _of_crop_length(wave: DataNode, source: Source, mel: MelConfig) -> DataNode:
    """Return `wave`, `source.span` samples of the shards, as the `mel.samples` of a crop."""
    ratio = mel.sample_rate / source.rate
    if ratio == 1.0:
        return wave
    wave = resampled(wave, ratio, lowest=ratio, mel=mel, quality=RATE_QUALITY)
    return fn.slice(wave, start=0, shape=mel.samples, axes=[0], out_of_bounds_policy="pad")


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


def _named(drawn: Draws, step: Augmentation, earlier: Draws) -> Draws:
    """Return `drawn` under names that say of which step; a step that was there `earlier` gets a number."""
    name = step_name(step)
    times = sum(key.startswith(f"{name}.") and key.endswith(".on") for key in earlier)
    if times:
        name = f"{name}_{times + 1}"
    return {f"{name}.{key}": drawn[key] for key in drawn}
