"""A small corpus of synthetic music in the layout of FMA: what the demo and the tests run on."""

import csv
import functools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.processes.pool import Count, run_in_processes
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.synthetic.composition import compose, render
from siamusic_fast.synthetic.instruments import Samples
from siamusic_fast.synthetic.styles import STYLES

Row = dict[str, str | int]
"""Of tracks.csv: `track_id`, then the two header lines of each column, such as `track title`."""

GENRES = tuple(STYLES)
SPLIT_CYCLE = ("validation", "test", *4 * ["training"], "test", *4 * ["training"])
"""Split of a genre's tracks 0, 1, 2, ...: of 45 tracks, 32 train, 5 validate and 8 test."""
FEWEST_TRACKS, MOST_TRACKS = 3, 1_000
"""Per genre: one for each split, and what fma_small has."""
FORMATS = ((22_050, 1), (22_050, 2), (44_100, 1), (44_100, 2))
"""Sample rates in Hz and numbers of channels."""
FORMAT_SHARES = (0.88, 0.04, 0.04, 0.04)
"""How often a track has each of `FORMATS`: 44.1 kHz stereo takes four times as long to encode."""
COMPRESSION = 0.5
"""Of the encoder, from 0, best, to 1, smallest."""
SHORT_SECONDS = 1.5
CUT = 0.7
"""Share of its bytes that the cut track keeps."""
HTML_PAGE = "<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1>This track has moved.</body></html>\n"
BIOGRAPHY = "A biography, with commas,\nand a line break."
TOO_SHORT, CUT_OFF, MISSING, SILENCE, EMPTY, HTML = 98565, 98567, 98569, 98571, 99134, 133297
"""Track numbers of the rows that are broken on purpose; the real fma_small has most of them broken too."""
DEFECTS = {
    TOO_SHORT: f"{SHORT_SECONDS} s long",
    CUT_OFF: "cut in the middle of a frame",
    MISSING: "no such file",
    SILENCE: "silence",
    EMPTY: "empty file",
    HTML: "html error page",
}
ELSEWHERE = {20: "large", 26: "large", 130: "medium", 134: "medium"}
"""Tracks and subsets of the rows that have no file in fma_small."""


