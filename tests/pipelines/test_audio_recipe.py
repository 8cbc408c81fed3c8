"""The audio recipe, seen from outside: known tracks in, spectrograms out."""

import numpy as np
import pytest
import torch
import torchaudio
from nvidia.dali import fn

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.augment import AudioAugmentation, PitchShift, TimeStretch, WaveMixup
from siamusic_fast.pipelines.loader import TwoViewLoader
from siamusic_fast.pipelines.mel import Normalisation, at_frames
from tests.pipelines.conftest import RATE, PackAudio
from tests.pipelines.graphs import Array, run

MEL = MelConfig(seconds=2.0)
FINE = MelConfig(seconds=2.0, n_fft=2048, n_mels=160)


def views(
    pack_audio: PackAudio, tracks: list[Array], step: AudioAugmentation, mel: MelConfig = MEL
) -> torch.Tensor:
    """Return both views of every track in dB, [2 tracks, n_mels, frames]."""
    shard_set = pack_audio({f"{index:06d}": audio for index, audio in enumerate(tracks)})
    loader = TwoViewLoader(
        shard_set, recipe=(step,), mel=mel, normalisation=Normalisation(0.0, 1.0), batch_size=len(tracks)
    )
    return torch.cat(next(iter(loader)))[:, 0]


def sine(frequency: float, seconds: float) -> Array:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)


def clicks(spacing: float, seconds: float) -> Array:
    audio = 0.001 * np.random.default_rng(0).standard_normal(round(seconds * RATE))
    audio[:: round(spacing * RATE)] = 0.9
    return audio


def onsets(decibels: torch.Tensor) -> Array:
    """Return the frames at which the loudness peaks."""
    loudness = decibels.mean(dim=0).numpy()
    inner = loudness[1:-1]
    peaks = (inner > loudness[:-2]) & (inner >= loudness[2:]) & (inner > loudness.mean() + 10)
    return np.flatnonzero(peaks) + 1


def peak_hertz(decibels: torch.Tensor, mel: MelConfig) -> float:
    """Return the centre of the loudest mel band."""
    highest = 2595 * np.log10(1 + mel.f_max / 700)
    band = int(decibels.mean(dim=1).argmax())
    return float(700 * (10 ** ((band + 1) / (mel.n_mels + 1) * highest / 2595) - 1))


