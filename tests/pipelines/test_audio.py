"""Every audio step in both engines, against numpy and torchaudio, from samples and from what was drawn."""

from typing import Any

import numpy as np
import pytest
import torch
import torchaudio

from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines import noise
from siamusic_fast.pipelines.ops import AddNoise, MixWaves, Speed, WaveFunction
from siamusic_fast.pipelines.plan import Batch, Plan
from siamusic_fast.pipelines.random_numbers import RandomNumbers
from siamusic_fast.pipelines.recipes import Recipe
from siamusic_fast.pipelines.torch.engine import final_waves
from siamusic_fast.pipelines.wave_augmentations import PitchShift
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.conftest import PackAudio
from tests.pipelines.helpers import (
    BACKENDS,
    IN_DECIBELS,
    MEL,
    RATE,
    Array,
    first_views,
    plan_of,
    read,
    two_views,
)
from tests.pipelines.reference import pcm_of, torchaudio_log_mel, vocoded_log_mel

FINE = Frontend(mel=MelConfig(seconds=2.0, n_fft=2048, n_mels=160), mean=0.0, std=1.0)


class Case:
    """A first batch of all tracks of a shard set: what was planned, and what a backend makes of it."""

    def __init__(self, shard_set: ShardSet, recipe: str | Recipe, backend: str, **settings: Any) -> None:
        settings = {"frontend": IN_DECIBELS, "batch_size": 23, **settings}
        self.plan: Plan = plan_of(shard_set, recipe, **settings)
        self.batch: Batch = self.plan.batch((0, 0))
        self.views = first_views(two_views(shard_set, recipe, backend=backend, **settings))
        self._audio = pcm_of(shard_set)

    def drawn(self, view: int, name: str) -> Any:
        return self.batch.views[view].drawn[name]

    def crops(self, view: int) -> list[Array]:
        """Return what a view shows of every track, float64 in units of 16 bits."""
        shown = self.batch.views[view]
        starts = self.batch.spans[shown.span_index].starts + shown.starts
        return [
            self._audio[track][start : start + samples].astype(np.float64)
            for track, start, samples in zip(self.batch.tracks, starts, shown.samples, strict=True)
        ]


def assert_log_mels_of(waves: Any, images: Array, atol: float = 1e-3) -> None:
    for wave, image in zip(waves, images, strict=True):
        np.testing.assert_allclose(image, torchaudio_log_mel(wave, MEL), rtol=0, atol=atol)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["none", "gain(p=0)", "wavemix(p=0),noise(p=0)"])
def test_a_plain_view_is_the_crop_of_the_packed_samples(
    numbered: ShardSet, recipe: str, backend: str
) -> None:
    case = Case(numbered, recipe, backend, crops="independent")
    for view in range(2):
        assert_log_mels_of(case.crops(view), case.views[view])
    assert any((case.views[0] != case.views[1]).ravel())


