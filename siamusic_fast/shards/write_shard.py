"""Writes one shard: a WebDataset tar and its index. The bytes depend on the segments alone."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from siamusic_fast.audio.corpus import Track
from siamusic_fast.files import atomic_write
from siamusic_fast.shards.codec import Encoding, pcm_bytes
from siamusic_fast.shards.index import index_lines
from siamusic_fast.shards.manifest import Shard
from siamusic_fast.shards.tables import PackedTrack
from siamusic_fast.shards.tar import Member, TarWriter


@dataclass(frozen=True, slots=True)
class Segment:
    """A whole track, or one piece of a long one, as it goes into a shard."""

    key: str
    """Key of its WebDataset sample, unique in the shard set."""
    track: Track
    """Track that it is, or that it is cut from."""
    label: int
    """Label of its class, -1 for none."""
    pcm: npt.NDArray[np.int16]
    """Audio, [samples]."""
    content: tuple[bytes | memoryview, ...]
    """File that holds the audio, in parts, see `Encoding.encode`."""
    offset: float | None = None
    """Second of the track at which it begins; None for a whole track."""


def write_shard(
    folder: Path,
    stem: str,
    segments: Iterable[Segment],
    *,
    encoding: Encoding,
    labelled: bool,
    writer: str = "",
) -> Shard:
    """Write `folder`/`stem`.tar and .idx, both atomically, and return their entry in the manifest.

    Each segment becomes KEY.wav (or .flac, .ogg), KEY.cls (five ASCII characters, such as 00007 or -0001)
    and KEY.json, in USTAR. `writer` is for `atomic_write`.
    """
    lengths, members = [], []
    tar_path, index_path = folder / f"{stem}.tar", folder / f"{stem}.idx"
    with atomic_write(tar_path, writer) as file, atomic_write(index_path, writer) as index:
        tar = TarWriter(file)
        for segment in segments:
            lengths.append(len(segment.pcm))
            members.append(_add_segment(tar, segment, encoding))
        sha256 = tar.finish()
        content = "\n".join(index_lines(members)).encode(errors="surrogateescape")
        index.write(content)
    return Shard(
        file=f"{stem}.tar",
        index=f"{stem}.idx",
        tracks=len(lengths),
        bytes=tar.size,
        sha256=sha256,
        index_sha256=hashlib.sha256(content).hexdigest(),
        labelled=labelled,
        shortest=min(lengths),
        longest=max(lengths),
    )


def table_row(segment: Segment, stem: str, sample_rate: int, **decoding: Any) -> PackedTrack:
    """Return the row of tracks.csv on `segment` in the shard `stem`; `decoding` are its other fields."""
    return PackedTrack(
        key=segment.key,
        track_id=segment.track.key,
        offset=segment.offset or 0.0,
        split=segment.track.split,
        genre=segment.track.genre,
        tags=segment.track.tags,
        group=segment.track.group,
        seconds=len(segment.pcm) / sample_rate,
        samples=len(segment.pcm),
        shard=f"{stem}.tar",
        path=segment.track.path,
        sha256=hashlib.sha256(pcm_bytes(segment.pcm)).hexdigest(),
        **decoding,
    )


def _add_segment(tar: TarWriter, segment: Segment, encoding: Encoding) -> list[Member]:
    about = {
        "genre": segment.track.genre,
        "group": segment.track.group,
        "sample_rate": encoding.sample_rate,
        "samples": len(segment.pcm),
        "source": segment.track.path,
        "split": segment.track.split,
        "tags": segment.track.tags,
        "track_id": segment.track.key,
    }
    if segment.offset is not None:
        about["offset"] = segment.offset
    return [
        tar.add(f"{segment.key}.{encoding.codec}", *segment.content),
        tar.add(f"{segment.key}.cls", b"%05d" % segment.label),
        tar.add(f"{segment.key}.json", json.dumps(about, sort_keys=True).encode()),
    ]
