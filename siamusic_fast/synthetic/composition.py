"""Composes pieces of music at random in the style of a genre, and renders them to samples."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from siamusic_fast.synthetic.instruments import DRUMS, NOISE_SEED, Waveform, play
from siamusic_fast.synthetic.styles import SCALES, STYLES, Style

Option = TypeVar("Option")

CROSSOVER = 0.06
"""Probability that an instrument, a rhythm or the harmony is from any genre, so that genres overlap."""
KEYS = ("C", "D flat", "D", "E flat", "E", "F", "G flat", "G", "A flat", "A", "B flat", "B")
MAX_TONIC = 6
"""Semitones above C. Keys above it take the octave below, so that no key is higher than the others."""
OCTAVES = {"bass": 36, "chords": 48, "lead": 60}
"""MIDI note number of C in the octave where each part plays."""
LEVELS_DB = {"bass": -3.0, "chords": -4.0, "lead": -3.0}
"""RMS level of each part while it sounds; those of the drums are in `DRUM_TUNINGS`."""
LEVEL_SPREAD_DB = 4.0
PRESENCE = {"drums": 0.85, "bass": 0.85, "chords": 0.9, "lead": 0.75}
"""Probability that a part plays in a section of the track."""
DRUM_TUNINGS = {
    "kick": (31, -1.0),
    "snare": (55, -4.0),
    "clap": (60, -6.0),
    "hat": (123, -12.0),
    "crash": (119, -10.0),
    "shaker": (115, -14.0),
    "hand_drum": (50, -1.0),
    "metal": (86, -12.0),
}
"""MIDI note number and RMS level in dB of each drum."""
DRUM_SECONDS = 0.5
MAX_NOTE_SECONDS = 4.0
MELODY_TONES = 10
"""Degrees of the scale that a melody spans."""
MIN_HZ = 20.0
"""The spectrum of a recording is not tilted below this frequency."""


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
    """Place in the stereo field from -1, left, to 1, right."""
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class Meter:
    """When the sixteenths of a piece are played."""

    bpm: float
    """Quarter notes per minute."""
    steps: int
    """Sixteenths per bar."""
    swing: float = 0.0
    """Delay of every second sixteenth, in sixteenths."""

    def start(self, step: int) -> float:
        """Return the time in seconds of a sixteenth, counted from 0."""
        return (step + self.swing * (step % 2)) * 15.0 / self.bpm


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What the recording does to the music. It is drawn alike for every genre."""

    level_db: float
    """RMS level relative to full scale."""
    cutoff: float
    """Upper edge of the recording's band, in Hz."""
    tilt_db: float
    """Change of the spectrum per octave above 1 kHz."""
    reverb_seconds: float
    """Time in which the reverberation falls by 60 dB."""
    reverb: float
    """Amplitude of the reverberation relative to the dry sound."""
    noise_db: float
    """RMS level of the background noise relative to the music."""


@dataclass(frozen=True, kw_only=True)
class Song:
    """A piece of music, ready to be rendered at any sample rate."""

    meter: Meter
    key: str
    """Tonic and scale, such as ``D minor``."""
    parts: tuple[Part, ...]
    recording: Recording


@dataclass(frozen=True, kw_only=True)
class Artist:
    """What all pieces of an artist have in common."""

    genre: str
    """Key of `STYLES`."""
    instruments: dict[str, tuple[str, float]]
    """Instrument of chords, bass and lead, and how bright it is, from 0 to 1."""
    kit: dict[str, str]
    """Rhythm of each drum."""


def form_artist(genre: str, rng: np.random.Generator) -> Artist:
    """Return an artist who plays in the style of `genre`, a key of `STYLES`."""
    return _Composer(genre, rng).artist()


def compose(artist: Artist, rng: np.random.Generator, seconds: float) -> Song:
    """Return a piece of music by `artist` of at least `seconds`."""
    return _Composer(artist.genre, rng).song(artist, seconds)


