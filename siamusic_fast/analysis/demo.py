"""The whole way on a small synthetic corpus: from MP3 files to a page about a genre classifier."""

import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from siamusic_fast.analysis import plots, preview
from siamusic_fast.analysis.report.page import ReportResult, report
from siamusic_fast.audio.fma import load_fma
from siamusic_fast.config import FinetuneConfig, MelConfig, PretrainConfig
from siamusic_fast.evaluation.evaluate import EvaluateResult, evaluate
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.manifest import MANIFEST, ShardSet, read_manifest
from siamusic_fast.shards.pack import pack
from siamusic_fast.synthetic.corpus import SyntheticCorpus, synthesize
from siamusic_fast.training.finetune import FinetuneResult, finetune
from siamusic_fast.training.pretrain import PretrainResult, pretrain

PREVIEW_TRACKS = 4


PRETRAIN = PretrainConfig(
    mel=MelConfig(seconds=2.0), backbone="resnet18", epochs=8, batch_size=32, knn_every=0
)
"""Shorter crops, a smaller backbone and fewer epochs than the default: minutes on two CPU cores."""
FINETUNE = FinetuneConfig(epochs=4, batch_size=32, crops_per_track=2)

QUICK_CORPUS = SyntheticCorpus(tracks_per_genre=3, seconds=6.0)
QUICK_PRETRAIN = replace(PRETRAIN, mel=MelConfig(seconds=0.5), epochs=1, batch_size=4)
QUICK_FINETUNE = replace(FINETUNE, epochs=1, batch_size=4, crops_per_track=1)
"""The least with which each step still works, to see that it does; nothing is learnt."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What each step came to."""

    shard_set: ShardSet
    run: Path
    pretrained: PretrainResult
    finetuned: FinetuneResult
    evaluated: EvaluateResult
    reported: ReportResult
    seconds: float


def demo(
    root: Path,
    corpus: SyntheticCorpus,
    pretrain_config: PretrainConfig = PRETRAIN,
    finetune_config: FinetuneConfig = FINETUNE,
    *,
    procs: int = 1,
    world: World | None = None,
    progress: Progress = SILENT,
) -> DemoResult:
    """Synthesize, pack, pre-train, fine-tune, evaluate, draw and write a page, all inside the folder `root`.

    The corpus and its shards are made by `procs` processes, once, and serve again; each call trains anew,
    into a run folder of its own.
    """
    started = time.perf_counter()
    shard_set = shards(root / "data", corpus, procs, progress)
    run = root / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}"
    pretrained = pretrain(pretrain_config, shard_set, run, world=world, progress=progress)
    finetuned = finetune(finetune_config, run, shard_set, world=world, progress=progress)
    scoring: Any = {"backend": finetune_config.backend, "world": world, "progress": progress}
    evaluated = evaluate(run, shard_set, **scoring)
    aug, frontend = pretrain_config.aug, estimate_frontend(shard_set)
    found = preview.examples(
        shard_set,
        frontend,
        recipe=parse_recipe(aug),
        count=PREVIEW_TRACKS,
        seed=pretrain_config.seed,
    )
    preview.draw(found, frontend.mel, f"Recipe {aug}", run / "plots" / "preview.png")
    plots.pretraining(run)
    plots.finetuning(finetuned)
    plots.evaluation(evaluated)
    reported = report([run], shard_set, **scoring)
    return DemoResult(
        shard_set=shard_set,
        run=run,
        pretrained=pretrained,
        finetuned=finetuned,
        evaluated=evaluated,
        reported=reported,
        seconds=time.perf_counter() - started,
    )


def shards(
    data: Path, corpus: SyntheticCorpus, procs: int, progress: Progress, *, name: str = "fma_small"
) -> ShardSet:
    """Return the shards `name` of `corpus` in `data`, synthesized and packed if they are not there."""
    folder = data / "shards" / name
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    audio = data / "synthetic"
    if not audio.exists():
        synthesize(audio, corpus, procs=procs, progress=progress)
    return pack(load_fma("fma_small", audio), folder, procs=procs, progress=progress)
