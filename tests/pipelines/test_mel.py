"""Log-mels of both engines, against torchaudio."""

from typing import Any

import numpy as np
import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.frontend import Frontend
from tests.pipelines.conftest import PackAudio
from tests.pipelines.helpers import BACKENDS, Array, first_views, two_views
from tests.pipelines.reference import pcm_of, rounding_decibels, torchaudio_log_mel

CONFIGS = [
    MelConfig(),
    MelConfig(n_fft=1024, hop_length=512, n_mels=64),
    MelConfig(n_fft=2048, hop_length=500, n_mels=96, f_max=11_025),
    MelConfig(sample_rate=16_000, n_fft=400, hop_length=160, n_mels=40, f_max=8_000),
    MelConfig(sample_rate=44_100, seconds=1.0, n_fft=2048, hop_length=441, n_mels=80, f_max=20_000),
    MelConfig(n_fft=1024, win_length=512, floor_db=-40),
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
    MelConfig(seconds=0.333, n_fft=510, win_length=333, hop_length=77, floor_db=-150.0),
]


def noisy_chord(mel: MelConfig, seed: int) -> Array:
    """Return a fading chord with some noise and a silent half, as long as a crop."""
    rng = np.random.default_rng(seed)
    time = np.arange(mel.samples) / mel.sample_rate
    tones = sum(np.sin(2 * np.pi * frequency * time) for frequency in (220.0, 277.2, 329.6, 3520.0))
    audio = 0.1 * tones * np.exp(-time) + 0.01 * rng.standard_normal(mel.samples)
    return np.asarray(audio * (time < 0.75 * mel.seconds))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "mel", CONFIGS, ids=lambda mel: f"{mel.sample_rate}-{mel.n_fft}-{mel.window}-{mel.n_mels}"
)
def test_log_mels_equal_those_of_torchaudio_to_a_thousandth_of_a_decibel_or_what_float32_rounds(
    pack_audio: PackAudio, mel: MelConfig, backend: str
) -> None:
    tracks = {f"{seed:06d}": noisy_chord(mel, seed) for seed in range(3)}
    shard_set = pack_audio(tracks, rate=mel.sample_rate, min_seconds=0.1)
    bands = np.linspace(-1, 1, mel.n_mels)
    of_bands = tuple((10 * bands - 40).tolist()), tuple((5 * bands + 15).tolist())
    for mean, std in ((0.0, 1.0), (-31.5, 12.25), of_bands):
        loader = two_views(
            shard_set, "none", frontend=Frontend(mel=mel, mean=mean, std=std), batch_size=3, backend=backend
        )
        order = loader.plan.batch((0, 0)).tracks
        view, _ = first_views(loader)
        assert view.shape == (3, mel.n_mels, mel.frames)
        audio = pcm_of(shard_set)
        for image, track in zip(view, order, strict=True):
            expected = torchaudio_log_mel(audio[track], mel)
            decibels = np.reshape(std, (-1, 1)) * image + np.reshape(mean, (-1, 1))
            assert (abs(decibels - expected) <= rounding_decibels(expected, axis=0)).all()
            assert expected.min() == pytest.approx(mel.floor_db, abs=1e-3)


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
        ({"win_length": 0}, "win_length = 0"),
        ({"f_max": 0.0}, "f_max = 0 Hz must be above 0 and at most 11025 Hz"),
        ({"f_max": 11_025.5}, r"f_max = 11025.5 Hz must be above 0 and at most 11025 Hz, half of the"),
        ({"sample_rate": 0}, "sample_rate = 0"),
        ({"floor_db": float("-inf")}, "floor_db = -inf must be a number of decibels"),
    ],
)
def test_impossible_features_are_refused_with_the_value(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MelConfig(**settings)
