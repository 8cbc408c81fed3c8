"""The torch backend against DALI, torchaudio, webdataset and numpy."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from webdataset import tariterators

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.pipelines import torch_augment
from siamusic_fast.pipelines.augment import (
    AudioAugmentation,
    Augmentation,
    CutMix,
    CutOut,
    HorizontalFlip,
    ImageAugmentation,
    Mask,
    Mixup,
    PitchShift,
    TimeStretch,
    VerticalFlip,
    WaveMixup,
)
from siamusic_fast.pipelines.extras import (
    FrequencyMask,
    Gain,
    GridDistortion,
    Noise,
    RandomResizedCrop,
    Tilt,
    TimeMask,
)
from siamusic_fast.pipelines.loader import TrackLoader, TwoViewLoader
from siamusic_fast.pipelines.mel import Normalisation
from siamusic_fast.pipelines.recipes import AUGMENTATIONS, Recipe
from siamusic_fast.pipelines.source import Source
from siamusic_fast.pipelines.torch_augment import AUDIO, IMAGE, Draws, change, effect
from siamusic_fast.pipelines.torch_backend import TorchLabelledLoader, TorchTrackLoader, TorchTwoViewLoader
from siamusic_fast.pipelines.torch_features import LogMel
from siamusic_fast.pipelines.torch_source import Tracks
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks
from tests.pipelines.conftest import RATE, PackAudio
from tests.pipelines.graphs import Array, run
from tests.pipelines.test_audio_recipe import FINE, clicks, onsets, peak_hertz, sine
from tests.pipelines.test_mel import CONFIGS, noisy_chord, torchaudio_log_mel

MEL = MelConfig(seconds=1.0)
IN_DECIBELS = Normalisation(0.0, 1.0)
CPU = torch.device("cpu")
EXTRAS: Recipe = (Gain(), GridDistortion(), RandomResizedCrop(), Tilt(), FrequencyMask(), TimeMask())
fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def two_views(shard_set: ShardSet, **options: Any) -> TorchTwoViewLoader:
    defaults = {"mel": MEL, "normalisation": IN_DECIBELS, "batch_size": 4, "seed": 3}
    return TorchTwoViewLoader(shard_set, **{**defaults, **options})


def flat(loader: TorchTwoViewLoader) -> torch.Tensor:
    """Return all views of one epoch."""
    return torch.stack([torch.cat(views) for views in loader])


def take(loader: TorchTwoViewLoader, count: int) -> list[torch.Tensor]:
    taken: list[torch.Tensor] = []
    while len(taken) < count:
        for views in loader:
            taken.append(torch.cat(views))
            if len(taken) == count:
                break
    return taken


def views(pack_audio: PackAudio, tracks: list[Array], step: AudioAugmentation) -> torch.Tensor:
    """Return both views of every track in dB, [2 tracks, n_mels, frames]."""
    shard_set = pack_audio({f"{index:06d}": audio for index, audio in enumerate(tracks)})
    loader = two_views(shard_set, recipe=(step,), mel=FINE, batch_size=len(tracks))
    return torch.cat(next(iter(loader)))[:, 0]


def test_tracks_are_those_that_webdataset_reads(numbered: ShardSet) -> None:
    shards = numbered.shards(["training"])
    tracks = Tracks(Source(shard_set=numbered, shards=shards, shuffle=False), MEL.samples)
    samples = [sample for shard in shards for sample in _read_with_webdataset(numbered.path(shard.file))]
    assert len(samples) == 23
    for index, sample in enumerate(samples):
        pcm = np.frombuffer(sample["wav"], dtype="<i2")[22:]
        crops = tracks.crops(np.array([index]), np.array([1.0]), MEL.samples)
        assert tracks.lengths(np.array([index])) == [len(pcm)]
        np.testing.assert_array_equal(crops.pcm[0], pcm[-MEL.samples :])
        assert int(crops.labels) == int(sample["cls"])


@pytest.mark.parametrize("crops", [1, 3, 7])
def test_evenly_spaced_crops_equal_those_of_dali(numbered: ShardSet, crops: int) -> None:
    options: Any = {"mel": MEL, "normalisation": IN_DECIBELS, "batch_size": 5, "crops": crops}
    ours, theirs = TorchTrackLoader(numbered, **options), TrackLoader(numbered, **options)
    assert len(ours) == len(theirs) == 5
    for (mels, labels), (dali_mels, dali_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, dali_labels)
        torch.testing.assert_close(mels, dali_mels, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "mel", CONFIGS, ids=lambda mel: f"{mel.sample_rate}-{mel.n_fft}-{mel.window}-{mel.n_mels}"
)
def test_log_mels_equal_those_of_torchaudio(mel: MelConfig) -> None:
    audio = np.stack([noisy_chord(mel, seed) for seed in range(2)])
    found = LogMel(mel, IN_DECIBELS, mel.sample_rate, CPU).plain(torch.from_numpy(audio))
    expected = torch.stack([torchaudio_log_mel(each, mel) for each in audio])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("rate", [0.6, 1.0, 1.37])
def test_stretched_log_mels_equal_those_of_the_phase_vocoder(rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(1, round(rate * MEL.samples), generator=generator)
    spectrum = torchaudio.transforms.Spectrogram(MEL.n_fft, hop_length=MEL.hop_length, power=None)(wave)
    stretch = torchaudio.transforms.TimeStretch(MEL.hop_length, MEL.n_fft // 2 + 1, fixed_rate=rate)
    scale = torchaudio.transforms.MelScale(MEL.n_mels, MEL.sample_rate, f_max=MEL.f_max, n_stft=257)
    power = scale(stretch(spectrum).abs().square()[..., : MEL.frames])
    expected = torchaudio.transforms.AmplitudeToDB("power")(power)
    found = LogMel(MEL, IN_DECIBELS, MEL.sample_rate, CPU).stretched(
        wave, torch.tensor([[wave.shape[1]]]), torch.tensor([[rate]])
    )
    # The vocoder pads with zeros beyond the last frame, which is held here: those are left out.
    torch.testing.assert_close(found[..., :-3], expected[..., :-3], rtol=0, atol=0.01)


@pytest.mark.parametrize("recipe", ["none", "image", "audio", EXTRAS], ids=str)
def test_whole_batches_equal_one_sample_at_a_time(numbered: ShardSet, recipe: str | Recipe) -> None:
    one, whole = (
        flat(two_views(numbered, recipe=recipe, per_batch=per_batch)) for per_batch in (False, True)
    )
    torch.testing.assert_close(one, whole, rtol=0, atol=0.02)


@fork
@pytest.mark.parametrize(("recipe", "per_batch"), [("image", False), ("audio", False), ("audio", True)])
def test_workers_do_not_change_the_stream(numbered: ShardSet, recipe: str, per_batch: bool) -> None:
    options: Any = {"recipe": recipe, "per_batch": per_batch, "threads": 1}
    expected = take(two_views(numbered, **options), 7)
    with two_views(numbered, workers=2, **options) as loader:
        found = take(loader, 7)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not torch.equal(expected[0], take(two_views(numbered, seed=4, **options), 1)[0])


@fork
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_workers_go_on_when_the_whole_group_is_told_to_stop(numbered: ShardSet, number: int) -> None:
    expected = take(two_views(numbered), 12)
    with two_views(numbered, workers=2) as loader:
        found = take(loader, 1)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, number)
        found += take(loader, 11)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not multiprocessing.active_children()


@fork
@pytest.mark.parametrize(("batches", "workers"), [(0, 0), (2, 2), (5, 0), (7, 2)])
def test_a_restored_loader_goes_on_as_if_never_stopped(
    numbered: ShardSet, batches: int, workers: int
) -> None:
    with two_views(numbered, workers=workers) as stopped, two_views(numbered, workers=workers) as fresh:
        take(stopped, batches)
        state = stopped.state_dict()
        expected = take(stopped, 6)
        take(fresh, 1)
        fresh.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(expected, take(fresh, 6), strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_an_epoch_without_overlap_and_with_equally_many_batches(
    numbered: ShardSet, world_size: int
) -> None:
    loaders = [
        TorchLabelledLoader(
            numbered, mel=MEL, normalisation=IN_DECIBELS, batch_size=4, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in loaders} == {23 // world_size // 4}
    orders = []
    for _ in range(3):
        epoch = [int(label) for loader in loaders for _, labels in loader for label in labels]
        assert len(epoch) == 23 // world_size // 4 * 4 * world_size
        assert max(Counter(epoch).values()) == 1
        orders.append(tuple(epoch))
    assert len(set(orders)) == 3


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (1, 100), (3, 5)])
def test_evaluation_meets_every_track_once_and_in_order(
    numbered: ShardSet, world_size: int, batch_size: int
) -> None:
    found = []
    for rank in range(world_size):
        options: Any = {"rank": rank, "world_size": world_size, "batch_size": batch_size}
        loader = TorchTrackLoader(numbered, mel=MEL, normalisation=IN_DECIBELS, crops=1, **options)
        found += [int(label) for _, labels in loader for label in labels]
    assert found == [int(track.key) for track in read_tracks(numbered.folder)]


def test_partners_are_a_permutation_without_fixed_points() -> None:
    counts = np.zeros((5, 5))
    for seed in range(2000):
        partners = Draws([seed], 5).partners()
        assert sorted(partners) == list(range(5))
        counts[np.arange(5), partners] += 1
    assert (counts.diagonal() == 0).all()
    assert abs(counts[~np.eye(5, dtype=bool)] - 500).max() < 5 * np.sqrt(500)


@pytest.mark.parametrize(("step", "axis"), [(HorizontalFlip(p=1), 2), (VerticalFlip(p=1), 1)])
def test_flips_equal_those_of_numpy(step: Augmentation, axis: int) -> None:
    before = torch.rand(4, 48, 87)
    after = before.clone()
    change(after, step, Draws([0], 4))
    np.testing.assert_array_equal(after, np.flip(before.numpy(), axis))


def _ramps(count: int) -> Array:
    """Images that differ in slope along both axes, and in level; none has a zero."""
    rng = np.random.default_rng(1)
    rows, columns = np.linspace(0, 1, MEL.n_mels)[:, None], np.linspace(0, 1, MEL.frames)
    slopes = rng.uniform(0.5, 1.5, (count, 2, 1, 1))
    level = rng.uniform(1, 2, (count, 1, 1))
    return np.asarray(level + slopes[:, 0] * rows + slopes[:, 1] * columns, dtype=np.float32)


def _statistics(before: Array, after: Array) -> Array:
    """Return what shows per image how it changed: shares, levels, sizes of changes, zeros at edges."""
    axes = (1, 2)
    changed = after != before
    difference = after - before
    return np.stack(
        [
            changed.any(axis=axes),
            changed.mean(axis=axes),
            (after == 0).mean(axis=axes),
            after.mean(axis=axes),
            abs(difference).mean(axis=axes),
            np.square(difference).mean(axis=axes),
            (after[:, 0, :] == 0).mean(axis=1),
            (after[:, :, 0] == 0).mean(axis=1),
            after[:, : MEL.n_mels // 2].mean(axis=axes) - after[:, MEL.n_mels // 2 :].mean(axis=axes),
            after[:, :, : MEL.frames // 2].mean(axis=axes) - after[:, :, MEL.frames // 2 :].mean(axis=axes),
        ]
    )


@pytest.mark.parametrize(
    "step",
    [
        CutMix(),
        Mixup(alpha=0.5),
        Mask(),
        HorizontalFlip(),
        VerticalFlip(),
        CutOut(holes=2),
        FrequencyMask(),
        TimeMask(),
        RandomResizedCrop(),
        GridDistortion(),
        Tilt(),
    ],
    ids=lambda step: type(step).__name__,
)
def test_images_are_changed_as_often_and_as_much_as_by_dali(step: ImageAugmentation) -> None:
    before = _ramps(800)
    dali = run(lambda image: step.image(image, step.draw(MEL), MEL), list(before[..., None]), layout="HWC")
    after = torch.from_numpy(before.copy())
    change(after, step, Draws([0], len(before)))
    ours, theirs = _statistics(before, after.numpy()), _statistics(before, np.stack(dali)[..., 0])
    deviation = np.sqrt((ours.var(axis=1) + theirs.var(axis=1)) / len(before))
    assert (abs(ours.mean(axis=1) - theirs.mean(axis=1)) <= 4.5 * deviation + 1e-6).all()
    assert 0.5 < (ours.std(axis=1).sum() + 1e-9) / (theirs.std(axis=1).sum() + 1e-9) < 2


@pytest.mark.parametrize("kind", IMAGE, ids=lambda kind: kind.__name__)
def test_images_changed_at_once_equal_those_changed_one_by_one(
    kind: type[ImageAugmentation], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.from_numpy(_ramps(50))
    one_by_one, at_once = before.clone(), before.clone()
    change(one_by_one, kind(p=0.7), Draws([0], 50))
    monkeypatch.setattr(torch_augment, "_one_by_one", lambda images: False)  # as on a GPU
    change(at_once, kind(p=0.7), Draws([0], 50))
    torch.testing.assert_close(at_once, one_by_one, rtol=0, atol=1e-6)
    assert not torch.equal(one_by_one, before)


@pytest.mark.parametrize(
    "step", [RandomResizedCrop(p=1), GridDistortion(p=1)], ids=lambda s: type(s).__name__
)
def test_a_resized_ramp_stays_a_ramp_between_its_ends(step: Augmentation) -> None:
    ramp = torch.arange(MEL.frames, dtype=torch.float32).expand(64, MEL.n_mels, -1)
    after = ramp.clone()
    change(after, step, Draws([0], 64))
    steps = after.diff(dim=-1)
    assert after.min() >= 0
    assert after.max() <= MEL.frames - 1 + 1e-4
    assert steps.min() >= -1e-3
    assert steps.max() <= 1.3 / 0.7 + 1e-2
    torch.testing.assert_close(after[:, 0], after[:, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("step", "name"), [(TimeStretch(), "rate"), (PitchShift(), "pitch")])
def test_tempo_and_pitch_are_distributed_as_in_dali(step: AudioAugmentation, name: str) -> None:
    theirs = np.array(
        run(lambda _: getattr(step, name)(step.draw(MEL)), [np.zeros(1, dtype=np.float32)] * 2000)
    ).ravel()
    ours = getattr(effect(step, Draws([0], 2000)), name)
    gap = abs(
        np.mean(ours[:, None] <= np.sort(ours), axis=0) - np.mean(theirs[:, None] <= np.sort(ours), axis=0)
    )
    assert gap.max() < 1.95 * np.sqrt(2 / 2000)  # Kolmogorov and Smirnov's test at 1 in 1,000


@pytest.mark.parametrize("recipe", [(WaveMixup(p=1),), (Gain(p=1),), (Noise(p=1),), "audio"], ids=str)
def test_the_audio_steps_move_the_level_as_in_dali(numbered: ShardSet, recipe: str | Recipe) -> None:
    def levels(loader: Any) -> Array:
        epochs = [torch.cat(batch) for _ in range(6) for batch in loader]
        return torch.cat(epochs).mean(dim=(1, 2, 3)).numpy()

    options: Any = {"mel": MEL, "normalisation": IN_DECIBELS, "batch_size": 20, "recipe": recipe}
    ours, theirs = levels(TorchTwoViewLoader(numbered, **options)), levels(TwoViewLoader(numbered, **options))
    deviation = np.sqrt((ours.var() + theirs.var()) / len(ours))
    assert abs(ours.mean() - theirs.mean()) < 4.5 * deviation
    assert 0.7 < ours.std() / theirs.std() < 1.4


def test_a_stretched_track_keeps_its_pitch_and_changes_its_tempo(pack_audio: PackAudio) -> None:
    step = TimeStretch(p=1, slowest=1.5, fastest=1.5)
    by_loudness = sorted(views(pack_audio, [sine(1000, 4), clicks(0.25, 4)], step), key=_loudest)
    for tone in by_loudness[2:]:
        assert peak_hertz(tone, FINE) == pytest.approx(1000, rel=0.03)
    for ticks in by_loudness[:2]:
        spacing = np.diff(onsets(ticks)) * FINE.hop_length / RATE
        assert spacing.mean() == pytest.approx(0.25 / 1.5, rel=0.02)


def test_a_shifted_track_keeps_its_tempo_and_moves_its_pitch(pack_audio: PackAudio) -> None:
    # Louder and softer ones, as packing leaves out duplicates.
    tracks = [(1 - 0.02 * index) * audio for index in range(8) for audio in (sine(1000, 4), clicks(0.25, 4))]
    shifts = []
    for view in views(pack_audio, tracks, PitchShift(p=1)):
        if len(onsets(view)) > 3:
            spacing = np.diff(onsets(view)) * FINE.hop_length / RATE
            assert spacing.mean() == pytest.approx(0.25, rel=0.02)
        else:
            shifts.append(12 * np.log2(peak_hertz(view, FINE) / 1000))
    assert len(shifts) == 16
    assert -4.3 < min(shifts) < -2
    assert 2 < max(shifts) < 4.3


def test_every_augmentation_there_is_can_be_applied() -> None:
    assert set(AUGMENTATIONS.values()) == {*AUDIO, *IMAGE}


def test_an_augmentation_of_ones_own_is_refused_by_name(numbered: ShardSet) -> None:
    class Reverb(AudioAugmentation):
        pass

    with pytest.raises(ConfigError, match="no Reverb"):
        two_views(numbered, recipe=(Reverb(p=1),))


def test_a_damaged_index_is_named(numbered: ShardSet, tmp_path: Path) -> None:
    for file in numbered.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = tmp_path / numbered.shards(["training"])[0].index
    damaged.write_text("v1.2 2\nwav 512 1000 000001.wav cls 2048 5 000001.cls\n")
    with pytest.raises(DataError, match=f"{damaged} is missing or damaged"):
        two_views(ShardSet(**{**numbered.__dict__, "folder": tmp_path}))


def test_a_closed_loader_says_so(numbered: ShardSet) -> None:
    with two_views(numbered) as loader:
        next(iter(loader))
    with pytest.raises(ValueError, match="closed"):
        next(iter(loader))


def test_it_runs_where_there_is_no_dali(numbered: ShardSet) -> None:
    program = f"""
import sys
sys.modules["nvidia.dali"] = None
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.torch_backend import TorchTwoViewLoader
loader = TorchTwoViewLoader({str(numbered.folder)!r}, mel=MelConfig(seconds=1.0), batch_size=4)
print(len([views for views in loader]), *loader.normalisation)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    batches, mean, deviation = finished.stdout.split()
    normalisation = TwoViewLoader(numbered, mel=MEL, batch_size=4).normalisation
    assert int(batches) == 5
    assert float(mean) == pytest.approx(normalisation.mean, abs=0.1)
    assert float(deviation) == pytest.approx(normalisation.deviation, abs=0.1)


def _read_with_webdataset(tar: Path) -> list[dict[str, Any]]:
    with tar.open("rb") as stream:
        files = tariterators.tar_file_expander([{"url": str(tar), "stream": stream}])
        return list(tariterators.group_by_keys(files))


def _loudest(view: torch.Tensor) -> float:
    return float(view.mean(dim=1).max())
