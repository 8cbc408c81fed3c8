"""How audio becomes what a network sees; it travels with every checkpoint."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from siamusic_fast.config import SHORT_TRACKS, MelConfig
from siamusic_fast.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Frontend:
    """Mel spectrograms, normalized, of crops of a fixed length.

    A network must be given what it was trained on, so this value is estimated once per shard set, written
    into every checkpoint, and handed to whatever reads audio for that network.
    """

    mel: MelConfig = field(default_factory=MelConfig)
    """Settings of the mel spectrogram."""
    mean: float
    """Mean of the log-mel values of the training tracks, in dB: it becomes 0."""
    std: float
    """Standard deviation of the log-mel values of the training tracks, in dB: it becomes 1."""
    short_tracks: str = SHORT_TRACKS[0]
    """What is done with tracks shorter than a crop: `repeat` them, or `pad` them with silence."""

    def __post_init__(self) -> None:
        if self.short_tracks not in SHORT_TRACKS:
            raise ConfigError(
                f"short_tracks = {self.short_tracks!r} is unknown: choose {' or '.join(SHORT_TRACKS)}."
            )
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ConfigError(
                f"mean = {self.mean:g} dB and std = {self.std:g} dB must be finite, and std above 0."
            )

    def crop_samples(self, sample_rate: int) -> int:
        """Return the length of a crop in samples of audio at `sample_rate`, in Hz."""
        return -(-self.mel.samples * sample_rate // self.mel.sample_rate)

    def dump(self) -> dict[str, Any]:
        """Return plain values, ready for JSON and for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Self:
        """Return the frontend that `dump` made `values` of."""
        return cls(**{**values, "mel": MelConfig(**values["mel"])})