@dataclass(frozen=True, kw_only=True)
class SyntheticCorpus:
    """What to synthesize."""

    tracks_per_genre: int = 45
    seconds: float = 10.0
    """Length of a track."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not FEWEST_TRACKS <= self.tracks_per_genre <= MOST_TRACKS:
            raise ConfigError(
                f"tracks_per_genre = {self.tracks_per_genre} must be from {FEWEST_TRACKS}, one per split, "
                f"to {MOST_TRACKS:,}."
            )
        if not self.seconds > SHORT_SECONDS:
            raise ConfigError(
                f"seconds = {self.seconds:g} must be above {SHORT_SECONDS:g}: one track is cut to that."
            )
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed} must not be negative.")


DEFAULT = SyntheticCorpus()


@dataclass(frozen=True, kw_only=True)
class SyntheticTrack:
    """One track of fma_small."""

    number: int
    """Its number in FMA, which is the name of its file."""
    genre: str
    index: int
    """Its place in the genre, from 0."""
    split: str


def synthesize(
    root: Path, corpus: SyntheticCorpus = DEFAULT, *, procs: int = 1, progress: Progress = SILENT
) -> Path:
    """Write `corpus` into the new folder `root` and return `root`.

    It then holds ``fma_small/000/000002.mp3`` and so on, and ``fma_metadata/tracks.csv``. The bytes do not
    depend on the number of `procs`, which are processes. Until all is written, `root` does not exist or
    stays empty.

    Raises:
        DataError: `root` is a file, or a folder that is not empty.

    """
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise DataError(f"{root} exists already and would be overwritten: remove it or name another folder.")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as workplace:
        unfinished = Path(workplace, root.name)
        _write_corpus(unfinished, corpus, procs, progress)
        unfinished.rename(root)
    return root


def tracks_of(corpus: SyntheticCorpus) -> list[SyntheticTrack]:
    """Return the tracks of fma_small that `corpus` has a row for, the broken ones last; genres take turns."""
    turns = [(index, genre) for index in range(corpus.tracks_per_genre) for genre in GENRES]
    tracks = [
        SyntheticTrack(
            number=2 + 7 * turn, genre=genre, index=index, split=SPLIT_CYCLE[index % len(SPLIT_CYCLE)]
        )
        for turn, (index, genre) in enumerate(turns)
    ]
    broken = [
        SyntheticTrack(number=number, genre=genre, index=MOST_TRACKS, split="training")
        for number, genre in zip(DEFECTS, GENRES, strict=False)
    ]
    return tracks + broken


def generator(corpus: SyntheticCorpus, track: SyntheticTrack) -> np.random.Generator:
    """Return the source of all that is random in `track`; the seed, the genre and the index decide."""
    return np.random.default_rng([corpus.seed, GENRES.index(track.genre), track.index])


def _write_corpus(root: Path, corpus: SyntheticCorpus, procs: int, progress: Progress) -> None:
    tracks = tracks_of(corpus)
    for folder in {_path(root, track).parent for track in tracks}:
        folder.mkdir(parents=True)
    write = functools.partial(_write_track, root, corpus)
    with progress.task("Synthesizing", len(tracks), "tracks") as task:
        done = 0

        def advance(counts: tuple[int, ...]) -> None:
            nonlocal done
            task.advance(counts[0] - done)
            done = counts[0]

        run_in_processes(write, tracks, procs=procs, counters=1, on_counts=advance)
    rows = [_row(root, corpus, track) for track in tracks]
    _write_metadata(root / "fma_metadata" / "tracks.csv", rows)


def _path(root: Path, track: SyntheticTrack) -> Path:
    name = f"{track.number:06d}"
    return root / "fma_small" / name[:3] / f"{name}.mp3"


def _write_track(root: Path, corpus: SyntheticCorpus, track: SyntheticTrack, count: Count) -> None:
    """Write the file of `track`, if it has one."""
    path = _path(root, track)
    rng = generator(corpus, track)
    song = compose(track.genre, rng, corpus.seconds)
    sample_rate, channels = FORMATS[int(rng.choice(len(FORMATS), p=FORMAT_SHARES))]
    _write_file(path, track.number, render(song, corpus.seconds, sample_rate, channels), sample_rate)
    count((1,))


def _row(root: Path, corpus: SyntheticCorpus, track: SyntheticTrack) -> Row:
    """Return the row of `track`, whose file is written."""
    path = _path(root, track)
    song = compose(track.genre, generator(corpus, track), corpus.seconds)
    title = f"{track.genre} No. {track.index + 1} in {song.key}, {song.meter.bpm:g} bpm"
    return {
        "track_id": track.number,
        "artist bio": BIOGRAPHY,
        "artist name": f"The {track.genre} Machine",
        "set split": track.split,
        "set subset": "small",
        "track bit_rate": round(8 * path.stat().st_size / corpus.seconds) if path.exists() else 0,
        "track duration": round(corpus.seconds),
        "track genre_top": track.genre,
        "track title": DEFECTS.get(track.number, title),
    }


def _write_file(path: Path, number: int, samples: Samples, sample_rate: int) -> None:
    """Write `samples`, or what the defect of track `number` makes of them."""
    if number == EMPTY:
        path.touch()
    elif number == HTML:
        path.write_text(HTML_PAGE)
    elif number == TOO_SHORT:
        _encode(path, samples[: round(SHORT_SECONDS * sample_rate)], sample_rate)
    elif number == SILENCE:
        _encode(path, np.zeros_like(samples), sample_rate)
    elif number != MISSING:
        _encode(path, samples, sample_rate)
    if number == CUT_OFF:
        os.truncate(path, int(CUT * path.stat().st_size))


def _encode(path: Path, samples: Samples, sample_rate: int) -> None:
    """Write an MP3 of variable bit rate."""
    soundfile.write(
        path,
        samples,
        sample_rate,
        subtype="MPEG_LAYER_III",
        format="MP3",
        bitrate_mode="VARIABLE",
        compression_level=COMPRESSION,
    )


def _write_metadata(path: Path, rows: Sequence[Row]) -> None:
    """Write tracks.csv as FMA has it: two header lines name the columns, a third the index."""
    elsewhere: list[Row] = [
        {"track_id": number, "set split": "training", "set subset": subset, "track title": "elsewhere"}
        for number, subset in ELSEWHERE.items()
    ]
    columns = list(rows[0])[1:]
    path.parent.mkdir()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *(column.split()[0] for column in columns)])
        writer.writerow(["", *(column.split()[1] for column in columns)])
        writer.writerow(["track_id", *("" for _ in columns)])
        for row in sorted([*rows, *elsewhere], key=lambda row: int(row["track_id"])):
            writer.writerow([row["track_id"], *(row.get(column, "") for column in columns)])
