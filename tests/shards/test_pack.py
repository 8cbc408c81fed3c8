import csv
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from webdataset import tariterators

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.progress import Task
from siamusic_fast.shards.fma import load_fma
from siamusic_fast.shards.manifest import Shard, ShardSet, read_manifest
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.plan import Corpus, Track
from siamusic_fast.shards.target import claim
from tests.conftest import BROKEN, tone

SPLITS = ("training", "validation", "test")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_shard(shard_set: ShardSet, shard: Shard) -> list[dict[str, Any]]:
    """Read with webdataset, from a stream of our own: it does not close those that it opens."""
    with shard_set.path(shard.file).open("rb") as stream:
        files = tariterators.tar_file_expander([{"url": shard.file, "stream": stream}])
        return list(tariterators.group_by_keys(files))


def read_samples(shard_set: ShardSet) -> list[dict[str, Any]]:
    return [sample for shard in shard_set.shards(SPLITS) for sample in read_shard(shard_set, shard)]


def test_webdataset_reads_back_what_libsndfile_and_soxr_give(fma_corpus: Path, shard_set: ShardSet) -> None:
    samples = read_samples(shard_set)
    assert len(samples) == 36
    for sample in samples:
        about = json.loads(sample["json"])
        audio, rate = soundfile.read(
            fma_corpus / "fma_medium" / about["source"], always_2d=True, dtype="float32"
        )
        expected = soxr.resample(audio.mean(axis=1), rate, 22_050, "HQ")
        pcm = np.frombuffer(sample["wav"], "<i2", offset=44)
        np.testing.assert_allclose(pcm / 32_768, expected, atol=0.51 / 32_768)
        assert about["samples"] == len(pcm)
        assert about["track_id"] == sample["__key__"]


def test_audio_has_the_canonical_header_of_44_bytes(shard_set: ShardSet) -> None:
    for sample in read_samples(shard_set):
        wav = sample["wav"]
        size = len(wav) - 44
        # Multimedia Programming Interface and Data Specifications 1.0: RIFF, fmt (PCM, mono, 16 bits), data.
        assert struct.unpack("<4sI4s4sIHHIIHH4sI", wav[:44]) == (
            *(b"RIFF", 36 + size, b"WAVE"),
            *(b"fmt ", 16, 1, 1, 22_050, 44_100, 2, 16),
            *(b"data", size),
        )


def test_labels_are_places_among_the_classes(shard_set: ShardSet) -> None:
    assert shard_set.classes == ("Electronic", "Folk", "Rock")
    genres = {b"00000": "Electronic", b"00001": "Folk", b"00002": "Rock", b"-0001": ""}
    samples = read_samples(shard_set)
    assert all(json.loads(sample["json"])["genre"] == genres[sample["cls"]] for sample in samples)
    assert {sample["cls"] for sample in samples} == set(genres)


def test_unlabelled_tracks_have_shards_of_their_own(shard_set: ShardSet) -> None:
    for sample in read_samples(shard_set):
        assert (sample["cls"] == b"-0001") == ("unlabelled" in sample["__url__"])


def test_indices_equal_those_of_wds2idx(shard_set: ShardSet, tmp_path: Path) -> None:
    for shard in shard_set.shards(SPLITS):
        expected = tmp_path / shard.index
        command = [sys.executable, "-m", "wds2idx", str(shard_set.path(shard.file)), str(expected)]
        subprocess.run(command, check=True, capture_output=True)
        assert shard_set.path(shard.index).read_bytes() == expected.read_bytes()


