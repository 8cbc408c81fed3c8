"""Compares all files of a shard set with its manifest and its tables, and names what is wrong."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import soundfile

from siamusic_fast.audio.corpus import SPLITS
from siamusic_fast.files import (
    LIST_LIMIT,
    MANIFEST_LIMIT,
    TABLE_LIMIT,
    file_sha256,
    open_regular,
    read_regular,
)
from siamusic_fast.processes.cluster import Cluster
from siamusic_fast.processes.pool import Count, Counts, cores, run_in_kept_process, run_in_processes
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.codec import WAV_HEADER, wav_header
from siamusic_fast.shards.frontends import read_frontends
from siamusic_fast.shards.index import index_lines
from siamusic_fast.shards.kept_features import KEPT_FEATURES, check_features
from siamusic_fast.shards.manifest import (
    FRONTENDS,
    MANIFEST,
    REJECTED,
    TRACKS,
    DamageError,
    Shard,
    ShardSet,
    parse_manifest,
)
from siamusic_fast.shards.remote_set import fetch_small_files
from siamusic_fast.shards.sharing import SharedForVerifying
from siamusic_fast.shards.tables import PackedTrack, read_rejects, read_tracks
from siamusic_fast.shards.tar import Member, TarError, TarReader
from siamusic_fast.storage.remote import RemoteFolder, fetch, is_url

_MB = 1_000_000
_SHARD_FILE = re.compile(rf"(?:{'|'.join(SPLITS)})-.*\.(?:tar|idx)")
"""Names that readers of WebDataset may take for shards of this set."""
_KEPT = re.compile(KEPT_FEATURES)
_REMEDY = "remove it, and it is made again when it is needed"


@dataclass(frozen=True, slots=True)
class Problem:
    """A difference between a shard set and its manifest or tables."""

    file: str
    """Name of the file in the folder of the shard set."""
    what: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` read and found."""

    shards: int
    tracks: int
    bytes: int
    problems: tuple[Problem, ...]
    unknown: tuple[str, ...]
    """Names in the folder that are no part of the shard set: nothing reads them, and nothing checks them."""


@dataclass(frozen=True, kw_only=True)
class ShardToVerify:
    """All that `verify_shard` needs to verify one shard, in any process."""

    shard_set: ShardSet
    """The shard set without its splits."""
    split: str
    shard: Shard
    rows: Path | None
    """File with the rows of tracks.csv on the shard, as a JSON list; None if tracks.csv cannot be read."""
    report: Path
    """File that the problems are written to, as a JSON list."""


def verify(
    folder: Path | str,
    *,
    procs: int | None = None,
    cluster: Cluster | None = None,
    progress: Progress = SILENT,
) -> Verification:
    """Compare the shard set in `folder` with its manifest and tables, in `procs` processes or on a `cluster`.

    Every tar is read once: its size and SHA-256, its headers, the WAV header, label and description of every
    track, its index, and its rows of tracks.csv. If the SHA-256 of a tar is wrong, the audio of its tracks is
    compared with tracks.csv one by one. Both tables are compared with their SHA-256 in the manifest, and the
    manifest, frontends.json and features that probes keep with the one that each states of itself. Links,
    and shards that the manifest does not name, are problems. If `folder` is a URL, each shard is fetched into
    a temporary folder, as many at a time as there are processes. Raises `DataError` if the manifest cannot be
    read, or a worker of the cluster does not see the shard set.
    """
    if isinstance(folder, str) and is_url(folder):
        with tempfile.TemporaryDirectory() as fetched:
            names = fetch_small_files(folder, Path(fetched))
            return _verify(Path(fetched), folder, names, procs, cluster, progress)
    folder = Path(folder)
    return _verify(folder, "", [file.name for file in folder.iterdir()], procs, cluster, progress)


