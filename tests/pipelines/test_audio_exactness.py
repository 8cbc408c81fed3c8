"""Every audio step, rebuilt with numpy and torchaudio from the packed samples and from what was drawn."""

from typing import Any

import numpy as np
import pytest
import torch
import torchaudio

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.augment import PitchShift, TimeStretch
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.pipelines.trace import TracedView, trace
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.conftest import RATE, PackAudio
from tests.pipelines.graphs import Array
from tests.pipelines.reference import crop, pcm_of, samples_of
from tests.pipelines.test_audio_recipe import clicks, onsets
from tests.pipelines.test_mel import torchaudio_log_mel

MEL = MelConfig(seconds=1.0)
TWO_SECONDS = MelConfig(seconds=2.0)
IN_DECIBELS = Normalisation(0.0, 1.0)
ROUNDING = 1e-6
"""Of samples between -1 and 1, in float32."""


def views(shard_set: ShardSet, recipe: Any, mel: MelConfig = MEL, **options: Any) -> tuple[TracedView, ...]:
    return trace(shard_set, recipe=recipe, mel=mel, normalisation=IN_DECIBELS, tracks=23, **options).views


def crops(shard_set: ShardSet, view: TracedView) -> Array:
    """Return what `view` shows of every track, float64 [tracks, samples] from -1 to 1."""
    cut = [crop(audio, MEL.samples, at) for audio, at in zip(pcm_of(shard_set), view.positions, strict=True)]
    return np.stack(cut) / 32768


def on(view: TracedView, name: str) -> Array:
    return view.draws[f"{name}.on"].astype(bool)


def by_row(view: TracedView, name: str) -> Array:
    return view.draws[name].astype(np.float64).reshape(-1, 1)


