"""The tiny form of a study: a little synthetic music, for small networks."""

from pathlib import Path

from siamusic_fast.analysis.demo import shards
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.synthetic.corpus import SyntheticCorpus

REMARK = "Tiny: synthetic music and small networks. It says that the study works, and nothing about music."
CORPUS = SyntheticCorpus(tracks_per_genre=10, seconds=6.0)
_NAME = "tiny"
"""Name of the corpus in the rows of tables."""


def tiny_shards(folder: Path, *, procs: int = 1, progress: Progress = SILENT) -> ShardSet:
    """Return the shards of `CORPUS` in `folder`, synthesized and packed if they are not there.

    Raises DataError if another job is making them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock() as lock:
        lock.take(folder)
        return shards(folder, CORPUS, procs, progress, name=_NAME)
