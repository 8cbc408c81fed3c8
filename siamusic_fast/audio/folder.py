"""Reads any folder of audio: its tracks, their classes and their splits."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siamusic_fast.audio.corpus import MAX_CLASSES, SPLITS, Corpus, Track
from siamusic_fast.audio.labels import BY_FOLDER, ListedFile, nfc, read_labels
from siamusic_fast.audio.store import Store, find_root, open_store, path_bytes
from siamusic_fast.errors import DataError
from siamusic_fast.storage.remote import is_url

ENDINGS = (
    *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".alac", ".amr", ".ape", ".asf", ".au", ".avi"),
    *(".caf", ".dff", ".dsf", ".dts", ".eac3", ".flac", ".flv", ".gsm", ".m4a", ".m4b", ".m4r", ".mka"),
    *(".mkv", ".mov", ".mp1", ".mp2", ".mp3", ".mp4", ".mpa", ".mpc", ".mpga", ".oga", ".ogg", ".ogx"),
    *(".oma", ".opus", ".ra", ".rf64", ".rm", ".shn", ".snd", ".spx", ".tak", ".tta", ".voc", ".vox"),
    *(".w64", ".wav", ".wave", ".weba", ".webm", ".wma", ".wmv", ".wv"),
)
"""Endings of the files that are taken for audio. The decoder judges by their content whether they are."""

DRAWN_SHARES = {"validation": 0.1, "test": 0.1}
"""Share of each class that goes to a split if no column says which; the rest is for training."""


def load_folder(
    source: str | Path,
    data_dir: Path = Path("data"),
    labels: str | Path | None = None,
    seed: int = 0,
    tags: bool = False,
) -> Corpus:
    """Return the tracks of a folder or zip, or of a folder behind a URL.

    Arguments and errors are those of `open_corpus`.
    """
    remedy = "give the path of the audio"
    root = str(source) if is_url(source) else find_root(source, [Path(), data_dir], remedy)
    store = open_store(root)
    if labels is None:
        listed = [ListedFile(path, "", "training", "") for path in audio_paths(store)]
    elif str(labels) == BY_FOLDER:
        listed = _by_folder(store)
    else:
        listed = read_labels(Path(labels), store, tags)
    if not listed:
        place = root if labels is None or str(labels) == BY_FOLDER else labels
        raise DataError(f"{place} has no tracks: files that end in {', '.join(ENDINGS)} are expected.")
    return Corpus(name=store.name, folder=root, tracks=as_tracks(listed, root, seed))


def as_tracks(listed: list[ListedFile], root: Path | str, seed: int) -> Sequence[Track]:
    """Return the files of `root` as tracks, with splits drawn for those that have none.

    They take the places of `listed`, since there may be millions. Raises `DataError` for too many classes.
    """
    classes = {file.label for file in listed} - {""}
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{root} has {len(classes)} classes, at most {MAX_CLASSES:,} fit: merge some of them."
        )
    drawn = {} if all(file.split for file in listed) else draw_splits(_stratified(listed), seed)
    found: list[Any] = listed
    for place, file in enumerate(listed):
        split = file.split or drawn[file.path]
        found[place] = Track("", file.path, split, file.label, file.tags, file.group)
    return found


def _stratified(listed: Sequence[ListedFile]) -> list[ListedFile]:
    """Return `listed` with the rarest of its tags as the class of each file that has tags and no class.

    So every tag that enough tracks have is in each of the splits that are drawn.
    """
    counts = Counter(tag for file in listed for tag in file.tags)
    return [
        file._replace(label=min(file.tags, key=lambda tag: (counts[tag], tag)))
        if file.tags and not file.label
        else file
        for file in listed
    ]


def audio_paths(store: Store) -> list[str]:
    """Return the paths of all files with `ENDINGS`, in alphabetical order."""
    return sorted(path for path in store.paths() if path.lower().endswith(ENDINGS))


def draw_splits(listed: Sequence[ListedFile], seed: int) -> dict[str, str]:
    """Return the split of each path: the one that its row has, or else one that is drawn.

    Of every class, `DRAWN_SHARES` go to validation and test, at least one track each if the class has three.
    Tracks without a class are for training. A group stays together: the largest come first, each goes to the
    split that lacks its classes the most, and the tracks in no group make up for what is lacking then. The
    order of `listed` does not matter.
    """
    splits = {file.path: file.split or "training" for file in listed}
    groups: dict[str, list[ListedFile]] = defaultdict(list)
    alone: dict[str, list[str]] = defaultdict(list)
    for file in listed:
        if file.group and not file.split:
            groups[file.group].append(file)
        elif file.label and not file.split:
            alone[file.label].append(file.path)
    wanted = _wanted(Counter(file.label for file in listed if file.label and not file.split))
    have: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for group in sorted(groups, key=lambda name: (-len(groups[name]), _random_bytes(seed, name))):
        classes = Counter(file.label for file in groups[group] if file.label)
        split = min(SPLITS, key=lambda split: _misfit(classes, have[split], wanted[split]))
        have[split].update(classes)
        splits.update((file.path, split) for file in groups[group])
    for label, paths in alone.items():
        paths.sort(key=lambda path: _random_bytes(seed, path))
        start = 0
        for split in DRAWN_SHARES:
            lacking = max(0, round(wanted[split][label] - have[split][label]))
            splits.update(dict.fromkeys(paths[start : start + lacking], split))
            start += lacking
    return splits


def _wanted(classes: Counter[str]) -> dict[str, dict[str, float]]:
    """Return how many tracks of each class each split should get."""
    wanted: dict[str, dict[str, float]] = {split: {} for split in SPLITS}
    for label, count in classes.items():
        for split, share in DRAWN_SHARES.items():
            wanted[split][label] = max(1.0, share * count) if count >= len(SPLITS) else 0.0
        wanted["training"][label] = count - sum(wanted[split][label] for split in DRAWN_SHARES)
    return wanted


def _misfit(classes: Counter[str], have: Counter[str], wanted: dict[str, float]) -> float:
    """Return how much chi-square over the classes of one split grows if the tracks of `classes` join it.

    In a class with n tracks of w wanted, g more tracks change (n - w)² / w by g (2 (n - w) + g) / w.
    """
    return sum(
        count * (2 * (have[label] - wanted[label]) + count) / max(wanted[label], 1e-9)
        for label, count in sorted(classes.items())
    )


def _random_bytes(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/".encode() + path_bytes(name), digest_size=16).digest()


def _by_folder(store: Store) -> list[ListedFile]:
    """Return the audio of `store`, each file with the sub-folder that it lies in as its class.

    The only folder of a zip is a class too if audio lies in it directly, unless it has the name of the zip.
    Classes are in NFC, with escapes for bytes that are not UTF-8.
    """
    paths = audio_paths(store)
    is_class = store.top != store.name and any("/" not in path for path in paths)
    above = f"{store.top}/" if store.top and is_class else ""
    listed = []
    for path in paths:
        folder, slash, _ = (above + path).partition("/")
        label = nfc(path_bytes(folder).decode("utf-8", "backslashreplace")) if slash else ""
        listed.append(ListedFile(path, label, "", ""))
    return listed
