"""Where the samples of a shard lie in its tar: its index, once it is known to fit."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.files import open_regular
from siamusic_fast.shards.codec import WAV_HEADER, wav_header
from siamusic_fast.shards.manifest import Shard, ShardSet, damaged
from siamusic_fast.shards.tar_header import BLOCK, Member, TarError, read_header, whole_blocks

_WORDS = 12
"""On a line of the index: kind, offset, size and name of each of three files."""
CLS_SIZE = 5
"""Bytes of a label."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where the samples of a shard lie in its tar, in bytes; each array is int64 [tracks]."""

    audio_offset: NDArray[np.int64]
    audio_size: NDArray[np.int64]
    cls_offset: NDArray[np.int64]
    """Where the five bytes of the label begin."""


def read_index(shard_set: ShardSet, shard: Shard) -> ShardIndex:
    """Return the index of `shard`, after it was compared with the manifest and with the tar.

    The index has the SHA-256 of the manifest and an entry for each track, and its files follow each other as
    files in a tar do. The tar has the size of the manifest, and the headers of its first and its last sample
    say the same as the index. Raises `DataError`, which names the index or the tar, if any of this is not so.
    """
    with _damage_of(shard_set, shard.index):
        words = _read_words(shard_set, shard)
        members = _members(words, shard_set, shard)
    with _damage_of(shard_set, shard.file):
        _check_tar(shard_set, shard, members)
    return ShardIndex(
        audio_offset=members.offsets[:, 0], audio_size=members.sizes[:, 0], cls_offset=members.offsets[:, 1]
    )


def sample_name(shard_set: ShardSet, shard: Shard, row: int) -> str:
    """Return the key of sample `row` of `shard`, as its index has it.

    Raises `DataError` if the index cannot be read or has another SHA-256 than the manifest says.
    """
    with _damage_of(shard_set, shard.index):
        words = _read_words(shard_set, shard)
    return _decoded(words[2 + row * _WORDS + 3]).partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class _Members:
    """The files that an index lists: audio, label and description of each track."""

    names: list[bytes]
    """[3 * tracks]."""
    offsets: NDArray[np.int64]
    """[tracks, 3], in bytes."""
    sizes: NDArray[np.int64]
    """[tracks, 3], in bytes."""


def _read_words(shard_set: ShardSet, shard: Shard) -> list[bytes]:
    """Return the words of the index, whose SHA-256 and number are right."""
    with open_regular(shard_set.path(shard.index)) as file:
        content = file.read()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != shard.index_sha256:
        raise ValueError(f"it has SHA-256 {sha256}, the manifest says {shard.index_sha256}")
    words = content.split()
    right = shard.tracks > 0 and words[:2] == [b"v1.2", b"%d" % shard.tracks]
    if not right or len(words) != 2 + shard.tracks * _WORDS:
        raise ValueError(f"it does not list {shard.tracks} tracks, as the manifest says")
    return words


def _members(words: list[bytes], shard_set: ShardSet, shard: Shard) -> _Members:
    """Return what the index lists; raise `ValueError` if its files cannot lie in the tar like that.

    They follow each other without gaps:

        | header | audio, padded | header | cls, padded | header | json, padded | header | audio ...
        0        512
    """
    kinds = [shard_set.codec.encode(), b"cls", b"json"]
    if words[2::4] != kinds * shard.tracks:
        raise ValueError(f"it does not list {shard_set.codec}, cls and json of each track")
    offsets = np.array([*map(int, words[3::4])], dtype=np.int64)
    sizes = np.array([*map(int, words[4::4])], dtype=np.int64)
    if sizes.min() < 0 or sizes.max() > shard.bytes or (sizes[1::3] != CLS_SIZE).any():
        raise ValueError("it gives a file a size that it cannot have")
    ends = np.cumsum(BLOCK + whole_blocks(sizes))
    if (offsets != ends - whole_blocks(sizes)).any() or ends[-1] > shard.bytes:
        raise ValueError(f"its files do not follow each other within the {shard.bytes} bytes of {shard.file}")
    return _Members(names=words[5::4], offsets=offsets.reshape(-1, 3), sizes=sizes.reshape(-1, 3))


def _check_tar(shard_set: ShardSet, shard: Shard, members: _Members) -> None:
    """Raise an error unless audio and label of the first and the last track are where the index says."""
    with open_regular(shard_set.path(shard.file)) as file:
        size = os.fstat(file.fileno()).st_size
        if size != shard.bytes:
            raise ValueError(f"it has {size} bytes, the manifest says {shard.bytes}")
        for row in {0, shard.tracks - 1}:
            for place in (0, 1):
                said = Member(
                    _decoded(members.names[3 * row + place]),
                    int(members.offsets[row, place]),
                    int(members.sizes[row, place]),
                )
                head = os.pread(file.fileno(), BLOCK + WAV_HEADER, said.offset - BLOCK)
                _check_member(head, said, shard_set)


def _check_member(head: bytes, said: Member, shard_set: ShardSet) -> None:
    """Raise an error unless `head`, a tar header and what follows it, is that of the file `said`."""
    found = read_header(head[:BLOCK], said.offset - BLOCK)
    if found != said:
        raise ValueError(
            f"it has {found.name} of {found.size} bytes at byte {said.offset}, "
            f"its index says {said.name} of {said.size} bytes"
        )
    if said.name.endswith(".wav"):
        samples = (said.size - WAV_HEADER) // 2
        if said.size < WAV_HEADER or head[BLOCK:] != wav_header(samples, shard_set.sample_rate):
            raise ValueError(f"{said.name} is not 16-bit mono audio at {shard_set.sample_rate} Hz")


@contextmanager
def _damage_of(shard_set: ShardSet, file: str) -> Iterator[None]:
    """Turn what goes wrong while `file` of a shard set is read and checked into a `DataError`."""
    try:
        yield
    except OSError as error:
        raise damaged(shard_set.path(file), error.strerror or error) from None
    except (ValueError, OverflowError, TarError) as error:
        raise damaged(shard_set.path(file), error) from None


def _decoded(name: bytes) -> str:
    return name.decode(errors="surrogateescape")
