"""The mel spectrograms that a network is trained on, as one value that is kept with its weights."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.config import SHORT_TRACKS, MelConfig
from siamusic_fast.config.fields import OneOf, check_value
from siamusic_fast.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Frontend:
    """Settings and statistics of normalized mel spectrograms of crops with a fixed length.

    A network works with the spectrograms that it was trained on. So the mean and the standard deviation are
    estimated once per shard set, and every checkpoint keeps the frontend of its network. Give
    `frontend=encoder.frontend` to a loader for a network that is trained already; without it, a loader uses
    the features of the paper with the statistics of its own shard set.

        frontend = Frontend(mel=MelConfig(seconds=2.0), mean=-35.2, std=17.9)

    Raises `ConfigError` if a `std` is not above 0, if a value is not finite, if there are neither one `mean`
    and one `std` nor as many as mel bands, or if `short_tracks` is unknown.
    """

    mel: MelConfig = field(default_factory=MelConfig)
    """Settings of the mel spectrogram."""
    mean: float | tuple[float, ...]
    """Mean of the log-mel values of the training tracks, in dB, or that of each mel band, the lowest
    first; normalizing makes it 0."""
    std: float | tuple[float, ...]
    """Standard deviation of the log-mel values of the training tracks, in dB, or that of each mel band;
    normalizing makes it 1."""
    short_tracks: str = SHORT_TRACKS[0]
    """What is done with tracks shorter than a crop: `repeat` them, or `pad` them with silence."""

    def __post_init__(self) -> None:
        check_value("short_tracks", self.short_tracks, OneOf(SHORT_TRACKS))
        if not np.shape(self.mean) == np.shape(self.std) in ((), (self.mel.n_mels,)):
            raise ConfigError(
                f"mean has {np.size(self.mean)} and std {np.size(self.std)} values: give one number for "
                f"each, or a tuple of {self.mel.n_mels}, one value per mel band."
            )
        means, stds = self.statistics
        if (wrong := ~(np.isfinite(means) & np.isfinite(stds) & (stds > 0))).any():
            raise ConfigError(
                f"mean = {means[wrong][0]:g} dB and std = {stds[wrong][0]:g} dB must be finite, and std "
                f"above 0."
            )

    @property
    def statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation in dB as columns, float64 [1, 1] or [n_mels, 1] each.

        So log-mels of shape [n_mels, frames] are normalized by (decibels - mean) / std.
        """
        mean, std = (np.asarray(values, dtype=np.float64).reshape(-1, 1) for values in (self.mean, self.std))
        return mean, std

    def crop_samples(self, sample_rate: int) -> int:
        """Return the length of a crop in samples of audio at `sample_rate`, in Hz."""
        return -(-self.mel.samples * sample_rate // self.mel.sample_rate)

    def dump(self) -> dict[str, Any]:
        """Return plain values for JSON or a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Self:
        """Return the frontend whose `dump` is `values`."""
        of_bands = {name: tuple(values[name]) for name in ("mean", "std") if np.ndim(values[name])}
        return cls(**{**values, **of_bands, "mel": MelConfig(**values["mel"])})
