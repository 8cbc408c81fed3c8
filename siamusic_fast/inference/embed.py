"""Embeds any number of tracks into a file, part by part, so that a stopped call goes on."""

import json
import re
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from siamusic_fast.audio.rejects import Reject
from siamusic_fast.config import EmbedConfig
from siamusic_fast.embedding.extract import Heard
from siamusic_fast.embedding.results import nothing_left
from siamusic_fast.embedding.sources import Given, Item, Sources, open_sources
from siamusic_fast.errors import DataError
from siamusic_fast.files import SETTINGS_LIMIT, atomic_write, read_regular
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.inference.embed_on_cluster import SharedForEmbedding, embed_part
from siamusic_fast.inference.vector_file import check_ending, merge, read_part, rejects_of, write_part
from siamusic_fast.models.networks import Encoder, evaluating, listening_of, weights_digest
from siamusic_fast.models.pretrained import load_encoder
from siamusic_fast.models.run_files import save_json
from siamusic_fast.processes.cluster import Cluster
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.shards.tables import REJECT_COLUMNS, write_table

_PLAN = "plan.json"
"""What the parts in a folder are of: another call does not go on with them."""
_LOOK_SECONDS = 1.0
"""Time between looks at the parts of other processes."""
_OF_PARTS = re.compile(r"plan\.json|part-\d+\.npz|\.lock|\..+\.tmp")
"""Names of what may be in a folder of parts."""


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """What came of embedding tracks into a file."""

    path: Path
    """The file."""
    tracks: int
    rows: int
    """As many as there are tracks, or their crops."""
    dim: int
    """Numbers in a vector."""
    rejects: tuple[Reject, ...]
    """Files that could not be used."""
    rejected: Path | None
    """Table of these files, if there are any."""
    seconds: float
    """Time that it took, without what an earlier call had done."""


