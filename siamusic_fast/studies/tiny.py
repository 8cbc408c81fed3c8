"""The tiny form of a study: a little synthetic music, for small networks."""

from pathlib import Path

from siamusic_fast.audio.fma import load_fma
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import MANIFEST, ShardSet, read_manifest
from siamusic_fast.shards.pack import pack
from siamusic_fast.synthetic.corpus import SyntheticCorpus, synthesize

REMARK = "Tiny: synthetic music and small networks. It says that the study works, and nothing about music."
CORPUS = SyntheticCorpus(tracks_per_genre=10, seconds=6.0)
_NAME = "tiny"
"""Name of the corpus in the rows of tables."""


def tiny_shards(folder: Path, *, procs: int = 1, progress: Progress = SILENT) -> ShardSet:
    """Return the shards of `CORPUS` in `folder`, synthesized and packed if they are not there.

    Raises DataError if another job is making them.
    """
    shards = folder / "shards" / _NAME
    if (shards / MANIFEST).is_file():
        return read_manifest(shards)
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock() as lock:
        lock.take(folder)
        audio = folder / _NAME
        if not audio.exists():
            synthesize(audio, CORPUS, procs=procs, progress=progress)
        return pack(load_fma("fma_small", audio), shards, procs=procs, progress=progress)
