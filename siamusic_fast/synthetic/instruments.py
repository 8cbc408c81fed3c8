"""The sounds of the synthetic corpus: additive, plucked, FM, noise and distortion synthesis."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
"""Audio of shape [samples] or [samples, channels]; full scale is 1."""
Times = npt.NDArray[np.float64]
Wave = npt.NDArray[np.floating[Any]]
"""Audio as the sounds make it, whose precision is nobody's concern before `play`."""
Sound = Callable[[Times, float, float], Wave]
"""Takes times in seconds, evenly spaced from 0, a frequency in Hz and a brightness from 0 to 1."""

MOST_PARTIALS = 16
NOISE_SEED = 2
RELEASE = 0.03
"""Seconds over which a note fades where it is cut off."""
VIBRATO_HZ = 5.5


def frequency(pitch: float) -> float:
    """Return the frequency in Hz of a MIDI note number in equal temperament: 69 is A4, 440 Hz."""
    return float(440.0 * 2.0 ** ((pitch - 69.0) / 12.0))


def play(name: str, pitch: float, seconds: float, sample_rate: int, brightness: float = 0.5) -> Samples:
    """Return one note of the instrument or drum `name`, a key of `SOUNDS`.

    `pitch` is a MIDI note number, for a drum that of its tuning; `brightness` goes from 0, dull, to 1.
    """
    time = np.arange(max(round(seconds * sample_rate), 2)) / sample_rate
    sound = SOUNDS[name](time, frequency(pitch), brightness)
    note: Samples = (sound * np.minimum((time[-1] - time) / RELEASE, 1.0)).astype(np.float32)
    return note


def harmonics(phase: Times, weights: Times, fade: float | Times = 1.0) -> Samples:
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


