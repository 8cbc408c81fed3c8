"""A small corpus of synthetic music in the layout of FMA: what the demo and the tests run on."""

import csv
import functools
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from siamusic_fast.audio.corpus import SPLITS, TAG_SEPARATOR
from siamusic_fast.processes.pool import Count, run_in_processes
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.synthetic.composition import Song, compose, form_artist, render_song
from siamusic_fast.synthetic.instruments import DRUMS, Waveform
from siamusic_fast.synthetic.styles import STYLES

GENRES = tuple(STYLES)
SPLIT_CYCLE = ("validation", "test", *4 * ["training"], "test", *4 * ["training"])
"""Split of a genre's tracks 0, 1, 2, ...: of 45 tracks, 32 train, 5 validate and 8 test."""
TRACKS_PER_ARTIST = 3
"""Tracks of an artist, all in one split. The last artist of a genre in a split may have fewer."""
MAX_TRACKS = 1_000
"""Tracks per genre in fma_small."""
ENCODINGS = ((22_050, 1), (22_050, 2), (44_100, 1), (44_100, 2))
"""Sample rates in Hz and numbers of channels."""
ENCODING_SHARES = (0.88, 0.04, 0.04, 0.04)
"""Probability of each of `ENCODINGS`. 44.1 kHz stereo takes four times as long to encode."""
MIN_SECONDS = 1.5
"""Length of the track that is too short."""
CUT_SHARE = 0.7
"""Share of its bytes that the cut track keeps."""
HTML_PAGE = "<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1>This track has moved.</body></html>\n"
TOO_SHORT, CUT_OFF, MISSING, ALL_ZERO, EMPTY, HTML = DEFECTS = (98565, 98567, 98569, 98571, 99134, 133297)
"""Numbers of the tracks that are broken on purpose. In the real fma_small, most of them are broken too."""
DEFECT_TITLES = (
    *(f"{MIN_SECONDS} s long", "cut in the middle of a frame", "no such file"),
    *("silence", "empty file", "html error page"),
)
OTHER_SUBSETS = {20: "large", 26: "large", 130: "medium", 134: "medium"}
"""Numbers and subsets of the tracks that are not in fma_small. They have a row and no file."""
COLUMNS = (
    *(("artist", "bio"), ("artist", "id"), ("artist", "name"), ("set", "split"), ("set", "subset")),
    *(("track", "bit_rate"), ("track", "duration"), ("track", "genre_top"), ("track", "title")),
)
"""The two header lines of tracks.csv. A third has the name of the index, `track_id`."""
SLOW, FAST = 95, 120
"""Quarter notes per minute below which a track has the tag slow, and above which it has the tag fast."""
DRUM_TAGS = {
    "drums": ("kick", "snare", "clap", "hat", "crash"),
    "percussion": ("shaker", "hand_drum", "metal"),
}
"""Tags of tracks with drums, and the drums that each is for."""
BIOGRAPHY = "A biography, with commas,\nand a line break."


@dataclass(frozen=True, kw_only=True)
class SyntheticCorpus:
    """What to synthesize."""

    tracks_per_genre: int = 45
    """Number of sound tracks of each genre: at least 3, one for each split."""
    seconds: float = 10.0
    """Length of a track."""
    seed: int = 0

    @property
    def tracks(self) -> list["SyntheticTrack"]:
        """The tracks of fma_small, the broken ones last; genres take turns."""
        turns = [(index, genre) for index in range(self.tracks_per_genre) for genre in GENRES]
        return [
            *(SyntheticTrack(2 + 7 * turn, genre, index) for turn, (index, genre) in enumerate(turns)),
            *(SyntheticTrack(*broken, MAX_TRACKS) for broken in zip(DEFECTS, GENRES, strict=False)),
        ]

    def generator(self, track: "SyntheticTrack") -> np.random.Generator:
        """Return the random generator of `track`, which depends on the seed, the genre and the index."""
        return np.random.default_rng([self.seed, GENRES.index(track.genre), track.index])

    def compose(self, track: "SyntheticTrack", rng: np.random.Generator) -> Song:
        """Return the piece of music that `track` is, by its artist. `rng` is the generator of the track."""
        artist = form_artist(track.genre, np.random.default_rng([self.seed, MAX_TRACKS, track.artist]))
        return compose(artist, rng, self.seconds)

    def tags(self, track: "SyntheticTrack") -> tuple[str, ...]:
        """Return what is heard in `track`, in alphabetical order: its tempo, instruments and percussion."""
        song = self.compose(track, self.generator(track))
        sounds = {part.sound for part in song.parts if part.notes}
        tempo = "slow" if song.meter.bpm < SLOW else "fast" if song.meter.bpm > FAST else "moderate"
        kinds = {kind for kind, drums in DRUM_TAGS.items() if not sounds.isdisjoint(drums)}
        instruments = {sound.replace("_", " ") for sound in sounds - DRUMS.keys()}
        return tuple(sorted({tempo} | kinds | instruments))


