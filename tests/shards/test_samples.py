"""Shards of ours and of others, streamed through `webdataset`."""

import hashlib
import http.server
import io
import tarfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset
from torch.utils.data import DataLoader

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.samples import samples
from siamusic_fast.shards.tables import PackedTrack, read_tracks
from tests.shards.small import pack_small

DOCS = Path(__file__).parents[2] / "docs" / "shards.md"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return pack_small(tmp_path_factory.mktemp("samples"))


def encoded(audio: Any, sample_rate: int, kind: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, sample_rate, format=kind, subtype=subtype)
    return file.getvalue()


def keys(found: Any) -> list[str]:
    return [key for key, *_ in found]


def rows_of(shard_set: ShardSet, split: str) -> list[PackedTrack]:
    return [row for row in read_tracks(shard_set.folder) if row.split == split]


@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_samples_are_those_of_tracks_csv_in_the_order_of_the_shards(tmp_path: Path, codec: str) -> None:
    shard_set = pack_small(tmp_path, codec)
    for data in (shard_set, shard_set.folder, str(shard_set.folder)):
        found = list(samples(data, split="training"))
        rows = rows_of(shard_set, "training")
        assert len(found) == len(rows) == 8
        for (key, pcm, label, about), row in zip(found, rows, strict=True):
            assert key == row.key
            assert pcm.dtype == np.int16
            assert hashlib.sha256(pcm.tobytes()).hexdigest() == row.sha256
            assert label == (shard_set.classes.index(row.genre) if row.genre else None)
            assert (about["source"], about["split"], about["sample_rate"]) == (row.path, "training", 22_050)


def test_ogg_decodes_to_what_soundfile_reads(tmp_path: Path) -> None:
    shard_set = pack_small(tmp_path, "ogg")
    shard = shard_set.shards(["training"])[0]
    with tarfile.open(shard_set.path(shard.file)) as tar:
        encoded = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    for key, pcm, _, _ in list(samples(shard_set))[: shard.tracks]:
        expected, _ = soundfile.read(io.BytesIO(encoded[f"{key}.ogg"]), dtype="int16")
        assert pcm.tolist() == expected.tolist()


def test_a_split_is_chosen_and_all_of_them_are_read_otherwise(shard_set: ShardSet) -> None:
    assert keys(samples(shard_set, split="test")) == [row.key for row in rows_of(shard_set, "test")]
    assert Counter(keys(samples(shard_set))) == Counter(row.key for row in read_tracks(shard_set.folder))
    with pytest.raises(DataError, match="no tracks in split 'train'"):
        samples(shard_set, split="train")
    with pytest.raises(ConfigError, match="split = 'test' needs a shard set"):
        samples(str(shard_set.folder / "test-000000.tar"), split="test")
    with pytest.raises(DataError, match="no shards 'nowhere'"):
        samples("nowhere")