def _partials(time: Times, frequency: float) -> Times:
    """Return the numbers 1, 2, ... of the harmonics below half the sample rate."""
    nyquist = 0.5 / time[1]
    return np.arange(1.0, max(min(nyquist // (1.2 * frequency), MOST_PARTIALS), 1) + 1)


def _envelope(time: Times, attack: float, decay: float = 0.0) -> Times:
    """Return a linear rise over `attack` seconds times an exponential fall of `decay` nepers per second."""
    return np.minimum(time / attack, 1.0) * np.exp(-decay * time)


def _sine(cycles: Times | Wave) -> Wave:
    sine: Wave = np.sin(2.0 * np.pi * cycles)
    return sine


def _distort(wave: Wave) -> Wave:
    distorted: Wave = np.tanh(wave)
    return distorted


def _sum(waves: Iterable[Wave]) -> Wave:
    return functools.reduce(np.add, waves)


def _vibrato(time: Times, frequency: float, depth: float) -> Times:
    """Return the phase in cycles of a tone whose frequency swings by ± `depth` of itself."""
    swing = depth / (2.0 * np.pi * VIBRATO_HZ) * np.sin(2.0 * np.pi * VIBRATO_HZ * time)
    return frequency * (time + swing)


def _band(time: Times, center: float, octaves: float) -> Wave:
    """Return noise of deviation 1 whose spectrum is a bell of `octaves` around `center` Hz."""
    size = 1 << (len(time) - 1).bit_length()
    noise = np.random.default_rng(NOISE_SEED).standard_normal(size, np.float32)
    hertz = np.maximum(np.fft.rfftfreq(size, time[1]), 1.0)
    bell = np.exp(-0.5 * (np.log2(hertz / center) / octaves) ** 2).astype(np.float32)
    band: Wave = np.fft.irfft(np.fft.rfft(noise) * bell, size)[: len(time)]
    return band / float(band.std())


# Strings that are plucked or struck.


def guitar(time: Times, frequency: float, brightness: float) -> Wave:
    k = _partials(time, frequency)
    weights = np.sin(np.pi * k * 0.22) / k
    return harmonics(frequency * time, weights, (0.7 + 0.25 * brightness) * np.exp(-1.3 * time))


def sitar(time: Times, frequency: float, brightness: float) -> Wave:
    bend = frequency * (time - 0.01 * (1.0 - np.exp(-8.0 * time)) / 8.0)
    k = _partials(time, frequency)
    buzz = 1.0 + 1.5 * np.exp(-0.5 * ((k - 7.0 - 4.0 * brightness) / 2.5) ** 2)
    return harmonics(bend, buzz / np.sqrt(k), 0.93 * np.exp(-0.35 * time))


def piano(time: Times, frequency: float, brightness: float) -> Wave:
    k = _partials(time, frequency)
    fade = (0.4 + 0.25 * brightness) * (0.75 + 0.25 * np.exp(-9.0 * time)) * np.exp(-0.25 * time)
    pair = harmonics(frequency * time, 1.0 / k, fade) + harmonics(1.0007 * frequency * time, 1.0 / k, fade)
    return pair * _envelope(time, 0.004, 0.8).astype(np.float32)


# Strings, pipes, reeds and voices that sustain.


def strings(time: Times, frequency: float, brightness: float) -> Wave:
    k = _partials(time, frequency)
    fade = 0.65 + 0.25 * brightness
    players = [_vibrato(time, frequency * detune, 0.004) for detune in (0.997, 1.004)]
    return _sum(harmonics(phase, 1.0 / k, fade) for phase in players) * _envelope(time, 0.18)


def fiddle(time: Times, frequency: float, brightness: float) -> Wave:
    k = _partials(time, frequency)
    body = (1.0 + np.cos(2.0 * np.pi * k * frequency / 1_100.0) ** 2) / k
    return harmonics(_vibrato(time, frequency, 0.006), body, 0.85 + 0.12 * brightness) * _envelope(time, 0.05)


def flute(time: Times, frequency: float, brightness: float) -> Wave:
    tone = harmonics(
        _vibrato(time, frequency, 0.004), np.array([1.0, 0.35, 0.12, 0.05]), 0.6 + 0.4 * brightness
    )
    return (tone + 0.06 * _band(time, 2.0 * frequency, 0.6)) * _envelope(time, 0.07)


def reed(time: Times, frequency: float, brightness: float) -> Wave:
    k = _partials(time, frequency)
    weights = np.where(k % 2 == 1, 1.0, 0.35) / np.sqrt(k)
    return harmonics(_vibrato(time, frequency, 0.008), weights, 0.8 + 0.1 * brightness) * _envelope(
        time, 0.03
    )


def voice(time: Times, frequency: float, brightness: float) -> Wave:
    k = _partials(time, frequency)
    formants = (500.0 + 400.0 * brightness, 1_100.0 + 700.0 * brightness, 2_700.0)
    vowel = _sum(np.exp(-0.5 * ((k * frequency - formant) / 160.0) ** 2) for formant in formants)
    weights = (0.15 + vowel) / np.sqrt(k)
    return harmonics(_vibrato(time, frequency, 0.009), weights, 0.97) * _envelope(time, 0.06)


def organ(time: Times, frequency: float, brightness: float) -> Wave:
    drawbars = np.array([1.0, 0.8, 0.6, 0.5, 0.0, 0.3, 0.0, 0.3])[: len(_partials(time, frequency))]
    return harmonics(frequency * time, drawbars, 0.8 + 0.2 * brightness) * _envelope(time, 0.01)


# Synthesizers.


def sub(time: Times, frequency: float, brightness: float) -> Wave:
    sine = _sine(frequency * time)
    return _distort((1.0 + brightness) * sine) * _envelope(time, 0.01, 0.6)


def supersaw(time: Times, frequency: float, brightness: float) -> Wave:
    k = _partials(time, frequency)
    filter_sweep = 0.6 + 0.38 * (0.3 + 0.7 * brightness) * np.exp(-1.5 * time)
    voices = [harmonics(frequency * detune * time, 1.0 / k, filter_sweep) for detune in (0.993, 1.0, 1.008)]
    return _sum(voices) * _envelope(time, 0.01)


def square(time: Times, frequency: float, brightness: float) -> Wave:
    k = _partials(time, frequency)
    return harmonics(frequency * time, (k % 2) / k, 0.8 + 0.2 * brightness) * _envelope(time, 0.005, 1.0)


def acid(time: Times, frequency: float, brightness: float) -> Wave:
    k = _partials(time, frequency)
    resonance = 1.0 / k + 0.6 * np.exp(-0.5 * ((k - 3.0 - 5.0 * brightness) / 1.5) ** 2)
    return harmonics(frequency * time, resonance, 0.55 + 0.43 * np.exp(-9.0 * time)) * _envelope(time, 0.005)


def electric_piano(time: Times, frequency: float, brightness: float) -> Wave:
    cycles = frequency * time
    index = (0.13 + 0.16 * brightness) * np.exp(-4.0 * time)
    tine = 0.15 * _sine(14.0 * cycles) * np.exp(-12.0 * time)
    return (_sine(cycles + index * _sine(cycles)) + tine) * _envelope(time, 0.004, 1.2)


def bell(time: Times, frequency: float, brightness: float) -> Wave:
    cycles = frequency * time
    index = (0.16 + 0.5 * brightness) * np.exp(-1.5 * time)
    return _sine(cycles + index * _sine(2.0**0.5 * cycles)) * _envelope(time, 0.003, 1.5)


def drone(time: Times, frequency: float, brightness: float) -> Wave:
    cycles = frequency * time
    index = (0.16 + 0.8 * brightness) * np.sin(np.pi * time / (time[-1] + time[1])) ** 2
    return _sine(cycles + index * _sine(1.506 * cycles)) * _envelope(time, 0.3)


def wind(time: Times, frequency: float, brightness: float) -> Wave:
    return 0.5 * _band(time, 2.0 * frequency, 0.08 + 0.3 * brightness) * _envelope(time, 0.2)


def power_chord(time: Times, frequency: float, brightness: float) -> Wave:
    """Return root, fifth and octave through one distortion, which adds their sum and difference tones."""
    k = _partials(time, 2.0 * frequency)[:8]
    chord = _sum(harmonics(ratio * frequency * time, 1.0 / k, 0.8) for ratio in (1.0, 1.498, 2.0))
    return _distort((2.0 + 4.0 * brightness) * chord) * _envelope(time, 0.005, 0.4)


def lead_guitar(time: Times, frequency: float, brightness: float) -> Wave:
    string = harmonics(_vibrato(time, frequency, 0.007), np.array([1.0, 0.6, 0.4, 0.2]))
    return _distort((2.0 + 4.0 * brightness) * string) * _envelope(time, 0.005, 0.5)


# Drums, whose frequency is that of the skin or the center of the noise.


def kick(time: Times, frequency: float, brightness: float) -> Wave:
    cycles = frequency * (time + 3.0 * (1.0 - np.exp(-35.0 * time)) / 35.0)
    click = 0.5 * brightness * _band(time, 3_000.0, 0.7) * np.exp(-250.0 * time)
    return _sine(cycles) * np.exp(-(6.0 + 6.0 * brightness) * time) + click


def snare(time: Times, frequency: float, brightness: float) -> Wave:
    skin = _sine(frequency * time) * np.exp(-22.0 * time)
    return skin + 0.5 * _band(time, 2_000.0 + 2_500.0 * brightness, 0.9) * np.exp(-14.0 * time)


def clap(time: Times, frequency: float, brightness: float) -> Wave:
    hands: Wave = np.exp(-90.0 * (time % 0.011)) * (time < 0.033) + np.exp(-16.0 * time) * (time >= 0.033)
    return _band(time, 1_000.0 + 800.0 * brightness, 0.5) * hands


def hat(time: Times, frequency: float, brightness: float) -> Wave:
    return _band(time, frequency, 0.35) * np.exp(-(75.0 - 50.0 * brightness) * time)


def crash(time: Times, frequency: float, brightness: float) -> Wave:
    return _band(time, frequency, 0.8) * np.exp(-(6.0 - 3.0 * brightness) * time)


def shaker(time: Times, frequency: float, brightness: float) -> Wave:
    return _band(time, frequency, 0.3) * _envelope(time, 0.03, 30.0 - 10.0 * brightness)


def hand_drum(time: Times, frequency: float, brightness: float) -> Wave:
    cycles = frequency * (time + 0.25 * (1.0 - np.exp(-18.0 * time)) / 18.0)
    slap = 0.6 * brightness * _band(time, 1_800.0, 0.6) * np.exp(-70.0 * time)
    return _sine(cycles) * np.exp(-9.0 * time) + slap


def metal(time: Times, frequency: float, brightness: float) -> Wave:
    cycles = frequency * time
    return _sine(cycles + 0.6 * _sine(2.76 * cycles)) * np.exp(-(12.0 - 8.0 * brightness) * time)


STRINGS = (guitar, sitar, piano, strings, fiddle)
WINDS = (flute, reed, voice, organ)
SYNTHESIZERS = (sub, supersaw, square, acid, electric_piano, bell, drone, wind, power_chord, lead_guitar)
DRUMS: dict[str, Sound] = {
    sound.__name__: sound for sound in (kick, snare, clap, hat, crash, shaker, hand_drum, metal)
}
INSTRUMENTS: dict[str, Sound] = {sound.__name__: sound for sound in (*STRINGS, *WINDS, *SYNTHESIZERS)}
SOUNDS: dict[str, Sound] = INSTRUMENTS | DRUMS
"""Every sound by its name."""
