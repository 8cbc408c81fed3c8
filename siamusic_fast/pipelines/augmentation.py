"""What an augmentation is: a frozen dataclass that draws its own random numbers.

To add one, write a dataclass like those in `image_augmentations.py` or `wave_augmentations.py`:

- Its fields are a probability `p`, which is decided for every sample of a batch alone, and its parameters.
- Its method `draw` makes everything that is random, in numpy, for a whole batch. It returns one of the
  operations in `ops.py`, with the numbers that were drawn. Both engines know all operations.
- An operation that `ops.py` does not have is an `ImageFunction` or a `WaveFunction`.

An augmentation can be given to a loader at once: `TwoViewLoader(data, aug=(Mine(), Mask()))`. One line in
`recipes.AUGMENTATIONS` gives it a name for the command line.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.ops import ImageOp, WaveOp
from siamusic_fast.pipelines.random_numbers import RandomNumbers


def bounded(default: Any, low: float, high: float, *, above: bool = False) -> Any:
    """Return a field whose value must be at least `low`, or `above` it, and at most `high`."""
    whole = isinstance(default, int)
    return field(default=default, metadata={"whole": whole, "low": low, "high": high, "above": above})


def probability(default: float) -> Any:
    """Return the field `p` of an augmentation."""
    return bounded(default, 0, 1)


def fraction(default: float) -> Any:
    """Return a field that is a fraction of a whole."""
    return bounded(default, 0, 1, above=True)


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """One augmentation of a recipe; raises `ConfigError` for a parameter outside its bounds."""

    mixes: ClassVar[bool] = False
    """Whether it adds a part of another track, so that the label of the track is no longer right."""

    p: float
    """Probability that a sample is changed."""

    def __post_init__(self) -> None:
        values = vars(self)
        for parameter in fields(self):
            if parameter.metadata:
                self._check(parameter.name, **parameter.metadata)
        for name, low in values.items():
            upper = name.replace("min_", "max_", 1)
            if upper != name and low > values.get(upper, low):
                kind, high = type(self).__name__, values[upper]
                raise ConfigError(f"{name} = {low:g} of {kind} must not be above {upper} = {high:g}.")

    def check(self, mel: MelConfig) -> None:  # noqa: B027 (most fit any features)
        """Raise `ConfigError` if the augmentation does not fit the features."""

    def _check(self, name: str, *, whole: bool, low: float, high: float, above: bool) -> None:
        value, kind = getattr(self, name), type(self).__name__
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            number, example = ("a whole number", "2") if whole else ("a number", "0.5")
            raise ConfigError(f"{name} = {value!r} of {kind} must be {number}, such as {example}.")
        if not (low < value <= high if above else low <= value <= high):
            lower = f"{'above' if above else 'at least'} {low:g}"
            raise ConfigError(f"{name} = {value:g} of {kind} must be {lower} and at most {high:g}.")


@dataclass(frozen=True, kw_only=True)
class WaveAugmentation(Augmentation):
    """An augmentation before the spectrogram: of the waveform, or of its tempo and pitch."""

    @property
    def max_tempo(self) -> float:
        """Highest tempo that `draw` may return."""
        return 1.0

    @property
    def max_pitch(self) -> float:
        """Highest pitch that `draw` may return."""
        return 1.0

    @abstractmethod
    def draw(self, rng: RandomNumbers, mel: MelConfig) -> WaveOp:
        """Draw, for every sample of a batch, whether it is changed and how."""


@dataclass(frozen=True, kw_only=True)
class ImageAugmentation(Augmentation):
    """An augmentation after the spectrogram, of normalized log-mels."""

    @abstractmethod
    def draw(self, rng: RandomNumbers, mel: MelConfig) -> ImageOp:
        """Draw, for every sample of a batch, whether it is changed and how."""
