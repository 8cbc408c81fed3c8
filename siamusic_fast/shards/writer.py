"""Samples in, one WebDataset tar and its index out; the bytes depend on the samples and on nothing else."""

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from siamusic_fast.shards.files import atomic_write
from siamusic_fast.shards.manifest import Shard
from siamusic_fast.shards.plan import Track

_BLOCK = 512
"""Bytes in a tar block: a header is one, contents are padded to whole ones."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One track as it goes into a shard."""

    track: Track
    label: int
    """-1 if unknown."""
    pcm: npt.NDArray[np.int16]


def write_shard(
    folder: Path, stem: str, samples: Iterable[Sample], *, sample_rate: int, labelled: bool
) -> Shard:
    """Write `folder`/`stem`.tar and .idx, both atomically, and return what the manifest says of them.

    Each sample is KEY.wav, KEY.cls (five ASCII characters, such as 00007 or -0001) and KEY.json, in USTAR.
    """
    lengths = []
    index = []
    with atomic_write(folder / f"{stem}.tar") as file, atomic_write(folder / f"{stem}.idx") as index_file:
        hashed = _HashedFile(file)
        with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for sample in samples:
                lengths.append(len(sample.pcm))
                index.append(_add_sample(tar, sample, sample_rate))
        index_file.write("\n".join([f"v1.2 {len(index)}", *index, ""]).encode())
        size = hashed.tell()
    return Shard(
        file=f"{stem}.tar",
        index=f"{stem}.idx",
        tracks=len(lengths),
        bytes=size,
        sha256=hashed.sha256.hexdigest(),
        labelled=labelled,
        shortest=min(lengths),
        longest=max(lengths),
    )


def wav_header(samples: int, sample_rate: int) -> bytes:
    """Return the canonical 44 bytes before `samples` 16-bit mono samples, or 22 int16 values."""
    size = 2 * samples
    riff = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE")
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return riff + layout + struct.pack("<4sI", b"data", size)


def pcm_bytes(pcm: npt.NDArray[np.int16]) -> bytes:
    """Return `pcm` as little-endian bytes, whatever the machine."""
    return pcm.astype("<i2", copy=False).tobytes()


def _add_sample(tar: tarfile.TarFile, sample: Sample, sample_rate: int) -> str:
    """Append the three files of `sample`; return its index line: extension, offset, size, name of each."""
    track = sample.track
    about = {
        "genre": track.genre,
        "sample_rate": sample_rate,
        "samples": len(sample.pcm),
        "source": track.path,
        "split": track.split,
        "track_id": track.key,
    }
    contents = {
        "wav": wav_header(len(sample.pcm), sample_rate) + pcm_bytes(sample.pcm),
        "cls": f"{sample.label:05d}".encode(),
        "json": json.dumps(about, sort_keys=True).encode(),
    }
    words = []
    for extension, content in contents.items():
        member = tarfile.TarInfo(f"{track.key}.{extension}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
        offset = tar.offset - -(-len(content) // _BLOCK) * _BLOCK
        words.append(f"{extension} {offset} {len(content)} {member.name}")
    return " ".join(words)


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
