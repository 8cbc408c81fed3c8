"""A share of the labelled tracks: how little supervision a pre-trained encoder needs."""

import dataclasses
import shutil
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.pipelines.source import Source
from siamusic_fast.shards.tables import read_tracks


def with_share(source: Source, share: float, seed: int) -> Source:
    """Return `source` with `share` of the tracks of each class, rounded, at least one; the same for a `seed`.

    Of a track that was packed in segments, all come or none, so that the share is one of tracks. The shards
    stay as they are: the result reads them by indexes that name the chosen tracks only, in a temporary folder
    that lasts as long as the result. Raises `ConfigError` for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"labels = {share:g} must be a share of the labelled tracks: above 0, at most 1.")
    if share == 1:
        return source
    chosen = _chosen(source, share, seed)
    folder = Path(tempfile.mkdtemp(prefix="siamusic-fast-"))
    shards = tuple(
        dataclasses.replace(
            shard,
            tracks=len(chosen[shard.file]),
            index=str(_shortened(source.shard_set.path(shard.index), chosen[shard.file], folder)),
        )
        for shard in source.shards
        if chosen[shard.file]
    )
    result = dataclasses.replace(source, shards=shards)
    weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
    return result


def _chosen(source: Source, share: float, seed: int) -> dict[str, Sequence[int]]:
    """Return the rows of the chosen tracks in each shard, in order, by the file name of the shard."""
    by_class = _by_class(source)
    rng = np.random.default_rng([seed, len(source.shards)])
    chosen: dict[str, list[int]] = defaultdict(list)
    for genre in sorted(by_class):
        tracks = list(by_class[genre].values())
        count = max(1, round(share * len(tracks)))
        for place in rng.permutation(len(tracks))[:count]:
            for file, row in tracks[place]:
                chosen[file].append(row)
    return defaultdict(list, {file: sorted(rows) for file, rows in chosen.items()})


def _by_class(source: Source) -> dict[str, dict[str, list[tuple[str, int]]]]:
    """Return, for each class and each of its tracks, where its samples are: the shards and rows in them."""
    found: dict[str, dict[str, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
    seen: dict[str, int] = defaultdict(int)
    files = {shard.file for shard in source.shards}
    for sample in read_tracks(source.shard_set.folder):
        if sample.shard in files:
            found[sample.genre][sample.track_id].append((sample.shard, seen[sample.shard]))
            seen[sample.shard] += 1
    return found


def _shortened(index: Path, rows: Sequence[int], folder: Path) -> Path:
    """Write the `rows` of a wds2idx v1.2 `index` to `folder` and return the new file's path."""
    path = folder / index.name
    try:
        lines = index.read_text(encoding="utf-8").splitlines()[1:]
        kept = [lines[row] for row in rows]
    except (OSError, IndexError) as error:
        raise DataError(
            f"{index} is missing or damaged: `siamusic-fast verify {index.parent}` checks all shards."
        ) from error
    path.write_text("\n".join([f"v1.2 {len(kept)}", *kept]) + "\n", encoding="utf-8")
    return path
