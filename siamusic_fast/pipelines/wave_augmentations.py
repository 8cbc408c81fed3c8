"""Augmentations of waveforms, tempo and pitch: those of Kim, Hong, Lee 2022, Table 1, then others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines import noise
from siamusic_fast.pipelines.augmentation import WaveAugmentation, bounded, fraction, probability
from siamusic_fast.pipelines.ops import PITCH_GRID, AddNoise, MixWaves, Speed, WaveFunction
from siamusic_fast.pipelines.random_numbers import RandomNumbers

MAX_ALPHA = 1e6
"""Largest parameter of a Beta distribution."""
_OCTAVE = 12
"""Semitones."""
_MAX_STRETCH = 4.0
_MAX_DECIBELS = 100.0


@dataclass(frozen=True, kw_only=True)
class WaveMixup(WaveAugmentation):
    """Adds another track: w x + (1 - w) partner, w from Beta(alpha, alpha) [Zhang 2017, mixup]."""

    mixes = True
    p: float = probability(0.6)
    alpha: float = bounded(1.0, 0, MAX_ALPHA, above=True)
    """Both parameters of the Beta distribution."""
    max_share: float = fraction(1.0)
    """Largest share of the partner, 1 - w; the shares that are drawn are scaled to it. 0.4 and alpha = 1 give
    shares that are uniform from 0 to 0.4, as in BYOL-A [Niizumi 2021]."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> MixWaves:
        on, partner, share = rng.bernoulli(self.p), rng.partners(), 1 - rng.beta(self.alpha)
        weight = self.max_share * share
        own = np.arange(rng.count)
        return MixWaves(partner=np.where(on, partner, own), weight=np.where(on, weight, 0.0))


@dataclass(frozen=True, kw_only=True)
class PitchShift(WaveAugmentation):
    """Moves the pitch at the same tempo. The shift is uniform in semitones."""

    p: float = probability(0.6)
    semitones: float = bounded(4.0, 0, _OCTAVE)
    """Largest shift, up or down."""

    @property
    def max_pitch(self) -> float:
        return round(PITCH_GRID * 2 ** (self.semitones / _OCTAVE)) / PITCH_GRID

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Speed:
        pitch = 2 ** (rng.uniform(-self.semitones, self.semitones) / _OCTAVE)
        grid_pitch = np.rint(PITCH_GRID * pitch).astype(np.int64)
        return Speed(grid_pitch=np.where(rng.bernoulli(self.p), grid_pitch, PITCH_GRID))


@dataclass(frozen=True, kw_only=True)
class TimeStretch(WaveAugmentation):
    """Plays faster or slower at the same pitch."""

    p: float = probability(0.6)
    min_rate: float = bounded(0.6, 1 / _MAX_STRETCH, _MAX_STRETCH)
    """Lowest rate; below 1 is slower."""
    max_rate: float = bounded(1.5, 1 / _MAX_STRETCH, _MAX_STRETCH)
    """Highest rate."""

    @property
    def max_tempo(self) -> float:
        return max(self.max_rate, 1.0)

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> Speed:
        rate = rng.uniform(self.min_rate, self.max_rate)
        return Speed(rate=np.where(rng.bernoulli(self.p), rate, 1.0))


@dataclass(frozen=True, kw_only=True)
class Gain(WaveAugmentation):
    """Makes the waveform louder or softer. The change is uniform in decibels."""

    p: float = probability(0.5)
    decibels: float = bounded(6.0, 0, _MAX_DECIBELS)
    """Largest change, up or down."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> WaveFunction:
        factor = 10 ** (rng.uniform(-self.decibels, self.decibels) / 20)
        factor = np.where(rng.bernoulli(self.p), factor, 1.0)[:, None]
        values = {"factor": factor.astype(np.float32)}
        return WaveFunction(values=values, dali=_multiplied, torch=_multiplied)


def _multiplied(wave: Any, values: Mapping[str, Any]) -> Any:
    return wave * values["factor"]


@dataclass(frozen=True, kw_only=True)
class Noise(WaveAugmentation):
    """Adds white Gaussian noise. The signal-to-noise ratio is uniform in decibels."""

    p: float = probability(0.5)
    min_snr: float = bounded(10.0, -_MAX_DECIBELS, _MAX_DECIBELS)
    """Lowest signal-to-noise ratio, in dB."""
    max_snr: float = bounded(40.0, -_MAX_DECIBELS, _MAX_DECIBELS)
    """Highest signal-to-noise ratio, in dB."""

    def draw(self, rng: RandomNumbers, mel: MelConfig) -> AddNoise:
        factor = 10 ** (rng.uniform(self.min_snr, self.max_snr) / -20)
        on, offset = rng.bernoulli(self.p), rng.integers(noise.LENGTH)
        return AddNoise(factor=np.where(on, factor, 0.0), offset=offset)
