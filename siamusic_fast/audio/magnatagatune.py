"""Reads MagnaTagATune from disk: clips, and the tags that its annotations give them.

Law, West, Mandel, Bay and Downie, *Evaluation of Algorithms Using Games: The Case of Music Tagging*, 2009.
"""

import sys
from pathlib import Path

from siamusic_fast.audio.corpus import Corpus, with_top_tags
from siamusic_fast.audio.folder import as_tracks
from siamusic_fast.audio.labels import read_labels
from siamusic_fast.audio.store import find_root, open_store
from siamusic_fast.errors import DataError

MAGNATAGATUNE = "magnatagatune"
URL = "https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset"
TOP_TAGS = 50
"""Tags that the field scores, of 188."""

_ANNOTATIONS = "annotations_final.csv"
_SPLIT_OF = {
    **dict.fromkeys("0123456789ab", "training"),
    "c": "validation",
    **dict.fromkeys("def", "test"),
}
"""Split by the first letter of a path: that of the folder, as the field divides the clips."""


def load_magnatagatune(
    source: str | Path, data_dir: Path, metadata: Path | None, top_tags: int | None
) -> Corpus:
    """Return the clips of MagnaTagATune. Arguments and errors are those of `open_corpus`.

    The folder holds annotations_final.csv, and the folders 0 to f, in it or in its folder mp3. The artist is
    the first part of the name of a file: ARTIST-ALBUM-NUMBER-TITLE-START-END.mp3.
    """
    root = find_root(source, [data_dir, Path()], f"unpack mp3.zip of {URL} there, beside {_ANNOTATIONS}")
    folder = root / "mp3" if (root / "mp3").is_dir() else root
    annotations = _annotations_file(root, data_dir, metadata)
    listed = read_labels(annotations, open_store(folder), tags=True)
    for place, file in enumerate(listed):
        if file.path[0] not in _SPLIT_OF or file.path[1:2] != "/":
            raise DataError(
                f"{annotations} has the path {file.path!r}, which is in none of the folders 0 to f: get "
                f"it again from {URL}."
            )
        listed[place] = file._replace(split=_SPLIT_OF[file.path[0]], group=_artist(file.path))
    if not listed:
        raise DataError(f"{annotations} has no clips: get it again from {URL}.")
    tracks = with_top_tags(as_tracks(listed, root, seed=0), top_tags or TOP_TAGS)
    return Corpus(name=MAGNATAGATUNE, folder=folder, tracks=tracks)


def _artist(path: str) -> str:
    artist, hyphen, _ = path.rpartition("/")[2].partition("-")
    return sys.intern(artist) if hyphen else ""


def _annotations_file(root: Path, data_dir: Path, metadata: Path | None) -> Path:
    folders = [metadata] if metadata else [root, root.parent, data_dir]
    places = [folder if folder.is_file() and metadata else folder / _ANNOTATIONS for folder in folders]
    for place in places:
        if place.is_file():
            return place
    raise DataError(
        f"no annotations for {root}: looked for {', '.join(map(str, dict.fromkeys(places)))}; get "
        f"{_ANNOTATIONS} from {URL}, or say where it is with --metadata."
    )
