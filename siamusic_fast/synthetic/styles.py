"""The genres of the synthetic corpus, read from styles.yaml: tempo, harmony, instruments and rhythms."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import yaml

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "phrygian dominant": (0, 1, 4, 5, 7, 8, 10),
    "double harmonic": (0, 1, 4, 5, 7, 8, 11),
    "minor pentatonic": (0, 3, 5, 7, 10),
    "whole tone": (0, 2, 4, 6, 8, 10),
}
"""Semitones above the tonic."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What a genre plays. Each track draws one of the alternatives of each field but `swing`."""

    tempo: tuple[float, float]
    """Limits of the tempo in quarter notes per minute."""
    meters: Sequence[int] = (16,)
    """Sixteenths per bar: 16 is 4/4, 12 is 3/4, 14 is 7/8."""
    swing: float = 0.0
    """Delay of every second sixteenth, in sixteenths."""
    scales: Sequence[str]
    progressions: Sequence[Sequence[int]]
    """Degree of the scale, from 0, on which the chord of each bar stands."""
    voicings: Sequence[Sequence[int]] = ((0, 2, 4),)
    """Degrees of a chord above its root."""
    chords: Sequence[str]
    chord_patterns: Sequence[str]
    basses: Sequence[str]
    bass_patterns: Sequence[str]
    leads: Sequence[str]
    lead_densities: Sequence[float]
    """Share of the sixteenths on which the melody has a note."""
    kits: Sequence[dict[str, str]]
    """Pattern of each drum."""


STYLES = {
    genre: Style(**style)
    for genre, style in yaml.safe_load((files(__package__) / "styles.yaml").read_text()).items()
}
"""The eight genres of fma_small."""
