"""The mel spectrograms that a network is trained on, as one value that is kept with its weights."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

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

    Raises `ConfigError` if `std` is not above 0, if a value is not finite, or if `short_tracks` is unknown.
    """

    mel: MelConfig = field(default_factory=MelConfig)
    """Settings of the mel spectrogram."""
    mean: float
    """Mean of the log-mel values of the training tracks, in dB; normalizing makes it 0."""
    std: float
    """Standard deviation of the log-mel values of the training tracks, in dB; normalizing makes it 1."""
    short_tracks: str = SHORT_TRACKS[0]
    """What is done with tracks shorter than a crop: `repeat` them, or `pad` them with silence."""

    def __post_init__(self) -> None:
        check_value("short_tracks", self.short_tracks, OneOf(SHORT_TRACKS))
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ConfigError(
                f"mean = {self.mean:g} dB and std = {self.std:g} dB must be finite, and std above 0."
            )

    def crop_samples(self, sample_rate: int) -> int:
        """Return the length of a crop in samples of audio at `sample_rate`, in Hz."""
        return -(-self.mel.samples * sample_rate // self.mel.sample_rate)

    def dump(self) -> dict[str, Any]:
        """Return plain values for JSON or a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Self:
        """Return the frontend whose `dump` is `values`."""
        return cls(**{**values, "mel": MelConfig(**values["mel"])})
