"""All that a shard set depends on: an unfinished packing goes on only while that is the same."""

import hashlib
from collections.abc import Mapping
from typing import Any

import av
import soundfile
import soxr

import siamusic_fast
from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.scan import ScanResult


def packing_work(
    corpus: Corpus, found: ScanResult, shards: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all that the result depends on, as plain values.

    Files are told by their name, size, and when they were modified or, in a zip, their checksum.
    """
    digest = hashlib.sha256()

    def add(*values: object) -> None:
        digest.update("\0".join(map(str, values)).encode("utf-8", "surrogateescape") + b"\0\0")

    for track, size, stamp in zip(found.tracks, found.sizes, found.stamps, strict=True):
        add(track.key, track.path, track.split, track.genre, size, stamp)
    for reject in found.rejects:
        add(reject.path, reject.reason, reject.detail)
    add(*corpus.classes)
    return {
        **settings,
        "source": corpus.name,
        "software": _software(),
        "shards": shards,
        "inputs": digest.hexdigest(),
    }


def _software() -> str:
    """Return the versions of what makes samples of files: another may decode the same file otherwise."""
    return (
        f"siamusic-fast {siamusic_fast.__version__}, PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}, "
        f"libsndfile {soundfile.__libsndfile_version__}, soxr {soxr.__version__}"
    )
