"""The whole way on a small synthetic corpus: from MP3 files to a scored genre classifier."""

import dataclasses
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from siamusic_fast.analysis import plots, preview
from siamusic_fast.audio.fma import load_fma
from siamusic_fast.config import BACKENDS, FinetuneConfig, MelConfig, PretrainConfig
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


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What is made and how it is trained on."""

    corpus: SyntheticCorpus
    pretrain: PretrainConfig
    finetune: FinetuneConfig


DEFAULT = DemoConfig(
    corpus=SyntheticCorpus(),
    pretrain=PretrainConfig(
        mel=MelConfig(seconds=2.0), backbone="resnet18", epochs=8, batch_size=32, knn_every=0
    ),
    finetune=FinetuneConfig(epochs=8, batch_size=32),
)
"""Shorter crops, a smaller backbone and fewer epochs than the paper's: minutes on two CPU cores."""


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
    root: Path,
    config: DemoConfig = DEFAULT,
    *,
    seed: int = 0,
    backend: str = BACKENDS[0],
    procs: int = 1,
    world: World | None = None,
    progress: Progress = SILENT,
) -> DemoResult:
    """Synthesize, pack, preview, pre-train, fine-tune, evaluate and draw, all inside the folder `root`.

    The corpus and its shards are made by `procs` processes, once, and serve again; each call trains anew,
    with `seed`, into a run folder of its own. `backend` computes the views and the features. Raises
    `DataError` if `root` holds something else.
    """
    started = time.perf_counter()
    shard_set = shards(root / "data", config.corpus, procs, progress)
    run = root / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}"
    pretrain_config = dataclasses.replace(config.pretrain, seed=seed, backend=backend)
    pretrained = pretrain(pretrain_config, shard_set, run, world=world, progress=progress)
    finetune_config = dataclasses.replace(config.finetune, seed=seed, backend=backend)
    finetuned = finetune(finetune_config, run, shard_set, world=world, progress=progress)
    evaluated = evaluate(run, shard_set, backend=backend, world=world, progress=progress)

    with progress.task("Drawing", 4, "pictures") as task:
        recipe, frontend = parse_recipe(config.pretrain.aug), estimate_frontend(shard_set)
        crops = preview.PreviewConfig(seed=seed)
        found = preview.examples(shard_set, frontend, recipe=recipe, count=PREVIEW_TRACKS, config=crops)
        preview.draw(found, frontend.mel, f"Recipe {config.pretrain.aug}", run / "plots" / "preview.png")
        task.advance()
        plots.pretraining(run)
        task.advance()
        plots.finetuning(finetuned)
        task.advance()
        plots.evaluation(evaluated)
        task.advance()
    return DemoResult(
        shard_set=shard_set,
        run=run,
        pretrained=pretrained,
        finetuned=finetuned,
        evaluated=evaluated,
        seconds=time.perf_counter() - started,
    )


def shards(data: Path, corpus: SyntheticCorpus, procs: int, progress: Progress) -> ShardSet:
    """Return the shards of `corpus` in `data`, synthesized and packed if they are not there."""
    folder = data / "shards" / "fma_small"
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    audio = data / "synthetic"
    if not audio.exists():
        synthesize(audio, corpus, procs=procs, progress=progress)
    return pack(load_fma("fma_small", audio), folder, procs=procs, progress=progress)
