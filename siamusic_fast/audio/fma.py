"""Reads the FMA dataset from disk, unpacked or in its zips: audio and metadata."""

import csv
import io
import re
from pathlib import Path
from typing import BinaryIO

from siamusic_fast.audio.corpus import SPLITS, Corpus, Track
from siamusic_fast.audio.store import Store, find_root, open_store
from siamusic_fast.errors import DataError
from siamusic_fast.files import LIST_LIMIT, open_regular

SUBSETS = {
    "fma_small": ("small",),
    "fma_medium": ("small", "medium"),
    "fma_large": ("small", "medium", "large"),
    "fma_full": ("small", "medium", "large"),
}
"""Name of a subset -> values of the `subset` column. Each row names the smallest subset that it is in."""

METADATA = "fma_metadata"
"""Name of the folder and of the zip with the metadata."""

_TABLE = "tracks.csv"
_TABLE_COLUMNS = (("set", "split"), ("set", "subset"), ("track", "genre_top"))
_ARTIST_COLUMNS = (("artist", "id"), ("artist", "name"))
"""Columns of the artist. The first one that is there is read, since two artists may share a name."""
_AUDIO_PATH = re.compile(r"(\d{3})/\1\d{3}\.mp3")


def is_fma(source: str | Path, data_dir: Path = Path("data")) -> bool:
    """Return whether `source`, as `load_fma` takes it, is FMA's.

    It is if it has the name of a subset, holds a folder or zip with such a name, or has files that are named
    like 000/000002.mp3. Raises `DataError` if there is no such folder or zip.
    """
    if str(source) in SUBSETS:
        return True
    root = _find_root(source, data_dir)
    store = open_store(root)
    if _subset_name(store) in SUBSETS or _subsets_in(root):
        return True
    if root.is_dir():  # a folder may be large: look at the names that fit alone
        files = root.glob("[0-9][0-9][0-9]/[0-9]*.mp3")
        return any(_AUDIO_PATH.fullmatch(f"{file.parent.name}/{file.name}") for file in files)
    return any(map(_AUDIO_PATH.fullmatch, store.paths()))


def load_fma(source: str | Path, data_dir: Path = Path("data"), metadata: Path | None = None) -> Corpus:
    """Return the tracks of an FMA subset.

    Arguments and errors are those of `open_corpus`. `source` is a name such as fma_small, an audio folder,
    its zip, or a folder that holds exactly one subset. The name of the audio folder tells the subset; a
    folder of another name stands for the rows of the metadata whose files it holds.
    """
    root = _find_root(source, data_dir)
    inside = _subsets_in(root)
    if len(inside) > 1:
        raise DataError(
            f"{root} holds {', '.join(child.name for child in inside)}: give the path of one of them."
        )
    store = open_store(inside[0] if inside else root)
    name = _subset_name(store)
    subset = SUBSETS.get(name)
    tracks = []
    for number, split, row_subset, genre, artist in _read_metadata(
        _metadata_file(Path(store.root), data_dir, metadata)
    ):
        path = f"{number // 1000:03d}/{number:06d}.mp3"
        if row_subset in subset if subset else store.size(path) is not None:
            tracks.append(Track(id=f"{number:06d}", path=path, split=split, genre=genre, group=artist))
    if not tracks:
        raise DataError(
            f"{store.root} holds no track of the metadata: FMA names its files like 000/000002.mp3."
        )
    return Corpus(name=name, folder=store.root, tracks=tuple(tracks))


def _subset_name(store: Store) -> str:
    """Return the name of the folder or zip, or of the folder in the zip if only that names a subset."""
    return store.top if store.top in SUBSETS and store.name not in SUBSETS else store.name


def _find_root(source: str | Path, data_dir: Path) -> Path:
    """Look up a name in `data_dir` first, any other source as a path first."""
    if str(source) in SUBSETS:
        remedy = "unpack FMA's zip there, or fetch it with --download"
        return find_root(source, [data_dir, Path()], remedy)
    return find_root(source, [Path(), data_dir], "give the path of the audio")


def _subsets_in(root: Path) -> list[Path]:
    """Return the folder of each subset in a folder, or its zip if there is no folder, in order of names."""
    places = [(root / name, root / f"{name}.zip") for name in sorted(SUBSETS)]
    return [
        folder if folder.is_dir() else file for folder, file in places if folder.is_dir() or file.is_file()
    ]


def _metadata_file(root: Path, data_dir: Path, metadata: Path | None) -> Path:
    """Return the path of tracks.csv or of the zip with it."""
    if metadata:
        inside = [metadata / _TABLE, *_metadata_in(metadata)]
        places = inside if metadata.is_dir() else [metadata]
    else:
        inside = [root / _TABLE, *_metadata_in(root)] if root.is_dir() else []
        places = [*_metadata_in(root.parent), *inside, *_metadata_in(data_dir)]
    for place in places:
        if place.is_file():
            return place
    raise DataError(
        f"no metadata for {root}: looked for {', '.join(map(str, dict.fromkeys(places)))}; "
        f"put {METADATA}.zip beside the audio, or say where it is with --metadata. If this is other audio "
        f"than FMA's, name its classes with --labels, a CSV file or the word folders."
    )


def _metadata_in(folder: Path) -> list[Path]:
    return [folder / METADATA / _TABLE, folder / f"{METADATA}.zip"]


def _open_metadata(path: Path) -> BinaryIO:
    if path.suffix.lower() != ".zip":
        return io.BufferedReader(open_regular(path, LIST_LIMIT))
    store = open_store(path)
    for name in (_TABLE, f"{METADATA}/{_TABLE}"):
        if store.size(name) is not None:
            return store.open(name)
    raise DataError(f"{path} holds no {_TABLE}: get {METADATA}.zip again.")


def _read_metadata(path: Path) -> list[tuple[int, str, str, str, str]]:
    """Return (track number, split, subset, genre or "", artist or "") of every row."""
    csv.field_size_limit(1 << 24)  # biographies are long
    rows: list[tuple[int, str, str, str, str]] = []
    try:
        with io.TextIOWrapper(_open_metadata(path), encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            upper, lower, _ = (next(lines, []) for _ in range(3))
            columns = list(zip(upper, lower, strict=False))
            split, subset, genre = map(columns.index, _TABLE_COLUMNS)
            artist = next((columns.index(name) for name in _ARTIST_COLUMNS if name in columns), len(columns))
            for cells in filter(any, lines):
                if len(cells) != len(columns):
                    raise ValueError(
                        f"line {lines.line_num} has {len(cells)} cells, and the header has {len(columns)}; "
                        f"the file is damaged or cut off, get it again"
                    )
                cells.append("")
                rows.append((int(cells[0]), cells[split], cells[subset], cells[genre], cells[artist]))
    except (ValueError, IndexError, OSError, csv.Error) as error:
        raise DataError(f"{path} is not FMA's tracks.csv with its three header lines: {error}.") from None
    for number, name, *_ in rows:
        if name not in SPLITS:
            raise DataError(
                f"{path}: track {number} is in split {name!r}, which is none of {', '.join(SPLITS)}."
            )
    return rows
