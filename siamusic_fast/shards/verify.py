"""Every byte of a shard set against what its manifest and its tables say."""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import soundfile

from siamusic_fast.audio.corpus import SPLITS
from siamusic_fast.errors import DataError
from siamusic_fast.files import open_regular
from siamusic_fast.processes.pool import Count, Counts, cores, run_in_processes
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.codec import WAV_HEADER, wav_header
from siamusic_fast.shards.hashed_tar import HashedTar
from siamusic_fast.shards.manifest import (
    MANIFEST,
    Shard,
    ShardSet,
    checksums,
    file_sha256,
    read_manifest,
)
from siamusic_fast.shards.tables import REJECTED, TRACKS, read_rejects
from siamusic_fast.shards.tar_header import Member, TarError

_MB = 1_000_000
_SHARD_FILE = re.compile(rf"(?:{'|'.join(SPLITS)})-.*\.(?:tar|idx)")
"""Names that `webdataset` and its like may take for shards of this set."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be."""

    file: str
    """Name in the folder of the shard set."""
    what: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was looked at, and what is wrong."""

    shards: int
    tracks: int
    bytes: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """The part of tracks.csv on one shard."""

    columns: tuple[str, ...]
    start: int
    """First byte."""
    end: int
    """Byte after the last."""


@dataclass(frozen=True, kw_only=True)
class VerifyJob:
    """All that it takes to verify one shard, in another process."""

    shard_set: ShardSet
    """Without its splits."""
    split: str
    shard: Shard
    rows: Rows | None
    """None: tracks.csv is of no use."""
    report: Path
    """Where the problems go, as a JSON list."""


def verify(folder: Path, *, procs: int | None = None, progress: Progress = SILENT) -> Verification:
    """Compare the shard set in `folder` with its manifest and tables, in `procs` processes.

    Every tar is read once: its size and SHA-256, its headers, the WAV header, label and description of every
    track, its index, and its rows of tracks.csv. If the SHA-256 of a tar is wrong, the audio of its tracks is
    compared with tracks.csv one by one. The SHA-256 of the manifest and of both tables are compared too, and
    shards that the manifest does not name are problems. Raises `DataError` if the manifest cannot be read.
    """
    shard_set = read_manifest(folder, check_files=False)
    problems = [*_set_problems(shard_set), *_reject_problems(shard_set)]
    rows = _find_rows(shard_set, problems)
    size = sum(shard.bytes for shards in shard_set.splits.values() for shard in shards)
    with tempfile.TemporaryDirectory() as reports:
        jobs = _jobs(shard_set, rows, Path(reports))
        with progress.task("Verifying", -(-size // _MB), "MB") as task:
            advanced = 0

            def on_counts(counts: Counts) -> None:
                nonlocal advanced
                task.advance(counts[0] // _MB - advanced, note=f"{counts[1]} problems" if counts[1] else "")
                advanced = counts[0] // _MB

            run_in_processes(verify_shard, jobs, procs=procs or cores(), counters=2, on_counts=on_counts)
        for job in jobs:
            found = json.loads(job.report.read_text())
            problems += itertools.starmap(Problem, found)
    tracks = sum(job.shard.tracks for job in jobs)
    return Verification(shards=len(jobs), tracks=tracks, bytes=size, problems=tuple(problems))


def verify_shard(job: VerifyJob, count: Count) -> None:
    """Write what is wrong with one shard to its report; counts bytes read and problems."""
    problems = []
    for problem in _shard_problems(job, lambda size: count((size, 0))):
        problems.append((problem.file, problem.what))
        count((0, 1))
    job.report.write_text(json.dumps(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """One track as it is in the tar."""

    members: tuple[Member, Member, Member]
    """Audio, class, description."""
    samples: int
    """Of audio; -1 if the header cannot be read."""
    cls: bytes
    about: dict[str, Any]
    """The description; empty if it is none."""

    @property
    def key(self) -> str:
        return self.members[0].name.partition(".")[0]

    @property
    def index_line(self) -> str:
        extension = (member.name.rpartition(".")[2] for member in self.members)
        return " ".join(
            f"{end} {m.offset} {m.size} {m.name}" for end, m in zip(extension, self.members, strict=True)
        )


def _shard_problems(job: VerifyJob, on_read: Callable[[int], None]) -> Iterator[Problem]:
    shard = job.shard
    path = job.shard_set.path(shard.file)
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            yield Problem(shard.file, f"has {size} bytes, the manifest says {shard.bytes}")
            return
        with path.open("rb", buffering=0) as file:
            tar = HashedTar(file, on_read)
            samples, stopped = _read_samples(tar, job.shard_set)
            sha256, zeros = tar.finish()
    except OSError as error:
        yield Problem(shard.file, f"cannot be read: {error.strerror or error}")
        return
    if sha256 != shard.sha256:
        yield Problem(shard.file, f"has SHA-256 {sha256}, the manifest says {shard.sha256}")
    rows = _read_rows(job)
    if stopped:
        yield Problem(shard.file, f"{stopped}: {len(samples)} of {shard.tracks} tracks can be read")
    else:
        if not zeros:
            yield Problem(shard.file, "something follows the end of the tar")
        yield from _count_problems(shard, samples)
        yield from _index_problems(job, samples)
        if rows is not None:
            yield from _table_problems(shard, samples, rows)
    for sample in samples:
        row = rows.get(sample.key) if rows else None
        whats = list(_sample_problems(job, sample, row))
        if sha256 != shard.sha256 and row and job.shard_set.codec == "wav":
            whats += _audio_problems(path, sample, row)
        yield from (Problem(shard.file, f"{sample.key}: {what}") for what in whats)


def _read_samples(tar: HashedTar, shard_set: ShardSet) -> tuple[list[_Sample], str]:
    """Return the tracks up to the end or up to where the tar is no tar, and what is wrong there."""
    found: list[_Sample] = []
    try:
        while sample := _read_sample(tar, shard_set):
            found.append(sample)
    except TarError as error:
        return found, str(error)
    return found, ""


def _read_sample(tar: HashedTar, shard_set: ShardSet) -> _Sample | None:
    members: list[Member] = []
    heads: list[bytes] = []
    for extension in (shard_set.codec, "cls", "json"):
        member = tar.next_member()
        if member is None and not members:
            return None
        key = (members[0] if members else member or Member("", 0, 0)).name.partition(".")[0]
        if member is None or member.name != f"{key}.{extension}":
            raise TarError(f"{key}.{extension} is not there, but {member.name if member else 'the end'}")
        whole = extension != "wav"
        members.append(member)
        heads.append(tar.read(member.size if whole else min(member.size, WAV_HEADER)))
        tar.skip_to_block(member.offset + member.size)
    audio, cls, about = members
    return _Sample(
        members=(audio, cls, about),
        samples=_audio_samples(heads[0], audio.size, shard_set),
        cls=heads[1],
        about=_parse(heads[2]),
    )


def _audio_samples(head: bytes, size: int, shard_set: ShardSet) -> int:
    """Return the samples that the header promises, if it is the right one for these shards, or -1."""
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


def _parse(text: bytes) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _sample_problems(job: VerifyJob, sample: _Sample, row: dict[str, str] | None) -> Iterator[str]:
    shard_set = job.shard_set
    genre = sample.about.get("genre")
    said: dict[str, object] = {"split": job.split, "sample_rate": shard_set.sample_rate}
    if row:
        said |= {"track_id": row["track_id"], "genre": row["class"], "source": row["path"]}
    if sample.samples < 0:
        yield f"its {shard_set.codec} header is not that of mono audio at {shard_set.sample_rate} Hz"
    else:
        said |= {"samples": sample.samples}
        seconds = f"{sample.samples / shard_set.sample_rate:.3f}"
        found = (job.split, seconds, str(sample.samples))
        if row and (row["split"], row["seconds"], row["samples"]) != found:
            yield (
                f"{TRACKS} says {row['split']}, {row['seconds']} s, {row['samples']} samples; "
                f"it is {job.split}, {seconds} s, {sample.samples} samples"
            )
    for name, value in said.items():
        if sample.about.get(name) != value:
            yield f"its description says {name} {sample.about.get(name)!r}, expected {value!r}"
    labels = {known: label for label, known in enumerate(shard_set.classes)}
    label = labels.get(genre, -1) if isinstance(genre, str) else -1
    if sample.cls != f"{label:05d}".encode():
        yield f"its label is {sample.cls!r}, that of its class {genre!r} is {label:05d}"
    if (label >= 0) != job.shard.labelled:
        yield f"its class is {genre!r}, in a shard of {'' if job.shard.labelled else 'un'}labelled tracks"


def _count_problems(shard: Shard, samples: Sequence[_Sample]) -> Iterator[Problem]:
    found = {"tracks": len(samples)}
    lengths = [sample.samples for sample in samples]
    if min(lengths, default=-1) >= 0:
        found |= {"shortest": min(lengths), "longest": max(lengths)}
    for name, value in found.items():
        if value != getattr(shard, name):
            yield Problem(shard.file, f"{name}: {value}, the manifest says {getattr(shard, name)}")


def _index_problems(job: VerifyJob, samples: Sequence[_Sample]) -> Iterator[Problem]:
    expected = [f"v1.2 {len(samples)}", *(sample.index_line for sample in samples), ""]
    try:
        with open_regular(job.shard_set.path(job.shard.index)) as file:
            content = file.read()
    except OSError as error:
        yield Problem(job.shard.index, f"cannot be read: {error.strerror or error}")
        return
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != job.shard.index_sha256:
        yield Problem(job.shard.index, f"has SHA-256 {sha256}, the manifest says {job.shard.index_sha256}")
    lines = content.decode("utf-8", "replace").split("\n")
    for number, (line, wanted) in enumerate(itertools.zip_longest(lines, expected), start=1):
        if line != wanted:
            yield Problem(job.shard.index, f"line {number} is {line!r}, its tar says {wanted!r}")
            return


def _table_problems(
    shard: Shard, samples: Sequence[_Sample], rows: dict[str, dict[str, str]]
) -> Iterator[Problem]:
    keys = [sample.key for sample in samples]
    yield from (Problem(TRACKS, f"has no row on {key} in {shard.file}") for key in keys if key not in rows)
    there = set(keys)
    yield from (
        Problem(shard.file, f"{key} is not there, {TRACKS} lists it") for key in rows if key not in there
    )
    if len(there) < len(keys):
        yield Problem(shard.file, "has a track twice")
    elif there == rows.keys() and keys != list(rows):
        yield Problem(TRACKS, f"has the tracks of {shard.file} in another order")


def _audio_problems(path: Path, sample: _Sample, row: dict[str, str]) -> Iterator[str]:
    """Compare the samples themselves with the checksum in tracks.csv."""
    audio = sample.members[0]
    with path.open("rb") as file:
        file.seek(audio.offset + WAV_HEADER)
        sha256 = hashlib.sha256(file.read(audio.size - WAV_HEADER)).hexdigest()
    if sha256 != row["sha256"]:
        yield f"its audio has SHA-256 {sha256}, {TRACKS} says {row['sha256']}"


def _jobs(shard_set: ShardSet, rows: dict[str, Rows] | None, reports: Path) -> list[VerifyJob]:
    bare = dataclasses.replace(shard_set, splits={})
    return [
        VerifyJob(
            shard_set=bare,
            split=split,
            shard=shard,
            rows=None if rows is None else rows.get(shard.file, Rows((), 0, 0)),
            report=reports / f"{split}-{number}.json",
        )
        for split, shards in shard_set.splits.items()
        for number, shard in enumerate(shards)
    ]


def _find_rows(shard_set: ShardSet, problems: list[Problem]) -> dict[str, Rows] | None:
    """Return which part of tracks.csv is on which shard, so that no process holds the whole table.

    Enters what is wrong with the table itself into `problems`; None: it cannot be used.
    """
    found: dict[str, Rows] = {}
    try:
        with open_regular(shard_set.path(TRACKS)) as file:
            lines = _CountedLines(io.BufferedReader(file))
            rows = csv.reader(lines)
            columns = tuple(next(rows, ()))
            missing = [name for name in _COLUMNS if name not in columns]
            if missing:
                raise ValueError(f"no column {missing[0]}")
            index, shard = columns.index("index"), columns.index("shard")
            start = lines.consumed
            for number, row in enumerate(rows):
                if len(row) != len(columns) or row[index] != str(number):
                    raise ValueError(f"row {number + 2} is damaged or out of place")
                before = found.get(row[shard], Rows(columns, start, start))
                if before.end != start:
                    raise ValueError(f"row {number + 2}: the rows of {row[shard]} are not together")
                found[row[shard]] = Rows(columns, before.start, lines.consumed)
                start = lines.consumed
    except (OSError, ValueError, csv.Error) as error:
        problems.append(Problem(TRACKS, f"cannot be used: {getattr(error, 'strerror', None) or error}"))
        return None
    known = {shard.file for shards in shard_set.splits.values() for shard in shards}
    problems += (
        Problem(TRACKS, f"lists {name}, the manifest does not") for name in found if name not in known
    )
    return found


_COLUMNS = ("index", "key", "track_id", "split", "class", "seconds", "samples", "shard", "path", "sha256")
"""Of tracks.csv, as far as they are compared."""


class _CountedLines:
    """Lines of text, and the bytes that they came from so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.consumed = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.consumed += len(line)
            yield line.decode("utf-8", "surrogateescape")