@dataclass(frozen=True)
class SyntheticTrack:
    """One track of fma_small."""

    number: int
    """The number of the track in FMA, which is the name of its file."""
    genre: str
    index: int
    """Place of the track in its genre, from 0; `MAX_TRACKS` if it is broken."""

    @property
    def split(self) -> str:
        return "training" if self.number in DEFECTS else SPLIT_CYCLE[self.index % len(SPLIT_CYCLE)]

    @property
    def artist(self) -> int:
        """Number of the artist, who has one genre and is in one split, from 1."""
        cycle, place = divmod(self.index, len(SPLIT_CYCLE))
        before = cycle * SPLIT_CYCLE.count(self.split) + SPLIT_CYCLE[:place].count(self.split)
        artist_in_split = before // TRACKS_PER_ARTIST
        artist_in_genre = artist_in_split * len(SPLITS) + SPLITS.index(self.split)
        return 1 + artist_in_genre * len(GENRES) + GENRES.index(self.genre)

    @property
    def path(self) -> str:
        """Path of the file below the folder of the corpus."""
        return f"fma_small/{self.number // 1000:03d}/{self.number:06d}.mp3"


def synthesize(root: Path, corpus: SyntheticCorpus, *, procs: int = 1, progress: Progress = SILENT) -> Path:
    """Write `corpus` into the new folder `root` and return `root`.

    The folder then holds ``fma_small/000/000002.mp3`` and so on, and ``fma_metadata/tracks.csv``. The file
    ``tags.csv`` has tags in place of genres: ``shard ROOT/fma_small --labels ROOT/tags.csv --tags`` packs
    the tracks with them. The bytes do not depend on `procs`, the number of processes. Until everything is
    written, `root` does not exist.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as workplace:
        unfinished = Path(workplace, root.name)
        _write_tracks(unfinished, corpus, procs, progress)
        _write_metadata(unfinished, corpus)
        _write_tags(unfinished, corpus)
        unfinished.rename(root)
    return root


def _write_tracks(root: Path, corpus: SyntheticCorpus, procs: int, progress: Progress) -> None:
    tracks = corpus.tracks
    for folder in {(root / track.path).parent for track in tracks}:
        folder.mkdir(parents=True)
    written = 0
    with progress.task("Synthesizing", len(tracks), "tracks") as task:

        def advance(counts: tuple[int, ...]) -> None:
            nonlocal written
            task.advance(counts[0] - written)
            written = counts[0]

        write = functools.partial(_write_track, root, corpus)
        run_in_processes(write, tracks, procs=procs, counters=1, on_counts=advance)


def _write_track(root: Path, corpus: SyntheticCorpus, track: SyntheticTrack, count: Count) -> None:
    rng = corpus.generator(track)
    song = corpus.compose(track, rng)
    sample_rate, channels = ENCODINGS[int(rng.choice(len(ENCODINGS), p=ENCODING_SHARES))]
    samples = render_song(song, corpus.seconds, sample_rate, channels)
    _write_file(root / track.path, track.number, samples, sample_rate)
    count((1,))


def _write_file(path: Path, number: int, samples: Waveform, sample_rate: int) -> None:
    """Write `samples` as an MP3, with the defect of track `number` if it has one."""
    if number == EMPTY:
        path.touch()
    elif number == HTML:
        path.write_text(HTML_PAGE)
    elif number != MISSING:
        if number == TOO_SHORT:
            samples = samples[: round(MIN_SECONDS * sample_rate)]
        if number == ALL_ZERO:
            samples = np.zeros_like(samples)
        options = {"subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.5}
        soundfile.write(path, samples, sample_rate, format="MP3", **options)
    if number == CUT_OFF:
        os.truncate(path, int(CUT_SHARE * path.stat().st_size))


def _write_metadata(root: Path, corpus: SyntheticCorpus) -> None:
    """Write tracks.csv as FMA has it, with three header lines."""
    titles = dict(zip(DEFECTS, DEFECT_TITLES, strict=True))
    rows: list[list[str | int]] = [
        [number, "", "", "", "training", subset, "", "", "", "elsewhere"]
        for number, subset in OTHER_SUBSETS.items()
    ]
    for track in corpus.tracks:
        path = root / track.path
        song = corpus.compose(track, corpus.generator(track))
        title = f"{track.genre} No. {track.index + 1} in {song.key}, {song.meter.bpm:g} bpm"
        bit_rate = round(8 * path.stat().st_size / corpus.seconds) if path.exists() else 0
        rows.append([track.number, BIOGRAPHY, track.artist, f"{track.genre} Machine No. {track.artist}"])
        rows[-1] += [track.split, "small", bit_rate]
        rows[-1] += [round(corpus.seconds), track.genre, titles.get(track.number, title)]
    header = [["", *names] for names in zip(*COLUMNS, strict=True)]
    (root / "fma_metadata").mkdir()
    with (root / "fma_metadata" / "tracks.csv").open("w", newline="", encoding="utf-8") as file:
        index = ["track_id", *("" for _ in COLUMNS)]
        csv.writer(file, lineterminator="\n").writerows([*header, index, *sorted(rows)])


def _write_tags(root: Path, corpus: SyntheticCorpus) -> None:
    """Write tags.csv: path below fma_small, tags, split and artist of each track that is whole."""
    rows = [
        (
            track.path.removeprefix("fma_small/"),
            TAG_SEPARATOR.join(corpus.tags(track)),
            track.split,
            f"artist {track.artist}",
        )
        for track in corpus.tracks
        if track.number not in DEFECTS
    ]
    with (root / "tags.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "tags", "split", "group"), *rows])
