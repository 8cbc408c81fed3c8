"""The tiny form of a study: synthetic music and small networks, in minutes on two cores."""

from pathlib import Path

from siamusic_fast.audio.fma import load_fma
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import MANIFEST, ShardSet, read_manifest
from siamusic_fast.shards.pack import pack
from siamusic_fast.synthetic.corpus import SyntheticCorpus, synthesize

REMARK = "Tiny: synthetic music and small networks. It says that the study works, and nothing about music."
CORPORA = {"tiny_medium": 24, "tiny_small": 12}
"""Tracks of each genre; the smaller corpus is a part of the larger one, as fma_small is of fma_medium."""
_SECONDS = 6.0


def tiny_shards(folder: Path, name: str, *, procs: int = 1, progress: Progress = SILENT) -> ShardSet:
    """Return the shards of the corpus `name` in `folder`, synthesized and packed if they are not there.

    Raises DataError if another job is making them.
    """
    shards = folder / "shards" / name
    if (shards / MANIFEST).is_file():
        return read_manifest(shards)
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock() as lock:
        lock.take(folder)
        audio = folder / name
        if not audio.exists():
            corpus = SyntheticCorpus(tracks_per_genre=CORPORA[name], seconds=_SECONDS)
            synthesize(audio, corpus, procs=procs, progress=progress)
        return pack(load_fma("fma_small", audio), shards, procs=procs, progress=progress)