def test_shuffles_draw_another_order_in_each_epoch_and_the_same_for_a_seed(small: ShardSet) -> None:
    plain = keys(samples(small))
    assert keys(samples(small)) == plain
    orders = []
    for seed in (0, 0, 1):
        loader = samples(small, shuffle=100, shuffle_shards=True, seed=seed)
        orders.append([keys(loader), keys(loader)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != orders[0][1]
    assert all(sorted(epoch) == sorted(plain) and epoch != plain for order in orders for epoch in order)
    shards = {tuple(keys(samples(small, shuffle_shards=True, seed=seed))) for seed in range(20)}
    assert len(shards) == 6, "orders of three shards, each in its own order"


def test_dataloader_workers_share_the_shards(small: ShardSet) -> None:
    data = samples(small, shuffle=100).map(partial(_length, minimum=1)).batched(2, partial=True)
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    found = [key for batch in loader for key in batch[0]]
    assert sorted(found) == sorted(keys(samples(small)))


def _length(sample: tuple[Any, ...], minimum: int) -> tuple[str, int]:
    return sample[0], max(minimum, len(sample[1]))


def test_ranks_share_the_shards(small: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        found.append(keys(samples(small, shuffle_shards=True, seed=3)))
    assert sorted(map(len, found)) != [0, 8]
    assert sorted(found[0] + found[1]) == [row.key for row in sorted(read_tracks(small.folder), key=_row_key)]


def _row_key(row: PackedTrack) -> str:
    return row.key


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Two tars as others write them: stereo FLAC at 8 kHz, float WAV, MP3; texts, classes or neither."""
    rng = np.random.default_rng(0)
    stereo = rng.uniform(-0.5, 0.5, (800, 2)).astype(np.float32)
    members: list[dict[str, Any]] = [
        {
            "__key__": "x/one",
            "flac": encoded(stereo, 8000, "FLAC"),
            "json": {"title": "One", "sample_rate": 1},
        },
        {"__key__": "x/two", "wav": encoded(stereo[:, 0], 16_000, "WAV", "FLOAT"), "cls": 7},
        {"__key__": "x/three", "mp3": encoded(np.tile(stereo, (20, 1)), 44_100, "MP3"), "json": [1]},
    ]
    for number, chosen in enumerate((members[:2], members[2:])):
        with (
            (tmp_path / f"shard-{number:06d}.tar").open("wb") as file,
            webdataset.TarWriter(file, encoder=True) as writer,
        ):
            for member in chosen:
                writer.write(member)
    return tmp_path


def test_shards_of_others_are_read_as_mono_at_their_own_rate(foreign: Path) -> None:
    found = {key: rest for key, *rest in samples(f"{foreign}/shard-{{000000..000001}}.tar")}
    assert list(found) == ["x/one", "x/two", "x/three"]
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (800, 2)).astype(np.float32)
    pcm, label, about = found["x/one"]
    np.testing.assert_allclose(pcm / 32_768, audio.mean(axis=1), atol=1.1 / 32_768)
    assert (label, about) == (None, {"title": "One", "sample_rate": 8000})
    pcm, label, about = found["x/two"]
    np.testing.assert_array_equal(pcm, np.rint(audio[:, 0] * 32_768))
    assert (label, about) == (7, {"sample_rate": 16_000})
    pcm, label, about = found["x/three"]
    assert len(pcm) == 16_000
    assert (label, about) == (None, {"sample_rate": 44_100})


def test_a_command_and_a_server_give_what_files_give(small: ShardSet) -> None:
    expected = keys(samples(small))
    tars = [small.path(shard.file) for shard in small.shards(["training"])]
    assert keys(samples("::".join(f"pipe:cat {tar}" for tar in tars))) == expected
    assert keys(samples("::".join(f"file://{tar}" for tar in tars))) == expected
    handler = partial(_QuietHandler, directory=str(small.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert keys(samples("::".join(f"{address}/{tar.name}" for tar in tars))) == expected
        server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_damaged_tar_is_an_error_or_passed_over_as_the_handler_says(foreign: Path) -> None:
    url = f"{foreign}/shard-{{000000..000001}}.tar"
    (foreign / "shard-000000.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(tarfile.ReadError):
        list(samples(url))
    assert keys(samples(url, handler=webdataset.ignore_and_continue)) == ["x/three"]
    with pytest.warns(UserWarning, match="ReadError"):
        assert keys(samples(url, handler=webdataset.warn_and_continue)) == ["x/three"]
    assert keys(samples(url, handler=webdataset.ignore_and_stop)) == []
    for missing in (f"{foreign}/nowhere.tar", "pipe:cat nowhere.tar 2> /dev/null"):
        with pytest.raises((OSError, tarfile.ReadError)):
            list(samples(missing))
        assert keys(samples(f"{missing}::{url}", handler=webdataset.ignore_and_continue)) == ["x/three"]


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ({"txt": "words"}, r"bad of .*\.tar has no audio: one of its files must end in wav, flac"),
        ({"wav": b"RIFF"}, r"bad of .*\.tar cannot be decoded \(.*\): handler=webdataset\.warn_and_continue"),
        ({"cls": b"rock"}, r"bad of .*\.tar cannot be decoded \(invalid literal"),
        ({"json": b"{"}, r"bad of .*\.tar cannot be decoded"),
        ({"wav": encoded(np.full(9, np.nan), 8000, "WAV", "FLOAT")}, r"cannot be decoded \(it holds NaN"),
    ],
)
def test_a_bad_sample_is_named_or_passed_over(tmp_path: Path, member: dict[str, Any], words: str) -> None:
    sound = {"wav": encoded(np.zeros(100), 8000, "WAV")}
    with (tmp_path / "a.tar").open("wb") as file, webdataset.TarWriter(file, encoder=False) as writer:
        bad = {"txt": b"words"} if "txt" in member else {**sound, **member}
        writer.write({"__key__": "bad", **bad})
        writer.write({"__key__": "good", **sound})
    with pytest.raises(DataError, match=words):
        list(samples(tmp_path / "a.tar"))
    assert keys(samples(tmp_path / "a.tar", handler=webdataset.ignore_and_continue)) == ["good"]


def test_a_loop_that_stops_early_leaves_nothing_open(small: ShardSet) -> None:
    tar = small.path(small.shards(["training"])[0].file)
    for data in (small, f"pipe:cat {tar}; sleep 0"):
        iterator = iter(samples(data))
        next(iterator)
        del iterator  # an open file would be a warning, and warnings are errors


def test_the_code_in_the_docs_runs(shard_set: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    section = DOCS.read_text().split("## Stream our shards into other people's loops")[1]
    code = section.split("```python\n")[1].split("```")[0]
    assert '"fma_small"' in code
    exec(code.replace('"fma_small"', repr(str(shard_set.folder))), {"__name__": "__main__"})
    assert "torch.float32" in capsys.readouterr().out