def embed(
    run: Path | str,
    sources: Given | Iterable[Given],
    out: Path | str = "embeddings.parquet",
    config: EmbedConfig | None = None,
    *,
    splits: Sequence[str] | None = None,
    data_dir: Path | str = "data",
    world: World | None = None,
    cluster: Cluster | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> EmbedResult:
    """Write the features of every track of `sources`, as `Encoder.embed` computes them, into the file `out`.

    `out` ends in .parquet or .npz. It has the columns key, path, label, split, seconds and vector, and with
    `config.per_crop` start. Called in every process of `world`, which share the parts; default: one process
    on the CPU. A `cluster` of `open_cluster` computes them instead: its workers must see `run` and the
    sources, and each uses a GPU if it sees one. Parts of a shard, or of 256 files, are written into the
    folder `out`.parts as they are ready, and make up `out` in the end; so memory does not grow with the
    number of tracks, and a call that was stopped goes on when it is made again, with or without a `cluster`.
    Files that cannot be used are listed in a table beside `out`.

    Raises `ConfigError` for another ending and `DataError` if `out` exists and `force` is not given, if parts
    of another call are in the way, if `run` has no such encoder, if no file can be used, if a worker of
    `cluster` does not see what it must, or as `Encoder.embed` does.
    """
    started = time.perf_counter()
    world, config, out = world or World(), config or EmbedConfig(), Path(out)
    check_ending(out)
    rejected = out.with_name(f"{out.name}.rejected.csv")
    for path in (out, rejected):
        if path.exists() and not force:
            raise DataError(
                f"{path} exists: use another out, or replace it by force=True (on the command line --out or "
                f"--force)."
            )
    encoder = load_encoder(run, config.checkpoint, world.device)
    found = open_sources(sources, splits=splits, data_dir=Path(data_dir))
    about = description(encoder, config)
    parts = _Parts(out.with_name(f"{out.name}.parts"), found.parts)
    with FolderLock() as lock:
        world.once(lambda: parts.begin({**about, "sources": found.digest()}, lock, force=force))
        if cluster:
            shared = SharedForEmbedding.of(run, encoder, config.checkpoint, found)
            _compute_on_cluster(parts, found, cluster, shared, config, progress)
        else:
            _compute(parts, found, encoder, config, world, progress)
        parts.wait_for_others(world)
        counts = world.once(lambda: parts.finish(out, rejected, about, per_crop=config.per_crop))
    return EmbedResult(
        path=out,
        tracks=counts["tracks"],
        rows=counts["rows"],
        dim=encoder.dim,
        rejects=tuple(Reject(*row) for row in counts["rejects"]),
        rejected=rejected if counts["rejects"] else None,
        seconds=time.perf_counter() - started,
    )


def description(encoder: Encoder, config: EmbedConfig) -> dict[str, Any]:
    """Return what embeddings depend on, as plain values: the weights, the features and the crops."""
    return {
        **asdict(encoder.architecture),
        "epoch": encoder.epoch,
        "weights": weights_digest(encoder),
        "frontend": encoder.frontend.dump(),
        "crops": config.crops,
        "hop_seconds": config.hop_seconds,
        "per_crop": config.per_crop,
        "dtype": config.dtype,
        "folder": str(Path.cwd()),
    }


class _Parts:
    """The parts of embeddings in a folder, each a file that is whole or not there."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.paths = [folder / f"part-{number:06d}.npz" for number in range(count)]

    def begin(self, plan: dict[str, Any], lock: FolderLock, *, force: bool) -> None:
        """Lock the folder, and see that its parts are of `plan`; with `force`, remove those of another."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock.take(self.folder)
        foreign = [file.name for file in self.folder.iterdir() if not _OF_PARTS.fullmatch(file.name)]
        if foreign:  # the folder is removed in the end
            raise DataError(
                f"{self.folder} holds {foreign[0]!r}, which no embedding has: use another out (on the "
                f"command line --out)."
            )
        path = self.folder / _PLAN
        is_other = path.exists() and _read_plan(path) != plan
        if is_other and not force:
            raise DataError(
                f"{self.folder} has parts of other tracks, or of another encoder or other settings: use "
                f"another out, or replace them by force=True (on the command line --out or --force)."
            )
        if is_other:
            for part in self.paths:
                part.unlink(missing_ok=True)
        save_json(path, plan)

    def missing(self, first: int = 0, step: int = 1) -> list[int]:
        """Return the numbers of the parts that are not there or damaged, of every `step`-th from `first`."""
        return [n for n in range(first, len(self.paths), step) if read_part(self.paths[n]) is None]

    def wait_for_others(self, world: World) -> None:
        """Return when all parts are there; fail if none has come for longer than `world.timeout`."""
        there, since = 0, time.monotonic()
        while world.world_size > 1 and (now := sum(path.exists() for path in self.paths)) < len(self.paths):
            if now > there:
                there, since = now, time.monotonic()
            elif time.monotonic() - since > world.timeout:
                break
            time.sleep(_LOOK_SECONDS)
        world.wait_for_all()

    def write(self, number: int, content: bytes) -> None:
        """Write the `content` of part `number`."""
        with atomic_write(self.paths[number]) as file:
            file.write(content)

    def finish(self, out: Path, rejected: Path, about: dict[str, Any], *, per_crop: bool) -> dict[str, Any]:
        """Merge the parts into `out`, write the table of what was left out, and remove the folder."""
        tracks = rows = 0
        rejects: list[Reject] = []
        for path in self.paths:
            part = read_part(path)
            assert part is not None
            tracks, rows = tracks + int(part["tracks"]), rows + len(part["key"])
            rejects += rejects_of(part)
        if not rows:
            shutil.rmtree(self.folder)  # once the files are mended, the same command is another call
            raise nothing_left(rejects)
        merge(self.paths, out, about, per_crop=per_crop)
        left_out = [(reject.path, reject.reason, reject.detail) for reject in rejects]
        if rejects:
            write_table(rejected, REJECT_COLUMNS, left_out)
        else:
            rejected.unlink(missing_ok=True)
        shutil.rmtree(self.folder)
        return {"tracks": tracks, "rows": rows, "rejects": left_out}


def _read_plan(path: Path) -> object:
    """Return the plan in the file `path`, or None if it is damaged."""
    try:
        return json.loads(read_regular(path, SETTINGS_LIMIT))
    except (OSError, ValueError):
        return None


def _compute(
    parts: _Parts, found: Sources, encoder: Encoder, config: EmbedConfig, world: World, progress: Progress
) -> None:
    """Write those parts of this process that are not there yet."""
    missing = parts.missing(world.rank, world.world_size)
    sizes: deque[tuple[int, int]] = deque()

    def items() -> Iterator[Item]:
        for number, of_part in found.items(missing):
            sizes.append((number, len(of_part)))
            yield from of_part

    listening = listening_of(encoder, config, per_crop=config.per_crop)
    shown = progress if world.leads else SILENT
    total = world.world_size * found.share(len(missing))
    with evaluating(encoder), shown.task("Embedding", total, "tracks") as task:
        counted = _Rate(task)
        heard: list[Heard | Reject] = []
        for one in listening.extractor().extract(items(), found.samples):
            heard.append(one)
            counted.advance(world.world_size)
            if len(heard) == sizes[0][1]:
                number, _ = sizes.popleft()
                write_part(parts.paths[number], heard, config.dtype)
                heard = []


def _compute_on_cluster(
    parts: _Parts,
    found: Sources,
    cluster: Cluster,
    shared: SharedForEmbedding,
    config: EmbedConfig,
    progress: Progress,
) -> None:
    """Write those parts that are not there yet, as workers of a cluster send them."""
    missing = parts.missing()
    with progress.task("Embedding", found.share(len(missing)), "tracks") as task:
        counted = _Rate(task)
        cluster.run(
            partial(embed_part, shared, config, found.samples),
            (items for _, items in found.items(missing)),
            names=[f"embed-{parts.paths[number].stem}" for number in missing],
            shared=shared,
            counters=1,
            on_counts=lambda counts: counted.advance(counts[0] - counted.done),
            on_result=lambda place, content: parts.write(missing[place], content),
        )


class _Rate:
    """Tells a task how many tracks are done, and how many a second takes."""

    def __init__(self, task: Task) -> None:
        self._task, self._started = task, time.perf_counter()
        self.done = 0
        """Tracks so far."""

    def advance(self, tracks: int) -> None:
        """Count `tracks` more."""
        if tracks:
            self.done += tracks
            rate = self.done / (time.perf_counter() - self._started)
            self._task.advance(tracks, note=f"{rate:,.1f} tracks/s")
