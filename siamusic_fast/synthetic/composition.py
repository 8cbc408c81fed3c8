"""From a genre and a random generator to a piece of music, and from a piece of music to samples."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from siamusic_fast.synthetic.instruments import DRUMS, NOISE_SEED, Samples, play
from siamusic_fast.synthetic.styles import SCALES, STYLES, Style

T = TypeVar("T")

CROSSOVER = 0.06
"""How often a track takes an instrument, a rhythm or its harmony from any genre, so that genres overlap."""
KEYS = ("C", "D flat", "D", "E flat", "E", "F", "G flat", "G", "A flat", "A", "B flat", "B")
LOWEST_C = {"bass": 36, "chords": 48, "lead": 60}
"""MIDI note number of C in the octave where each part plays."""
HIGHEST_TONIC = 6
"""Semitones above C; keys above take the octave below, so that no key is higher than the others."""
LEVELS_DB = {
    "bass": -3.0,
    "chords": -4.0,
    "lead": -3.0,
    "kick": -1.0,
    "snare": -4.0,
    "clap": -6.0,
    "hat": -12.0,
    "crash": -10.0,
    "shaker": -14.0,
    "hand_drum": -1.0,
    "metal": -12.0,
}
"""Root mean square of each part and drum while it sounds, relative to one another."""
LEVEL_SPREAD_DB = 4.0
PRESENCE = {"drums": 0.85, "bass": 0.85, "chords": 0.9, "lead": 0.75}
"""How often a part plays in a section of the track."""
DRUM_TUNING = {
    "kick": 31,
    "snare": 55,
    "clap": 60,
    "hat": 123,
    "crash": 119,
    "shaker": 115,
    "hand_drum": 50,
    "metal": 86,
}
"""MIDI note number of each drum."""
DRUM_SECONDS = 0.5
LONGEST_NOTE = 4.0
"""In seconds."""
MELODY_TONES = 10
"""Degrees of the scale that a melody spans."""
LOWEST_HZ = 20.0
"""Below it the recording has nothing to tilt."""
DB_PER_DOUBLING = 6.02
"""Of an amplitude."""
QUIETEST_DB, LOUDEST_DB = -32.0, -14.0
"""Root mean square level of a track relative to full scale."""


class Note(NamedTuple):
    """One note: start and length in seconds, MIDI note number, strength from 0 to 1."""

    start: float
    seconds: float
    pitch: int
    strength: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one instrument or drum plays."""

    sound: str
    brightness: float
    level_db: float
    pan: float
    """From -1, left, to 1, right."""
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Where the sixteenths fall."""

    bpm: float
    """Quarter notes per minute."""
    steps: int
    """Sixteenths per bar."""
    swing: float = 0.0
    """How late every second sixteenth comes, in sixteenths."""

    def start(self, step: int) -> float:
        """Return the time in seconds of a sixteenth, counted from 0."""
        return (step + self.swing * (step % 2)) * 15.0 / self.bpm


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What the recording does to the music; drawn alike for every genre."""

    level_db: float
    """Root mean square relative to full scale."""
    cutoff: float
    """Upper edge of the recording's band, in Hz."""
    tilt_db: float
    """Change of the spectrum per octave above 1 kHz."""
    reverb_seconds: float
    """Time in which the reverberation falls by 60 dB."""
    reverb: float
    """Its amplitude relative to the dry sound."""
    noise_db: float
    """Root mean square of the background noise relative to the music."""


@dataclass(frozen=True, kw_only=True)
class Song:
    """A piece of music, ready to be rendered at any sample rate."""

    meter: Meter
    key: str
    """Tonic and scale, such as ``D minor``."""
    parts: tuple[Part, ...]
    mix: Mix


@dataclass(frozen=True, kw_only=True)
class Harmony:
    """Which tones a part finds in a bar."""

    tonic: int
    """Semitones above C."""
    scale: str
    progression: tuple[int, ...]
    voicing: tuple[int, ...]

    def tones(self, role: str, bar: int) -> tuple[int, ...]:
        """Return the MIDI note numbers that a pattern of the part `role` chooses from in `bar`."""
        root = self.progression[bar % len(self.progression)]
        if role == "bass":
            return tuple(self._pitch(role, root) + interval for interval in (0, 7, 12))
        degrees = self.voicing if role == "chords" else range(MELODY_TONES)
        return tuple(self._pitch(role, root + degree) for degree in degrees)

    def _pitch(self, role: str, degree: int) -> int:
        octave, step = divmod(degree, len(SCALES[self.scale]))
        tonic = LOWEST_C[role] + self.tonic - (12 if self.tonic > HIGHEST_TONIC else 0)
        return tonic + 12 * octave + SCALES[self.scale][step]


