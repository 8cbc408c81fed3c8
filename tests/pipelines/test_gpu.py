"""The GPU backend against the CPU backend, and against what the tests of the CPU backend are held against."""

from typing import Any

import numpy as np
import pytest
import torch

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.augment import PitchShift
from siamusic_fast.pipelines.loader import LabelledLoader, TrackLoader, TwoViewLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.pipelines.trace import TracedView, trace
from siamusic_fast.shards.manifest import ShardSet
from tests.pipelines.conftest import RATE, PackAudio
from tests.pipelines.graphs import Array
from tests.pipelines.reference import STEPS, augmented, crop, pcm_of
from tests.pipelines.test_audio_exactness import TWO_SECONDS, partials, stretched
from tests.pipelines.test_mel import CONFIGS, noisy_chord, torchaudio_log_mel

pytestmark = pytest.mark.gpu

OPTIONS: dict[str, Any] = {
    "mel": MelConfig(seconds=1.0),
    "normalisation": Normalisation(0.0, 1.0),
    "batch_size": 5,
    "seed": 3,
}
DECIBELS = 0.01
"""How far two implementations of an FFT in float32 may be apart."""


IN_DECIBELS = Normalisation(0.0, 1.0)
NORMALISED = Normalisation(-30.0, 10.0)
RESIZED = {"rrc", "griddistortion"}
"""Steps whose pixels lie between pixels: the texture units of a GPU may round places a little more."""


def on_gpu(shard_set: ShardSet, recipe: Any, **options: Any) -> tuple[TracedView, ...]:
    defaults: dict[str, Any] = {"mel": OPTIONS["mel"], "normalisation": IN_DECIBELS, "tracks": 23}
    return trace(shard_set, recipe=recipe, device="gpu", **{**defaults, **options}).views


def crops(shard_set: ShardSet, view: TracedView) -> Array:
    """Return what `view` shows of every track, float64 [tracks, samples] from -1 to 1."""
    samples = OPTIONS["mel"].samples
    pairs = zip(pcm_of(shard_set), view.positions, strict=True)
    return np.stack([crop(audio, samples, position) for audio, position in pairs]) / 32768


@pytest.mark.parametrize("mel", CONFIGS, ids=lambda mel: f"{mel.sample_rate}-{mel.n_fft}-{mel.window}")
def test_log_mels_of_the_gpu_equal_those_of_torchaudio(pack_audio: PackAudio, mel: MelConfig) -> None:
    tracks = {f"{seed:06d}": noisy_chord(mel, seed) / 32768 for seed in range(3)}
    shard_set = pack_audio(tracks, rate=mel.sample_rate)
    view, _ = on_gpu(shard_set, "none", mel=mel)
    for image, audio in zip(view.images, pcm_of(shard_set), strict=True):
        np.testing.assert_allclose(image, torchaudio_log_mel(audio, mel), rtol=0, atol=DECIBELS)


