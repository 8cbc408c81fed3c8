"""The sounds of the synthetic corpus: additive, plucked, FM, noise and distortion synthesis."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float32]
"""Audio of shape [samples], [channels, samples] or [samples, channels], full scale being 1."""
Floats = npt.NDArray[np.floating[Any]]
"""Intermediate results of shape [samples] or [partials]."""

MAX_PARTIALS = 16
NOISE_SEED = 2
RELEASE_SECONDS = 0.03
"""A note that is cut off fades out over this time."""
VIBRATO_HZ = 5.5


@dataclass(frozen=True)
class Tone:
    """One note, with the building blocks of the sounds of instruments."""

    time: Floats
    """Times of the samples in seconds, evenly spaced from 0."""
    frequency: float
    """Pitch in Hz; of a drum, the pitch of its skin or the center of its noise."""

    @property
    def partials(self) -> Floats:
        """The numbers 1, 2, ... of the harmonics below half the sample rate."""
        nyquist = 0.5 / self.time[1]
        return np.arange(1.0, max(min(nyquist // (1.2 * self.frequency), MAX_PARTIALS), 1) + 1)

    def glide(self, height: float, rate: float) -> Floats:
        """Return the phase of a tone that begins 1 + `height` times as high; the excess decays at `rate`."""
        return self.frequency * (self.time + height * (1.0 - self.decay(rate)) / rate)

    def decay(self, rate: float) -> Floats:
        """Return an exponential decay from 1, by a factor of e in every 1 / `rate` seconds."""
        return np.asarray(np.exp(-rate * self.time))

    def envelope(self, attack: float, rate: float = 0.0) -> Floats:
        """Return a linear rise over `attack` seconds times an exponential decay at `rate`."""
        return (self.time / attack).clip(max=1.0) * self.decay(rate)

    def voices(
        self,
        weights: Floats,
        fade: float | Floats = 1.0,
        vibrato: float = 0.0,
        detune: tuple[float, ...] = (1.0,),
    ) -> Floats:
        """Return the sum of `harmonics` at the pitches that `detune` gives; each swings by ± `vibrato`."""
        swing = vibrato / (2.0 * np.pi * VIBRATO_HZ) * sine(VIBRATO_HZ * self.time)
        phases = [self.frequency * factor * (self.time + swing) for factor in detune]
        return functools.reduce(np.add, [harmonics(phase, weights, fade) for phase in phases])

    def fm(self, ratio: float, index: float | Floats) -> Floats:
        """Return a sine whose phase swings by `index` cycles, `ratio` times as fast as the sine."""
        cycles = self.frequency * self.time
        return sine(cycles + index * sine(ratio * cycles))

    def noise(self, center: float, octaves: float) -> Floats:
        """Return noise with a standard deviation of 1 and a spectrum of `octaves` around `center` Hz."""
        size = 1 << (len(self.time) - 1).bit_length()
        white = np.random.default_rng(NOISE_SEED).standard_normal(size, np.float32)
        hertz = np.maximum(np.fft.rfftfreq(size, self.time[1]), 1.0)
        bell = bump(np.log2(hertz / center), octaves).astype(np.float32)
        band: Floats = np.fft.irfft(np.fft.rfft(white) * bell, size)[: len(self.time)]
        return band / float(band.std())


def midi_to_hz(pitch: float) -> float:
    """Return the frequency of a MIDI note number in equal temperament: 69 is A4, 440 Hz."""
    return float(440.0 * 2.0 ** ((pitch - 69.0) / 12.0))


def play(name: str, pitch: float, seconds: float, sample_rate: int, brightness: float = 0.5) -> Waveform:
    """Return one note of the instrument or drum `name`, a key of `SOUNDS`.

    `pitch` is a MIDI note number, of a drum that of its tuning. `brightness` goes from 0, dull, to 1, bright.
    """
    tone = Tone(np.arange(max(round(seconds * sample_rate), 2)) / sample_rate, midi_to_hz(pitch))
    sound = SOUNDS[name](tone, tone.partials, brightness)
    release = np.minimum((tone.time[-1] - tone.time) / RELEASE_SECONDS, 1.0)
    note: Waveform = (sound * release).astype(np.float32)
    return note


def harmonics(phase: Floats, weights: Floats, fade: float | Floats = 1.0) -> Waveform:
    """Return the sum over k = 1, 2, ... of weights[k - 1] · fade^k · sin(2π · k · phase), phase in cycles.

    It is the imaginary part of a polynomial in fade · exp(2πi · phase): one complex exponential, then
    Horner's rule. A fade that falls with time makes higher partials die faster, as on a plucked string.
    """
    angle = (2.0 * np.pi * (phase % 1.0)).astype(np.float32)
    z = np.empty(len(angle), np.complex64)
    z.real, z.imag = np.cos(angle), np.sin(angle)
    z *= np.asarray(fade, np.float32)
    total = np.zeros_like(z)
    for weight in weights[::-1].astype(np.float32):
        total += weight
        total *= z
    return total.imag


def sine(cycles: Floats) -> Floats:
    return np.asarray(np.sin(2.0 * np.pi * cycles))


def bump(x: Floats, width: float) -> Floats:
    """Return a bell curve of height 1 around 0, whose standard deviation is `width`."""
    return np.asarray(np.exp(-0.5 * (x / width) ** 2))


def vowel(hertz: Floats, brightness: float) -> Floats:
    """Return how loud a voice is at frequencies, because of the resonances of the throat, its formants."""
    formants = (500 + 400 * brightness, 1_100 + 700 * brightness, 2_700)
    return 0.15 + functools.reduce(np.add, [bump(hertz - formant, 160) for formant in formants])


def claps(time: Floats) -> Floats:
    """Return the loudness of three pairs of hands, 11 ms apart, the last of which fades slowly."""
    return np.where(time < 0.033, np.exp(-90 * (time % 0.011)), np.exp(-16 * time))


Sound = Callable[[Tone, Floats, float], Floats]
"""Makes the sound of a tone `t`, whose partials have the numbers `k`, with a brightness `b`."""

DRAWBARS = np.array([1.0, 0.8, 0.6, 0.5, 0.0, 0.3, 0.0, 0.3])
"""How loud the pipes of an organ are."""

INSTRUMENTS: dict[str, Sound] = {
    # Strings that are plucked or struck.
    "guitar": lambda t, k, b: t.voices(np.sin(np.pi * k * 0.22) / k, (0.7 + 0.25 * b) * t.decay(1.3)),
    "sitar": lambda t, k, b: harmonics(
        t.glide(-0.01, 8), (1 + 1.5 * bump(k - 7 - 4 * b, 2.5)) / np.sqrt(k), 0.93 * t.decay(0.35)
    ),
    "piano": lambda t, k, b: (
        t.envelope(0.004, 0.8).astype(np.float32)
        * t.voices(1 / k, (0.4 + 0.25 * b) * (0.75 + 0.25 * t.decay(9)) * t.decay(0.25), detune=(1, 1.0007))
    ),
    # Strings, pipes, reeds and voices that sustain.
    "strings": lambda t, k, b: t.envelope(0.18) * t.voices(1 / k, 0.65 + 0.25 * b, 0.004, (0.997, 1.004)),
    "fiddle": lambda t, k, b: (
        t.envelope(0.05)
        * t.voices((1 + np.cos(2 * np.pi * k * t.frequency / 1_100) ** 2) / k, 0.85 + 0.12 * b, 0.006)
    ),
    "flute": lambda t, k, b: (
        t.envelope(0.07)
        * (
            t.voices(np.array([1.0, 0.35, 0.12, 0.05]), 0.6 + 0.4 * b, 0.004)
            + 0.06 * t.noise(2 * t.frequency, 0.6)
        )
    ),
    "reed": lambda t, k, b: (
        t.envelope(0.03) * t.voices(np.where(k % 2 == 1, 1.0, 0.35) / np.sqrt(k), 0.8 + 0.1 * b, 0.008)
    ),
    "voice": lambda t, k, b: t.envelope(0.06) * t.voices(vowel(k * t.frequency, b) / np.sqrt(k), 0.97, 0.009),
    "organ": lambda t, k, b: t.envelope(0.01) * t.voices(DRAWBARS[: len(k)], 0.8 + 0.2 * b),
    # Synthesizers.
    "sub": lambda t, k, b: t.envelope(0.01, 0.6) * np.tanh((1 + b) * t.fm(1, 0)),
    "supersaw": lambda t, k, b: (
        t.envelope(0.01)
        * t.voices(1 / k, 0.6 + 0.38 * (0.3 + 0.7 * b) * t.decay(1.5), detune=(0.993, 1, 1.008))
    ),
    "square": lambda t, k, b: t.envelope(0.005, 1) * t.voices((k % 2) / k, 0.8 + 0.2 * b),
    "acid": lambda t, k, b: (
        t.envelope(0.005) * t.voices(1 / k + 0.6 * bump(k - 3 - 5 * b, 1.5), 0.55 + 0.43 * t.decay(9))
    ),
    "electric_piano": lambda t, k, b: (
        t.envelope(0.004, 1.2)
        * (t.fm(1, (0.13 + 0.16 * b) * t.decay(4)) + 0.15 * sine(14 * t.frequency * t.time) * t.decay(12))
    ),
    "bell": lambda t, k, b: t.envelope(0.003, 1.5) * t.fm(2**0.5, (0.16 + 0.5 * b) * t.decay(1.5)),
    "drone": lambda t, k, b: (
        t.envelope(0.3)
        * t.fm(1.506, (0.16 + 0.8 * b) * np.sin(np.pi * t.time / (t.time[-1] + t.time[1])) ** 2)
    ),
    "wind": lambda t, k, b: t.envelope(0.2) * 0.5 * t.noise(2 * t.frequency, 0.08 + 0.3 * b),
    # Root, fifth and octave through one distortion, which adds their sum and difference tones.
    "power_chord": lambda t, k, b: (
        t.envelope(0.005, 0.4)
        * np.tanh((2 + 4 * b) * t.voices(1 / k[: len(k) // 2 or 1], 0.8, detune=(1, 1.498, 2)))
    ),
    "lead_guitar": lambda t, k, b: (
        t.envelope(0.005, 0.5) * np.tanh((2 + 4 * b) * t.voices(np.array([1.0, 0.6, 0.4, 0.2]), 1, 0.007))
    ),
}

DRUMS: dict[str, Sound] = {
    "kick": lambda t, k, b: (
        sine(t.glide(3, 35)) * t.decay(6 + 6 * b) + 0.5 * b * t.noise(3_000, 0.7) * t.decay(250)
    ),
    "snare": lambda t, k, b: t.fm(1, 0) * t.decay(22) + 0.5 * t.noise(2_000 + 2_500 * b, 0.9) * t.decay(14),
    "clap": lambda t, k, b: t.noise(1_000 + 800 * b, 0.5) * claps(t.time),
    "hat": lambda t, k, b: t.noise(t.frequency, 0.35) * t.decay(75 - 50 * b),
    "crash": lambda t, k, b: t.noise(t.frequency, 0.8) * t.decay(6 - 3 * b),
    "shaker": lambda t, k, b: t.noise(t.frequency, 0.3) * t.envelope(0.03, 30 - 10 * b),
    "hand_drum": lambda t, k, b: (
        sine(t.glide(0.25, 18)) * t.decay(9) + 0.6 * b * t.noise(1_800, 0.6) * t.decay(70)
    ),
    "metal": lambda t, k, b: t.fm(2.76, 0.6) * t.decay(12 - 8 * b),
}

SOUNDS = INSTRUMENTS | DRUMS
"""Every sound by its name."""