def _read_rows(job: VerifyJob) -> dict[str, dict[str, str]] | None:
    """Return the rows of tracks.csv on the shard by key."""
    if job.rows is None:
        return None
    with job.shard_set.path(TRACKS).open("rb") as file:
        file.seek(job.rows.start)
        text = file.read(job.rows.end - job.rows.start).decode("utf-8", "surrogateescape")
    rows = csv.DictReader(io.StringIO(text, newline=""), fieldnames=job.rows.columns)
    return {row["key"]: row for row in rows}


def _set_problems(shard_set: ShardSet) -> Iterator[Problem]:
    """Compare manifest and tables with the checksums in the manifest, and the folder with its names."""
    said, found = checksums(shard_set.folder)
    if said != found:
        yield Problem(MANIFEST, f"was changed: its own SHA-256 is {found}, it says {said}")
    for table in (TRACKS, REJECTED):
        try:
            sha256 = file_sha256(shard_set.path(table))
        except OSError:  # which reading it will tell
            continue
        if sha256 != shard_set.tables[table]:
            yield Problem(table, f"has SHA-256 {sha256}, the manifest says {shard_set.tables[table]}")
    shards = itertools.chain.from_iterable(shard_set.splits.values())
    known = {name for shard in shards for name in (shard.file, shard.index)}
    for name in sorted(file.name for file in shard_set.folder.iterdir()):
        if _SHARD_FILE.fullmatch(name) and name not in known:
            yield Problem(name, "is not in the manifest")


def _reject_problems(shard_set: ShardSet) -> Iterator[Problem]:
    """Compare the counts in the manifest with rejected.csv."""
    try:
        counts = Counter(reject.reason for reject in read_rejects(shard_set.folder))
    except DataError as error:
        yield Problem(REJECTED, str(error))
        return
    for reason in sorted(counts.keys() | shard_set.rejected.keys()):
        if counts[reason] != shard_set.rejected.get(reason, 0):
            said = shard_set.rejected.get(reason, 0)
            yield Problem(REJECTED, f"lists {counts[reason]} files as {reason}, the manifest says {said}")
