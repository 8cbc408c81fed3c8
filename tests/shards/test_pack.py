import csv
import hashlib
import io
import json
import multiprocessing
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from nvidia.dali import fn, pipeline_def, types
from webdataset import tariterators

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.audio.fma import load_fma
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.progress import Task
from siamusic_fast.shards.codec import Encoding
from siamusic_fast.shards.manifest import FRONTENDS, Shard, ShardSet, read_manifest
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.resuming import exclusive
from siamusic_fast.shards.samples import samples
from tests.conftest import BROKEN, tone
from tests.shards.killing import Serial
from tests.shards.memory import peak_memory

SPLITS = ("training", "validation", "test")


class Recorder:
    """A display that keeps what the last task has reported."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        self.total, self.done, self.note = total, 0, ""
        yield self

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        self.done, self.note = self.done + steps, note


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a packer wrote into `folder`; other tests may have left frontends there."""
    files = (file for file in folder.iterdir() if file.is_file() and file.name != FRONTENDS)
    return {file.name: file.read_bytes() for file in files}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_shard(shard_set: ShardSet, shard: Shard) -> list[dict[str, Any]]:
    """Read with webdataset, from a stream of our own: it does not close those that it opens."""
    with shard_set.path(shard.file).open("rb") as stream:
        files = tariterators.tar_file_expander([{"url": shard.file, "stream": stream}])
        return list(tariterators.group_by_keys(files))


def read_samples(shard_set: ShardSet) -> list[dict[str, Any]]:
    shards = shard_set.shards(list(shard_set.splits))
    return [sample for shard in shards for sample in read_shard(shard_set, shard)]


