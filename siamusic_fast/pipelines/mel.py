"""DALI nodes that turn audio into log-mel spectrograms, equal to torchaudio's."""

from typing import NamedTuple

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.dali import DataNode, fn, types


class Normalisation(NamedTuple):
    """What brings log-mel spectrograms to mean 0 and deviation 1, in dB."""

    mean: float
    deviation: float


def to_float(audio: DataNode) -> DataNode:
    """Return int16 `audio` as float32 in [-1, 1)."""
    return fn.cast(audio, dtype=types.FLOAT) * (1.0 / 32768)


def magnitudes(wave: DataNode, mel: MelConfig) -> DataNode:
    """Return |STFT| of `wave`, float32 [n_fft / 2 + 1, frames]: centred frames, reflected at the ends."""
    return _spectrogram(wave, mel, power=1)


def powers(wave: DataNode, mel: MelConfig) -> DataNode:
    """Return |STFT|^2 of `wave`, float32 [n_fft / 2 + 1, frames]."""
    return _spectrogram(wave, mel, power=2)


def at_frames(spectrum: DataNode, step: DataNode, mel: MelConfig) -> DataNode:
    """Return `spectrum`, [bins, any], at the frames 0, step, 2 step...: float32 [bins, frames].

    Linear between two frames, as a phase vocoder interpolates magnitudes. Resizing takes the centre of
    output pixel j, at j + 0.5, from roi_start + (j + 0.5) step, where the centre of frame i lies at i + 0.5:

        roi_start + (j + 0.5) step = j step + 0.5    gives    roi_start = 0.5 - 0.5 step
    """
    bins = mel.n_fft // 2 + 1
    start = 0.5 - 0.5 * step
    resized = fn.resize(
        fn.reshape(spectrum, shape=[bins, -1, 1], layout="HWC"),
        size=[bins, mel.frames],
        roi_start=fn.stack(0.0, start),
        roi_end=fn.stack(float(bins), start + mel.frames * step),
        interp_type=types.INTERP_LINEAR,
        antialias=False,
    )
    return fn.reshape(resized, shape=[bins, mel.frames], layout="ft")


def log_mel(power: DataNode, mel: MelConfig) -> DataNode:
    """Return the mel spectrogram of `power` in dB relative to 1, float32 [n_mels, frames].

    Equals `torchaudio.transforms.MelSpectrogram(mel_scale="htk", norm=None)` followed by
    `AmplitudeToDB(top_db=None)` where `floor_db` is -100, torchaudio's own floor.
    """
    bands = fn.mel_filter_bank(
        power,
        sample_rate=mel.sample_rate,
        nfilter=mel.n_mels,
        freq_low=0.0,
        freq_high=mel.f_max,
        mel_formula="htk",
        normalize=False,
    )
    return fn.to_decibels(bands, multiplier=10.0, reference=1.0, cutoff_db=mel.floor_db)


def _spectrogram(wave: DataNode, mel: MelConfig, *, power: int) -> DataNode:
    # DALI's own default window is symmetric, which moves the result by 0.7 dB: a periodic one is given.
    # A shorter one lies in zeros: torch and DALI centre one of odd length differently.
    window = np.zeros(mel.n_fft)
    left = (mel.n_fft - mel.window) // 2
    periodic_hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(mel.window) / mel.window)
    window[left : left + mel.window] = periodic_hann
    return fn.spectrogram(
        wave,
        nfft=mel.n_fft,
        window_length=mel.n_fft,
        window_step=mel.hop_length,
        window_fn=window.tolist(),
        center_windows=True,
        reflect_padding=True,
        power=power,
    )