@pytest.mark.parametrize("recipe", ["none", "image", "gain(p=0)"])
def test_the_original_is_the_crop_of_the_packed_samples_at_its_position(
    numbered: ShardSet, recipe: str
) -> None:
    for view in views(numbered, recipe):
        wanted = crops(numbered, view)
        np.testing.assert_array_equal(np.stack(view.waves), wanted)
        for image, wave in zip(view.originals, wanted, strict=True):
            expected = torchaudio_log_mel((wave * 32768).astype(np.int16), MEL).numpy()
            np.testing.assert_allclose(image, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_wave_mixing_adds_the_partner_with_the_weight_drawn(numbered: ShardSet, p: float) -> None:
    for view in views(numbered, f"wavemix(p={p})"):
        wanted, weight = crops(numbered, view), by_row(view, "wavemix.weight")
        mixed = weight * wanted + (1 - weight) * wanted[view.draws["partner"].ravel()]
        wanted = np.where(on(view, "wavemix")[:, None], mixed, wanted)
        np.testing.assert_allclose(np.stack(view.waves), wanted, rtol=0, atol=ROUNDING)
        _assert_images_are_of_waves(view)


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_gain_is_as_many_decibels_as_drawn(numbered: ShardSet, p: float) -> None:
    for view in views(numbered, f"gain(p={p})"):
        wanted = crops(numbered, view)
        wanted *= np.where(on(view, "gain")[:, None], 10 ** (by_row(view, "gain.decibels") / 20), 1)
        np.testing.assert_allclose(np.stack(view.waves), wanted, rtol=0, atol=ROUNDING)
        _assert_images_are_of_waves(view)


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_noise_is_white_and_as_many_decibels_below_the_sound_as_drawn(numbered: ShardSet, p: float) -> None:
    for view in views(numbered, f"noise(p={p})"):
        wanted, found, noisy = crops(numbered, view), np.stack(view.waves), on(view, "noise")
        np.testing.assert_array_equal(found[~noisy], wanted[~noisy])
        noise = (found - wanted)[noisy]
        ratio = 10 * np.log10((wanted[noisy] ** 2).mean(axis=1) / (noise**2).mean(axis=1))
        # The variance of 22,050 samples deviates by 1 in 105, which is 0.04 dB: five times that.
        np.testing.assert_allclose(ratio, view.draws["noise.snr"].ravel()[noisy], rtol=0, atol=0.21)
        unit = noise / noise.std(axis=1, keepdims=True)
        correlations = np.concatenate([unit @ wanted[noisy].T / 0.1, unit @ unit.T - _eye(unit)], axis=1)
        assert abs(correlations).max() / MEL.samples < 5.5 / np.sqrt(MEL.samples)
        assert abs((unit[:, 1:] * unit[:, :-1]).mean(axis=1)).max() < 5.5 / np.sqrt(MEL.samples)
        assert abs((unit**4).mean(axis=1) - 3).max() < 5.5 * np.sqrt(96 / MEL.samples)  # Gaussian
        _assert_images_are_of_waves(view)


def test_audio_steps_follow_each_other_in_their_order(numbered: ShardSet) -> None:
    for view in views(numbered, "gain(p=1),wavemix(p=1),gain(p=1)"):
        wanted, weight = crops(numbered, view), by_row(view, "wavemix.weight")
        louder = wanted * 10 ** (by_row(view, "gain.decibels") / 20)
        mixed = weight * louder + (1 - weight) * wanted[view.draws["partner"].ravel()]
        wanted = mixed * 10 ** (by_row(view, "gain_2.decibels") / 20)
        np.testing.assert_allclose(np.stack(view.waves), wanted, rtol=0, atol=2 * ROUNDING)


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_stretched_views_equal_those_of_torchaudio_at_the_rate_drawn(numbered: ShardSet, p: float) -> None:
    recipe = parse_recipe(f"stretch(p={p})")
    window = int(np.ceil(recipe[0].fastest * MEL.samples))  # type: ignore[attr-defined]
    slower = 0
    for view in views(numbered, recipe):
        drawn = np.where(on(view, "stretch"), view.draws["stretch.rate"].ravel(), 1)
        assert "partner" not in view.draws
        for row, audio in enumerate(pcm_of(numbered)):
            # A track that is too short is played as fast as it allows.
            rate = np.minimum(drawn[row], np.float32(min(len(audio), window) / MEL.samples))
            assert view.tempos[row] == pytest.approx(rate, rel=1e-6)
            slower += rate < drawn[row]
            near = crop(audio, min(len(audio), window), view.positions[row])
            samples = int(np.floor(rate * MEL.samples + 0.5))
            np.testing.assert_array_equal(view.waves[row], crop(near, samples, view.positions[row]) / 32768)
            expected = stretched(torch.from_numpy(view.waves[row]), float(rate))
            # The vocoder pads with zeros beyond the last frame, where DALI holds it: those are left out.
            np.testing.assert_allclose(view.images[row][:, :-3], expected[:, :-3], rtol=0, atol=0.01)
    assert slower > 0  # some tracks were too short for their rate


def test_a_shifted_sine_lies_at_the_frequency_drawn(pack_audio: PackAudio) -> None:
    frequencies = np.geomspace(400, 3000, 12)
    shard_set = pack_audio({f"{row:06d}": partials(hertz, 1) for row, hertz in enumerate(frequencies)})
    of_row = np.array([frequencies[int(sample["cls"])] for sample in samples_of(shard_set)])
    bin_width = RATE / TWO_SECONDS.n_fft
    for view in views(shard_set, (PitchShift(p=1),), TWO_SECONDS):
        moved = of_row * 2 ** (view.draws["pitch.semitones"].ravel() / 12)
        for row, wave in enumerate(view.waves):
            spectrum = abs(np.fft.rfft(wave * np.hanning(len(wave))))
            found = spectrum.argmax() * RATE / len(wave)
            assert found == pytest.approx(moved[row], abs=1.0)
            # Its tempo undone, the wave lasts as long as the crop.
            assert len(wave) / RATE / view.tempos[row] == pytest.approx(TWO_SECONDS.seconds, abs=1e-3)
            assert abs(_loudest_hertz(view.images[row]) - moved[row]) < bin_width + _band_width(moved[row])
    assert bin_width < 44


def test_shifted_spectra_equal_those_of_torchaudio(pack_audio: PackAudio) -> None:
    # Cosines go on undisturbed when reflected at the start: the phase vocoder of torchaudio, which starts
    # from the phases there, keeps the partials coherent. Its frequencies are rounded to 1 in 1,000.
    tones = {f"{row:06d}": partials(220 * 2 ** (row / 7), 20) for row in range(8)}
    shard_set = pack_audio(tones)
    inner = slice(4, -4)
    for view in views(shard_set, (PitchShift(p=1),), TWO_SECONDS):
        for row, audio in enumerate(pcm_of(shard_set)):
            wave = torch.from_numpy(audio.astype(np.float32) / 32768)
            semitones = float(view.draws["pitch.semitones"].ravel()[row])
            shifted = torchaudio.functional.pitch_shift(wave, 1000, semitones, n_fft=2048)
            expected = torchaudio_log_mel(shifted.numpy() * 32768, TWO_SECONDS).numpy()[:, inner]
            bands = expected.mean(axis=1) > expected.mean(axis=1).max() - 30
            difference = (view.images[row][:, inner] - expected)[bands]
            assert np.sqrt(np.square(difference).mean()) < 0.5  # dB


def test_shifted_partials_equal_synthesised_ones(pack_audio: PackAudio) -> None:
    hertz = 300.0
    shard_set = pack_audio({f"{row:06d}": (1 - 0.05 * row) * partials(hertz, 10) for row in range(6)})
    for view in views(shard_set, (PitchShift(p=1),), TWO_SECONDS):
        for row, audio in enumerate(pcm_of(shard_set)):
            factor = 2 ** (float(view.draws["pitch.semitones"].ravel()[row]) / 12)
            synthesised = partials(factor * hertz, 10) * audio.max() / partials(hertz, 10).max()
            expected = torchaudio_log_mel(synthesised.astype(np.float32), TWO_SECONDS).numpy()[:, 4:-4]
            bands = expected.mean(axis=1) > expected.mean(axis=1).max() - 30
            found = view.images[row][:, 4:-4]
            assert np.sqrt(np.square((found - expected)[bands]).mean()) < 0.5  # dB


def test_clicks_stay_where_they_were_when_the_pitch_moves(pack_audio: PackAudio) -> None:
    shard_set = pack_audio({f"{row:06d}": clicks(0.25, 3 - 0.05 * row) for row in range(6)})
    for view in views(shard_set, (PitchShift(p=1),), TWO_SECONDS):
        for image, original in zip(view.images, view.originals, strict=True):
            before, after = (_inner(onsets(torch.from_numpy(each))) for each in (original, image))
            assert len(before) >= 6
            np.testing.assert_allclose(after, before, rtol=0, atol=1)


def test_tempo_and_pitch_change_independently_of_each_other(pack_audio: PackAudio) -> None:
    shard_set = pack_audio({f"{row:06d}": clicks(0.25, 4 - 0.05 * row) for row in range(6)})
    recipe = (PitchShift(p=1), TimeStretch(p=1))
    for view in views(shard_set, recipe, TWO_SECONDS):
        pitch = 2 ** (view.draws["pitch.semitones"].ravel() / 12)
        np.testing.assert_allclose(view.tempos * pitch, view.draws["stretch.rate"].ravel(), rtol=1e-5)
        for row, image in enumerate(view.images):
            spacing = np.diff(onsets(torch.from_numpy(image))) * TWO_SECONDS.hop_length / RATE
            rate = float(view.draws["stretch.rate"].ravel()[row])
            assert spacing.mean() == pytest.approx(0.25 / rate, rel=0.03)


def _inner(frames: Array) -> Array:
    """Return those of the `frames` that do not lie at an end, where half a click may or may not show."""
    return frames[(frames > 10) & (frames < TWO_SECONDS.frames - 11)]


def _assert_images_are_of_waves(view: TracedView) -> None:
    for image, wave in zip(view.images, view.waves, strict=True):
        expected = torchaudio_log_mel(wave * 32768, MEL).numpy()
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-3)


