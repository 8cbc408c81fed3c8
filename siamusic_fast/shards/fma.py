"""The FMA dataset on disk: its audio folder, its metadata, and the tracks that they list."""

import csv
from pathlib import Path

from siamusic_fast.errors import DataError
from siamusic_fast.shards.plan import SPLITS, Corpus, Track

SUBSETS = {
    "fma_small": ("small",),
    "fma_medium": ("small", "medium"),
    "fma_large": ("small", "medium", "large"),
    "fma_full": ("small", "medium", "large"),
}
"""Audio folder -> values of the `subset` column: subsets nest, and each row names the smallest it is in."""

_COLUMNS = (("set", "split"), ("set", "subset"), ("track", "genre_top"))


def load_fma(source: str | Path, data_dir: Path = Path("data"), metadata: Path | None = None) -> Corpus:
    """Return the tracks of an FMA subset.

    `source` is a name such as fma_small under `data_dir`, an audio folder, or a folder that holds exactly one
    folder with such a name. `metadata` is tracks.csv or a folder with it; by default it is looked for beside
    the audio. The name of the audio folder tells the subset; a folder of another name stands for the rows
    whose files it holds. Raises `DataError` if something is not there or is not FMA's.
    """
    folder = _audio_folder(source, data_dir)
    table = _read_metadata(_metadata_file(folder, data_dir, metadata))
    subset = SUBSETS.get(folder.name)
    tracks = tuple(
        Track(key=f"{number:06d}", path=_audio_path(number), split=split, genre=genre)
        for number, split, row_subset, genre in table
        if (row_subset in subset if subset else (folder / _audio_path(number)).is_file())
    )
    if not tracks:
        raise DataError(
            f"{folder} holds no track of the metadata: FMA names its files like {folder / '000/000002.mp3'}."
        )
    return Corpus(name=folder.name, folder=folder, tracks=tracks)


def _audio_path(number: int) -> str:
    return f"{number // 1000:03d}/{number:06d}.mp3"


def _audio_folder(source: str | Path, data_dir: Path) -> Path:
    places = [Path(source), data_dir / source]
    if str(source) in SUBSETS:
        places.reverse()
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        names = " or ".join(dict.fromkeys(map(str, places)))
        raise DataError(f"no folder {names}: unpack FMA's zip there, or give the path of the audio.")
    inside = sorted(child for child in folder.iterdir() if child.name in SUBSETS and child.is_dir())
    if len(inside) > 1:
        raise DataError(
            f"{folder} holds {', '.join(child.name for child in inside)}: give the path of one of them."
        )
    folder = inside[0] if inside else folder
    return folder if folder.name not in ("", "..") else folder.resolve()


def _metadata_file(folder: Path, data_dir: Path, metadata: Path | None) -> Path:
    if metadata:
        parents = [metadata, metadata / "fma_metadata"]
    else:
        parents = [folder.parent / "fma_metadata", folder / "fma_metadata", folder, data_dir / "fma_metadata"]
    places = [parent / "tracks.csv" for parent in parents]
    if metadata and not metadata.is_dir():
        places = [metadata]
    for place in places:
        if place.is_file():
            return place
    raise DataError(
        f"no metadata for {folder}: looked for {', '.join(map(str, dict.fromkeys(places)))}; "
        f"unpack fma_metadata.zip beside the audio, or say where with --metadata."
    )


def _read_metadata(path: Path) -> list[tuple[int, str, str, str]]:
    """Return (track number, split, subset, genre or "") of every row."""
    csv.field_size_limit(1 << 24)  # biographies are long
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            upper, lower, _ = (next(lines, []) for _ in range(3))
            columns = list(zip(upper, lower, strict=False))
            split, subset, genre = map(columns.index, _COLUMNS)
            rows = [(int(line[0]), line[split], line[subset], line[genre]) for line in lines]
    except (ValueError, IndexError, OSError, csv.Error) as error:
        raise DataError(f"{path} is not FMA's tracks.csv with its three header lines: {error}.") from None
    for number, name, _, _ in rows:
        if name not in SPLITS:
            raise DataError(
                f"{path}: track {number} is in split {name!r}, which is none of {', '.join(SPLITS)}."
            )
    return rows