def test_tar_entries_tell_nothing_of_clock_or_user(shard_set: ShardSet) -> None:
    shard = shard_set.shards(["training"])[0]
    with tarfile.open(shard_set.path(shard.file)) as tar:
        members = tar.getmembers()
        assert tar.pax_headers == {}
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_lengths_in_the_manifest_are_those_of_the_tracks(shard_set: ShardSet) -> None:
    for shard in shard_set.shards(SPLITS):
        lengths = [(len(sample["wav"]) - 44) // 2 for sample in read_shard(shard_set, shard)]
        assert (shard.tracks, shard.shortest, shard.longest) == (len(lengths), min(lengths), max(lengths))


def test_the_table_of_tracks_agrees_with_the_shards(shard_set: ShardSet) -> None:
    rows = read_csv(shard_set.folder / "tracks.csv")
    samples = read_samples(shard_set)
    assert [int(row["index"]) for row in rows] == list(range(36))
    for row, sample in zip(rows, samples, strict=True):
        about = json.loads(sample["json"])
        assert (row["key"], row["split"], row["class"], row["path"]) == (
            *(sample["__key__"], about["split"], about["genre"], about["source"]),
        )
        assert row["shard"] == sample["__url__"]
        assert row["sha256"] == hashlib.sha256(sample["wav"][44:]).hexdigest()
        assert float(row["seconds"]) == pytest.approx(about["samples"] / 22_050, abs=1e-3)


def test_every_broken_file_is_listed_with_its_reason(shard_set: ShardSet) -> None:
    rows = read_csv(shard_set.folder / "rejected.csv")
    assert {row["path"].removesuffix(".mp3"): row["reason"] for row in rows} == BROKEN
    assert shard_set.rejected == dict.fromkeys(BROKEN.values(), 1)


def test_bytes_do_not_depend_on_workers_or_on_the_order_of_the_metadata(
    fma_corpus: Path, tmp_path: Path
) -> None:
    corpus, config = load_fma(fma_corpus), PackConfig(tracks_per_shard=8)
    backwards = Corpus(name=corpus.name, folder=corpus.folder, tracks=corpus.tracks[::-1])
    pack(corpus, tmp_path / "two", config, workers=2)
    pack(backwards, tmp_path / "one", config, workers=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Interrupting:
    """A display on which the user presses Ctrl-C after a few tracks."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        raise KeyboardInterrupt


def test_an_interrupted_pack_leaves_whole_files_and_starts_again(
    fma_corpus: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    corpus = load_fma(fma_corpus)
    with pytest.raises(KeyboardInterrupt):
        pack(corpus, tmp_path, PackConfig(tracks_per_shard=8), workers=1, progress=Interrupting())
    left = contents(tmp_path)
    assert left.pop(".packing") == b""
    expected = contents(shard_set.folder)
    assert all(content == expected[name] for name, content in left.items())

    (tmp_path / ".training-000000.tar.tmp").write_bytes(b"what kill -9 leaves")
    pack(corpus, tmp_path, PackConfig(tracks_per_shard=8), workers=2)
    assert contents(tmp_path) == expected


def test_a_shard_set_is_replaced_only_by_force_and_nothing_else_is_touched(
    fma_corpus: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shard_set.folder, tmp_path / "set"))
    for name in ("notes.txt", "training-1.tar", "mine-000000.tar", "training-000000.tar.bak"):
        (folder / name).write_text("mine")
    before = contents(folder)
    corpus = load_fma(fma_corpus)
    validation = tuple(track for track in corpus.tracks if track.split == "validation")
    corpus = Corpus(name=corpus.name, folder=corpus.folder, tracks=validation)
    with pytest.raises(DataError, match="already holds a shard set: --force"):
        pack(corpus, folder)
    assert contents(folder) == before

    packed = pack(corpus, folder, workers=1, force=True)
    assert packed == read_manifest(folder)
    assert list(packed.splits) == ["validation"]
    files = {"manifest.json", "tracks.csv", "rejected.csv", "validation-000000.tar", "validation-000000.idx"}
    assert {name for name, content in contents(folder).items() if content != b"mine"} == files
    assert sum(content == b"mine" for content in contents(folder).values()) == 4


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["tracks.csv", "manifest.json"])
def test_a_folder_with_a_foreign_file_of_such_a_name_is_refused(
    fma_corpus: Path, tmp_path: Path, name: str, force: bool
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match="choose another --out"):
        pack(load_fma(fma_corpus), tmp_path, force=force)
    assert contents(tmp_path) == {name: b"{}"}


def test_a_second_packer_on_the_same_folder_is_refused(fma_corpus: Path, tmp_path: Path) -> None:
    with claim(tmp_path, force=False), pytest.raises(DataError, match="is being packed by another run"):
        pack(load_fma(fma_corpus), tmp_path, force=True)


def test_a_target_that_cannot_be_written_is_named(fma_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/shards cannot be written: Not a directory"):
        pack(load_fma(fma_corpus), tmp_path / "file" / "shards")


def test_a_folder_without_any_of_its_files_is_named(tmp_path: Path) -> None:
    track = Track("000002", "000/000002.mp3", "training", "Folk")
    with pytest.raises(DataError, match=r"holds none of the 1 tracks of fma_small, such as 000/000002\.mp3"):
        pack(Corpus(name="fma_small", folder=tmp_path, tracks=(track,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corpus_of_bad_files_only_ends_with_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_text("no audio")
    corpus = Corpus(name="bad", folder=tmp_path, tracks=(Track("a", "a.mp3", "training", ""),))
    with pytest.raises(DataError, match=r"every file of .* was left out \(1 not-audio\)"):
        pack(corpus, tmp_path / "out", workers=1)
    rows = read_csv(tmp_path / "out" / "rejected.csv")
    assert [(row["path"], row["reason"]) for row in rows] == [("a.mp3", "not-audio")]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_shard_all_of_whose_tracks_are_unfit_is_not_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tracks = tuple(Track(name, f"{name}.wav", "training", "Folk") for name in "abcd")
    for track in tracks[:1]:
        soundfile.write(tmp_path / track.path, tone(1, 440, 22_050, rng), 22_050)
    for track in tracks[1:]:
        (tmp_path / track.path).write_text("no audio")
    corpus = Corpus(name="mine", folder=tmp_path, tracks=tracks)
    config = PackConfig(tracks_per_shard=1, min_seconds=1)
    packed = pack(corpus, tmp_path / "out", config, workers=1)
    assert packed.tracks(["training"]) == 1
    assert packed.rejected == {"not-audio": 3}
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1
    assert read_manifest(tmp_path / "out") == packed


@pytest.mark.parametrize(
    "values", [{"min_seconds": float("nan")}, {"tracks_per_shard": 0}, {"sample_rate": 0}]
)
def test_settings_that_cannot_work_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        PackConfig(**values)


def test_a_worker_imports_nothing_heavy() -> None:
    modules = "{'torch', 'nvidia', 'pandas', 'rich'}"
    code = f"import sys, siamusic_fast.shards.pack; print(sorted({modules} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
