"""Samples in, one WebDataset tar and its index out; the bytes depend on the samples and on nothing else."""

import hashlib
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from siamusic_fast.audio.corpus import Track
from siamusic_fast.files import atomic_write
from siamusic_fast.shards.codec import encode, pcm_bytes, wav_header
from siamusic_fast.shards.manifest import Shard
from siamusic_fast.shards.tar_header import whole_blocks

_COPY = 1 << 22
"""Bytes that are written and hashed at a time."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One track, or one segment of a long one, as it goes into a shard."""

    key: str
    track: Track
    label: int
    """-1 if unknown."""
    pcm: npt.NDArray[np.int16]
    offset: float | None = None
    """Where in the track a segment starts, in seconds; None for a whole track."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How samples are stored."""

    sample_rate: int
    """In Hz."""
    codec: str = "wav"
    quality: float = 5.0
    """Of Vorbis."""


def write_shard(
    folder: Path, stem: str, samples: Iterable[Sample], *, storage: Storage, labelled: bool
) -> Shard:
    """Write `folder`/`stem`.tar and .idx, both atomically, and return what the manifest says of them.

    Each sample is KEY.wav (or .flac, .ogg), KEY.cls (five ASCII characters, such as 00007 or -0001) and
    KEY.json, in USTAR.
    """
    lengths = []
    index = []
    with atomic_write(folder / f"{stem}.tar") as file, atomic_write(folder / f"{stem}.idx") as index_file:
        hashed = _HashedFile(file)
        with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_COPY) as tar:  # type: ignore[call-overload]
            for sample in samples:
                lengths.append(len(sample.pcm))
                index.append(_add_sample(tar, sample, storage))
        index_bytes = "\n".join([f"v1.2 {len(index)}", *index, ""]).encode(errors="surrogateescape")
        index_file.write(index_bytes)
        size = hashed.tell()
    return Shard(
        file=f"{stem}.tar",
        index=f"{stem}.idx",
        tracks=len(lengths),
        bytes=size,
        sha256=hashed.sha256.hexdigest(),
        index_sha256=hashlib.sha256(index_bytes).hexdigest(),
        labelled=labelled,
        shortest=min(lengths),
        longest=max(lengths),
    )


def _add_sample(tar: tarfile.TarFile, sample: Sample, storage: Storage) -> str:
    """Append the three files of `sample`; return its index line: extension, offset, size, name of each."""
    track = sample.track
    about = {
        "genre": track.genre,
        "sample_rate": storage.sample_rate,
        "samples": len(sample.pcm),
        "source": track.path,
        "split": track.split,
        "track_id": track.key,
    }
    if sample.offset is not None:
        about["offset"] = sample.offset
    contents = {
        storage.codec: _audio(sample.pcm, storage),
        "cls": _Parts(f"{sample.label:05d}".encode()),
        "json": _Parts(json.dumps(about, sort_keys=True).encode()),
    }
    words = []
    for extension, content in contents.items():
        member = tarfile.TarInfo(f"{sample.key}.{extension}")
        member.size = content.size
        tar.addfile(member, cast(IO[bytes], content))
        offset = tar.offset - whole_blocks(content.size)
        words.append(f"{extension} {offset} {content.size} {member.name}")
    return " ".join(words)


def _audio(pcm: npt.NDArray[np.int16], storage: Storage) -> "_Parts":
    if storage.codec == "wav":
        return _Parts(wav_header(len(pcm), storage.sample_rate), pcm_bytes(pcm))
    return _Parts(encode(pcm, storage.sample_rate, storage.codec, storage.quality))


class _Parts:
    """What tarfile needs of a file to read from: parts one behind the other, none of them copied whole."""

    def __init__(self, *parts: bytes | memoryview) -> None:
        self.size = sum(map(len, parts))
        """In bytes."""
        self._parts = parts
        self._place = 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or what is left."""
        start, pieces = self._place, []
        self._place += size
        for part in self._parts:
            pieces.append(part[max(0, start) : max(0, start + size)])
            start -= len(part)
        return b"".join(pieces)


class _HashedFile:
    """What tarfile needs of a file to write to, with the SHA-256 of all that went through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self._file.tell()
