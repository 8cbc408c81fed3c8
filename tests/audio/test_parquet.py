import dataclasses
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from siamusic_fast.audio import parquet
from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.sources import open_corpus
from siamusic_fast.audio.store import open_store
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.tables import read_rejects, read_tracks
from siamusic_fast.shards.verify import verify
from tests.conftest import tone

RATE = 8000
CONFIG = PackConfig(sample_rate=RATE, min_seconds=0.1, tracks_per_shard=5)
HUB_AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def clip(number: int) -> bytes:
    file = io.BytesIO()
    audio = tone(0.2, 220 + 5 * number, RATE, np.random.default_rng(number))
    soundfile.write(file, audio, RATE, format="WAV")
    return file.getvalue()


def table(numbers: Sequence[int], **columns: Any) -> pa.Table:
    audio = [{"bytes": clip(n), "path": f"{n}.wav"} for n in numbers]
    genres = [("rock", "jazz")[n % 2] for n in numbers]
    return pa.table({"audio": pa.array(audio, HUB_AUDIO), "genre": genres, **columns})


def write(path: Path, content: pa.Table) -> Path:
    """Write Parquet in row groups of 3, or a stream of Arrow, or an Arrow file if `path` says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(content, path, row_group_size=3)
        return path
    make = pa.ipc.new_file if path.stem.endswith("file") else pa.ipc.new_stream
    with make(str(path), content.schema) as writer:
        writer.write_table(content, max_chunksize=3)
    return path


def load(folder: Path, label_column: str | None = "genre", split_column: str | None = None) -> Corpus:
    return open_corpus(folder, label_column=label_column, split_column=split_column)


def pcm_sha256(number: int) -> str:
    return hashlib.sha256(soundfile.read(io.BytesIO(clip(number)), dtype="int16")[0].tobytes()).hexdigest()


@pytest.mark.parametrize("ending", [".parquet", ".arrow", "-file.arrow"])
def test_a_table_packs_to_the_audio_classes_and_splits_in_it(tmp_path: Path, ending: str) -> None:
    starts = {"train": 0, "validation": 7, "test": 9, "end": 12}
    for (name, start), (_, stop) in itertools.pairwise(starts.items()):
        write(tmp_path / "hub" / "data" / f"{name}-00000-of-00001{ending}", table(range(start, stop)))
    corpus = load(tmp_path / "hub")
    assert (corpus.name, corpus.classes) == ("hub", ("jazz", "rock"))
    pack(corpus, tmp_path / "set", CONFIG, procs=1)
    assert verify(tmp_path / "set", procs=1).problems == ()
    rows = list(read_tracks(tmp_path / "set"))
    assert Counter(row.split for row in rows) == {"training": 7, "validation": 2, "test": 3}
    for row in rows:
        file, _, place = row.path.rpartition("#")
        number = starts[file.removeprefix("data/").partition("-")[0]] + int(place)
        assert (row.genre, row.sha256) == (("rock", "jazz")[number % 2], pcm_sha256(number))


def test_bytes_do_not_depend_on_workers_and_each_row_group_is_read_once_per_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "t" / "music.parquet", table(range(12)))
    config = dataclasses.replace(CONFIG, tracks_per_shard=6)
    pack(load(tmp_path / "t", None), tmp_path / "one", config, procs=2)
    reads: list[int] = []
    read = parquet._Table.audio

    def noted(table: parquet._Table, group: int) -> Iterator[Any]:
        reads.append(group)
        return read(table, group)

    monkeypatch.setattr(parquet._Table, "audio", noted)
    with ThreadPoolExecutor(1) as executor:
        pack(load(tmp_path / "t", None), tmp_path / "two", config, executor=executor)
    assert sorted(reads) == [0, 0, 1, 1, 2, 2, 3, 3], "once when files are compared, once for its shard"
    files = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()}


def test_classes_are_numbers_with_names_in_the_metadata_of_the_hub(tmp_path: Path) -> None:
    features = {"genre": {"names": ["blues", "Café"], "_type": "ClassLabel"}}
    numbers = pa.array([0, 1, -1, None, 1], pa.int64())
    content = table(range(5)).set_column(1, "genre", numbers)
    named = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    write(tmp_path / "named" / "a.parquet", named)
    write(tmp_path / "numbers" / "a.parquet", content)
    assert [track.genre for track in load(tmp_path / "named").tracks] == ["blues", "Café", "", "", "Café"]
    assert [track.genre for track in load(tmp_path / "numbers").tracks] == ["0", "1", "-1", "", "1"]
    write(tmp_path / "named" / "a.parquet", named.set_column(1, "genre", pa.array([0, 1, 2, 0, 0])))
    with pytest.raises(DataError, match=r"a\.parquet, row 2: 2 is none of the 2 names in its metadata"):
        load(tmp_path / "named")


def test_splits_are_those_of_a_column_or_else_of_the_names_or_else_drawn(tmp_path: Path) -> None:
    splits = ["train", "valid", "TEST", *["training"] * 9]
    write(tmp_path / "a" / "default" / "train" / "0000.parquet", table(range(12), fold=splits))
    (by_column, by_name) = (load(tmp_path / "a", None, "fold"), load(tmp_path / "a", None))
    assert [track.split for track in by_column.tracks][:4] == ["training", "validation", "test", "training"]
    assert {track.split for track in by_name.tracks} == {"training"}, "without classes nothing is drawn"
    drawn = Counter(track.split for track in load(tmp_path / "a").tracks)
    assert drawn == {"training": 8, "validation": 2, "test": 2}, "a lone split named train is to be divided"
    write(tmp_path / "a" / "default" / "test" / "0000.parquet", table(range(12, 14), fold=["", ""]))
    assert Counter(track.split for track in load(tmp_path / "a").tracks) == {"training": 12, "test": 2}
    with pytest.raises(DataError, match=r"test/0000\.parquet, row 0: unknown split '', there are training"):
        load(tmp_path / "a", None, "fold")
    write(tmp_path / "a" / "more.parquet", table(range(14, 16)))
    with pytest.raises(DataError, match=r"'more\.parquet' in .* names no split.*like train-more\.parquet"):
        load(tmp_path / "a")


def test_groups_are_those_of_a_column_and_drawn_splits_keep_them_together(tmp_path: Path) -> None:
    artists = [f"artist {number % 6}" for number in range(12)]
    write(tmp_path / "a" / "music.parquet", table(range(12), artist=artists, number=[*range(11), None]))
    tracks = open_corpus(tmp_path / "a", label_column="genre", group_column="artist").tracks
    assert [track.group for track in tracks] == artists
    assert len({(track.group, track.split) for track in tracks}) == 6
    assert len({track.split for track in tracks}) > 1
    by_genre = open_corpus(tmp_path / "a", label_column="genre", group_column="genre").tracks
    assert all(track.group == track.genre != "" for track in by_genre)
    numbered = open_corpus(tmp_path / "a", group_column="number").tracks
    assert [track.group for track in numbered] == [*map(str, range(11)), ""]
    with pytest.raises(DataError, match=r"has no column 'singer', or several: its columns are 'audio'"):
        open_corpus(tmp_path / "a", group_column="singer")


def test_rows_without_good_audio_are_left_out(tmp_path: Path) -> None:
    audio = [
        {"bytes": clip(0), "path": "0.wav"},
        None,
        {"bytes": None, "path": "gone.wav"},
        {"bytes": b"", "path": "empty.wav"},
        {"bytes": b"<html>" * 100, "path": "page.mp3"},
        {"bytes": clip(0), "path": "copy.wav"},
    ]
    write(tmp_path / "t" / "a.parquet", pa.table({"audio": pa.array(audio, HUB_AUDIO)}))
    pack(open_corpus(tmp_path / "t"), tmp_path / "set", CONFIG, procs=1)
    assert [track.path for track in read_tracks(tmp_path / "set")] == ["a.parquet#0"]
    found = {reject.path: reject.reason for reject in read_rejects(tmp_path / "set")}
    reasons = ("empty", "empty", "empty", "not-audio", "duplicate")
    assert found == {f"a.parquet#{row}": reason for row, reason in enumerate(reasons, start=1)}


def test_plain_bytes_and_a_single_file_serve_too_and_other_audio_goes_first(tmp_path: Path) -> None:
    plain = pa.table({"audio": pa.array([clip(0), clip(1)], pa.large_binary())})
    path = write(tmp_path / "t" / "music.parquet", plain)
    corpus = open_corpus(path)
    assert (corpus.name, [track.path for track in corpus.tracks]) == (
        "music",
        ["music.parquet#0", "music.parquet#1"],
    )
    store = open_store(tmp_path / "t", in_tables=True)
    assert list(store.paths()) == ["music.parquet#0", "music.parquet#1"]
    assert (store.size("music.parquet#1"), store.size("music.parquet#2")) == (len(clip(1)), None)
    (tmp_path / "t" / "a.mp3").touch()
    assert [track.path for track in open_corpus(tmp_path / "t").tracks] == ["a.mp3"]


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_file_that_is_cut_off_or_something_else_is_named(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / "t" / f"a{ending}", table(range(9)))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"PAR1 not", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"a\{ending} is no .* file, or is damaged or cut off"):
            pack(load(tmp_path / "t"), tmp_path / "set", CONFIG, procs=1)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path, ending: str) -> None:
    os.mkfifo(tmp_path / f"a{ending}")
    with pytest.raises(DataError, match=rf"a\{ending} is no .* file.*it is no regular file"):
        load(tmp_path)


@pytest.mark.parametrize("label_column", ["genre", None])
def test_a_zip_of_tables_is_to_be_unpacked(tmp_path: Path, label_column: str | None) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as file:
        file.write(write(tmp_path / "a.parquet", table(range(2))), "a.parquet")
    with pytest.raises(DataError, match=r"t\.zip is a zip of Parquet or Arrow files: unpack it"):
        load(tmp_path / "t.zip", label_column)


def test_audio_that_is_damaged_in_the_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "t" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(table(range(4)), path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet is no Parquet file, or is damaged"):
        pack(load(tmp_path / "t"), tmp_path / "set", CONFIG, procs=1)


@pytest.mark.parametrize(
    ("columns", "label", "words"),
    [
        ({"audio": ["a.mp3"]}, None, "the column 'audio' of .* is string: it must hold the bytes"),
        ({"sound": [b"x"]}, None, "has no column 'audio', or several: its columns are 'sound'"),
        ({"audio": [b"x"]}, "genre", "has no column 'genre', or several: its columns are 'audio'"),
        ({"audio": [b"x"], "genre": [0.5]}, "genre", "the column 'genre' of .* is double: names of classes"),
    ],
)
def test_columns_that_do_not_serve_are_named(
    tmp_path: Path, columns: dict[str, Any], label: str | None, words: str
) -> None:
    write(tmp_path / "t" / "a.parquet", pa.table(columns))
    with pytest.raises(DataError, match=rf"{words}"):
        load(tmp_path / "t", label)


def test_without_pyarrow_the_remedy_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "t" / "a.parquet", table(range(2)))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pyarrow.*`pip install 'siamusic-fast\[parquet\]'`"):
        load(tmp_path / "t")


def test_columns_go_with_tables_only(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").touch()
    with pytest.raises(DataError, match=r"holds no file that ends in \.parquet or \.arrow"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"'genre' is a column of Parquet or Arrow files.*leave out labels"):
        open_corpus(tmp_path, labels="folders", label_column="genre")


def test_memory_grows_with_a_row_group_and_not_with_a_file(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from siamusic_fast.audio.store import open_store
        from tests.shards.memory import peak_memory
        store = open_store(Path(sys.argv[1]), in_tables=True)
        assert store.status("a.parquet#0").size == store.size("a.parquet#79")
        print(peak_memory())
    """
    noise = np.random.default_rng(0)
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("audio", pa.binary())])) as writer:
        for _ in range(20):
            writer.write_table(pa.table({"audio": pa.array([noise.bytes(1 << 20) for _ in range(4)])}))
    command = [sys.executable, "-c", code, str(tmp_path)]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (tmp_path / "a.parquet").unlink()
    write(tmp_path / "a.parquet", pa.table({"audio": [b"x"] * 80}))
    least = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak < least + 60, "of the 80 MB in the file"
