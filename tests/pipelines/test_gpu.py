"""Views of a GPU against those of the CPU, which the other tests hold against numpy and torchaudio."""

from typing import Any

import numpy as np
import pytest
import torch

from siamusic_fast.config import MelConfig
from siamusic_fast.frontend import Frontend
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.conftest import PackAudio
from tests.pipelines.helpers import (
    BACKENDS,
    LOADERS,
    NORMALIZED,
    RATE,
    config,
    first_views,
    same,
    take,
    two_views,
)
from tests.pipelines.reference import pcm_of, torchaudio_log_mel
from tests.pipelines.test_engines import RATES
from tests.pipelines.test_images import STEPS
from tests.pipelines.test_mel import CONFIGS, noisy_chord

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("backend", BACKENDS)]

DECIBELS = 0.01
"""How far two implementations of an FFT in float32 may be apart."""
PLACES = 1e-2
"""How far pixels between pixels may be apart, in deviations: texture units round places."""
SETTINGS: dict[str, Any] = {"frontend": NORMALIZED, "batch_size": 23}


def devices() -> list[str]:
    """Return the GPUs to test: the first, and the second where there is one."""
    return ["cuda", *(f"cuda:{number}" for number in range(1, min(2, torch.cuda.device_count())))]


@pytest.mark.parametrize("mel", CONFIGS, ids=lambda mel: f"{mel.sample_rate}-{mel.n_fft}-{mel.window}")
def test_log_mels_equal_those_of_torchaudio(pack_audio: PackAudio, mel: MelConfig, backend: str) -> None:
    tracks = {f"{seed:06d}": noisy_chord(mel, seed) for seed in range(3)}
    shard_set = pack_audio(tracks, rate=mel.sample_rate, min_seconds=0.1)
    frontend = Frontend(mel=mel, mean=0.0, std=1.0)
    loader = two_views(shard_set, "none", frontend=frontend, batch_size=3, backend=backend, device="cuda")
    order, audio = loader.plan.batch((0, 0)).tracks, pcm_of(shard_set)
    view, _ = first_views(loader)
    for image, track in zip(view, order, strict=True):
        np.testing.assert_allclose(image, torchaudio_log_mel(audio[track], mel), rtol=0, atol=DECIBELS)


@pytest.mark.parametrize("crops", ["same", "independent"])
@pytest.mark.parametrize("recipe", ["none", "image", *(f"{name}(p=0.7)" for name in STEPS)])
def test_images_of_a_gpu_equal_those_of_the_cpu(
    numbered: ShardSet, recipe: str, crops: str, backend: str
) -> None:
    atol = (
        PLACES if recipe.startswith(("rrc", "griddistortion")) else DECIBELS / NORMALIZED.statistics[1].item()
    )
    on_cpu = first_views(two_views(numbered, recipe, crops=crops, backend=backend, **SETTINGS))
    for device in devices():
        on_gpu = first_views(
            two_views(numbered, recipe, crops=crops, backend=backend, device=device, **SETTINGS)
        )
        for found, wanted in zip(on_gpu, on_cpu, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("codec", ["wav", "flac"])
@pytest.mark.parametrize(
    "recipe", ["gain(p=1),wavemix(p=1)", "noise(p=1)", "stretch(p=1)", "pitch(p=1)", "both"]
)
def test_audio_of_a_gpu_equals_that_of_the_cpu(
    short_and_long: dict[str, ShardSet], recipe: str, codec: str, rate: int, backend: str
) -> None:
    settings: dict[str, Any] = {"frontend": Frontend(mel=RATES[rate], mean=-40.0, std=10.0), "batch_size": 9}
    on_cpu, on_gpu = (
        first_views(two_views(short_and_long[codec], recipe, backend=backend, device=device, **settings))
        for device in ("cpu", "cuda")
    )
    for found, wanted in zip(on_gpu, on_cpu, strict=True):
        difference = 10 * abs(found - wanted)
        assert np.quantile(difference, 0.99) < 5 * DECIBELS
        assert "pitch" in recipe or rate != RATE or recipe == "both" or difference.max() < 5 * DECIBELS


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_are_on_the_device_and_stay_what_they_are(
    numbered: ShardSet, kind: Any, backend: str
) -> None:
    for device in devices():
        settings = config(backend=backend, device=device, frontend=NORMALIZED)
        with (
            kind(numbered, **settings) as loader,
            kind(numbered, **config(backend=backend, frontend=NORMALIZED)) as cpu,
        ):
            batches = take(loader, 5)
            copies = [(one.clone(), other.clone()) for one, other in batches]
            take(loader, 15)
            assert same(batches, copies)
            index = torch.device(device).index or 0
            assert {tensor.device for pair in batches for tensor in pair} == {torch.device("cuda", index)}
            for found, wanted in zip(batches, take(cpu, 5), strict=True):
                for one, other in zip(found, wanted, strict=True):
                    torch.testing.assert_close(one.cpu(), other, rtol=0, atol=DECIBELS)


def test_bfloat16_is_float32_rounded(numbered: ShardSet, backend: str) -> None:
    exact, rounded = (
        two_views(numbered, backend=backend, device="cuda", dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    with exact, rounded:
        for wanted, found in zip(exact, rounded, strict=True):
            assert all(torch.equal(one, other.bfloat16()) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("recipe", ["image", "audio"])
def test_a_restored_loader_goes_on_as_if_never_stopped(numbered: ShardSet, recipe: str, backend: str) -> None:
    settings: dict[str, Any] = {"backend": backend, "device": "cuda"}
    with (
        two_views(numbered, recipe, **settings) as stopped,
        two_views(numbered, recipe, loader_threads=3, **settings) as fresh,
    ):
        take(stopped, 2)
        fresh.load_state_dict(stopped.state_dict())
        assert same(take(fresh, 6), take(stopped, 6))


def test_buffers_are_not_written_to_while_a_gpu_reads_them(many: ShardSet, backend: str) -> None:
    frontend = Frontend(mel=MelConfig(seconds=0.25, n_mels=16), mean=-40.0, std=10.0)
    settings: dict[str, Any] = {"frontend": frontend, "batch_size": 2, "crops": "independent"}
    gpu = two_views(many, backend=backend, loader_threads=8, device="cuda", **settings)
    with gpu, two_views(many, backend="torch", **settings) as cpu:
        for found, wanted in zip(gpu, cpu, strict=True):
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one.cpu(), other, rtol=0, atol=DECIBELS)
