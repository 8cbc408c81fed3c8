"""What the genres of the synthetic corpus play: tempo, meter, harmony, instruments and rhythms, as data.

A pattern has one character per sixteenth: ``.`` lets the last note ring, ``x`` plays all tones at hand, a
digit one of them. The tones are those of the chord for chords; root, fifth and octave for the bass; a drum
has one. A pattern shorter or longer than the bar is repeated or cut.
"""

from dataclasses import dataclass

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
    """What a genre draws its tracks from; each tuple holds alternatives."""

    tempo: tuple[float, float]
    """Slowest and fastest, in quarter notes per minute."""
    metres: tuple[int, ...] = (16,)
    """Sixteenths per bar: 16 is 4/4, 12 is 3/4, 14 is 7/8."""
    swing: float = 0.0
    """How late the even sixteenths come, in sixteenths."""
    scales: tuple[str, ...]
    progressions: tuple[tuple[int, ...], ...]
    """Degree of the scale, from 0, on which the chord of each bar stands."""
    voicings: tuple[tuple[int, ...], ...] = ((0, 2, 4),)
    """Degrees of a chord above its root."""
    chords: tuple[str, ...]
    chord_patterns: tuple[str, ...]
    basses: tuple[str, ...]
    bass_patterns: tuple[str, ...]
    leads: tuple[str, ...]
    lead_densities: tuple[float, ...]
    """Share of the sixteenths on which the melody has a note."""
    kits: tuple[dict[str, str], ...]
    """Pattern of each drum."""


