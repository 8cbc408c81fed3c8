"""The whole way on a small synthetic corpus: from MP3 files to a scored genre classifier."""

import dataclasses
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from siamusic_fast.analysis import plots, preview
from siamusic_fast.config import FinetuneConfig, MelConfig, PretrainConfig
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.fma import load_fma
from siamusic_fast.shards.manifest import MANIFEST, ShardSet, read_manifest
from siamusic_fast.shards.pack import pack
from siamusic_fast.shards.synthetic import synthesise
from siamusic_fast.training.distributed import Job
from siamusic_fast.training.evaluate import EvaluateResult, evaluate
from siamusic_fast.training.finetune import FinetuneResult, finetune
from siamusic_fast.training.pretrain import PretrainResult, pretrain

PRETRAIN = PretrainConfig(
    mel=MelConfig(seconds=2.0), recipe="image", backbone="resnet18", epochs=8, batch_size=32
)
"""Shorter crops and a smaller backbone than the paper's, so that two CPU cores take minutes."""
FINETUNE = FinetuneConfig(epochs=8, batch_size=32)
PREVIEW_TRACKS = 4


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What each step came to."""

    shard_set: ShardSet
    run: Path
    pretrained: PretrainResult
    finetuned: FinetuneResult
    evaluated: EvaluateResult
    seconds: float


def demo(
    root: Path, *, seed: int = 0, workers: int, job: Job | None = None, progress: Progress = SILENT
) -> DemoResult:
    """Synthesise, pack, preview, pre-train, fine-tune, evaluate and draw, all inside the folder `root`.

    The corpus and its shards are made by `workers` processes, once, and serve again; each call trains anew,
    with `seed`, into a run folder of its own. Raises `DataError` if `root` holds something else.
    """
    started = time.perf_counter()
    shard_set = _shards(root / "data", workers, progress)
    run = root / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}"
    pretrained = pretrain(
        dataclasses.replace(PRETRAIN, seed=seed), shard_set, run, job=job, progress=progress
    )
    finetuned = finetune(dataclasses.replace(FINETUNE, seed=seed), run, shard_set, job=job, progress=progress)
    evaluated = evaluate(run, shard_set, job=job, progress=progress)

    mel = MelConfig()
    found = preview.examples(shard_set, recipe=PRETRAIN.recipe, mel=mel, count=PREVIEW_TRACKS, seed=seed)
    preview.draw(found, mel, f"Recipe {PRETRAIN.recipe}", run / "plots" / "preview.png")
    plots.pretraining(run)
    plots.finetuning(finetuned.folder)
    plots.evaluation(evaluated)
    return DemoResult(
        shard_set=shard_set,
        run=run,
        pretrained=pretrained,
        finetuned=finetuned,
        evaluated=evaluated,
        seconds=time.perf_counter() - started,
    )


def _shards(data: Path, workers: int, progress: Progress) -> ShardSet:
    """Return the demo's shards, made if they are not there."""
    folder = data / "shards" / "fma_small"
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    corpus = data / "synthetic"
    if not corpus.exists():
        synthesise(corpus, workers=workers, progress=progress)
    return pack(load_fma("fma_small", corpus), folder, workers=workers, progress=progress)
