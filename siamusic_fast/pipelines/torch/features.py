"""Log-mel spectrograms in torch: of crops as they are, and at another tempo and pitch.

The filters and the resampler are torchaudio's. The spectrogram equals torchaudio's, but is made faster:
`torchaudio.transforms.MelSpectrogram` takes the root of every power to square it again, and multiplies bins
that no filter uses.
"""

import functools
import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.ops import FULL_SCALE, PITCH_GRID
from siamusic_fast.pipelines.random_numbers import Array

_RATE_LOBES = 16
"""Lobes of the filter that converts sample rates, as many as in the DALI graph."""
_PITCH_LOBES = 6
"""Lobes of the filter that shifts the pitch, torchaudio's default, if what it lets through does not show."""


class LogMel:
    """Normalized log-mels of audio in units of 16 bits, float32 [rows, n_mels, frames].

    `rate` is that of the audio, in Hz, and `max_pitch` the highest that it is shifted to.
    """

    def __init__(
        self, frontend: Frontend, rate: int, device: torch.device, *, max_pitch: float = 1.0
    ) -> None:
        mel = self.mel = frontend.mel
        self._rate = rate
        # What is shifted beyond the upper end of the band comes back mirrored there, but for the filter.
        shows = (2 - max_pitch) * mel.sample_rate / 2 < mel.f_max
        self._pitch_lobes = _RATE_LOBES if shows else _PITCH_LOBES
        self._resample = torchaudio.transforms.Resample(
            rate, mel.sample_rate, lowpass_filter_width=_RATE_LOBES
        ).to(device)
        mean, std = frontend.statistics
        self._factor, self._offset = (
            torch.tensor(values, dtype=torch.float32, device=device).ravel()
            for values in (10 / std, (mean + 20 * math.log10(FULL_SCALE)) / std)
        )
        self._floor = 10 ** (mel.floor_db / 10) * FULL_SCALE**2
        left = (mel.n_fft - mel.window) // 2
        self._window = torch.zeros(mel.n_fft, device=device)
        self._window[left : left + mel.window] = torch.hann_window(mel.window, device=device)
        with warnings.catch_warnings():
            # A band that is narrower than a bin stays empty, as it does in DALI.
            warnings.filterwarnings("ignore", "At least one mel filterbank has all zero values")
            filters = torchaudio.functional.melscale_fbanks(
                mel.n_fft // 2 + 1, 0.0, mel.f_max, mel.n_mels, mel.sample_rate
            ).to(device)
        self._bins = int(filters.sum(dim=1).nonzero().max()) + 1
        self._filters = filters[: self._bins].contiguous()
        # Real and imaginary parts lie next to each other: the product with these adds up their squares.
        self._filters_of_parts = self._filters.repeat_interleave(2, dim=0)

    def plain(self, wave: Tensor) -> Tensor:
        """Return the log-mels of `wave`, float32 [rows, samples], at the rate of the shards."""
        wave = self.at_rate(wave)[:, : self.mel.samples]
        spectrum = self._spectrum(_padded(wave, self.mel.n_fft // 2))
        parts = torch.view_as_real(spectrum).flatten(-2)[..., : 2 * self._bins]
        return self._decibels((parts * parts) @ self._filters_of_parts)

    def at_rate(self, wave: Tensor) -> Tensor:
        """Return `wave`, [samples, any], at the sample rate of the features."""
        return wave if self._rate == self.mel.sample_rate else self._resample(wave)

    def lengths_at_rate(self, lengths: Tensor) -> Tensor:
        """Return the lengths that `at_rate` makes of `lengths`, int64."""
        return -(-lengths * self.mel.sample_rate // self._rate)

    def shifted(self, wave: Tensor, lengths: Tensor, grid_pitch: Array) -> tuple[Tensor, Tensor]:
        """Return each wave resampled to 1 / pitch of its length, and the new lengths.

        `wave` is [samples, longest] with zeros behind `lengths`, [samples, 1]; pitches, int64 [samples], are
        in units of 1 / `PITCH_GRID`.
        """
        if (grid_pitch == PITCH_GRID).all():
            return wave, lengths
        wave = cleared(wave, lengths)
        resampler = functools.partial(_resampler, lobes=self._pitch_lobes, device=wave.device)
        longest = -(-wave.shape[-1] * PITCH_GRID // int(grid_pitch.min()))
        result = wave.new_zeros(len(wave), longest)
        pitches, counts = np.unique(grid_pitch, return_counts=True)
        by_pitch = on_device(np.argsort(grid_pitch, kind="stable"), wave.device)
        for pitch, rows in zip(pitches.tolist(), torch.split(by_pitch, counts.tolist()), strict=True):
            part = wave[rows] if pitch == PITCH_GRID else resampler(pitch)(wave[rows])
            result[rows, : part.shape[-1]] = part
        return result, -(-lengths * PITCH_GRID // on_device(grid_pitch, wave.device)[:, None])

    def stretched(self, wave: Tensor, lengths: Tensor, stretch: Tensor) -> Tensor:
        """Return the log-mels of the frames 0, stretch, 2 stretch... of each wave.

        `wave` is float32 [rows, longest], `lengths` int64 and `stretch` float32 [rows, 1]. Magnitudes are
        interpolated linearly between two frames, as a phase vocoder does
        (`torchaudio.transforms.TimeStretch`). Its phases, most of its work, do not show in a mel spectrogram.
        Beyond the last frame, the last frame is repeated.
        """
        spectrum = self._spectrum(_reflected(wave, lengths, self.mel.n_fft // 2))[..., : self._bins]
        real, imaginary = spectrum.real, spectrum.imag
        magnitude = (real * real).addcmul_(imaginary, imaginary).sqrt_()
        last = lengths // self.mel.hop_length
        position = torch.arange(self.mel.frames, device=wave.device) * stretch
        low = torch.minimum(position.long(), last)
        weight = (position - low).clamp_(max=1.0)[..., None]
        below, above = _frames(magnitude, low), _frames(magnitude, torch.minimum(low + 1, last))
        between = below.addcmul_(above.sub_(below), weight)
        return self._decibels(between.mul_(between) @ self._filters)

    def _spectrum(self, padded: Tensor) -> Tensor:
        frames = padded.unfold(-1, self.mel.n_fft, self.mel.hop_length)
        spectrum: Tensor = torch.fft.rfft(frames * self._window)
        return spectrum

    def _decibels(self, power: Tensor) -> Tensor:
        """Return normalized decibels of `power`, [rows, frames, n_mels], its last axes exchanged."""
        decibels = power.clamp_(min=self._floor).log10_().mul_(self._factor).sub_(self._offset)
        return decibels.transpose(-1, -2).contiguous()


class ConvolutionalLogMel(nn.Module):
    """The log-mels of `LogMel.plain` by convolution and matrix product alone, which ONNX has everywhere.

    Maps audio of full scale 1 at the sample rate of the features, float32 [rows, samples] with any number of
    samples, to [rows, 1, n_mels, frames]. The discrete Fourier transform is a convolution with a windowed
    cosine and a windowed sine for each bin that a mel band uses.
    """

    _waves: Tensor
    _filters: Tensor

    def __init__(self, frontend: Frontend) -> None:
        super().__init__()
        self._log_mel = LogMel(frontend, frontend.mel.sample_rate, torch.device("cpu"))
        n_fft = frontend.mel.n_fft
        bins = torch.arange(self._log_mel._bins, dtype=torch.float64)[:, None]
        angles = 2 * math.pi / n_fft * (bins * torch.arange(n_fft) % n_fft)
        waves = torch.cat([angles.cos(), angles.sin()]) * self._log_mel._window
        self.register_buffer("_waves", waves[:, None].float())
        self.register_buffer("_filters", self._log_mel._filters.repeat(2, 1))
        self._hop_length = frontend.mel.hop_length
        self._half = n_fft // 2

    def forward(self, wave: Tensor) -> Tensor:
        """Return the normalized log-mels of `wave`."""
        padded = _padded(wave * FULL_SCALE, self._half)
        parts = F.conv1d(padded[:, None], self._waves, stride=self._hop_length).transpose(1, 2)
        return self._log_mel._decibels((parts * parts) @ self._filters)[:, None]


def cleared(wave: Tensor, lengths: Tensor) -> Tensor:
    """Return `wave`, [rows, longest], with zeros behind `lengths`, [rows, 1]: filters look beyond the end."""
    if len(wave) == 1:
        return wave
    return wave * (torch.arange(wave.shape[1], device=wave.device) < lengths)


def on_device(values: Array, device: torch.device) -> Tensor:
    """Return `values` as a tensor; a GPU is given them without waiting for what it does meanwhile."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@functools.lru_cache(maxsize=256)
def _resampler(grid_pitch: int, lobes: int, device: torch.device) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(grid_pitch, PITCH_GRID, lowpass_filter_width=lobes).to(device)


def _padded(wave: Tensor, half: int) -> Tensor:
    """Return `wave` with `half` values reflected at both ends; twice as fast as `torch.nn.functional.pad`."""
    return torch.cat([wave[:, 1 : half + 1].flip(-1), wave, wave[:, -half - 1 : -1].flip(-1)], dim=-1)


def _reflected(wave: Tensor, lengths: Tensor, half: int) -> Tensor:
    """Return waves with `half` values reflected at both ends, each at the end of its own length.

    Of a wave that is not longer than `half`, what was reflected is reflected again.
    """
    if len(wave) == 1 and int(lengths) > half:
        return _padded(wave[:, : int(lengths)], half)
    last = lengths - 1
    there_and_back = torch.arange(-half, wave.shape[-1] + half, device=wave.device) % (2 * last)
    return wave.gather(1, last - (last - there_and_back).abs())


def _frames(magnitude: Tensor, index: Tensor) -> Tensor:
    """Return the frames at `index`, [samples, frames], of `magnitude`, [samples, any, bins]."""
    if len(magnitude) == 1:
        return magnitude.index_select(1, index[0])
    return magnitude.gather(1, index[..., None].expand(-1, -1, magnitude.shape[-1]))