def test_webdataset_reads_back_what_libsndfile_and_soxr_give(fma_corpus: Path, shard_set: ShardSet) -> None:
    found = list(samples(shard_set))
    assert len(found) == 36
    for key, pcm, _, about in found:
        audio, rate = soundfile.read(
            fma_corpus / "fma_medium" / about["source"], always_2d=True, dtype="float32"
        )
        expected = soxr.resample(audio.mean(axis=1), rate, 22_050, "HQ")
        # Half a step for rounding, and some for two decoders of MP3 that each round in their own way.
        np.testing.assert_allclose(pcm / 32_768, expected, atol=0.6 / 32_768)
        assert about["samples"] == len(pcm)
        assert about["track_id"] == key


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
        assert (row["key"], row["split"], row["class"], row["path"], row["group"]) == (
            *(sample["__key__"], about["split"], about["genre"], about["source"], about["group"]),
        )
        assert row["group"] == str(int(row["key"]) // 300)
        assert row["shard"] == sample["__url__"]
        assert row["sha256"] == hashlib.sha256(sample["wav"][44:]).hexdigest()
        assert int(row["samples"]) == (len(sample["wav"]) - 44) // 2
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
    pack(corpus, tmp_path / "two", config, procs=2)
    pack(backwards, tmp_path / "one", config, procs=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_bytes_do_not_depend_on_the_executor(fma_corpus: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as executor:
        pack(load_fma(fma_corpus), tmp_path, PackConfig(tracks_per_shard=8), executor=executor)
    assert contents(tmp_path) == contents(shard_set.folder)


def test_an_executor_may_run_jobs_as_they_are(fma_corpus: Path, tmp_path: Path) -> None:
    display = Recorder()
    with ThreadPoolExecutor(1) as executor:
        pack(load_fma(fma_corpus), tmp_path, executor=executor, progress=display)
    assert display.done == display.total == 36 + len(BROKEN) - 2
    rates, _, left_out = display.note.partition(", left out: ")
    assert sorted(left_out.split(", ")) == sorted(f"1 {reason}" for reason in BROKEN.values())
    assert float(rates.split(", ")[1].removesuffix(" MB/s")) > 0


def long_corpus(folder: Path) -> tuple[Corpus, np.ndarray]:
    """A track of 10.5 s at 8 kHz, its fifth and sixth second silent, and with peaks beyond full scale."""
    audio = 1.4 * tone(10.5, 440, 8000, np.random.default_rng(0))
    audio[32_000:48_000] = 0
    audio[[100, 200, 20_000]] = (1.5, -1.5, 1.2)
    soundfile.write(folder / "a.wav", audio, 8000, subtype="FLOAT")
    track = Track("000001", "a.wav", "training", "Folk")
    return Corpus(name="long", folder=folder, tracks=(track,)), audio


def test_long_tracks_are_cut_into_segments_that_know_their_track(tmp_path: Path) -> None:
    corpus, audio = long_corpus(tmp_path)
    config = PackConfig(sample_rate=8000, min_seconds=1, max_seconds=2)
    packed = pack(corpus, tmp_path / "out", config, procs=1)
    rows = read_csv(packed.folder / "tracks.csv")
    # The sixth piece has half a second, the third is silent.
    assert [(row["key"], row["track_id"], row["offset"], row["clipped"]) for row in rows] == [
        ("000001-0000", "000001", "0.000", "2"),
        ("000001-0001", "000001", "2.000", "1"),
        ("000001-0003", "000001", "6.000", "0"),
        ("000001-0004", "000001", "8.000", "0"),
    ]
    assert read_csv(packed.folder / "rejected.csv") == []
    assert packed.rejected == {}
    assert packed.max_seconds == 2
    for row, sample in zip(rows, read_samples(packed), strict=True):
        about = json.loads(sample["json"])
        assert (sample["__key__"], about["track_id"]) == (row["key"], "000001")
        start = round(about["offset"] * 8000)
        expected = np.clip(np.rint(audio[start : start + 16_000] * 32_768), -32_768, 32_767)
        assert np.frombuffer(sample["wav"], "<i2", offset=44).tolist() == expected.tolist()


def test_a_track_without_a_segment_that_is_not_silent_is_left_out_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, silent in (("a", 4), ("b", 2), ("c", 0)):
        # What sounds in a and b is in a last segment that is too short.
        sound = np.concatenate([np.zeros(silent * 8000), tone(0.5 if silent else 2, 440, 8000, rng)])
        soundfile.write(tmp_path / f"{name}.wav", sound, 8000)
    tracks = tuple(Track(name, f"{name}.wav", "training", "Folk") for name in "abc")
    corpus = Corpus(name="long", folder=tmp_path, tracks=tracks)
    config = PackConfig(sample_rate=8000, min_seconds=1, max_seconds=2)
    display = Recorder()
    packed = pack(corpus, tmp_path / "out", config, executor=Serial(), progress=display)
    assert packed.rejected == {"silent": 2}
    assert display.note.endswith(", left out: 2 silent")
    rows = read_csv(packed.folder / "rejected.csv")
    assert [(row["path"], row["reason"]) for row in rows] == [("a.wav", "silent"), ("b.wav", "silent")]
    assert [row["path"] for row in read_csv(packed.folder / "tracks.csv")] == ["c.wav"]


def test_flac_is_the_same_audio_bit_for_bit(fma_corpus: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    config = PackConfig(tracks_per_shard=8, codec="flac")
    packed = pack(load_fma(fma_corpus), tmp_path, config, procs=2)
    assert (packed.codec, packed.quality) == ("flac", None)
    for wav, flac in zip(read_samples(shard_set), read_samples(packed), strict=True):
        decoded, rate = soundfile.read(io.BytesIO(flac["flac"]), dtype="int16")
        assert rate == 22_050
        assert decoded.tobytes() == wav["wav"][44:]
        assert (flac["json"], flac["cls"]) == (wav["json"], wav["cls"])
    assert read_csv(tmp_path / "tracks.csv") == read_csv(shard_set.folder / "tracks.csv")


def tones(folder: Path, count: int, seconds: float, sample_rate: int) -> Corpus:
    rng = np.random.default_rng(0)
    tracks = tuple(Track(f"{n:02d}", f"{n:02d}.wav", "training", "Folk") for n in range(count))
    for track in tracks:
        soundfile.write(folder / track.path, tone(seconds, 440, sample_rate, rng), sample_rate)
    return Corpus(name="tones", folder=folder, tracks=tracks)


def test_vorbis_is_near_the_audio_and_better_with_more_quality(tmp_path: Path) -> None:
    corpus = tones(tmp_path, 1, 5, 22_050)
    pcm, _ = soundfile.read(tmp_path / "00.wav")
    errors, sizes = [], []
    for quality in (1.0, 9.0):
        config = PackConfig(codec="ogg", quality=quality)
        packed = pack(corpus, tmp_path / str(quality), config, executor=Serial())
        assert (packed.codec, packed.quality) == ("ogg", quality)
        ogg = read_samples(packed)[0]["ogg"]
        decoded, _ = soundfile.read(io.BytesIO(ogg))
        assert len(decoded) == len(pcm)
        errors.append(np.sqrt(np.mean((decoded - pcm) ** 2)) / pcm.std())
        sizes.append(len(ogg))
    assert errors[1] < errors[0] < 0.5
    assert sizes[0] < sizes[1] < len(pcm)


@pytest.mark.parametrize("codec", ["flac", "ogg"])
def test_dali_decodes_what_libsndfile_decodes(tmp_path: Path, codec: str) -> None:
    config = PackConfig(codec=codec, sample_rate=8000, min_seconds=1)
    packed = pack(tones(tmp_path, 3, 1.5, 8000), tmp_path / "out", config, executor=Serial())
    (shard,) = packed.shards(["training"])

    @pipeline_def(batch_size=shard.tracks, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def decoded() -> Any:
        paths, indices = [str(packed.path(shard.file))], [str(packed.path(shard.index))]
        content = fn.readers.webdataset(paths=paths, index_paths=indices, ext=[codec])
        audio, _ = fn.decoders.audio(content, dtype=types.FLOAT)
        return audio

    pipeline = decoded()
    pipeline.build()
    (batch,) = pipeline.run()
    for place, sample in enumerate(read_shard(packed, shard)):
        expected, _ = soundfile.read(io.BytesIO(sample[codec]), dtype="float32")
        np.testing.assert_allclose(batch.at(place).squeeze(), expected, atol=1e-6)


def test_ogg_bytes_do_not_depend_on_the_clock() -> None:
    pcm = np.random.default_rng(0).integers(-3000, 3000, 30_000).astype(np.int16)
    code = (
        "import sys, numpy as np; from siamusic_fast.shards.codec import Encoding;"
        "pcm = np.frombuffer(sys.stdin.buffer.read(), np.int16);"
        "sys.stdout.buffer.write(*Encoding(sample_rate=8000, codec='ogg').encode(pcm))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pcm.tobytes(), check=True, capture_output=True)
    assert (done.stdout,) == Encoding(sample_rate=8000, codec="ogg").encode(pcm)


@pytest.mark.parametrize("reverse", [False, True])
def test_of_equal_files_one_is_packed_and_the_others_name_it(tmp_path: Path, reverse: bool) -> None:
    sound = tone(2, 440, 8000, np.random.default_rng(0))
    soundfile.write(tmp_path / "a.wav", sound, 8000)
    content = (tmp_path / "a.wav").read_bytes()
    for name, tail in (("b.wav", b""), ("c.wav", b""), ("d.wav", b"end")):
        (tmp_path / name).write_bytes(content + tail)
    # As long as a.wav, and different in a byte far from the middle.
    (tmp_path / "e.wav").write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    genres = {"a": "", "b": "Folk", "c": "Rock", "d": "Folk", "e": "Folk"}
    tracks = [Track(name, f"{name}.wav", "training", genre) for name, genre in genres.items()]
    corpus = Corpus(name="twice", folder=tmp_path, tracks=tuple(tracks[::-1] if reverse else tracks))
    packed = pack(corpus, tmp_path / "out", PackConfig(sample_rate=8000, min_seconds=1), procs=1)
    assert packed.rejected == {"duplicate": 2}
    assert [tuple(row.values()) for row in read_csv(packed.folder / "rejected.csv")] == [
        ("a.wav", "duplicate", "same bytes as b.wav"),
        ("c.wav", "duplicate", "same bytes as b.wav, whose label is 'Folk', not 'Rock'"),
    ]
    assert sorted(row["path"] for row in read_csv(packed.folder / "tracks.csv")) == [
        "b.wav",
        "d.wav",
        "e.wav",
    ]


def test_memory_of_a_worker_does_not_grow_with_the_number_of_tracks(tmp_path: Path) -> None:
    corpus = tones(tmp_path, 16, 20, 22_050)
    peaks = []
    for count in (4, 16):
        part = Corpus(name="many", folder=tmp_path, tracks=corpus.tracks[:count])
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
            pack(part, tmp_path / f"out-{count}", executor=executor)
            peaks.append(executor.submit(peak_memory).result())
    assert peaks[1] - peaks[0] < 5  # 12 more tracks are 10 MB in their shard


def test_a_shard_set_is_replaced_only_by_force_and_nothing_else_is_touched(
    fma_corpus: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shard_set.folder, tmp_path / "set"))
    (folder / FRONTENDS).write_text("[]")
    for name in ("notes.txt", "training-1.tar", "mine-000000.tar", "training-000000.tar.bak"):
        (folder / name).write_text("mine")
    before = contents(folder)
    corpus = load_fma(fma_corpus)
    validation = tuple(track for track in corpus.tracks if track.split == "validation")
    corpus = Corpus(name=corpus.name, folder=corpus.folder, tracks=validation)
    with pytest.raises(DataError, match="already holds a shard set: --force"):
        pack(corpus, folder)
    assert contents(folder) == before

    packed = pack(corpus, folder, procs=1, force=True)
    assert packed == read_manifest(folder)
    assert list(packed.splits) == ["validation"]
    files = {"manifest.json", "tracks.csv", "rejected.csv", "validation-000000.tar", "validation-000000.idx"}
    assert not (folder / FRONTENDS).exists()
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
    with (
        exclusive(tmp_path, {"shards": 1}, force=False),
        pytest.raises(DataError, match="is being packed by another run"),
    ):
        pack(load_fma(fma_corpus), tmp_path, force=True)


def test_a_target_that_cannot_be_written_is_named(fma_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = r"file/shards cannot be written: Not a directory\. When that is mended, .* goes on\.$"
    with pytest.raises(DataError, match=words):
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
        pack(corpus, tmp_path / "out", procs=1)
    rows = read_csv(tmp_path / "out" / "rejected.csv")
    assert [(row["path"], row["reason"]) for row in rows] == [("a.mp3", "not-audio")]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_script_may_pack_without_guarding_its_main_module(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music" / "a.wav", np.full(6 * 22_050, 0.1), 22_050)
    script = tmp_path / "script.py"
    script.write_text(
        "import siamusic_fast as sf\n"
        f"sf.pack(sf.open_corpus({str(tmp_path / 'music')!r}), {str(tmp_path / 'out')!r}, procs=1)\n"
        "print('once')\n"
    )
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("once\n", "")


def test_a_shard_all_of_whose_tracks_are_unfit_is_not_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tracks = tuple(Track(name, f"{name}.wav", "training", "Folk") for name in "abcd")
    for track in tracks[:1]:
        soundfile.write(tmp_path / track.path, tone(1, 440, 22_050, rng), 22_050)
    for track in tracks[1:]:
        (tmp_path / track.path).write_text(f"no audio {track.key}")
    corpus = Corpus(name="mine", folder=tmp_path, tracks=tracks)
    config = PackConfig(tracks_per_shard=1, min_seconds=1)
    packed = pack(corpus, tmp_path / "out", config, procs=1)
    assert packed.tracks(["training"]) == 1
    assert packed.rejected == {"not-audio": 3}
    assert len(list((tmp_path / "out").glob("*.tar"))) == 1
    assert read_manifest(tmp_path / "out") == packed


@pytest.mark.parametrize(
    "values",
    [
        {"min_seconds": float("nan")},
        {"max_seconds": 4.9},
        {"max_seconds": 0.0, "min_seconds": 0},
        {"max_seconds": float("inf")},
        {"tracks_per_shard": 0},
        {"sample_rate": 0},
        {"sample_rate": 300_000, "codec": "ogg"},
        {"codec": "mp3"},
        {"quality": 11},
        {"max_hours": 0.0},
        {"max_hours": 0.001},
        {"max_damage": 1.1},
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        PackConfig(**values)


def test_a_worker_imports_nothing_heavy() -> None:
    modules = "{'torch', 'nvidia', 'pandas', 'rich'}"
    code = f"import sys, siamusic_fast.shards.pack; print(sorted({modules} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