@pytest.mark.parametrize("p", [1.0, 0.5])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_the_gpu_does_to_an_image_what_was_drawn(numbered: ShardSet, name: str, p: float) -> None:
    recipe = parse_recipe(f"{name}(p={p})")
    tolerance = 1e-2 if name in RESIZED else 1e-5
    for view in on_gpu(numbered, recipe, normalisation=NORMALISED):
        expected = augmented(view.originals, recipe, view.draws)
        np.testing.assert_allclose(view.images, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("crops", ["same", "independent"])
def test_the_image_recipe_on_the_gpu_does_what_was_drawn_in_its_order(numbered: ShardSet, crops: str) -> None:
    recipe = parse_recipe("image")
    for view in on_gpu(numbered, recipe, normalisation=NORMALISED, crops=crops):
        expected = augmented(view.originals, recipe, view.draws)
        np.testing.assert_allclose(view.images, expected, rtol=0, atol=1e-5)


def test_waves_are_mixed_and_scaled_on_the_gpu_as_drawn(numbered: ShardSet) -> None:
    for view in on_gpu(numbered, "wavemix(p=1),gain(p=1)"):
        wanted = crops(numbered, view)
        weight = view.draws["wavemix.weight"].reshape(-1, 1)
        mixed = weight * wanted + (1 - weight) * wanted[view.draws["partner"].ravel()]
        louder = mixed * 10 ** (view.draws["gain.decibels"].reshape(-1, 1) / 20)
        np.testing.assert_allclose(np.stack(view.waves), louder, rtol=0, atol=2e-6)


def test_noise_on_the_gpu_is_as_many_decibels_below_the_sound_as_drawn(numbered: ShardSet) -> None:
    for view in on_gpu(numbered, "noise(p=1)"):
        wanted = crops(numbered, view)
        noise = np.stack(view.waves) - wanted
        ratio = 10 * np.log10((wanted**2).mean(axis=1) / (noise**2).mean(axis=1))
        np.testing.assert_allclose(ratio, view.draws["noise.snr"].ravel(), rtol=0, atol=0.21)
        unit = noise / noise.std(axis=1, keepdims=True)
        others = unit @ unit.T / unit.shape[1] - np.eye(len(unit))
        assert abs(others).max() < 5.5 / np.sqrt(unit.shape[1])


def test_stretched_views_of_the_gpu_equal_those_of_torchaudio_at_the_rate_drawn(numbered: ShardSet) -> None:
    for view in on_gpu(numbered, "stretch(p=1)"):
        for image, wave, tempo in zip(view.images, view.waves, view.tempos, strict=True):
            assert len(wave) == int(np.floor(tempo * OPTIONS["mel"].samples + 0.5))
            expected = stretched(torch.from_numpy(wave), float(tempo))
            np.testing.assert_allclose(image[:, :-3], expected[:, :-3], rtol=0, atol=0.02)


def test_shifted_partials_of_the_gpu_equal_synthesised_ones(pack_audio: PackAudio) -> None:
    shard_set = pack_audio({f"{row:06d}": (1 - 0.05 * row) * partials(300, 10) for row in range(6)})
    for view in on_gpu(shard_set, (PitchShift(p=1),), mel=TWO_SECONDS):
        for row, audio in enumerate(pcm_of(shard_set)):
            factor = 2 ** (float(view.draws["pitch.semitones"].ravel()[row]) / 12)
            synthesised = partials(factor * 300, 10) * audio.max() / partials(300, 10).max()
            expected = torchaudio_log_mel(synthesised.astype(np.float32), TWO_SECONDS).numpy()[:, 4:-4]
            bands = expected.mean(axis=1) > expected.mean(axis=1).max() - 30
            difference = (view.images[row][:, 4:-4] - expected)[bands]
            assert np.sqrt(np.square(difference).mean()) < 0.5  # dB


@pytest.mark.parametrize("recipe", ["none", "audio"])
def test_shards_of_another_rate_and_codec_on_the_gpu_equal_those_on_the_cpu(
    pack_audio: PackAudio, recipe: str
) -> None:
    cd_rate = MelConfig(seconds=1.8, sample_rate=2 * RATE)
    tracks = {f"{seed:06d}": noisy_chord(cd_rate, seed) / 32768 for seed in range(6)}
    shard_set = pack_audio(tracks, rate=2 * RATE, codec="flac")
    for cpu, gpu in zip(
        trace(shard_set, recipe=recipe, mel=OPTIONS["mel"], normalisation=IN_DECIBELS).views,
        on_gpu(shard_set, recipe),
        strict=True,
    ):
        np.testing.assert_allclose(gpu.images, cpu.images, rtol=0, atol=5 * DECIBELS)


@pytest.mark.parametrize("recipe", ["image", "audio"])
def test_the_gpu_draws_what_the_cpu_draws(numbered: ShardSet, recipe: str) -> None:
    for cpu, gpu in zip(
        trace(numbered, recipe=recipe, mel=OPTIONS["mel"], normalisation=IN_DECIBELS, tracks=23).views,
        on_gpu(numbered, recipe),
        strict=True,
    ):
        assert cpu.draws.keys() == gpu.draws.keys()
        for name, values in cpu.draws.items():
            np.testing.assert_array_equal(gpu.draws[name], values, err_msg=name)


def test_bfloat16_of_the_gpu_is_float32_rounded(numbered: ShardSet) -> None:
    exact = TwoViewLoader(numbered, device="cuda", **OPTIONS)
    rounded = TwoViewLoader(numbered, device="cuda", dtype=torch.bfloat16, **OPTIONS)
    for wanted, found in zip(exact, rounded, strict=True):
        for view, other in zip(wanted, found, strict=True):
            assert torch.equal(other, view.bfloat16())


def test_a_restored_loader_on_the_gpu_goes_on_as_if_never_stopped(numbered: ShardSet) -> None:
    stopped = TwoViewLoader(numbered, recipe="audio", device="cuda", **OPTIONS)
    batches = iter(stopped)
    next(batches)
    state = stopped.state_dict()
    expected = list(batches)
    restarted = TwoViewLoader(numbered, recipe="audio", device="cuda", **OPTIONS)
    restarted.load_state_dict(state)
    for wanted, found in zip(expected, restarted, strict=True):
        assert all(map(torch.equal, wanted, found))


@pytest.mark.parametrize("recipe", ["none", "image", "audio"])
def test_views_of_the_gpu_equal_those_of_the_cpu(numbered: ShardSet, recipe: str) -> None:
    on_cpu = TwoViewLoader(numbered, recipe=recipe, device="cpu", **OPTIONS)
    on_gpu = TwoViewLoader(numbered, recipe=recipe, device="cuda", **OPTIONS)
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        for wanted, view in zip(expected, found, strict=True):
            assert view.device.type == "cuda"
            torch.testing.assert_close(view.cpu(), wanted, rtol=0, atol=DECIBELS)


@pytest.mark.parametrize("kind", [LabelledLoader, TrackLoader])
def test_labelled_batches_of_the_gpu_equal_those_of_the_cpu(
    numbered: ShardSet, kind: type[LabelledLoader | TrackLoader]
) -> None:
    for (mels, labels), (mels_on_gpu, labels_on_gpu) in zip(
        kind(numbered, device="cpu", **OPTIONS), kind(numbered, device="cuda", **OPTIONS), strict=True
    ):
        assert labels_on_gpu.device.type == "cuda"
        assert torch.equal(labels_on_gpu.cpu(), labels)
        torch.testing.assert_close(mels_on_gpu.cpu(), mels, rtol=0, atol=DECIBELS)


def test_batches_on_the_gpu_stay_what_they_are_while_others_follow(numbered: ShardSet) -> None:
    loader = TwoViewLoader(numbered, recipe="image", device="cuda", **OPTIONS)
    batches = [(view, view.clone()) for view, _ in loader]
    list(loader)
    assert all(torch.equal(view, copy) for view, copy in batches)