class _Composer:
    """Draws all that is random in an artist or in a piece of music from one generator."""

    def __init__(self, genre: str, rng: np.random.Generator) -> None:
        self._genre = genre
        self._rng = rng

    def artist(self) -> Artist:
        chords, bass, lead, drums = (self._style() for _ in range(4))
        options = {"chords": chords.chords, "bass": bass.basses, "lead": lead.leads}
        instruments = {role: (self._pick(names), self._brightness()) for role, names in options.items()}
        return Artist(genre=self._genre, instruments=instruments, kit=dict(self._pick(drums.kits)))

    def song(self, artist: Artist, seconds: float) -> Song:
        style = self._style()
        bpm = round(self._uniform(*style.tempo), 1)
        meter = Meter(bpm=bpm, steps=self._pick(style.meters), swing=style.swing)
        style = self._style()
        tonic = int(self._rng.integers(len(KEYS)))
        scale, progression = self._pick(style.scales), self._pick(style.progressions)
        harmony = _Harmony(tonic, scale, progression, self._pick(style.voicings))
        bars = math.ceil(seconds / meter.start(meter.steps))
        playing = self._arrangement(bars)
        chords, bass, lead = (self._style() for _ in range(3))
        patterns = {
            "chords": [self._pick(chords.chord_patterns)] * bars,
            "bass": [self._pick(bass.bass_patterns)] * bars,
            "lead": self._melody(self._pick(lead.lead_densities), meter.steps, bars),
        }
        parts = []
        for role, pattern in patterns.items():
            instrument, brightness = artist.instruments[role]
            tones = [harmony.tones(role, bar) for bar in range(bars)]
            notes = self._notes(meter, pattern, tones, playing[role])
            max_pan = 0.0 if role == "bass" else 0.6
            parts.append(self._part(instrument, brightness, LEVELS_DB[role], notes, max_pan))
        for drum, rhythm in artist.kit.items():
            pitch, level_db = DRUM_TUNINGS[drum]
            tuning = (pitch + int(self._rng.integers(-4, 5)),)
            notes = self._notes(meter, [rhythm] * bars, [tuning] * bars, playing["drums"])
            parts.append(self._part(drum, self._brightness(), level_db, notes))
        key = f"{KEYS[harmony.tonic]} {harmony.scale}"
        return Song(meter=meter, key=key, parts=tuple(parts), recording=self._recording())

    def _pick(self, options: Sequence[Option]) -> Option:
        return options[int(self._rng.integers(len(options)))]

    def _uniform(self, low: float, high: float) -> float:
        return float(self._rng.uniform(low, high))

    def _style(self) -> Style:
        """Return the style of the genre or, with probability `CROSSOVER`, that of any genre."""
        return STYLES[self._pick(tuple(STYLES)) if self._rng.random() < CROSSOVER else self._genre]

    def _arrangement(self, bars: int) -> dict[str, list[bool]]:
        """Return the bars in which each part plays, by sections of one or two; chords or bass always play."""
        section_bars = int(self._rng.integers(1, 3))
        sections = -(-bars // section_bars)
        playing = {role: self._rng.random(sections) < presence for role, presence in PRESENCE.items()}
        playing["chords"] |= ~playing["bass"]
        return {role: [bool(on[bar // section_bars]) for bar in range(bars)] for role, on in playing.items()}

    def _melody(self, density: float, steps: int, bars: int) -> list[str]:
        """Return one pattern per bar: two motifs in the order A A B A, each a random walk over the scale."""
        motifs = [self._motif(density, steps) for _ in range(2)]
        return [motifs[(0, 0, 1, 0)[bar % 4]] for bar in range(bars)]

    def _motif(self, density: float, steps: int) -> str:
        motif = ["."] * steps
        degree = int(self._rng.integers(MELODY_TONES))
        for step in range(steps):
            on_beat = step % 4 == 0
            if self._rng.random() < density * (1.6 if on_beat else 0.8):
                degree = int(np.clip(degree + self._rng.integers(-2, 3), 0, MELODY_TONES - 1))
                motif[step] = str(degree - degree % 2 if on_beat else degree)
        return "".join(motif)

    def _notes(
        self, meter: Meter, patterns: Sequence[str], tones: Sequence[tuple[int, ...]], playing: Sequence[bool]
    ) -> tuple[Note, ...]:
        """Return the notes of one part: `patterns`, `tones` and `playing` have an entry per bar."""
        notes = []
        for bar in itertools.compress(range(len(playing)), playing):
            pattern = [patterns[bar][step % len(patterns[bar])] for step in range(meter.steps)]
            onsets = [step for step, character in enumerate(pattern) if character != "."]
            for step, end in itertools.pairwise([*onsets, meter.steps]):
                start = meter.start(bar * meter.steps + step)
                length = min(meter.start(bar * meter.steps + end) - start, MAX_NOTE_SECONDS)
                strength = (1.0 if step % 4 == 0 else 0.75) * self._uniform(0.85, 1.0)
                pitches = _pitches(pattern[step], tones[bar])
                notes += [Note(start, length, pitch, strength) for pitch in pitches]
        return tuple(notes)

    def _brightness(self) -> float:
        return self._uniform(0.25, 0.75)

    def _part(
        self, sound: str, brightness: float, level_db: float, notes: tuple[Note, ...], max_pan: float = 0.0
    ) -> Part:
        return Part(
            sound=sound,
            brightness=brightness,
            level_db=level_db + self._uniform(-LEVEL_SPREAD_DB, LEVEL_SPREAD_DB),
            pan=self._uniform(-max_pan, max_pan) if max_pan else 0.0,
            notes=notes,
        )

    def _recording(self) -> Recording:
        return Recording(
            level_db=self._uniform(-32.0, -14.0),
            cutoff=math.exp(self._uniform(math.log(4_500.0), math.log(12_000.0))),
            tilt_db=self._uniform(-1.5, 1.5),
            reverb_seconds=self._uniform(0.2, 1.5),
            reverb=self._uniform(0.0, 0.5),
            noise_db=self._uniform(-70.0, -35.0),
        )


class _Harmony(NamedTuple):
    """Tonic, scale and chords of a piece."""

    tonic: int
    """Semitones above C."""
    scale: str
    progression: Sequence[int]
    voicing: Sequence[int]

    def tones(self, role: str, bar: int) -> tuple[int, ...]:
        """Return the MIDI note numbers from which the part `role` plays in `bar`."""
        root = self.progression[bar % len(self.progression)]
        if role == "bass":
            return tuple(self._pitch(role, root) + interval for interval in (0, 7, 12))
        degrees = self.voicing if role == "chords" else range(MELODY_TONES)
        return tuple(self._pitch(role, root + degree) for degree in degrees)

    def _pitch(self, role: str, degree: int) -> int:
        octave, step = divmod(degree, len(SCALES[self.scale]))
        tonic = OCTAVES[role] + self.tonic - (12 if self.tonic > MAX_TONIC else 0)
        return tonic + 12 * octave + SCALES[self.scale][step]


def _pitches(character: str, tones: tuple[int, ...]) -> tuple[int, ...]:
    """Return the pitches that a character of a pattern plays: all tones or one, maybe octaves higher."""
    if character == "x":
        return tones
    octave, tone = divmod(int(character), len(tones))
    return (tones[tone] + 12 * octave,)


def render_song(song: Song, seconds: float, sample_rate: int, channels: int) -> Waveform:
    """Return `song` as float32 of shape [samples, channels], with 1 or 2 channels."""
    samples = round(seconds * sample_rate)
    stage = np.zeros((channels, samples), np.float32)
    for part in song.parts:
        angle = (part.pan + 1.0) * np.pi / 4.0
        gains = (math.cos(angle), math.sin(angle)) if channels == 2 else (1.0,)
        played = 10.0 ** (part.level_db / 20.0) * render_part(part, samples, sample_rate)
        for channel, gain in zip(stage, gains, strict=True):
            channel += gain * played
    return _record(stage, song.recording, sample_rate).T


def render_part(part: Part, samples: int, sample_rate: int) -> Waveform:
    """Return what one part plays, float32 of shape [samples], at an RMS level of 1 where it sounds."""
    track = np.zeros(samples, np.float32)

    @functools.cache
    def sound(pitch: int, seconds: float) -> Waveform:
        return play(part.sound, pitch, seconds, sample_rate, part.brightness)

    for note in part.notes:
        start = round(note.start * sample_rate)
        if start < samples:
            seconds = DRUM_SECONDS if part.sound in DRUMS else round(note.seconds, 3)
            wave = sound(note.pitch, seconds)[: samples - start]
            track[start : start + len(wave)] += note.strength * wave
    sounding = track[track != 0.0]
    return track / np.sqrt(np.mean(sounding**2)) if len(sounding) else track


def _record(stage: Waveform, recording: Recording, sample_rate: int) -> Waveform:
    """Return `stage`, [channels, samples], with the room, band, noise and level of `recording`."""
    channels, samples = stage.shape
    rng = np.random.default_rng(NOISE_SEED)
    # The room is noise that falls by 60 dB, with an energy of 1, so that reverberation keeps the loudness.
    length = round(recording.reverb_seconds * sample_rate)
    decay = 10.0 ** (-3.0 * np.arange(length) / length)
    room = rng.standard_normal((channels, length), np.float32)
    room *= (decay / np.sqrt(np.sum(decay**2))).astype(np.float32)
    size = 1 << (samples + length - 1).bit_length()
    hertz = np.maximum(np.fft.rfftfreq(size, 1.0 / sample_rate), MIN_HZ).astype(np.float32)
    tilt = (hertz / 1_000.0) ** (recording.tilt_db / 6.02)  # an amplitude doubles with every 6.02 dB
    band = tilt / np.sqrt(1.0 + (hertz / recording.cutoff) ** 8)
    spectrum = np.fft.rfft(stage, size) * (1.0 + recording.reverb * np.fft.rfft(room, size)) * band
    sound = np.fft.irfft(spectrum, size)[:, :samples]
    sound /= np.sqrt(np.mean(sound**2))
    sound += 10.0 ** (recording.noise_db / 20.0) * rng.standard_normal(sound.shape, np.float32)
    limited: Waveform = np.tanh(10.0 ** (recording.level_db / 20.0) * sound).astype(np.float32)
    return limited