def compose(genre: str, rng: np.random.Generator, seconds: float) -> Song:
    """Return a piece of music of at least `seconds` in the style of `genre`, a key of `STYLES`."""
    meter = _draw_meter(_style(genre, rng), rng)
    harmony = _draw_harmony(_style(genre, rng), rng)
    bars = math.ceil(seconds / meter.start(meter.steps))
    playing = _draw_arrangement(rng, bars)
    chords, bass, lead = (_style(genre, rng) for _ in range(3))
    patterns = {
        "chords": [_pick(chords.chord_patterns, rng)] * bars,
        "bass": [_pick(bass.bass_patterns, rng)] * bars,
        "lead": _draw_melody(_pick(lead.lead_densities, rng), meter.steps, bars, rng),
    }
    sounds = {
        "chords": _pick(chords.chords, rng),
        "bass": _pick(bass.basses, rng),
        "lead": _pick(lead.leads, rng),
    }
    parts = []
    for role, sound in sounds.items():
        tones = [harmony.tones(role, bar) for bar in range(bars)]
        parts.append(_draw_part(sound, role, _notes(meter, patterns[role], tones, playing[role], rng), rng))
    for drum, pattern in _pick(_style(genre, rng).kits, rng).items():
        tuning = (DRUM_TUNING[drum] + int(rng.integers(-4, 5)),)
        notes = _notes(meter, [pattern] * bars, [tuning] * bars, playing["drums"], rng)
        parts.append(_draw_part(drum, drum, notes, rng))
    key = f"{KEYS[harmony.tonic]} {harmony.scale}"
    return Song(meter=meter, key=key, parts=tuple(parts), mix=_draw_mix(rng))