@pytest.mark.parametrize("rate", [0.6, 0.85, 1.0, 1.37, 1.5])
def test_magnitudes_are_stretched_as_by_the_phase_vocoder_of_torchaudio(rate: float) -> None:
    length = round(rate * MEL.samples)
    wave = torch.from_numpy(
        0.05 * np.random.default_rng(0).standard_normal(length) + sine(440, length / RATE)
    )
    spectrum = torchaudio.transforms.Spectrogram(MEL.n_fft, hop_length=MEL.hop_length, power=None)(wave)
    stretch = torchaudio.transforms.TimeStretch(MEL.hop_length, MEL.n_fft // 2 + 1, fixed_rate=rate)
    magnitudes = spectrum.abs().float().numpy()
    (found,) = run(lambda node: at_frames(node, fn.constant(fdata=rate)[0], MEL), [magnitudes], layout="ft")
    expected = stretch(spectrum.to(torch.complex64)).abs()[:, : MEL.frames]
    # The vocoder pads with zeros beyond the last frame, where DALI holds it: those are left out.
    np.testing.assert_allclose(found[:, :-3], expected[:, :-3], rtol=0, atol=2e-5 * magnitudes.max())


def test_a_stretched_crop_equals_torchaudio_from_pcm_to_decibels(pack_audio: PackAudio) -> None:
    # As long as the crop that the rate asks for, so that where it begins is not left to chance.
    length = round(1.5 * MEL.samples)
    track = 0.05 * np.random.default_rng(0).standard_normal(length) + sine(440, length / RATE)
    (found, _) = views(pack_audio, [track], TimeStretch(p=1, slowest=1.5, fastest=1.5))
    pcm = torch.from_numpy(np.rint(track * 32768)).float() / 32768
    spectrum = torchaudio.transforms.Spectrogram(MEL.n_fft, hop_length=MEL.hop_length, power=None)(pcm)
    stretch = torchaudio.transforms.TimeStretch(MEL.hop_length, MEL.n_fft // 2 + 1, fixed_rate=1.5)
    scale = torchaudio.transforms.MelScale(MEL.n_mels, MEL.sample_rate, f_max=MEL.f_max, n_stft=257)
    power = scale(stretch(spectrum).abs().square()[:, : MEL.frames])
    expected = torchaudio.transforms.AmplitudeToDB("power")(power)
    torch.testing.assert_close(found[:, :-3], expected[:, :-3], rtol=0, atol=0.01)


def test_a_stretched_track_keeps_its_pitch_and_changes_its_tempo(pack_audio: PackAudio) -> None:
    tracks = [sine(1000, 4), clicks(0.25, 4)]
    shard_set_views = views(pack_audio, tracks, TimeStretch(p=1, slowest=1.5, fastest=1.5), FINE)
    by_loudness = sorted(shard_set_views, key=lambda view: float(view.mean(dim=1).max()))
    for tone in by_loudness[2:]:
        assert peak_hertz(tone, FINE) == pytest.approx(1000, rel=0.03)
    for ticks in by_loudness[:2]:
        spacing = np.diff(onsets(ticks)) * FINE.hop_length / RATE
        assert spacing.mean() == pytest.approx(0.25 / 1.5, rel=0.02)


def test_a_shifted_track_keeps_its_tempo_and_moves_every_tone_alike(pack_audio: PackAudio) -> None:
    low, high = 500.0, 2000.0
    pair = sine(low, 4) + 0.001 * sine(high, 4)
    # Tracks that are the same would be packed once: their lengths differ a little.
    pairs = [pair[: len(pair) - index] for index in range(12)]
    ticks = [clicks(0.25, 4), clicks(0.25, 3.9)]
    shifts = []
    for view in views(pack_audio, pairs + ticks, PitchShift(p=1), FINE):
        if len(onsets(view)) > 3:
            spacing = np.diff(onsets(view)) * FINE.hop_length / RATE
            assert spacing.mean() == pytest.approx(0.25, rel=0.02)
            continue
        octave = int((FINE.n_mels + 1) * np.log10(1 + 1000 / 700) / np.log10(1 + FINE.f_max / 700))
        upper = view.clone()
        upper[:octave] = -100
        semitones = 12 * np.log2(peak_hertz(view, FINE) / low)
        assert 12 * np.log2(peak_hertz(upper, FINE) / high) == pytest.approx(semitones, abs=0.6)
        shifts.append(semitones)
    assert len(shifts) == 24  # that none of them is below -1, or none above 1, has a chance of 1 in 100,000
    assert -4.5 < min(shifts) < -1
    assert 1 < max(shifts) < 4.5


def test_wave_mixup_adds_another_track_of_the_batch(pack_audio: PackAudio) -> None:
    tones = [sine(frequency, 3) for frequency in (300, 1000, 3000)]
    for view in views(pack_audio, tones, WaveMixup(p=1), FINE):
        loudness = view.mean(dim=1).numpy()
        assert sum(loudness[_band(frequency)] > loudness.max() - 40 for frequency in (300, 1000, 3000)) == 2


def test_a_track_too_short_for_the_tempo_is_played_as_fast_as_it_allows(pack_audio: PackAudio) -> None:
    # 2.5 s allow a rate of 1.25 for a crop of 2 s.
    for view in views(pack_audio, [clicks(0.25, 2.5)], TimeStretch(p=1, slowest=1.5, fastest=1.5)):
        spacing = np.diff(onsets(view)) * MEL.hop_length / RATE
        assert spacing.mean() == pytest.approx(0.25 / 1.25, rel=0.02)


def _band(hertz: float) -> int:
    mels = 2595 * np.log10(1 + np.array([hertz, FINE.f_max]) / 700)
    return round(float(mels[0] / mels[1]) * (FINE.n_mels + 1)) - 1
