"""DALI nodes that turn audio in units of 16 bits into normalized log-mels, equal to torchaudio's."""

import math

import numpy as np
from nvidia.dali import fn, types

from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.dali.inputs import DataNode
from siamusic_fast.pipelines.ops import FULL_SCALE


def to_float(pcm: DataNode) -> DataNode:
    """Return int16 `pcm` as float32 in the same units: the decibels are shifted instead of every sample."""
    return fn.cast(pcm, dtype=types.FLOAT)


def spectrogram(wave: DataNode, mel: MelConfig, *, power: int) -> DataNode:
    """Return |STFT| ** `power`, float32 [n_fft / 2 + 1, frames]: frames are centered, ends reflected."""
    # DALI's own default window is symmetric, which moves the result by 0.7 dB: a periodic one is given.
    # A shorter one lies in zeros: torch and DALI center one of odd length differently.
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


def at_frames(
    spectrum: DataNode, start: DataNode, end: DataNode, mel: MelConfig, batch_size: int
) -> DataNode:
    """Return `spectrum`, [bins, any], at the frames that `frame_box` says: float32 [bins, frames]."""
    bins = mel.n_fft // 2 + 1
    resized = fn.resize(
        fn.reshape(spectrum, shape=[bins, -1, 1], layout="HWC"),
        size=[bins, mel.frames],
        roi_start=start,
        roi_end=end,
        interp_type=types.INTERP_LINEAR,
        antialias=False,
        minibatch_size=batch_size,
    )
    return fn.reshape(resized, shape=[bins, mel.frames], layout="ft")


def frame_box(stretch: np.ndarray, mel: MelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return begin and end, float32 [rows, 2] each, of the region of a spectrogram that a resize reads.

    The resize is to return the frames 0, stretch, 2 stretch, ..., linear between two frames, as a phase
    vocoder interpolates magnitudes. It reads output pixel j, whose center is j + 0.5, at begin + (j + 0.5)
    stretch, and the center of frame i lies at i + 0.5:

        begin + (j + 0.5) stretch = j stretch + 0.5    gives    begin = 0.5 - 0.5 stretch
    """
    begin = 0.5 - 0.5 * stretch
    bins = np.full_like(begin, mel.n_fft // 2 + 1)
    start, end = (
        np.stack([0 * begin, begin], axis=-1),
        np.stack([bins, begin + mel.frames * stretch], axis=-1),
    )
    return start.astype(np.float32), end.astype(np.float32)


def log_mel(power: DataNode, frontend: Frontend) -> DataNode:
    """Return the normalized log-mels of `power`, float32 [n_mels, frames, 1].

    Equals `torchaudio.transforms.MelSpectrogram(mel_scale="htk", norm=None)` followed by
    `AmplitudeToDB(top_db=None)` where `floor_db` is -100, torchaudio's own floor; less the mean, over the
    standard deviation. All that is one logarithm with a reference and a factor, if all bands have the same.
    """
    mel, (means, stds) = frontend.mel, frontend.statistics
    same = len(means) == 1
    mean, std = (means.item(), stds.item()) if same else (0.0, 1.0)
    bands = fn.mel_filter_bank(
        power,
        sample_rate=mel.sample_rate,
        nfilter=mel.n_mels,
        freq_low=0.0,
        freq_high=mel.f_max,
        mel_formula="htk",
        normalize=False,
    )
    decibels = fn.to_decibels(
        bands,
        multiplier=10 / std,
        reference=10 ** (mean / 10) * FULL_SCALE**2,
        cutoff_db=(mel.floor_db - mean) / std,
    )
    if not same:
        mean_of_band, std_of_band = (
            types.Constant(values.astype(np.float32), device=decibels.device) for values in (means, stds)
        )
        decibels = (decibels - mean_of_band) / std_of_band
    return fn.reshape(decibels, shape=[mel.n_mels, mel.frames, 1], layout="HWC")


_LOBES = 16
"""Lobes of the sinc that limits the band, on either side of its middle."""
_ROLLOFF = 0.99
"""Part of the band at which that filter begins to fall, torchaudio's default."""


def low_pass_half(min_scale: float, mel: MelConfig) -> int:
    """Return how many taps lie on either side of the middle of the low-pass before resampling; 0: none.

    DALI's resampling does not limit the band: what fewer samples cannot hold comes back, mirrored at the
    upper end of their band. None is needed if that stays above the mels at `min_scale`, the lowest.
    """
    if (2 - 1 / min_scale) * mel.sample_rate / 2 >= mel.f_max:
        return 0
    return math.ceil(_LOBES / (_ROLLOFF * min(min_scale, 1.0)))


def low_pass(scale: np.ndarray, half: int) -> np.ndarray:
    """Return taps, float32 [rows, 1, 2 half + 1], that keep what lies below `scale` of the band, if below 1.

    A sinc under a Hann window, as in `torchaudio.functional.resample`.
    """
    cutoff = _ROLLOFF * np.minimum(scale, 1.0)[:, None]
    time = np.arange(-half, half + 1)
    window = np.cos(np.pi / 2 * np.clip(cutoff * time / _LOBES, -1, 1)) ** 2
    taps = cutoff * np.sinc(cutoff * time) * window
    return np.asarray(taps, dtype=np.float32)[:, None, :]


def filtered(wave: DataNode, taps: DataNode) -> DataNode:
    """Return `wave`, [samples], convolved with `taps`, [1, taps]."""
    row = fn.reshape(wave, shape=[1, -1], layout="HW")
    return fn.reshape(fn.filter(row, taps, border="constant"), shape=[-1])
