"""What is read: the samples that soundfile and webdataset read, or an error that names what is damaged."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siamusic_fast.config import MelConfig
from siamusic_fast.errors import DataError
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines import reader as product
from siamusic_fast.pipelines.loaders import LabelledLoader, TrackLoader, TwoViewLoader
from siamusic_fast.pipelines.plan import Spans
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.manifest import ShardSet, find_shards
from tests.pipelines.conftest import PackAudio, noises
from tests.pipelines.helpers import BACKENDS, IN_DECIBELS, LOADERS, MEL, Array, config
from tests.pipelines.reference import lengthened, pcm_of, samples_of


def read_spans(shard_set: ShardSet, tracks: Array, starts: Array, samples: Array, short_tracks: str) -> Array:
    frontend = dataclasses.replace(IN_DECIBELS, short_tracks=short_tracks)
    reader = Reader(open_tracks(shard_set, ["training"]), frontend)
    out = np.full((len(tracks), int(samples.max())), 77, dtype=np.int16)
    reader.read(Spans(tracks=tracks, starts=starts, samples=samples), slice(1, len(tracks)), out)
    reader.close()
    return out


@pytest.mark.parametrize("codec", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("short_tracks", ["repeat", "pad"])
def test_spans_are_those_of_the_audio_that_webdataset_and_soundfile_read(
    short_and_long: dict[str, ShardSet], codec: str, short_tracks: str
) -> None:
    audio = [lengthened(pcm, MEL.samples, short_tracks) for pcm in pcm_of(short_and_long[codec])]
    rng = np.random.default_rng(0)
    # Some tracks several times in a row, near and far apart, as evaluation reads them; the first row is left.
    tracks = np.repeat(rng.integers(len(audio), size=20), 3)
    samples = np.array([rng.integers(1, len(audio[track]) + 1) for track in tracks])
    starts = np.array([rng.integers(0, len(audio[t]) - n + 1) for t, n in zip(tracks, samples, strict=True)])
    found = read_spans(short_and_long[codec], tracks, starts, samples, short_tracks)
    assert (found[0] == 77).all()
    for row in range(1, len(tracks)):
        begin, end = starts[row], starts[row] + samples[row]
        wanted = audio[tracks[row]][begin:end]
        if codec == "ogg":  # begun in the middle, floats may be rounded the other way
            assert abs(found[row, : samples[row]].astype(int) - wanted).max() <= 1
        else:
            np.testing.assert_array_equal(found[row, : samples[row]], wanted)
        assert (found[row, samples[row] :] == 77).all()


def test_tracks_are_those_of_webdataset_with_their_labels_and_lengths(numbered: ShardSet) -> None:
    tracks = open_tracks(numbered, ["training"], labels=True)
    samples = samples_of(numbered)
    assert tracks.labels is not None
    assert tracks.labels.tolist() == [int(sample["cls"]) for sample in samples]
    assert tracks.samples.tolist() == [len(pcm) for pcm in pcm_of(numbered)]
    assert tracks.per_shard.tolist() == [shard.tracks for shard in numbered.shards(["training"])]


@pytest.mark.parametrize("threads", [1, 8])
def test_at_most_so_many_tars_are_open_at_a_time_whatever_the_threads(
    many: ShardSet, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_tars() -> int:
        links = []
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # others may just be closed
                links.append(link.readlink())
        return sum(link.suffix == ".tar" for link in links)

    assert product._MAX_OPEN == 256
    limit = 256 if threads == 1 else 16
    monkeypatch.setattr(product, "_MAX_OPEN", limit)
    tracks = open_tracks(many, ["training"])
    reader = Reader(tracks, Frontend(mel=MelConfig(seconds=0.25), mean=0, std=1))
    spans = Spans(tracks=np.arange(300), starts=np.zeros(300, np.int64), samples=np.full(300, 5000))
    out = np.empty((300, 5000), dtype=np.int16)

    def read(row: int) -> int:
        reader.read(spans, slice(row, row + 1), out)
        return open_tars()

    with ThreadPoolExecutor(threads) as executor:
        counts = list(executor.map(read, range(300)))
    assert limit <= max(counts) <= limit + threads
    for row, pcm in enumerate(pcm_of(many)):
        np.testing.assert_array_equal(out[row], pcm[:5000])
    reader.close()
    assert open_tars() == 0


@pytest.fixture
def copied(numbered: ShardSet, tmp_path: Path) -> ShardSet:
    """A copy of `numbered`, found before a test damages it."""
    shutil.copytree(numbered.folder, tmp_path / "shards")
    return find_shards(tmp_path / "shards")


def assert_named(use: Callable[[], Any], file: Path, *words: str) -> None:
    """Check that `use` fails with one line that names `file`, all of `words`, and what to do."""
    with pytest.raises(DataError) as raised:
        use()
    message = str(raised.value)
    for word in (str(file), f"`siamusic-fast verify {file.parent}`", *words):
        assert word in message
    assert "\n" not in message


def assert_epoch_named(loader: Any, file: Path, *words: str) -> None:
    """Check that an epoch of `loader` fails as `assert_named` says, again and again, and it can be closed."""
    for _ in range(2):
        assert_named(lambda: list(loader), file, *words)
    loader.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LOADERS)
def test_a_tar_cut_off_or_removed_after_the_loader_was_made_is_named(
    copied: ShardSet, backend: str, kind: Any
) -> None:
    loaders = [kind(copied, **config(backend=backend, batch_size=8)) for _ in range(2)]
    damaged = copied.path(copied.shards(["training"])[1].file)
    with damaged.open("r+b") as file:
        file.truncate(damaged.stat().st_size // 2)
    assert_epoch_named(loaders[0], damaged, "the tar ends at byte")
    damaged.unlink()
    assert_epoch_named(loaders[1], damaged, "No such file")


@pytest.mark.parametrize("kind", LOADERS)
def test_a_tar_cut_off_or_removed_before_is_named_when_the_loader_is_made(
    copied: ShardSet, kind: Any
) -> None:
    damaged = copied.path(copied.shards(["training"])[1].file)
    with damaged.open("r+b") as file:
        file.truncate(damaged.stat().st_size // 2)
    assert_named(lambda: kind(copied, **config()), damaged)
    damaged.unlink()
    assert_named(lambda: kind(copied, **config()), damaged)
    with pytest.raises(DataError, match=f"{damaged} is missing"):
        kind(copied.folder, **config())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [LabelledLoader, TrackLoader])
def test_a_label_that_is_not_that_of_the_table_is_named_with_its_sample(
    copied: ShardSet, backend: str, kind: Any
) -> None:
    loader = kind(copied, **config(backend=backend))
    tracks = open_tracks(copied, ["training"], labels=True)
    damaged = tracks.path(12)
    with damaged.open("r+b") as file:
        file.seek(int(tracks.cls_offset[12]))
        file.write(b"00099")
    assert_epoch_named(loader, damaged, samples_of(copied)[12]["__key__"], "b'00099'")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("where", ["head", "middle", "end"])
def test_a_flac_that_cannot_be_decoded_is_named_with_its_sample(
    pack_audio: PackAudio, backend: str, kind: Any, where: str
) -> None:
    shard_set = pack_audio(noises(5), codec="flac", tracks_per_shard=3)
    loader = kind(shard_set, **config(backend=backend, batch_size=5))
    tracks = open_tracks(shard_set, ["training"])
    key = samples_of(shard_set)[4]["__key__"]
    begin, size = int(tracks.offset[4]), int(tracks.size[4])
    damage = {"head": (begin, 64), "middle": (begin + 400, size - 500), "end": (begin + 1000, size - 1000)}
    with tracks.path(4).open("r+b") as file:
        file.seek(damage[where][0])
        file.write(bytes(damage[where][1]))
    assert_epoch_named(loader, tracks.path(4), key)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "text", [None, "", "v1.2 2\n", "v9 0\n", "v1.2 2\nwav 512 1000 000001.wav cls 2048 5 000001.cls\n"]
)
def test_an_index_that_is_missing_or_damaged_is_named(
    copied: ShardSet, backend: str, text: str | None
) -> None:
    damaged = copied.path(copied.shards(["training"])[1].index)
    damaged.unlink()
    if text is not None:
        damaged.write_text(text)
    assert_named(lambda: TwoViewLoader(copied, **config(backend=backend)), damaged)
