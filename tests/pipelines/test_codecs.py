"""What shards of other codecs and rates give, against soundfile and torchaudio."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.augment import PitchShift
from siamusic_fast.pipelines.draws import Draws, uniform
from siamusic_fast.pipelines.trace import trace
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.both_backends import BACKENDS, IN_DECIBELS, MEL, same, take, two_views, whole_tracks
from tests.pipelines.conftest import RATE, PackAudio, noises
from tests.pipelines.graphs import Array
from tests.pipelines.reference import crop, pcm_of, samples_of
from tests.pipelines.test_audio_recipe import clicks, onsets
from tests.pipelines.test_mel import noisy_chord, torchaudio_log_mel

CD_RATE = 44_100
HALVED = MelConfig(seconds=1.0, sample_rate=RATE)


@pytest.fixture(scope="session")
def numbered_ogg(pack_audio: PackAudio) -> ShardSet:
    return pack_audio(noises(6), codec="ogg", quality=5.0)


@pytest.fixture(scope="session")
def cd_rate(pack_audio: PackAudio) -> ShardSet:
    """Chords with some noise, 1.5 to 2.1 s at 44,100 Hz; the label of each is its number."""
    return pack_audio(
        {
            f"{row:06d}": noisy_chord(MelConfig(seconds=1.5 + 0.1 * row, sample_rate=CD_RATE), row) / 32768
            for row in range(7)
        },
        rate=CD_RATE,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["audio", pytest.param("image", marks=pytest.mark.slow)])
def test_flac_gives_the_very_batches_of_wav(
    numbered: ShardSet, numbered_flac: ShardSet, recipe: str, backend: str
) -> None:
    wav, flac = (two_views(backend, data, recipe=recipe) for data in (numbered, numbered_flac))
    assert same(take(wav, 6), take(flac, 6))


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_flac_tracks_are_those_of_wav(
    numbered: ShardSet, numbered_flac: ShardSet, backend: str
) -> None:
    wav, flac = (whole_tracks(backend, data, crops=3) for data in (numbered, numbered_flac))
    assert same(take(wav, 6), take(flac, 6))


def test_vorbis_is_decoded_as_by_soundfile(numbered_ogg: ShardSet) -> None:
    decoded = [soundfile.read(io.BytesIO(sample["ogg"]))[0] for sample in samples_of(numbered_ogg)]
    view, _ = trace(numbered_ogg, recipe="none", mel=MEL, normalisation=IN_DECIBELS).views
    for audio, wave, image, position in zip(decoded, view.waves, view.images, view.positions, strict=True):
        wanted = crop(audio, MEL.samples, position)
        np.testing.assert_allclose(wave, wanted, rtol=0, atol=1.5 / 32768)  # it is rounded to int16
        expected = torchaudio_log_mel((wanted * 32768).astype(np.float32), MEL)
        np.testing.assert_allclose(image, expected, rtol=0, atol=0.05)


def test_vorbis_of_the_torch_backend_equals_that_of_dali(numbered_ogg: ShardSet) -> None:
    ours, theirs = (whole_tracks(backend, numbered_ogg, crops=3) for backend in ("torch", "dali"))
    for (mels, labels), (dali_mels, dali_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, dali_labels)
        torch.testing.assert_close(mels, dali_mels, rtol=0, atol=0.05)


@pytest.mark.parametrize("recipe", ["none", "gain(p=0)", "stretch(p=0)"])
def test_a_halved_rate_equals_the_resampling_of_torchaudio(cd_rate: ShardSet, recipe: str) -> None:
    view, _ = trace(cd_rate, recipe=recipe, mel=HALVED, normalisation=IN_DECIBELS).views
    for audio, image, position in zip(pcm_of(cd_rate), view.images, view.positions, strict=True):
        if recipe == "stretch(p=0)":  # the crop lies in a longer window that is cut first
            audio = crop(audio, min(len(audio), int(1.5 * CD_RATE)), position)
        expected = _halved(crop(audio, CD_RATE, position)).numpy()
        assert image.shape == expected.shape == (48, 87)
        _assert_close(image, expected)


def test_a_halved_rate_of_the_torch_backend_equals_that_of_dali(cd_rate: ShardSet) -> None:
    options: dict[str, Any] = {"mel": HALVED, "crops": 3}
    ours, theirs = (whole_tracks(backend, cd_rate, **options) for backend in ("torch", "dali"))
    for (mels, labels), (dali_mels, dali_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, dali_labels)
        _assert_close(mels.flatten(0, 2).numpy(), dali_mels.flatten(0, 2).numpy())


@pytest.fixture(scope="module", params=[16_000, 44_100])
def sines(request: pytest.FixtureRequest, pack_audio: PackAudio) -> ShardSet:
    """Four tracks of 1,000 Hz at a rate that is not that of the features."""
    time = np.arange(2 * request.param) / request.param
    tones = {f"{row:06d}": 0.4 * np.sin(2 * np.pi * 1000 * time[row:]) for row in range(4)}
    return pack_audio(tones, rate=request.param)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["none", "audio"])
def test_a_sine_lies_in_its_band_at_any_rate_of_the_shards(
    sines: ShardSet, backend: str, recipe: str
) -> None:
    mel = MelConfig(seconds=1.0, n_fft=1024, n_mels=64)
    # The audio recipe may move it by four semitones and add another one: its loudest band is one of those.
    low, high = (1.0, 1.0) if recipe == "none" else (2 ** (-4 / 12), 2 ** (4 / 12))
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 66) / 2595) - 1)
    for views in two_views(backend, sines, mel=mel, recipe=recipe):
        for image in torch.cat(views)[:, 0]:
            assert image.shape == (64, mel.frames)
            band = int(image.mean(dim=1).argmax())
            assert edges[band] <= 1000 * high
            assert 1000 * low <= edges[band + 2]


def test_the_tempo_is_right_at_another_rate_of_the_shards(pack_audio: PackAudio) -> None:
    shard_set = pack_audio({f"{n:06d}": _clicks_at_cd_rate(4 - 0.1 * n) for n in range(3)}, rate=CD_RATE)
    mel = MelConfig(seconds=2.0)
    for view in trace(shard_set, recipe="stretch(p=1),pitch(p=1)", mel=mel, normalisation=IN_DECIBELS).views:
        for image, rate in zip(view.images, view.draws["stretch.rate"].ravel(), strict=True):
            spacing = np.diff(onsets(torch.from_numpy(image))) * mel.hop_length / RATE
            assert spacing.mean() == pytest.approx(0.25 / rate, rel=0.03)


def test_a_tone_shifted_beyond_the_band_does_not_come_back(pack_audio: PackAudio) -> None:
    # At 16 kHz, 7,500 Hz goes up to 9,449 Hz, which a mirror would show at 6,551 Hz.
    time = np.arange(2 * 16_000) / 16_000
    tones = {f"{row:06d}": 0.4 * np.sin(2 * np.pi * 7500 * time[row:]) for row in range(3)}
    mel = MelConfig(sample_rate=16_000, seconds=1.0, n_fft=1024, n_mels=64)
    up = (_FourUp(p=1.0),)
    shard_set = pack_audio(tones, rate=16_000)
    ((view, _),) = list(two_views("dali", shard_set, mel=mel, recipe=up, batch_size=3))
    ((whole, _),) = list(two_views("dali", shard_set, mel=mel, recipe="none", batch_size=3))
    assert float(view.mean(dim=-1).max()) < float(whole.mean(dim=-1).max()) - 50


class _FourUp(PitchShift):
    """Always up by four semitones."""

    def parameters(self, mel: MelConfig) -> Draws:
        return {"semitones": uniform(4.0, 4.0)}


@pytest.mark.parametrize("recipe", ["audio", "gain", "stretch(p=0),pitch(p=0)"])
def test_a_doubled_rate_gives_as_many_frames_as_any(numbered: ShardSet, recipe: str) -> None:
    # 0.98 s and 0.75 s are lengths whose resampled samples are one more than the crop's.
    for seconds in (0.98, 0.75):
        mel = MelConfig(sample_rate=44_100, seconds=seconds)
        for view, _ in two_views("dali", numbered, mel=mel, recipe=recipe):
            assert view.shape[2:] == (48, mel.frames)


def _clicks_at_cd_rate(seconds: float) -> Array:
    return np.repeat(clicks(0.25, seconds), 2)


def _halved(pcm: Array) -> torch.Tensor:
    """Return the log-mels of `pcm`, int16 at 44,100 Hz, at half the rate, all by torchaudio."""
    wave = torch.from_numpy(pcm.astype(np.float32) / 32768)
    resampled = torchaudio.functional.resample(wave, CD_RATE, RATE, lowpass_filter_width=16)
    return torchaudio_log_mel(resampled.numpy() * 32768, HALVED)


def _assert_close(found: Array, expected: Array) -> None:
    """Compare decibels, away from the ends of the crop and of the band, where filters differ."""
    inner = found[..., 2:-2] - expected[..., 2:-2]
    assert abs(inner).max() < 0.1
    assert abs(found - expected).max() < 1.5
