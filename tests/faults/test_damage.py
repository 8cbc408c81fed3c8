"""Flipped bits and cuts in shard sets and checkpoints: found by `verify`, never a wrong batch or label."""

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from siamusic_fast.errors import DataError, SiamusicError
from siamusic_fast.models import checkpoint
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.loaders import TrackLoader
from siamusic_fast.shards.codec import WAV_HEADER
from siamusic_fast.shards.index import read_index
from siamusic_fast.shards.manifest import ShardSet, read_manifest
from siamusic_fast.shards.verify import verify
from siamusic_fast.training.pretrain import pretrain
from tests.faults.conftest import MEL
from tests.faults.damage import Damage, Damager
from tests.faults.tries import Tries
from tests.training.test_pretrain import TINY, tiny

pytestmark = pytest.mark.faults
__all__ = ["tiny"]


def is_found(folder: Path) -> bool:
    try:
        return bool(verify(folder).problems)
    except DataError:
        return True


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("codec", ["wav"])
def test_verify_finds_every_flipped_bit(small: Path, codec: str, tries: Tries) -> None:
    assert not is_found(small)
    damager = Damager(small)
    for _ in tries:
        with damager.flipped() as damage, tries.attempt(damage):
            assert is_found(small)


@pytest.mark.usefixtures("in_process")
def test_verify_finds_every_cut(small: Path, tries: Tries) -> None:
    damager = Damager(small, seed=1)
    for _ in tries:
        with damager.cut() as damage, tries.attempt(damage):
            assert is_found(small)


class Loaded(NamedTuple):
    """All tracks of a shard set."""

    mels: Tensor
    labels: Tensor


def load(folder: Path, backend: str) -> Loaded:
    """Return every track, in the order of the shards."""
    shard_set = read_manifest(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a note on features that are measured anew
        frontend = estimate_frontend(shard_set, MEL)
    options = {"frontend": frontend, "backend": backend, "batch_size": 8, "loader_threads": 1}
    with TrackLoader(shard_set, **options) as loader:  # type: ignore[arg-type]
        batches = list(loader)
    return Loaded(torch.cat([mels for mels, _ in batches]), torch.cat([labels for _, labels in batches]))


def places_of_audio(shard_set: ShardSet) -> dict[str, list[range]]:
    """Return, of each tar, the bytes of its tracks' samples."""
    found = {}
    for shard in shard_set.shards(["training"]):
        index = read_index(shard_set, shard)
        spans = zip(index.audio_offset.tolist(), index.audio_size.tolist(), strict=True)
        found[shard.file] = [range(offset + WAV_HEADER, offset + size) for offset, size in spans]
    return found


def affected(places: dict[str, list[range]], damage: Damage) -> list[int]:
    """Return the track, in the order of the shards, in whose samples the damage is; none if in no track's."""
    tracks = [(file, span) for file, spans in places.items() for span in spans]
    return [
        number
        for number, (file, span) in enumerate(tracks)
        if file == damage.file and damage.offset in span and damage.what != "cut"
    ]


@pytest.mark.parametrize("kind", ["flipped", "cut"])
@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_a_loader_of_damaged_shards_says_so_or_differs_in_the_damaged_track_alone(
    small: Path, backend: str, kind: str, tries: Tries
) -> None:
    whole, places = load(small, backend), places_of_audio(read_manifest(small))
    damager = Damager(small, seed=2)
    for _ in tries:
        with damager.flipped() if kind == "flipped" else damager.cut() as damage, tries.attempt(damage):
            try:
                loaded = load(small, backend)
            except SiamusicError:
                continue
            assert loaded.mels.shape == whole.mels.shape
            assert torch.equal(loaded.labels, whole.labels), "wrong labels"
            differing = (loaded.mels != whole.mels).flatten(1).any(1).nonzero().flatten().tolist()
            assert set(differing) <= set(affected(places, damage)), f"tracks {differing} differ"


@pytest.fixture(scope="module")
def run(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny encoder."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.__wrapped__(patch)  # type: ignore[attr-defined]
        folder = tmp_path_factory.mktemp("runs") / "run"
        config = dataclasses.replace(TINY, backend="torch", epochs=1, knn_every=0, grad_accum_steps=12)
        return pretrain(config, shard_set, folder).run


@pytest.mark.parametrize("kind", ["flipped", "cut"])
def test_no_flipped_bit_and_no_cut_of_a_real_checkpoint_is_loaded(
    run: Path, tmp_path: Path, kind: str, tries: Tries
) -> None:
    shutil.copy(run / "checkpoint.pt", tmp_path)
    damager = Damager(tmp_path, seed=3)
    for _ in tries:
        with (
            damager.flipped() if kind == "flipped" else damager.cut() as damage,
            tries.attempt(damage),
            pytest.raises(DataError, match="is damaged"),
        ):
            checkpoint.load(tmp_path / "checkpoint.pt", "pretraining")
