import numpy as np
import pytest
import torch
import torchaudio

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.mel import log_mel, powers, to_float
from tests.pipelines.graphs import Array, run

CONFIGS = [
    MelConfig(),
    MelConfig(n_fft=1024, hop_length=512, n_mels=64),
    MelConfig(n_fft=2048, hop_length=500, n_mels=96, f_max=11_025),
    MelConfig(sample_rate=16_000, n_fft=400, hop_length=160, n_mels=40, f_max=8_000),
    MelConfig(sample_rate=44_100, seconds=1.0, n_fft=2048, hop_length=441, n_mels=80, f_max=20_000),
    MelConfig(n_fft=1024, win_length=512),
    MelConfig(sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, n_mels=64, f_max=7_600),
    MelConfig(
        sample_rate=48_000,
        seconds=1.0,
        n_fft=2048,
        win_length=1201,
        hop_length=480,
        n_mels=128,
        f_max=24_000,
    ),
    MelConfig(sample_rate=8_000, seconds=2.0, n_fft=256, hop_length=64, n_mels=20, f_max=4_000),
]


def noisy_chord(mel: MelConfig, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    time = np.arange(mel.samples) / mel.sample_rate
    tones = sum(np.sin(2 * np.pi * frequency * time) for frequency in (220.0, 277.2, 329.6, 3520.0))
    audio = 0.1 * tones * np.exp(-time) + 0.01 * rng.standard_normal(mel.samples)
    return (audio * 32767).astype(np.int16)


def torchaudio_log_mel(audio: Array, mel: MelConfig) -> torch.Tensor:
    power = torchaudio.transforms.MelSpectrogram(
        sample_rate=mel.sample_rate,
        n_fft=mel.n_fft,
        win_length=mel.window,
        hop_length=mel.hop_length,
        n_mels=mel.n_mels,
        f_max=mel.f_max,
    )(torch.from_numpy(audio).float() / 32768)
    decibels: torch.Tensor = torchaudio.transforms.AmplitudeToDB("power")(power)
    return decibels


@pytest.mark.parametrize(
    "mel", CONFIGS, ids=lambda mel: f"{mel.sample_rate}-{mel.n_fft}-{mel.window}-{mel.n_mels}"
)
def test_log_mels_equal_those_of_torchaudio_to_a_thousandth_of_a_decibel(mel: MelConfig) -> None:
    batch = [noisy_chord(mel, seed) for seed in range(3)]
    for audio, found in zip(batch, run(lambda x: log_mel(powers(to_float(x), mel), mel), batch), strict=True):
        expected = torchaudio_log_mel(audio, mel)
        assert found.shape == (mel.n_mels, mel.frames) == tuple(expected.shape)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-3)


def test_silence_is_the_floor_of_the_decibel_scale() -> None:
    mel = MelConfig()
    (found,) = run(lambda x: log_mel(powers(to_float(x), mel), mel), [np.zeros(mel.samples, dtype=np.int16)])
    np.testing.assert_allclose(found, -100, rtol=1e-6)


def test_int16_becomes_float_between_minus_one_and_one() -> None:
    (found,) = run(to_float, [np.array([-32768, 0, 16384, 32767], dtype=np.int16)])
    np.testing.assert_array_equal(found, np.array([-1, 0, 0.5, 32767 / 32768], dtype=np.float32))


def test_five_seconds_of_the_paper_make_48_by_431() -> None:
    mel = MelConfig()
    assert (mel.samples, mel.n_mels, mel.frames) == (110_250, 48, 431)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"f_max": 12_000.0}, "f_max = 12000 Hz"),
        ({"n_mels": 0}, "n_mels = 0"),
        ({"seconds": 0.01}, "seconds = 0.01"),
        ({"seconds": float("nan")}, "seconds = nan"),
        ({"hop_length": -1}, "hop_length = -1"),
        ({"hop_length": 0}, "hop_length = 0"),
        ({"n_fft": 256, "win_length": 512}, "n_fft = 256 is shorter than the window of 512 samples"),
        ({"win_length": 0}, "window = 0"),
        ({"f_max": 0.0}, "f_max = 0 Hz must be above 0 and at most 11025 Hz"),
        ({"f_max": 11_025.5}, r"f_max = 11025.5 Hz must be above 0 and at most 11025 Hz, half of the"),
        ({"sample_rate": 0}, "sample_rate = 0"),
    ],
)
def test_impossible_features_are_refused_with_the_value(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MelConfig(**settings)  # type: ignore[arg-type]
