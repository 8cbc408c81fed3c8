"""What came of each shard, on disk from the moment it is finished until the tables are written."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from siamusic_fast.audio.rejects import Reject
from siamusic_fast.files import atomic_write
from siamusic_fast.shards.manifest import Shard, file_sha256
from siamusic_fast.shards.tables import PackedTrack

PASSED_OVER = "passed-over"
"""Name of the file with the paths at which a worker process died, as a list in JSON."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What came of one planned shard."""

    shard: Shard | None
    """None if no track was fit."""
    tracks: tuple[PackedTrack, ...]
    rejects: tuple[Reject, ...]


def write_result(results: Path, stem: str, result: ShardResult) -> None:
    """Say in the folder `results` that shard `stem` is finished; its files are on disk already."""
    with atomic_write(results / f"{stem}.json") as file:
        file.write(json.dumps(dataclasses.asdict(result)).encode())


def read_result(results: Path, stem: str) -> ShardResult:
    """Return what `write_result` wrote."""
    values = json.loads((results / f"{stem}.json").read_bytes())
    return ShardResult(
        shard=Shard(**values["shard"]) if values["shard"] else None,
        tracks=tuple(PackedTrack(**track) for track in values["tracks"]),
        rejects=tuple(Reject(**reject) for reject in values["rejects"]),
    )


def finished_result(folder: Path, results: Path, stem: str) -> ShardResult | None:
    """Return the result of shard `stem` if it is there, and its tar and index are in `folder` and whole.

    Both are read and hashed, which takes a small part of the time it took to decode what is in the tar.
    """
    try:
        result = read_result(results, stem)
        shard = result.shard
        whole = not shard or (
            (folder / shard.file).stat().st_size == shard.bytes
            and file_sha256(folder / shard.index) == shard.index_sha256
            and file_sha256(folder / shard.file) == shard.sha256
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result if whole else None


def pass_over(results: Path, path: str) -> None:
    """Note that a worker process died at the audio file `path`."""
    paths = passed_over(results) | {path}
    with atomic_write(results / PASSED_OVER) as file:
        file.write(json.dumps(sorted(paths)).encode())


def passed_over(results: Path) -> frozenset[str]:
    """Return the paths that `pass_over` was told."""
    file = results / PASSED_OVER
    return frozenset(json.loads(file.read_bytes())) if file.exists() else frozenset()
