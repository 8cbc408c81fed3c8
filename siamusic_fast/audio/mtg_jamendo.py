"""Reads the MTG-Jamendo dataset from disk: audio, and the tags and splits of its repository.

Bogdanov, Won, Tovstogan, Porter and Serra, *The MTG-Jamendo Dataset for Automatic Music Tagging*, 2019.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from siamusic_fast.audio.corpus import SPLITS, TAG_SEPARATOR, Corpus, Track, with_top_tags
from siamusic_fast.audio.labels import nfc
from siamusic_fast.audio.store import Store, leads_outside, open_store
from siamusic_fast.errors import DataError
from siamusic_fast.files import LIST_LIMIT, read_regular

MTG_JAMENDO = "mtg_jamendo"
URL = "https://github.com/MTG/mtg-jamendo-dataset"
SUBSETS = {
    MTG_JAMENDO: "autotagging",
    f"{MTG_JAMENDO}_top50tags": "autotagging_top50tags",
    f"{MTG_JAMENDO}_genre": "autotagging_genre",
    f"{MTG_JAMENDO}_instrument": "autotagging_instrument",
    f"{MTG_JAMENDO}_moodtheme": "autotagging_moodtheme",
}
"""Name of a subset -> first part of the names of its files."""

_REPOSITORY = "mtg-jamendo-dataset"
_SPLITS_FOLDER = Path("data/splits/split-0")
_COLUMNS = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
"""First line of a file; every tag of a track is a cell of its own."""
_FILE_NAMES = dict(zip(SPLITS, ("train", "validation", "test"), strict=True))


def load_mtg_jamendo(
    source: str | Path, data_dir: Path, metadata: Path | None, top_tags: int | None
) -> Corpus:
    """Return the tracks of a subset. Arguments and errors are those of `open_corpus`.

    The folder holds the folders 00 to 99, in it or in its folder audio, with files named like 15/215.mp3 or
    15/215.low.mp3. The repository is beside it, in it, or in the data folder.
    """
    name = Path(source).name
    root = _find_root(source, data_dir)
    folder = root / "audio" if (root / "audio").is_dir() else root
    splits = _splits_folder(root, data_dir, metadata, f"{SUBSETS[name]}-{_FILE_NAMES['training']}.tsv")
    store = open_store(folder)
    tracks: dict[str, Track] = {}
    for split, word in _FILE_NAMES.items():
        file = splits / f"{SUBSETS[name]}-{word}.tsv"
        for number, artist, path, tags in _read_rows(file):
            if path in tracks:
                raise DataError(
                    f"{file}, line {number}: {path!r} is listed twice: get the file again from {URL}."
                )
            tracks[path] = Track("", _stored_path(store, path), split, "", tags, artist)
    if not tracks:
        raise DataError(
            f"the files {SUBSETS[name]}-*.tsv in {splits} have no tracks: get them again from {URL}."
        )
    found = tuple(tracks.values())
    return Corpus(name=name, folder=folder, tracks=with_top_tags(found, top_tags) if top_tags else found)


def _find_root(source: str | Path, data_dir: Path) -> Path:
    """Return the folder of the audio; all subsets may share that of the whole dataset."""
    named = [data_dir / source, Path(source)]
    roots = [*named, *(root.with_name(MTG_JAMENDO) for root in named)]
    for root in roots:
        if root.is_dir():
            return root
    raise DataError(
        f"no folder {' or '.join(dict.fromkeys(map(str, roots)))}: fetch the audio with "
        f"scripts/download/download.py of {URL}."
    )


def _splits_folder(root: Path, data_dir: Path, metadata: Path | None, file: str) -> Path:
    places = [metadata] if metadata else [place / _REPOSITORY for place in (root.parent, root, data_dir)]
    folders = [folder for place in places for folder in (place / _SPLITS_FOLDER, place)]
    for folder in folders:
        if (folder / file).is_file():
            return folder
    raise DataError(
        f"no tags for {root}: looked for {file} in {', '.join(dict.fromkeys(map(str, folders)))}; "
        f"`git clone {URL} {data_dir / _REPOSITORY}` gets it, or say where the repository is with --metadata."
    )


def _stored_path(store: Store, path: str) -> str:
    """Return `path`, or that of the file in lower quality if there is only that one."""
    low = f"{path.removesuffix('.mp3')}.low.mp3"
    return low if store.size(path) is None and store.size(low) is not None else path


def _read_rows(file: Path) -> Iterator[tuple[int, str, str, tuple[str, ...]]]:
    """Yield number, artist, path and tags of each line behind the first."""
    try:
        lines = read_regular(file, LIST_LIMIT).decode().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): get it again from {URL}.") from None
    if not lines or lines[0].split("\t") != _COLUMNS:
        raise DataError(f"{file} is no file of splits: its first line must be {' '.join(_COLUMNS)}.")
    for number, line in enumerate(lines[1:], start=2):
        _, artist, _, path, _, *tags = cells if len(cells := line.split("\t")) >= len(_COLUMNS) else [""] * 5
        if leads_outside(path) or any(not tag or TAG_SEPARATOR in tag for tag in tags):
            raise DataError(f"{file}, line {number} is no track with its tags: get it again from {URL}.")
        yield number, sys.intern(nfc(artist)), path, tuple(sorted({nfc(tag) for tag in tags}))