def _pick(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _style(genre: str, rng: np.random.Generator) -> Style:
    """Return the style of `genre` or, with probability `CROSSOVER`, that of any genre."""
    return STYLES[_pick(tuple(STYLES), rng) if rng.random() < CROSSOVER else genre]


def _draw_meter(style: Style, rng: np.random.Generator) -> Meter:
    bpm = round(float(rng.uniform(*style.tempo)), 1)
    return Meter(bpm=bpm, steps=_pick(style.metres, rng), swing=style.swing)


def _draw_harmony(style: Style, rng: np.random.Generator) -> Harmony:
    return Harmony(
        tonic=int(rng.integers(len(KEYS))),
        scale=_pick(style.scales, rng),
        progression=_pick(style.progressions, rng),
        voicing=_pick(style.voicings, rng),
    )


def _draw_arrangement(rng: np.random.Generator, bars: int) -> dict[str, list[bool]]:
    """Return the bars in which each part plays: they change every bar or two; chords or bass always play."""
    section_bars = int(rng.integers(1, 3))
    sections = -(-bars // section_bars)
    playing = {role: rng.random(sections) < presence for role, presence in PRESENCE.items()}
    playing["chords"] |= ~playing["bass"]
    return {role: [bool(on[bar // section_bars]) for bar in range(bars)] for role, on in playing.items()}


def _draw_melody(density: float, steps: int, bars: int, rng: np.random.Generator) -> list[str]:
    """Return one pattern per bar: two motifs in the order A A B A, each a random walk over the scale."""
    motifs = [_draw_motif(density, steps, rng) for _ in range(2)]
    return [motifs[(0, 0, 1, 0)[bar % 4]] for bar in range(bars)]


def _draw_motif(density: float, steps: int, rng: np.random.Generator) -> str:
    motif = ["."] * steps
    degree = int(rng.integers(MELODY_TONES))
    for step in range(steps):
        on_beat = step % 4 == 0
        if rng.random() < density * (1.6 if on_beat else 0.8):
            degree = int(np.clip(degree + rng.integers(-2, 3), 0, MELODY_TONES - 1))
            motif[step] = str(degree - degree % 2 if on_beat else degree)
    return "".join(motif)


def _notes(
    meter: Meter,
    patterns: Sequence[str],
    tones: Sequence[tuple[int, ...]],
    playing: Sequence[bool],
    rng: np.random.Generator,
) -> tuple[Note, ...]:
    """Return the notes of one part: `patterns`, `tones` and `playing` have an entry per bar."""
    notes = []
    for bar in itertools.compress(range(len(playing)), playing):
        pattern = [patterns[bar][step % len(patterns[bar])] for step in range(meter.steps)]
        onsets = [step for step, character in enumerate(pattern) if character != "."]
        for step, end in itertools.pairwise([*onsets, meter.steps]):
            start = meter.start(bar * meter.steps + step)
            length = min(meter.start(bar * meter.steps + end) - start, LONGEST_NOTE)
            strength = (1.0 if step % 4 == 0 else 0.75) * float(rng.uniform(0.85, 1.0))
            notes += [Note(start, length, pitch, strength) for pitch in _chosen(pattern[step], tones[bar])]
    return tuple(notes)


def _chosen(character: str, tones: tuple[int, ...]) -> tuple[int, ...]:
    """Return what a character of a pattern plays: all tones or one, where need be from the octaves above."""
    if character == "x":
        return tones
    octave, tone = divmod(int(character), len(tones))
    return (tones[tone] + 12 * octave,)


def _draw_part(sound: str, role: str, notes: tuple[Note, ...], rng: np.random.Generator) -> Part:
    return Part(
        sound=sound,
        brightness=float(rng.uniform(0.25, 0.75)),
        level_db=LEVELS_DB[role] + float(rng.uniform(-LEVEL_SPREAD_DB, LEVEL_SPREAD_DB)),
        pan=float(rng.uniform(-0.6, 0.6)) if role in ("chords", "lead") else 0.0,
        notes=notes,
    )


def _draw_mix(rng: np.random.Generator) -> Mix:
    return Mix(
        level_db=float(rng.uniform(QUIETEST_DB, LOUDEST_DB)),
        cutoff=float(np.exp(rng.uniform(np.log(4_500.0), np.log(12_000.0)))),
        tilt_db=float(rng.uniform(-1.5, 1.5)),
        reverb_seconds=float(rng.uniform(0.2, 1.5)),
        reverb=float(rng.uniform(0.0, 0.5)),
        noise_db=float(rng.uniform(-70.0, -35.0)),
    )


def render(song: Song, seconds: float, sample_rate: int, channels: int) -> Samples:
    """Return `song` as float32 of shape [samples, channels], 1 or 2 channels, mixed as its `Mix` says."""
    samples = round(seconds * sample_rate)
    stage = np.zeros((channels, samples), np.float32)
    for part in song.parts:
        played = 10.0 ** (part.level_db / 20.0) * render_part(part, samples, sample_rate)
        angle = (part.pan + 1.0) * np.pi / 4.0
        for channel, gain in zip(
            stage, (math.cos(angle), math.sin(angle)) if channels == 2 else (1.0,), strict=True
        ):
            channel += gain * played
    return _record(stage, song.mix, sample_rate).T


def render_part(part: Part, samples: int, sample_rate: int) -> Samples:
    """Return what one part plays, float32 of shape [samples], at a root mean square of 1 where it sounds."""
    track = np.zeros(samples, np.float32)

    @functools.cache
    def sound(pitch: int, seconds: float) -> Samples:
        return play(part.sound, pitch, seconds, sample_rate, part.brightness)

    for note in part.notes:
        start = round(note.start * sample_rate)
        if start < samples:
            seconds = DRUM_SECONDS if part.sound in DRUMS else round(note.seconds, 3)
            wave = sound(note.pitch, seconds)[: samples - start]
            track[start : start + len(wave)] += note.strength * wave
    sounding = track[track != 0.0]
    return track / np.sqrt(np.mean(sounding**2)) if len(sounding) else track


def _record(stage: Samples, mix: Mix, sample_rate: int) -> Samples:
    """Return `stage`, [channels, samples], with the room, the band, the noise and the level of `mix`."""
    channels, samples = stage.shape
    rng = np.random.default_rng(NOISE_SEED)
    room = rng.standard_normal((channels, round(mix.reverb_seconds * sample_rate)), np.float32)
    room *= _decay(room.shape[1])
    size = 1 << (samples + room.shape[1] - 1).bit_length()
    hertz = np.maximum(np.fft.rfftfreq(size, 1.0 / sample_rate), LOWEST_HZ).astype(np.float32)
    band = (hertz / 1_000.0) ** (mix.tilt_db / DB_PER_DOUBLING) / np.sqrt(1.0 + (hertz / mix.cutoff) ** 8)
    spectrum = np.fft.rfft(stage, size) * (1.0 + mix.reverb * np.fft.rfft(room, size)) * band
    sound = np.fft.irfft(spectrum, size)[:, :samples]
    sound /= np.sqrt(np.mean(sound**2))
    sound += 10.0 ** (mix.noise_db / 20.0) * rng.standard_normal(sound.shape, np.float32)
    limited: Samples = np.tanh(10.0 ** (mix.level_db / 20.0) * sound).astype(np.float32)
    return limited


def _decay(samples: int) -> Samples:
    """Return an exponential fall by 60 dB whose energy is 1, so that a room of noise keeps the loudness."""
    fall = 10.0 ** (-3.0 * np.arange(samples) / samples)
    decay: Samples = (fall / np.sqrt(np.sum(fall**2))).astype(np.float32)
    return decay
