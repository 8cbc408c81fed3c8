"""The index of a shard, which says where its samples lie in the tar: lines to write, and checks to read."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siamusic_fast.files import LIST_LIMIT, open_regular, read_regular
from siamusic_fast.shards.codec import WAV_HEADER, wav_header
from siamusic_fast.shards.manifest import Shard, ShardSet, naming_damage
from siamusic_fast.shards.tar import TAR_BLOCK, Member, read_header, whole_blocks

CLS_SIZE = 5
"""Bytes of a label."""
_VERSION = "v1.2"
"""Version of the index format of DALI's wds2idx."""
_WORDS = 12
"""Words on a line of the index: extension, offset, size and name of each of three files."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where the samples of a shard lie in its tar, in bytes. Each array is int64 [tracks]."""

    audio_offset: NDArray[np.int64]
    audio_size: NDArray[np.int64]
    cls_offset: NDArray[np.int64]
    """Where the five bytes of the label begin."""


def index_lines(samples: Sequence[Iterable[Member]]) -> list[str]:
    """Return the lines of the index of `samples`, each given as the files that it consists of."""
    lines = [
        " ".join(f"{m.name.rpartition('.')[2]} {m.offset} {m.size} {m.name}" for m in members)
        for members in samples
    ]
    return [f"{_VERSION} {len(samples)}", *lines, ""]


def read_index(shard_set: ShardSet, shard: Shard) -> ShardIndex:
    """Return the index of `shard` after comparing it with the manifest and with the tar.

    The index must have the SHA-256 of the manifest and an entry for each track, and its files must follow
    each other as files in a tar do. The tar must have the size of the manifest, and the headers of its first
    and its last sample must agree with the index. A tar in object storage is compared with its SHA-256
    instead, when it is fetched. Raises `DataError`, which names the index or the tar, if any of this does not
    hold.
    """
    with naming_damage(shard_set.shown(shard.index)):
        words = _read_words(shard_set, shard)
        offsets, sizes = _offsets_and_sizes(words, shard_set, shard)
    if not shard_set.url:
        with naming_damage(shard_set.shown(shard.file)):
            _check_tar(shard_set, shard, words[5::4], offsets, sizes)
    return ShardIndex(audio_offset=offsets[:, 0], audio_size=sizes[:, 0], cls_offset=offsets[:, 1])


def sample_name(shard_set: ShardSet, shard: Shard, row: int) -> str:
    """Return the key of sample `row` of `shard` according to its index.

    Raises `DataError` if the index cannot be read, or if its SHA-256 is not that of the manifest.
    """
    with naming_damage(shard_set.shown(shard.index)):
        words = _read_words(shard_set, shard)
    return _name(words[2 + row * _WORDS + 3]).partition(".")[0]


def _read_words(shard_set: ShardSet, shard: Shard) -> list[bytes]:
    """Return the words of the index after checking its SHA-256 and the number of its entries."""
    content = read_regular(shard_set.path(shard.index), LIST_LIMIT)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != shard.index_sha256:
        raise ValueError(f"it has SHA-256 {sha256}, the manifest says {shard.index_sha256}")
    words = content.split()
    header = [_VERSION.encode(), b"%d" % shard.tracks]
    if shard.tracks < 1 or words[:2] != header or len(words) != 2 + shard.tracks * _WORDS:
        raise ValueError(f"it does not list {shard.tracks} tracks, as the manifest says")
    return words


def _offsets_and_sizes(
    words: list[bytes], shard_set: ShardSet, shard: Shard
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return offset and size of the audio, label and description of each track, two arrays [tracks, 3].

    Raises `ValueError` if the files cannot lie in the tar like that. They follow each other without gaps:

        | header | audio, padded | header | cls, padded | header | json, padded | header | audio ...
        0        512
    """
    if words[2::4] != [shard_set.codec.encode(), b"cls", b"json"] * shard.tracks:
        raise ValueError(f"it does not list {shard_set.codec}, cls and json of each track")
    offsets = np.array([*map(int, words[3::4])], dtype=np.int64)
    sizes = np.array([*map(int, words[4::4])], dtype=np.int64)
    if sizes.min() < 0 or sizes.max() > shard.bytes or (sizes[1::3] != CLS_SIZE).any():
        raise ValueError("it gives a file a size that it cannot have")
    ends = np.cumsum(TAR_BLOCK + whole_blocks(sizes))
    if (offsets != ends - whole_blocks(sizes)).any() or ends[-1] > shard.bytes:
        raise ValueError(f"its files do not follow each other within the {shard.bytes} bytes of {shard.file}")
    return offsets.reshape(-1, 3), sizes.reshape(-1, 3)


def _check_tar(
    shard_set: ShardSet,
    shard: Shard,
    names: list[bytes],
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> None:
    """Raise `ValueError` unless audio and label of the first and the last track are where the index says."""
    with open_regular(shard_set.path(shard.file)) as file:
        size = os.fstat(file.fileno()).st_size
        if size != shard.bytes:
            raise ValueError(f"it has {size} bytes, the manifest says {shard.bytes}")
        for row in {0, shard.tracks - 1}:
            for column in (0, 1):
                name = _name(names[3 * row + column])
                expected = Member(name, int(offsets[row, column]), int(sizes[row, column]))
                head = os.pread(file.fileno(), TAR_BLOCK + WAV_HEADER, expected.offset - TAR_BLOCK)
                _check_member(head, expected, shard_set.sample_rate)


def _check_member(head: bytes, expected: Member, sample_rate: int) -> None:
    """Raise `ValueError` unless `head`, a tar header and what follows it, is that of the file `expected`."""
    found = read_header(head[:TAR_BLOCK], expected.offset - TAR_BLOCK)
    if found != expected:
        raise ValueError(
            f"it has {found.name} of {found.size} bytes at byte {expected.offset}, "
            f"its index says {expected.name} of {expected.size} bytes"
        )
    if expected.name.endswith(".wav"):
        samples = (expected.size - WAV_HEADER) // 2
        if expected.size < WAV_HEADER or head[TAR_BLOCK:] != wav_header(samples, sample_rate):
            raise ValueError(f"{expected.name} is not 16-bit mono audio at {sample_rate} Hz")


def _name(word: bytes) -> str:
    return word.decode(errors="surrogateescape")
