"""Embeddings in files: what is in them, that they go on after a stop, and who may read them."""

import json
import os
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from siamusic_fast.config import EmbedConfig
from siamusic_fast.embedding import sources
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.inference import embed as embedding
from siamusic_fast.inference.embed import EmbedResult, embed
from siamusic_fast.inference.similar import nearest, similar
from siamusic_fast.inference.vector_file import read_vectors, write_part
from siamusic_fast.models.pretrained import load_encoder
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Task
from siamusic_fast.shards.manifest import ShardSet
from tests.conftest import tone
from tests.runs import MEL, save_run

RATE = MEL.sample_rate
ONE_CROP = EmbedConfig(crops=1)


@pytest.fixture
def songs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five short files, one of them broken, in parts of two."""
    monkeypatch.setattr(sources, "FILES_PER_PART", 2)
    folder = tmp_path / "songs"
    folder.mkdir()
    for number in range(4):
        audio = tone(0.6 + 0.3 * number, 220 * (number + 1), RATE, np.random.default_rng(number))
        soundfile.write(folder / f"{number}.wav", audio, RATE)
    (folder / "2b.mp3").write_text("no audio")
    return folder


def test_parquet_has_the_vectors_that_the_encoder_computes(
    pretrained: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    result = embed(pretrained, shard_set, tmp_path / "out.parquet", ONE_CROP, splits=["validation", "test"])
    expected = load_encoder(pretrained).embed(shard_set, splits=["validation", "test"], crops=1)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["key", "path", "label", "split", "seconds", "vector"]
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[512]"
    assert table["key"].to_pylist() == expected.keys
    assert table["label"].to_pylist() == expected.labels
    assert table["split"].to_pylist() == expected.splits
    assert table["seconds"].to_pylist() == pytest.approx(expected.seconds)
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), expected.vectors.numpy())
    assert (result.tracks, result.rows, result.dim, result.rejects) == (len(expected), len(expected), 512, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet"]


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_crops_of_files_have_rows_with_their_starts_in_either_format(
    pretrained: Path, songs: Path, tmp_path: Path, ending: str
) -> None:
    out = tmp_path / f"out.{ending}"
    result = embed(pretrained, songs, out, EmbedConfig(per_crop=True, dtype="float16"))
    expected = load_encoder(pretrained).embed(songs, per_crop=True)
    if ending == "npz":
        with np.load(out) as file:
            starts, vectors = file["start"], file["vector"]
    else:
        table = pq.read_table(out)
        starts, vectors = table["start"].to_numpy(), np.array(table["vector"].to_pylist())
    np.testing.assert_allclose(starts, expected.starts)
    np.testing.assert_array_equal(vectors.astype(np.float16), expected.vectors.half().numpy())
    read = read_vectors(out)
    assert (read.keys, read.paths) == (expected.keys, expected.paths)
    assert read.vectors.dtype == np.dtype(np.float16)
    assert result.tracks == 4
    assert result.rows == len(expected) > 4
    assert [reject.reason for reject in result.rejects] == ["not-audio"]
    assert result.rejected is not None
    assert f"{songs / '2b.mp3'},not-audio," in result.rejected.read_text()


def test_a_stopped_call_goes_on_and_ends_with_the_same_bytes(
    pretrained: Path, songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = partial(embed, pretrained, songs, config=ONE_CROP)
    call(out=tmp_path / "whole.npz")
    written: list[Path] = []

    def stopped(path: Path, *rest: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write_part(path, *rest)

    monkeypatch.setattr("siamusic_fast.inference.embed.write_part", stopped)
    with pytest.raises(KeyboardInterrupt):
        call(out=tmp_path / "stopped.npz")
    assert not (tmp_path / "stopped.npz").exists()
    with written[1].open("r+b") as file:
        file.truncate(100)  # a part that is damaged is made again
    again: list[str] = []

    def noted(path: Path, *rest: Any) -> None:
        again.append(path.name)
        write_part(path, *rest)

    monkeypatch.setattr("siamusic_fast.inference.embed.write_part", noted)
    call(out=tmp_path / "stopped.npz")
    assert again == ["part-000001.npz", "part-000002.npz"]
    assert (tmp_path / "stopped.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not (tmp_path / "stopped.npz.parts").exists()


def test_parts_of_another_call_are_not_gone_on_with(pretrained: Path, songs: Path, tmp_path: Path) -> None:
    parts = tmp_path / "out.npz.parts"
    parts.mkdir()
    (parts / "plan.json").write_text(json.dumps({"weights": "others"}))
    with pytest.raises(DataError, match=r"has parts of other tracks, or of another encoder"):
        embed(pretrained, songs, tmp_path / "out.npz", ONE_CROP)
    (parts / "plan.json").write_text("damaged")
    with pytest.raises(DataError, match=r"has parts of other tracks, or of another encoder"):
        embed(pretrained, songs, tmp_path / "out.npz", ONE_CROP)
    assert embed(pretrained, songs, tmp_path / "out.npz", ONE_CROP, force=True).tracks == 4


def test_files_of_the_user_in_the_folder_of_the_parts_stay(
    pretrained: Path, songs: Path, tmp_path: Path
) -> None:
    parts = tmp_path / "out.npz.parts"
    parts.mkdir()
    (parts / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"out\.npz\.parts holds 'thesis\.tex', which no embedding has"):
        embed(pretrained, songs, tmp_path / "out.npz", ONE_CROP, force=True)
    assert (parts / "thesis.tex").read_text() == "mine"


def test_nothing_is_overwritten_and_wrong_endings_are_refused(
    pretrained: Path, songs: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.npz").write_text("mine")
    with pytest.raises(DataError, match=r"mine\.npz exists: use another out"):
        embed(pretrained, songs, tmp_path / "mine.npz")
    assert (tmp_path / "mine.npz").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"out = vectors\.csv must end in \.parquet or \.npz"):
        embed(pretrained, songs, "vectors.csv")
    for file in songs.iterdir():
        file.write_text("no audio")
    with pytest.raises(DataError, match=r"none of 5 files can be used; the first: .*not-audio"):
        embed(pretrained, songs, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz.parts").exists()


@pytest.mark.parametrize("come", [4, 2])
def test_processes_wait_for_the_parts_of_others_as_long_as_these_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, come: int
) -> None:
    parts, now = embedding._Parts(tmp_path, 4), 0.0

    def sleep(_: float) -> None:
        nonlocal now
        now += 400.0
        if now <= 400.0 * come:
            parts.write(int(now / 400.0) - 1, b"")

    there: list[int] = []
    monkeypatch.setattr(embedding, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now))
    monkeypatch.setattr(World, "wait_for_all", lambda _: there.append(len(list(tmp_path.glob("part-*")))))
    parts.wait_for_others(World(world_size=2, timeout=600.0))
    assert there == [come]  # with 2, the barrier ends the call
    assert now >= 400.0 * come + (600.0 if come < 4 else 0.0)


def two_processes(run: Path, data: Path, out: Path) -> EmbedResult:
    return launch(partial(embed, run, data, out, ONE_CROP), gpus=0, procs=2)


@pytest.mark.slow
def test_processes_share_the_parts(pretrained: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    embed(pretrained, shard_set, tmp_path / "one.npz", ONE_CROP)
    two_processes(pretrained, shard_set.folder, tmp_path / "two.npz")
    one, two = read_vectors(tmp_path / "one.npz"), read_vectors(tmp_path / "two.npz")
    assert one.keys == two.keys
    np.testing.assert_allclose(one.vectors, two.vectors, rtol=1e-4, atol=1e-5)


def test_nearest_is_exact_for_float16_vectors_and_more_than_one_block() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1000, 8, generator=generator).half()
    query = torch.randn(2, 8, generator=generator)
    found, rows = nearest(query, vectors, 5)
    cosines = torch.nn.functional.cosine_similarity(query[:, None], vectors[None].float(), dim=2)
    expected = cosines.topk(5, dim=1)
    torch.testing.assert_close(found, expected.values)
    assert torch.equal(rows, expected.indices)
    assert nearest(query, vectors[:3], 5)[0].shape == (2, 3)


def test_similar_finds_the_same_in_a_file_of_embeddings_as_in_the_sources(
    pretrained: Path, songs: Path, tmp_path: Path
) -> None:
    embed(pretrained, songs, tmp_path / "out.parquet")
    song = songs / "1.wav"
    now, written = (similar(pretrained, song, place, top=2) for place in (songs, tmp_path / "out.parquet"))
    assert [one.path for one in now] == [one.path for one in written]
    assert str(song) not in {one.path for one in now}
    assert [one.similarity for one in now] == pytest.approx([one.similarity for one in written], abs=1e-5)


def test_a_file_that_cannot_be_used_is_told_before_the_sources_are_heard(
    pretrained: Path, songs: Path
) -> None:
    class Noted:
        totals: ClassVar[list[int]] = []

        def task(self, description: str, total: int, unit: str = "") -> AbstractContextManager[Task]:
            self.totals.append(total)
            return SILENT.task(description, total, unit)

    with pytest.raises(DataError, match=r"2b\.mp3 .*not-audio"):
        similar(pretrained, songs / "2b.mp3", songs, progress=Noted())
    assert Noted.totals == [1]


def test_embeddings_of_another_encoder_and_other_files_are_refused(
    pretrained: Path, songs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    embed(save_run(tmp_path / "other", seed=1), songs, out, ONE_CROP)
    song = songs / "1.wav"
    with pytest.raises(DataError, match="has embeddings of another encoder"):
        similar(pretrained, song, out)
    embed(pretrained, songs, out, EmbedConfig(per_crop=True), force=True)
    with pytest.raises(DataError, match="has a row for each crop: write one with a row for each track"):
        similar(pretrained, song, out)
    np.savez(out, vector=np.zeros((2, 512)))
    with pytest.raises(DataError, match="holds no embeddings of siamusic-fast, or is damaged"):
        similar(pretrained, song, out)
    for name in ("pipe.npz", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=r"or is damaged .*it is no regular file"):
            similar(pretrained, song, tmp_path / name)
    with pytest.raises(DataError, match="does not exist: `siamusic-fast embed` writes such a file"):
        similar(pretrained, song, tmp_path / "none.parquet")
    with pytest.raises(ConfigError, match=r"is 4 tracks: give one audio file"):
        similar(pretrained, songs, songs)
    with pytest.raises(ConfigError, match="top = 0 must be at least 1"):
        similar(pretrained, song, songs, top=0)