STYLES = {
    "Electronic": Style(
        tempo=(116.0, 140.0),
        scales=("minor", "dorian", "minor pentatonic"),
        progressions=((0, 5, 2, 6), (0, 0, 5, 6), (0, 3, 5, 4)),
        chords=("supersaw", "square", "acid"),
        chord_patterns=("..x...x...x...x.", "x..x..x.x..x..x.", "0123210301232103", "0.210.210.210.32"),
        basses=("acid", "square"),
        bass_patterns=("..0...0...0...0.", "0.0020.00.0020.1", "0000000200000001"),
        leads=("supersaw", "square"),
        lead_densities=(0.3, 0.5),
        kits=(
            {"kick": "x...x...x...x...", "clap": "....x.......x...", "hat": "..x...x...x...x."},
            {"kick": "x...x...x...x...", "hat": "xxxxxxxxxxxxxxxx", "metal": "...x..x....x..x."},
            {"kick": "x...x...x...x.x.", "snare": "....x.......x..x", "crash": "x..............."},
        ),
    ),
    "Experimental": Style(
        tempo=(50.0, 150.0),
        metres=(16, 14, 20),
        scales=("whole tone", "double harmonic", "minor"),
        progressions=((0,), (0, 1), (0, 3, 1)),
        voicings=((0, 1, 4), (0, 3, 6), (0, 5)),
        chords=("drone", "wind", "bell"),
        chord_patterns=("x...............", "x.........x.....", "0......1....2..."),
        basses=("drone", "wind"),
        bass_patterns=("0...............", "0.......1......."),
        leads=("bell", "wind", "drone"),
        lead_densities=(0.1, 0.25),
        kits=(
            {},
            {"metal": "x.....x....x..x.", "crash": "........x......."},
            {"metal": "...x......x.....", "kick": "x......x........", "shaker": ".....x.......xxx"},
        ),
    ),
    "Folk": Style(
        tempo=(80.0, 126.0),
        metres=(16, 12),
        scales=("major", "mixolydian", "dorian"),
        progressions=((0, 3, 4, 0), (0, 4, 3, 4), (0, 5, 3, 4), (0, 6, 3, 0)),
        chords=("guitar",),
        chord_patterns=("0.2.1.2.0.3.1.2.", "0.1.2.3.4.3.2.1.", "x...x.xxx...x.x."),
        basses=("guitar",),
        bass_patterns=("0.......1.......", "0..............."),
        leads=("flute", "fiddle"),
        lead_densities=(0.25, 0.4),
        kits=(
            {},
            {"shaker": "x.x.x.x.x.x.x.x."},
            {"hand_drum": "x...x...x...x...", "shaker": "..x...x...x...x."},
        ),
    ),
    "Hip-Hop": Style(
        tempo=(74.0, 102.0),
        swing=0.25,
        scales=("minor", "dorian", "minor pentatonic"),
        progressions=((0, 3), (0, 5, 3, 4), (1, 4, 0, 0)),
        voicings=((0, 2, 4, 6),),
        chords=("electric_piano",),
        chord_patterns=("x...............", "x.....x...x.....", "....x.......x..."),
        basses=("sub",),
        bass_patterns=("0.....0...0.....", "0..0......0..1..", "0.......0..2...."),
        leads=("electric_piano", "voice"),
        lead_densities=(0.2, 0.35),
        kits=(
            {"kick": "x.....x...x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "x..x......x..x..", "clap": "....x.......x...", "hat": "x.xxx.x.x.x.xxxx"},
            {"kick": "x.......x.x.....", "snare": "....x..x.x..x...", "shaker": "x.x.x.x.x.x.x.x."},
        ),
    ),
    "Instrumental": Style(
        tempo=(56.0, 100.0),
        metres=(16, 12),
        scales=("major", "minor"),
        progressions=((0, 5, 3, 4), (0, 4, 5, 2), (0, 3, 0, 4)),
        voicings=((0, 2, 4), (0, 4, 9)),
        chords=("piano", "strings"),
        chord_patterns=("0.1.2.3.2.1.2.3.", "x...............", "0...1...2...1...", "x.......x......."),
        basses=("piano", "strings"),
        bass_patterns=("0...............", "0.......1......."),
        leads=("piano", "strings"),
        lead_densities=(0.15, 0.3),
        kits=({}, {}, {"crash": "x..............."}),
    ),
    "International": Style(
        tempo=(90.0, 150.0),
        metres=(16, 14, 12),
        scales=("phrygian dominant", "double harmonic", "minor pentatonic"),
        progressions=((0,), (0, 0, 1, 0), (0, 6, 0, 1)),
        voicings=((0, 4), (0, 4, 7)),
        chords=("sitar", "reed"),
        chord_patterns=("0.10.10.0.10.10.", "x.....x...x.....", "0..1..2.0..1..2."),
        basses=("sitar",),
        bass_patterns=("0..0..0.0..0..0.", "0...............", "0...1.0."),
        leads=("sitar", "reed"),
        lead_densities=(0.4, 0.6),
        kits=(
            {"hand_drum": "x..x..x.x.xx..x."},
            {"hand_drum": "x.xx.xx.x.x.xxx.", "shaker": "x.x.x.x.x.x.x.x."},
            {"hand_drum": "x...x.x.", "clap": "x.....x....."},
        ),
    ),
    "Pop": Style(
        tempo=(94.0, 130.0),
        scales=("major",),
        progressions=((0, 4, 5, 3), (5, 3, 0, 4), (0, 5, 3, 4), (3, 4, 5, 0)),
        chords=("organ",),
        chord_patterns=("x...x...x...x...", "x..x..x.x..x..x.", "x.......x.......", "0.1.2.1.0.1.2.1."),
        basses=("square", "sub"),
        bass_patterns=("0.0.0.0.0.0.0.0.", "0..0..0.0..0..0.", "0.......0......."),
        leads=("voice",),
        lead_densities=(0.35, 0.5),
        kits=(
            {"kick": "x.......x.......", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "x..x..x.x..x..x.", "clap": "....x.......x...", "shaker": "xxxxxxxxxxxxxxxx"},
            {"kick": "x...x...x...x...", "snare": "....x.......x...", "hat": "..x...x...x...x."},
        ),
    ),
    "Rock": Style(
        tempo=(108.0, 168.0),
        scales=("mixolydian", "minor", "minor pentatonic"),
        progressions=((0, 3, 4, 3), (0, 6, 3, 0), (0, 5, 6, 0)),
        voicings=((0,),),
        chords=("power_chord",),
        chord_patterns=("x.x.x.x.x.x.x.x.", "x...x.x.x..x..x.", "x.....x.x......."),
        basses=("guitar",),
        bass_patterns=("0.0.0.0.0.0.0.0.", "0.0.0.1.0.0.2.1."),
        leads=("lead_guitar",),
        lead_densities=(0.25, 0.45),
        kits=(
            {"kick": "x.......x.x.....", "snare": "....x.......x...", "crash": "x...x...x...x..."},
            {"kick": "x.x.....x.x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
            {"kick": "x...x...x...x...", "snare": "..x...x...x...x.", "crash": "x.......x......."},
        ),
    ),
}
"""The eight genres of fma_small."""