def _verify(
    folder: Path, url: str, names: list[str], procs: int | None, cluster: Cluster | None, progress: Progress
) -> Verification:
    """Verify the shard set in `folder`, whose tars and indices are at `url` if that is not empty."""
    shard_set, change = parse_manifest(folder, url, every_byte=True)
    shard_set = dataclasses.replace(shard_set, url=url)
    names = sorted(names)
    kept = [name for name in names if _KEPT.fullmatch(name)]
    unknown = [name for name in names if name not in {*_known(shard_set), *kept}]
    size = sum(shard.bytes for shards in shard_set.splits.values() for shard in shards)
    problems = [Problem(MANIFEST, change)] if change else []
    problems += [*_set_problems(shard_set), *_reject_problems(shard_set), *_frontend_problems(folder)]
    problems += [problem for name in kept for problem in _kept_problems(folder / name)]
    problems += [Problem(name, "is not in the manifest") for name in unknown if _SHARD_FILE.fullmatch(name)]
    with tempfile.TemporaryDirectory() as scratch:
        rows: Path | None = Path(scratch)
        try:
            problems += _split_table(shard_set, Path(scratch))
        except DamageError as error:
            problems.append(Problem(TRACKS, f"cannot be read: {error.reason}"))
            rows = None
        jobs = [
            ShardToVerify(
                shard_set=dataclasses.replace(shard_set, splits={}),
                split=split,
                shard=shard,
                rows=rows and rows / f"{shard.file}.rows",
                report=Path(scratch) / f"{split}-{number}.problems",
            )
            for split, shards in shard_set.splits.items()
            for number, shard in enumerate(shards)
        ]
        with progress.task("Verifying", -(-size // _MB), "MB") as task:
            advanced = 0

            def on_counts(counts: Counts) -> None:
                nonlocal advanced
                task.advance(counts[0] // _MB - advanced, note=f"{counts[1]} problems" if counts[1] else "")
                advanced = counts[0] // _MB

            if cluster:
                _verify_on_cluster(jobs, cluster, on_counts)
            else:
                run_in_processes(verify_shard, jobs, procs=procs or cores(), counters=2, on_counts=on_counts)
        for job in jobs:
            problems += itertools.starmap(Problem, json.loads(job.report.read_text()))
    tracks = sum(job.shard.tracks for job in jobs)
    return Verification(
        shards=len(jobs),
        tracks=tracks,
        bytes=size,
        problems=tuple(problems),
        unknown=tuple(name for name in unknown if not _SHARD_FILE.fullmatch(name)),
    )


def verify_shard(job: ShardToVerify, count: Count) -> None:
    """Write what is wrong with one shard to its report; counts bytes read and problems."""
    problems = []
    with _fetched(job) as here:
        for problem in _shard_problems(here, lambda size: count((size, 0))):
            problems.append((problem.file, problem.what))
            count((0, 1))
    job.report.write_text(json.dumps(problems))


@contextmanager
def _fetched(job: ShardToVerify) -> Iterator[ShardToVerify]:
    """Fetch tar and index of a shard in object storage, those that are there, into a temporary folder."""
    if not job.shard_set.url:
        yield job
        return
    remote = RemoteFolder(job.shard_set.url)
    with tempfile.TemporaryDirectory() as folder:
        for name in (job.shard.file, job.shard.index):
            if status := remote.status(name):
                with Path(folder, name).open("wb") as file:
                    fetch(remote, name, status.size, file.write)
        yield dataclasses.replace(job, shard_set=dataclasses.replace(job.shard_set, folder=Path(folder)))


@dataclass(frozen=True)
class _SentShard:
    """A shard to verify on another machine, with what this one has in files."""

    job: ShardToVerify
    rows: bytes | None
    """Content of the file of rows; None if there is none."""


def _verify_on_cluster(jobs: Sequence[ShardToVerify], cluster: Cluster, on_counts: Count) -> None:
    """Do `jobs` on the workers of `cluster`; their reports come back to the files that are named here."""
    folder = jobs[0].shard_set.folder.absolute()

    def send() -> Iterator[_SentShard]:
        for job in jobs:
            rows = job.rows.read_bytes() if job.rows and job.rows.exists() else None
            shard_set = dataclasses.replace(job.shard_set, folder=folder)
            yield _SentShard(dataclasses.replace(job, shard_set=shard_set), rows)

    def on_result(place: int, report: bytes) -> None:
        jobs[place].report.write_bytes(report)

    cluster.run(
        _verify_apart,
        send(),
        names=[f"verify-{Path(job.shard.file).stem}" for job in jobs],
        shared=SharedForVerifying(
            folder=folder,
            url=jobs[0].shard_set.url,
            sha256=file_sha256(folder / MANIFEST, MANIFEST_LIMIT),
        ),
        counters=2,
        on_counts=on_counts,
        on_result=on_result,
    )


def _verify_apart(sent: _SentShard, report: Count) -> bytes:
    """Verify one shard on a worker of a cluster, in a process beside it, and return the report."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = sent.job.rows and Path(scratch, "rows")
        if rows and sent.rows is not None:
            rows.write_bytes(sent.rows)
        job = dataclasses.replace(sent.job, rows=rows, report=Path(scratch, "report"))
        run_in_kept_process(verify_shard, [job], counters=2, on_counts=report)
        return job.report.read_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoredTrack:
    """One track as it is in the tar."""

    key: str
    members: tuple[Member, ...]
    """Its audio, class and description."""
    samples: int
    """Samples of audio; -1 if the header cannot be read."""
    cls: bytes
    about: dict[str, Any]
    """Its description; empty if it is no JSON object."""


def _shard_problems(job: ShardToVerify, on_read: Callable[[int], None]) -> Iterator[Problem]:
    shard = job.shard
    path = job.shard_set.path(shard.file)
    tracks: list[_StoredTrack] = []
    stopped = ""
    try:
        with open_regular(path) as raw, io.BufferedReader(raw, _MB) as file:
            size = os.fstat(raw.fileno()).st_size
            if size != shard.bytes:
                yield Problem(shard.file, f"has {size} bytes, the manifest says {shard.bytes}")
                return
            tar = TarReader(file, on_read)
            try:
                while track := _read_track(tar, job.shard_set):
                    tracks.append(track)
            except TarError as error:
                stopped = str(error)
            sha256, zeros = tar.finish()
    except OSError as error:
        yield Problem(shard.file, f"cannot be read: {error.strerror or error}")
        return
    if sha256 != shard.sha256:
        yield Problem(shard.file, f"has SHA-256 {sha256}, the manifest says {shard.sha256}")
    rows = _read_rows(job)
    if stopped:
        yield Problem(shard.file, f"{stopped}: {len(tracks)} of {shard.tracks} tracks can be read")
    else:
        if not zeros:
            yield Problem(shard.file, "something follows the end of the tar")
        yield from _count_problems(shard, tracks)
        yield from _index_problems(job, tracks)
        if rows is not None:
            yield from _table_problems(shard, [track.key for track in tracks], list(rows))
    for track in tracks:
        row = rows.get(track.key) if rows else None
        whats = list(_track_problems(job, track, row))
        if sha256 != shard.sha256 and row and job.shard_set.codec == "wav":
            whats += _audio_problems(path, track, row)
        yield from (Problem(shard.file, f"{track.key}: {what}") for what in whats)


def _read_track(tar: TarReader, shard_set: ShardSet) -> _StoredTrack | None:
    """Return the next track, or None at the end. Raises `TarError` where the tar is damaged."""
    member = tar.next_member()
    if member is None:
        return None
    key = member.name.partition(".")[0]
    members: list[Member] = []
    contents: list[bytes] = []
    for extension in (shard_set.codec, "cls", "json"):
        member = tar.next_member() if members else member
        if member is None or member.name != f"{key}.{extension}":
            raise TarError(f"{key}.{extension} is not there, but {member.name if member else 'the end'}")
        members.append(member)
        contents.append(tar.read(min(member.size, WAV_HEADER) if extension == "wav" else member.size))
        tar.skip_to_block(member.offset + member.size)
    try:
        about = json.loads(contents[2])
    except ValueError:
        about = None
    return _StoredTrack(
        key=key,
        members=tuple(members),
        samples=_audio_samples(contents[0], members[0].size, shard_set),
        cls=contents[1],
        about=about if isinstance(about, dict) else {},
    )


def _audio_samples(head: bytes, size: int, shard_set: ShardSet) -> int:
    """Return the samples that the header promises, or -1 if it is not the right one for these shards."""
    if shard_set.codec == "wav":
        samples = (size - WAV_HEADER) // 2
        right = size >= WAV_HEADER and head == wav_header(samples, shard_set.sample_rate)
        return samples if right and size == WAV_HEADER + 2 * samples else -1
    try:
        with soundfile.SoundFile(io.BytesIO(head)) as file:
            right = (file.samplerate, file.channels) == (shard_set.sample_rate, 1)
            return int(file.frames) if right else -1
    except soundfile.LibsndfileError:
        return -1


def _track_problems(job: ShardToVerify, track: _StoredTrack, row: PackedTrack | None) -> Iterator[str]:
    shard_set = job.shard_set
    genre = track.about.get("genre")
    expected: dict[str, object] = {"split": job.split, "sample_rate": shard_set.sample_rate}
    if row:
        expected |= {"track_id": row.track_id, "genre": row.genre, "source": row.path}
        expected |= {"tags": list(row.tags), "group": row.group}
    if track.samples < 0:
        yield f"its {shard_set.codec} header is not that of mono audio at {shard_set.sample_rate} Hz"
    else:
        expected |= {"samples": track.samples}
        found = f"{job.split}, {track.samples / shard_set.sample_rate:.3f} s, {track.samples} samples"
        if row and found != (stated := f"{row.split}, {row.seconds:.3f} s, {row.samples} samples"):
            yield f"{TRACKS} says {stated}; it is {found}"
    for name, value in expected.items():
        if track.about.get(name) != value:
            yield f"its description says {name} {track.about.get(name)!r}, expected {value!r}"
    tags = track.about.get("tags")
    if unknown := set(tags if isinstance(tags, list) else ()).difference(shard_set.tags):
        yield f"its tag {min(unknown)!r} is not in the manifest"
    label = shard_set.classes.index(genre) if genre in shard_set.classes else -1
    if track.cls != b"%05d" % label:
        yield f"its label is {track.cls!r}, that of its class {genre!r} is {label:05d}"
    if (label >= 0) != job.shard.labelled:
        yield f"its class is {genre!r}, in a shard of {'' if job.shard.labelled else 'un'}labelled tracks"


def _count_problems(shard: Shard, tracks: list[_StoredTrack]) -> Iterator[Problem]:
    found = {"tracks": len(tracks)}
    lengths = [track.samples for track in tracks]
    if min(lengths, default=-1) >= 0:
        found |= {"shortest": min(lengths), "longest": max(lengths)}
    for name, value in found.items():
        if value != getattr(shard, name):
            yield Problem(shard.file, f"{name}: {value}, the manifest says {getattr(shard, name)}")


def _index_problems(job: ShardToVerify, tracks: list[_StoredTrack]) -> Iterator[Problem]:
    index, stated = job.shard.index, job.shard.index_sha256
    try:
        content = read_regular(job.shard_set.path(index), LIST_LIMIT)
    except OSError as error:
        yield Problem(index, f"cannot be read: {error.strerror or error}")
        return
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != stated:
        yield Problem(index, f"has SHA-256 {sha256}, the manifest says {stated}")
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    expected = index_lines([track.members for track in tracks])
    for number, (line, right) in enumerate(itertools.zip_longest(lines, expected), start=1):
        if line != right:
            yield Problem(index, f"line {number} is {line!r}, its tar says {right!r}")
            return


def _table_problems(shard: Shard, keys: list[str], listed: list[str]) -> Iterator[Problem]:
    """Compare the keys in the tar with those that tracks.csv lists."""
    for key in sorted(set(keys) - set(listed)):
        yield Problem(TRACKS, f"has no row on {key} in {shard.file}")
    for key in sorted(set(listed) - set(keys)):
        yield Problem(shard.file, f"{key} is not there, {TRACKS} lists it")
    if len(set(keys)) < len(keys):
        yield Problem(shard.file, "has a track twice")
    elif keys != listed and set(keys) == set(listed):
        yield Problem(TRACKS, f"has the tracks of {shard.file} in another order")


def _audio_problems(path: Path, track: _StoredTrack, row: PackedTrack) -> Iterator[str]:
    """Compare the samples themselves with the checksum in tracks.csv."""
    audio = track.members[0]
    with open_regular(path) as file:
        file.seek(audio.offset + WAV_HEADER)
        sha256 = hashlib.sha256(file.read(audio.size - WAV_HEADER)).hexdigest()
    if sha256 != row.sha256:
        yield f"its audio has SHA-256 {sha256}, {TRACKS} says {row.sha256}"


def _split_table(shard_set: ShardSet, scratch: Path) -> Iterator[Problem]:
    """Write the rows of tracks.csv on each shard to a file in `scratch`: no process holds the whole table."""
    named = {shard.file for shards in shard_set.splits.values() for shard in shards}
    for name, rows in itertools.groupby(read_tracks(shard_set.folder), key=attrgetter("shard")):
        file = scratch / f"{name}.rows"
        if name not in named:
            yield Problem(TRACKS, f"lists {name}, the manifest does not")
        elif file.exists():
            yield Problem(TRACKS, f"has rows on {name} that are not together")
        else:
            file.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))


def _read_rows(job: ShardToVerify) -> dict[str, PackedTrack] | None:
    """Return the rows of tracks.csv on the shard by key."""
    if job.rows is None:
        return None
    rows = json.loads(job.rows.read_text()) if job.rows.exists() else []
    return {row["key"]: PackedTrack(**row | {"tags": tuple(row["tags"])}) for row in rows}


def _known(shard_set: ShardSet) -> set[str]:
    """Return the names of all files of the shard set."""
    shards = itertools.chain.from_iterable(shard_set.splits.values())
    of_shards = (name for shard in shards for name in (shard.file, shard.index))
    return {MANIFEST, TRACKS, REJECTED, FRONTENDS, *of_shards}


def _set_problems(shard_set: ShardSet) -> Iterator[Problem]:
    """Compare both tables with their checksums in the manifest, and find links among the files of the set."""
    for table in (TRACKS, REJECTED):
        try:
            sha256 = file_sha256(shard_set.path(table), TABLE_LIMIT)
        except OSError:  # reading the table will report it
            continue
        if sha256 != shard_set.tables[table]:
            yield Problem(table, f"has SHA-256 {sha256}, the manifest says {shard_set.tables[table]}")
    for name in sorted(_known(shard_set)):
        if shard_set.path(name).is_symlink():
            yield Problem(name, "is a link, which may lead anywhere: put the file itself in its place")


def _frontend_problems(folder: Path) -> Iterator[Problem]:
    """Check frontends.json, which loaders write and read, if it is there."""
    try:
        read_frontends(folder, every_byte=True)
    except DamageError as error:
        yield Problem(FRONTENDS, f"cannot be used: {error.reason}; {_REMEDY}")


def _kept_problems(path: Path) -> Iterator[Problem]:
    """Check a file of features, which probes write and read."""
    if path.is_symlink():
        yield Problem(path.name, "is a link, which may lead anywhere: put the file itself in its place")
        return
    try:
        check_features(path)
    except DamageError as error:
        yield Problem(path.name, f"cannot be used: {error.reason}; {_REMEDY}")


def _reject_problems(shard_set: ShardSet) -> Iterator[Problem]:
    """Compare the counts in the manifest with rejected.csv."""
    try:
        counts = Counter(reject.reason for reject in read_rejects(shard_set.folder))
    except DamageError as error:
        yield Problem(REJECTED, f"cannot be read: {error.reason}")
        return
    for reason in sorted(counts.keys() | shard_set.rejected.keys()):
        if counts[reason] != (stated := shard_set.rejected.get(reason, 0)):
            yield Problem(REJECTED, f"lists {counts[reason]} files as {reason}, the manifest says {stated}")
