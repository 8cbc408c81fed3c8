"""Audio and shards that tests share: MP3s in FMA's layout, some of them broken, and their shard set."""

import csv
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch

from siamusic_fast.audio.fma import load_fma
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from tests.runs import save_run

GENRES = ("Electronic", "Folk", "Rock")
BROKEN = {
    "900/900001": "missing",
    "900/900002": "empty",
    "900/900003": "not-audio",
    "900/900004": "too-short",
    "900/900005": "silent",
    "900/900006": "non-finite",
}
"""Files of the corpus that cannot be packed, and the reason code of each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none, unless FAIL_WITHOUT_CUDA asks for them to fail."""
    if torch.cuda.is_available() or os.environ.get("FAIL_WITHOUT_CUDA"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU"))


Audio = npt.NDArray[np.float32]


def tone(seconds: float, frequency: float, sample_rate: int, rng: np.random.Generator) -> Audio:
    """A decaying tone repeated twice a second, with some noise: mono, peak below 0.7."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    audio = 0.5 * np.sin(2 * np.pi * frequency * time) * np.exp(-4 * (time % 0.5))
    return (audio + 0.02 * rng.standard_normal(len(time)).clip(-3, 3)).astype(np.float32)


def write_metadata(folder: Path, rows: list[tuple[int, str, str, str]]) -> None:
    """Write tracks.csv as FMA has it: three header lines, then number, split, subset, genre and more."""
    folder.mkdir(parents=True)
    with (folder / "tracks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "album", "artist", "artist", "set", "set", "track", "track"])
        writer.writerow(["", "comments", "name", "id", "split", "subset", "genre_top", "title"])
        writer.writerow(["track_id", *7 * [""]])
        for number, split, subset, genre in rows:
            artist = ["A namesake", number // 300]  # three tracks of `fma_corpus`, which are in one split
            writer.writerow([number, "with a, comma\nand a line break", *artist, split, subset, genre, "NA"])


@pytest.fixture(scope="session")
def fma_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fma_medium and fma_metadata: 36 tracks of 6 to 9 s, 3 genres, all splits, and `BROKEN`.

    Of the 36, 3 have no genre and 24 are of the small subset; most are mono at 22,050 Hz.
    """
    root = tmp_path_factory.mktemp("fma")
    rng = np.random.default_rng(0)
    rows = []
    for place in range(36):
        number = 100 * place + 2
        genre = "" if place % 12 == 11 else GENRES[place % 3]
        split = ("training", "training", "training", "training", "validation", "test")[place // 3 % 6]
        rows.append((number, split, "small" if place < 24 else "medium", genre))
        rate = {1: 44_100, 2: 48_000}.get(place, 22_050)
        audio = tone(6 + place % 4, 220 * (1 + place % 3), rate, rng)
        if place in (1, 2, 3):
            audio = np.stack([audio, 0.5 * audio], axis=1)
        _write_mp3(root / "fma_medium" / f"{number // 1000:03d}" / f"{number:06d}.mp3", audio, rate)
    rows += [(int(name[4:]), "training", "small", "Folk") for name in BROKEN]
    rows += [(950_000, "training", "large", "Folk")]
    _write_broken(root / "fma_medium", rng)
    write_metadata(root / "fma_metadata", rows)
    return root


@pytest.fixture(scope="session")
def shard_set(fma_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The shards of `fma_corpus`: up to 8 tracks each, so that the training split has several."""
    folder = tmp_path_factory.mktemp("shards") / "fma_medium"
    return pack(load_fma(fma_corpus), folder, PackConfig(tracks_per_shard=8), procs=2)


TAGS = {"Electronic": ("low",), "Folk": ("middle", "voice"), "Rock": ("high", "voice"), "": ()}
"""Tags of `tagged` by the genre that decides how the track sounds."""


@pytest.fixture(scope="session")
def tagged(fma_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The tracks of `shard_set` with `TAGS` and no classes; the 3 without genre have no tags either."""
    corpus = load_fma(fma_corpus)
    tracks = tuple(replace(track, genre="", tags=TAGS[track.genre]) for track in corpus.tracks)
    folder = tmp_path_factory.mktemp("tagged") / "tagged"
    return pack(replace(corpus, tracks=tracks), folder, PackConfig(tracks_per_shard=8), procs=1)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "pretrained")


@pytest.fixture(scope="session")
def segments(fma_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The tracks of `shard_set` in segments: 6 to 9 s are 2 or 3 of up to 3 s."""
    folder = tmp_path_factory.mktemp("segments") / "fma_medium"
    return pack(load_fma(fma_corpus), folder, PackConfig(min_seconds=2.0, max_seconds=3.0), procs=1)


def _write_mp3(path: Path, audio: Audio, sample_rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, sample_rate, format="MP3")


def _write_broken(folder: Path, rng: np.random.Generator) -> None:
    files = {reason: folder / f"{name}.mp3" for name, reason in BROKEN.items()}
    _write_mp3(files["too-short"], tone(1.6, 440, 44_100, rng), 44_100)
    _write_mp3(files["silent"], np.zeros(6 * 22_050, np.float32), 22_050)
    files["empty"].touch()
    files["not-audio"].write_text("<!DOCTYPE html><title>404 Not Found</title>")
    gap = tone(6, 440, 22_050, rng)
    gap[1000] = np.nan
    soundfile.write(files["non-finite"], gap, 22_050, format="WAV", subtype="FLOAT")