def stretched(wave: torch.Tensor, rate: float) -> Array:
    """Return the log-mels of `wave` at `rate`, by torchaudio's phase vocoder."""
    spectrum = torchaudio.transforms.Spectrogram(MEL.n_fft, hop_length=MEL.hop_length, power=None)(wave)
    stretch = torchaudio.transforms.TimeStretch(MEL.hop_length, MEL.n_fft // 2 + 1, fixed_rate=rate)
    scale = torchaudio.transforms.MelScale(MEL.n_mels, RATE, f_max=MEL.f_max, n_stft=MEL.n_fft // 2 + 1)
    power = scale(stretch(spectrum).abs().square()[:, : MEL.frames])
    return np.asarray(torchaudio.transforms.AmplitudeToDB("power")(power))


def partials(hertz: float, count: int) -> Array:
    """Return two seconds of the partials of a tone, below 8,000 Hz, falling by 1 / number."""
    time = np.arange(TWO_SECONDS.samples) / RATE
    waves = [np.cos(2 * np.pi * hertz * n * time) / n for n in range(1, count + 1) if hertz * n < 8000]
    return np.asarray(0.1 * np.sum(waves, axis=0))


def _loudest_hertz(image: Array) -> float:
    return float(_edges()[1:-1][image.mean(axis=1).argmax()])


def _band_width(hertz: float) -> float:
    edges = _edges()
    return float(np.diff(edges)[min(int(np.searchsorted(edges, hertz)), len(edges) - 2)])


def _edges() -> Array:
    highest = 2595 * np.log10(1 + TWO_SECONDS.f_max / 700)
    return np.asarray(700 * (10 ** (np.linspace(0, highest, TWO_SECONDS.n_mels + 2) / 2595) - 1))


def _eye(rows: Array) -> Array:
    return np.asarray(np.eye(len(rows)) * rows.shape[1])
