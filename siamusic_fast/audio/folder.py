"""Any folder of audio: which files are tracks, and what is known of them."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from siamusic_fast.audio.corpus import SPLITS, Corpus, Track
from siamusic_fast.audio.labels import BY_FOLDER, Entry, nfc, read_labels
from siamusic_fast.audio.store import Store, find_root, open_store
from siamusic_fast.errors import DataError

ENDINGS = (
    *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".alac", ".amr", ".ape", ".asf", ".au", ".avi"),
    *(".caf", ".dff", ".dsf", ".dts", ".eac3", ".flac", ".flv", ".gsm", ".m4a", ".m4b", ".m4r", ".mka"),
    *(".mkv", ".mov", ".mp1", ".mp2", ".mp3", ".mp4", ".mpa", ".mpc", ".mpga", ".oga", ".ogg", ".ogx"),
    *(".oma", ".opus", ".ra", ".rf64", ".rm", ".shn", ".snd", ".spx", ".tak", ".tta", ".voc", ".vox"),
    *(".w64", ".wav", ".wave", ".weba", ".webm", ".wma", ".wmv", ".wv"),
)
"""Endings of the files that are taken for audio: the decoder judges by their content whether they are."""

SHARES = {"validation": 0.1, "test": 0.1}
"""Of each class, if nobody says which track is in which split; the others are for training."""

MOST_CLASSES = 10_000
"""The label of a track has four digits in its shard."""


def load_folder(
    source: str | Path, data_dir: Path = Path("data"), labels: str | Path | None = None, seed: int = 0
) -> Corpus:
    """Return the tracks of a folder or zip: `source` is its path, or its name in `data_dir`.

    `labels` is a CSV file (see `read_labels`), `BY_FOLDER`, or None: then every audio file is a track without
    a class, for training. Splits that nobody gave are drawn with `seed`, see `draw_splits`. Raises
    `DataError` if there is no audio, or if `labels` is wrong.
    """
    root = find_root(source, [Path(), data_dir], "give the path of the audio")
    store = open_store(root)
    if labels is None:
        entries = [Entry(path, "", "training", "") for path in audio_paths(store)]
    elif str(labels) == BY_FOLDER:
        entries = _by_folder(store)
    else:
        entries = read_labels(Path(labels), store)
    if not entries:
        place = labels if labels and str(labels) != BY_FOLDER else root
        raise DataError(f"{place} has no tracks: files that end in {', '.join(ENDINGS)} are expected.")
    classes = {entry.label for entry in entries} - {""}
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{root} has {len(classes)} classes, at most {MOST_CLASSES} fit: merge some of them.")
    splits = draw_splits(entries, seed)
    tracks = (Track(track_key(e.path), e.path, splits[e.path], e.label) for e in entries)
    return Corpus(name=store.name, folder=root, tracks=tuple(tracks))


def audio_paths(store: Store) -> list[str]:
    """Return the paths of all audio files, told by their endings, in alphabetical order."""
    return sorted(path for path in store.paths() if path.lower().endswith(ENDINGS))


def track_key(path: str) -> str:
    """Return the name of a sample: a function of `path` alone, other for every path.

    Up to 40 letters and digits of the file's name make it readable, 64 bits of a hash of the path unique.
    """
    name = path.rpartition("/")[2].rpartition(".")[0]
    words = re.sub(r"[^A-Za-z0-9]+", "-", name)[:40].strip("-")
    digest = hashlib.blake2b(_bytes(path), digest_size=8).hexdigest()
    return f"{words}-{digest}" if words else digest


def draw_splits(entries: Sequence[Entry], seed: int) -> dict[str, str]:
    """Return the split of each path: the one its entry has, or else one that is drawn.

    Of every class, `SHARES` go to validation and test, at least one track each if the class has three. Tracks
    without a class are for training. A group stays together: largest first, each goes to the split that is
    shortest of its classes, and the tracks in no group make up for what is lacking then. The order of
    `entries` is of no account.
    """
    splits = {entry.path: entry.split or "training" for entry in entries}
    open_entries = [entry for entry in entries if not entry.split]
    groups: dict[str, list[Entry]] = defaultdict(list)
    alone: dict[str, list[str]] = defaultdict(list)
    for entry in open_entries:
        if entry.group:
            groups[entry.group].append(entry)
        elif entry.label:
            alone[entry.label].append(entry.path)
    wanted = _wanted(Counter(entry.label for entry in open_entries if entry.label))
    have: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for group in sorted(groups, key=lambda name: (-len(groups[name]), _drawn(seed, name))):
        classes = Counter(entry.label for entry in groups[group] if entry.label)
        misfits = [_misfit(classes, have[split], wanted[split]) for split in SPLITS]
        split = SPLITS[misfits.index(min(misfits))]
        have[split].update(classes)
        splits.update((entry.path, split) for entry in groups[group])
    for label, paths in alone.items():
        paths.sort(key=lambda path: _drawn(seed, path))
        start = 0
        for split in SHARES:
            lacking = max(0, round(wanted[split][label] - have[split][label]))
            splits.update(dict.fromkeys(paths[start : start + lacking], split))
            start += lacking
    return splits


def _wanted(classes: Counter[str]) -> dict[str, dict[str, float]]:
    """Return, of each split, the tracks of each class that it should get."""
    wanted: dict[str, dict[str, float]] = {split: {} for split in SPLITS}
    for label, count in classes.items():
        for split, share in SHARES.items():
            wanted[split][label] = max(1.0, share * count) if count >= len(SPLITS) else 0.0
        wanted["training"][label] = count - sum(wanted[split][label] for split in SHARES)
    return wanted


def _misfit(classes: Counter[str], have: Counter[str], wanted: dict[str, float]) -> float:
    """Return by how much chi-square, over the classes of one split, grows if `classes` join it.

    Of a class with n tracks there and w wanted, g more change (n - w)² / w by g (2 (n - w) + g) / w.
    """
    return sum(
        count * (2 * (have[label] - wanted[label]) + count) / max(wanted[label], 1e-9)
        for label, count in sorted(classes.items())
    )


def _drawn(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/".encode() + _bytes(name), digest_size=16).digest()


def _by_folder(store: Store) -> list[Entry]:
    """Return the audio of `store`, each file with the sub-folder that it lies in as its class.

    The only folder of a zip is a class too if audio lies in it directly, unless it has the name of the zip.
    """
    paths = audio_paths(store)
    is_class = store.top != store.name and any("/" not in path for path in paths)
    above = f"{store.top}/" if store.top and is_class else ""
    return [Entry(path, _top_folder(above + path), "", "") for path in paths]


def _top_folder(path: str) -> str:
    """Return the class that the sub-folder names, in NFC and with escapes for bytes that are no UTF-8."""
    folder = path.partition("/")[0] if "/" in path else ""
    return nfc(_bytes(folder).decode("utf-8", "backslashreplace"))


def _bytes(name: str) -> bytes:
    """Return `name` as it is on disk, whatever the locale."""
    return name.encode("utf-8", "surrogateescape")