@pytest.mark.parametrize("backend", BACKENDS)
def test_wave_mixing_adds_the_partner_with_the_weight_drawn(numbered: ShardSet, backend: str) -> None:
    case = Case(numbered, "wavemix(p=0.7)", backend)
    for view in range(2):
        crops, mix = np.stack(case.crops(view)), case.drawn(view, "wavemix")
        assert isinstance(mix, MixWaves)
        weight = mix.weight[:, None]
        assert_log_mels_of((1 - weight) * crops + weight * crops[mix.partner], case.views[view])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gain_multiplies_the_wave(numbered: ShardSet, backend: str) -> None:
    case = Case(numbered, "gain(p=0.7)", backend)
    for view in range(2):
        gain = case.drawn(view, "gain")
        assert isinstance(gain, WaveFunction)
        # Twice the amplitude is 6.02 dB: everything is moved by as much.
        plain = Case(numbered, "none", backend).views[view]
        moved = 20 * np.log10(gain.values["factor"])[:, :, None]
        np.testing.assert_allclose(case.views[view], plain + moved, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_as_many_decibels_below_the_sound_as_drawn(numbered: ShardSet, backend: str) -> None:
    case = Case(numbered, "noise(p=0.7)", backend)
    table = noise.table() / noise.SCALE
    for view in range(2):
        crops, added = np.stack(case.crops(view)), case.drawn(view, "noise")
        assert isinstance(added, AddNoise)
        places = (added.offset[:, None] + np.arange(MEL.samples)) % len(table)
        loudness = np.sqrt(np.square(crops).mean(axis=1, keepdims=True))
        noisy = crops + added.factor[:, None] * loudness * table[places]
        assert_log_mels_of(noisy, case.views[view])
        ratios = 10 * np.log10(
            np.square(crops).mean(axis=1) / np.square(noisy - crops).mean(axis=1).clip(1e-9)
        )
        on = added.factor > 0
        # The variance of 22,050 samples deviates by 1 in 105, which is 0.04 dB: five times that.
        np.testing.assert_allclose(ratios[on], -20 * np.log10(added.factor[on]), rtol=0, atol=0.21)


def test_the_table_of_noise_is_white_and_gaussian() -> None:
    values = noise.table() / noise.SCALE
    count = len(values)
    assert abs(values.mean()) < 4.5 / np.sqrt(count)
    assert abs(values.std() - 1) < 4.5 / np.sqrt(2 * count)
    assert abs((values**4).mean() - 3) < 4.5 * np.sqrt(96 / count)
    spectrum = abs(np.fft.rfft(values)) ** 2 / count
    bands = spectrum[1 : 1 + 64 * 1023].reshape(64, 1023).mean(axis=1)
    assert abs(bands - 1).max() < 5 / np.sqrt(1023)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crop_longer_than_the_table_of_noise_reads_it_again(pack_audio: PackAudio, backend: str) -> None:
    frontend = Frontend(mel=MelConfig(seconds=7.0), mean=0.0, std=1.0)
    long = {f"{row:06d}": 0.1 * np.random.default_rng(row).standard_normal(8 * RATE) for row in range(2)}
    case = Case(pack_audio(long), "noise(p=1)", backend, frontend=frontend, batch_size=2)
    crops, added = np.stack(case.crops(0)), case.drawn(0, "noise")
    table = np.tile(noise.table(), 3) / noise.SCALE
    for row in range(2):
        loudness = np.sqrt(np.square(crops[row]).mean()) * added.factor[row]
        noisy = crops[row] + loudness * table[added.offset[row] :][: len(crops[row])]
        expected = torchaudio_log_mel(noisy, frontend.mel)
        np.testing.assert_allclose(case.views[0][row], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_audio_steps_follow_each_other_in_their_order(numbered: ShardSet, backend: str) -> None:
    case = Case(numbered, "gain(p=1),wavemix(p=1),gain(p=1)", backend)
    for view in range(2):
        crops, mix = np.stack(case.crops(view)), case.drawn(view, "wavemix")
        first, second = (case.drawn(view, name).values["factor"] for name in ("gain", "gain_2"))
        weight = mix.weight[:, None]
        # What is mixed in is the partner as it was packed.
        mixed = second * ((1 - weight) * first * crops + weight * crops[mix.partner])
        assert_log_mels_of(mixed, case.views[view])
        waves = final_waves(case.batch, read(case.plan, case.batch), view, case.plan)
        np.testing.assert_allclose(32768 * np.stack(waves), mixed, rtol=0, atol=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stretched_views_equal_those_of_torchaudio_at_the_rate_drawn(
    numbered: ShardSet, backend: str
) -> None:
    case = Case(numbered, "stretch(p=0.7)", backend)
    slower = 0
    for view in range(2):
        speed, step = case.drawn(view, "stretch"), np.asarray(case.batch.views[view].stretch)
        assert isinstance(speed, Speed)
        slower += (step < speed.rate - 1e-9).sum()  # of a track that is too short for the rate drawn
        assert (step <= speed.rate + 1e-9).all()
        for wave, image, rate in zip(case.crops(view), case.views[view], step, strict=True):
            assert len(wave) == int(np.floor(rate * MEL.samples + 0.5))
            expected = vocoded_log_mel(wave, MEL, float(rate))
            # The vocoder pads with zeros beyond the last frame, where it is held here: those are left out.
            np.testing.assert_allclose(image[:, :-3], expected[:, :-3], rtol=0, atol=0.01)
    assert slower > 0


def partials(hertz: float, count: int, seconds: float = 2.0) -> Array:
    """Return the partials of a tone, below 8,000 Hz, falling by 1 / number."""
    time = np.arange(round(seconds * RATE)) / RATE
    waves = [np.cos(2 * np.pi * hertz * n * time) / n for n in range(1, count + 1) if hertz * n < 8000]
    return np.asarray(0.1 * np.sum(waves, axis=0))


def clicks(spacing: float, seconds: float) -> Array:
    audio = 0.001 * np.random.default_rng(0).standard_normal(round(seconds * RATE))
    audio[:: round(spacing * RATE)] = 0.9
    return audio


def onsets(image: Array) -> Array:
    """Return the frames at which the loudness peaks."""
    loudness = image.mean(axis=0)
    inner = loudness[1:-1]
    peaks = (inner > loudness[:-2]) & (inner >= loudness[2:]) & (inner > loudness.mean() + 10)
    return np.flatnonzero(peaks) + 1


def band_edges(mel: MelConfig) -> Array:
    highest = 2595 * np.log10(1 + mel.f_max / 700)
    return np.asarray(700 * (10 ** (np.linspace(0, highest, mel.n_mels + 2) / 2595) - 1))


def assert_loudest_at(hertz: float, image: Array, mel: MelConfig) -> None:
    edges, band = band_edges(mel), int(image.mean(axis=1).argmax())
    assert edges[band] - mel.sample_rate / mel.n_fft < hertz < edges[band + 2] + mel.sample_rate / mel.n_fft


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rate", [16_000, RATE, 44_100])
def test_a_shifted_sine_lies_at_the_frequency_drawn_whatever_the_rate_of_the_shards(
    pack_audio: PackAudio, rate: int, backend: str
) -> None:
    hertz = np.geomspace(400, 3000, 8)
    time = np.arange(3 * rate) / rate
    tones = {f"{row:06d}": 0.4 * np.sin(2 * np.pi * frequency * time) for row, frequency in enumerate(hertz)}
    case = Case(pack_audio(tones, rate=rate), "pitch(p=0.8)", backend, frontend=FINE, batch_size=8)
    for view in range(2):
        pitch = case.drawn(view, "pitch").grid_pitch / 128
        peaks = [abs(np.fft.rfft(crop)).argmax() / len(crop) * rate for crop in case.crops(view)]
        for image, original, factor in zip(case.views[view], peaks, pitch, strict=True):
            assert abs(hertz - original).min() < 2
            assert_loudest_at(original * factor, image, FINE.mel)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shifted_partials_equal_synthesized_ones(pack_audio: PackAudio, backend: str) -> None:
    shard_set = pack_audio({f"{row:06d}": (1 - 0.05 * row) * partials(300, 10) for row in range(6)})
    frontend = Frontend(mel=MelConfig(seconds=2.0), mean=0.0, std=1.0)
    case = Case(shard_set, "pitch(p=1)", backend, frontend=frontend, batch_size=6)
    for view in range(2):
        pitch = case.drawn(view, "pitch").grid_pitch / 128
        for image, crop, factor in zip(case.views[view], case.crops(view), pitch, strict=True):
            synthesized = partials(factor * 300, 10) * crop.max() / partials(300, 10).max()
            expected = torchaudio_log_mel(synthesized, frontend.mel)[:, 4:-4]
            bands = expected.mean(axis=1) > expected.mean(axis=1).max() - 30
            difference = (image[:, 4:-4] - expected)[bands]
            assert np.sqrt(np.square(difference).mean()) < 0.5  # dB


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_clicks_follow_the_tempo_drawn_and_not_the_pitch(
    pack_audio: PackAudio, rate: int, backend: str
) -> None:
    ticks = {f"{row:06d}": np.repeat(clicks(0.25, 4 - 0.05 * row), rate // RATE) for row in range(5)}
    frontend = Frontend(mel=MelConfig(seconds=2.0), mean=0.0, std=1.0)
    for recipe in ("pitch(p=1)", "pitch(p=1),stretch(p=1)"):
        case = Case(pack_audio(ticks, rate=rate), recipe, backend, frontend=frontend, batch_size=5)
        for view in range(2):
            rates = case.drawn(view, "stretch").rate if "stretch" in recipe else np.ones(5)
            for image, tempo in zip(case.views[view], rates, strict=True):
                spacing = np.diff(onsets(image)) * frontend.mel.hop_length / RATE
                assert spacing.mean() == pytest.approx(0.25 / tempo, rel=0.03)


class FourUp(PitchShift):
    """Always up by four semitones."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Speed:
        return Speed(grid_pitch=np.full(rng.count, round(128 * 2 ** (4 / 12))))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tone_shifted_beyond_the_band_does_not_come_back(pack_audio: PackAudio, backend: str) -> None:
    # At 16 kHz, 7,500 Hz goes up to 9,449 Hz, which a mirror would show at 6,551 Hz.
    time = np.arange(2 * 16_000) / 16_000
    shard_set = pack_audio({"000000": 0.4 * np.sin(2 * np.pi * 7500 * time)}, rate=16_000)
    mel = MelConfig(sample_rate=16_000, seconds=1.0, n_fft=1024, n_mels=64)
    settings: dict[str, Any] = {"frontend": Frontend(mel=mel, mean=0, std=1), "batch_size": 1}
    loudest, shifted = (
        Case(shard_set, recipe, backend, **settings).views[0].mean(axis=-1).max()
        for recipe in ("none", (FourUp(p=1),))
    )
    assert shifted < loudest - 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_halved_rate_equals_the_resampling_of_torchaudio(pack_audio: PackAudio, backend: str) -> None:
    rng = np.random.default_rng(0)
    time = np.arange(66_150) / 44_100
    chords = {
        f"{row:06d}": 0.1 * np.sin(2 * np.pi * (300 + 90 * row) * time) + 0.02 * rng.standard_normal(66_150)
        for row in range(5)
    }
    shard_set = pack_audio(chords, rate=44_100)
    for recipe in ("none", "gain(p=0)", "stretch(p=0)"):
        case = Case(shard_set, recipe, backend, batch_size=5)
        for crop, image in zip(case.crops(0), case.views[0], strict=True):
            wave = torch.from_numpy(crop).float()
            resampled = torchaudio.functional.resample(wave, 44_100, RATE, lowpass_filter_width=16)
            difference = abs(image - torchaudio_log_mel(resampled.numpy(), MEL))
            assert difference[:, 2:-2].max() < 0.1
            assert difference.max() < 1.5  # at the ends of a crop filters differ


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["none", "audio", "gain", "stretch(p=0),pitch(p=0)"])
def test_a_doubled_rate_gives_as_many_frames_as_any(numbered: ShardSet, recipe: str, backend: str) -> None:
    # 0.98 s and 0.75 s are lengths whose resampled samples are one more than the crop's.
    for seconds in (0.98, 0.75):
        frontend = Frontend(mel=MelConfig(sample_rate=44_100, seconds=seconds), mean=0, std=1)
        for view in first_views(two_views(numbered, recipe, frontend=frontend, backend=backend)):
            assert view.shape[1:] == (48, frontend.mel.frames)
            assert np.isfinite(view).all()
