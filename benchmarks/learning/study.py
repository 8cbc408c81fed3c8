"""Trains and scores every configuration of the study on one set of labelled music, and keeps the figures.

python -m benchmarks.learning.study encoders AUDIO WORK      encoders and baselines, scored on the test tracks
python -m benchmarks.learning.study classifiers AUDIO WORK   classifiers, fine-tuned and from scratch

AUDIO is a folder of audio with labels.csv, which has the columns path, label, split and group; no group is in
two splits. Shards and runs go to WORK. A figure that is there already is not measured again.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning import settings
from siamusic_fast.audio.folder import load_folder
from siamusic_fast.bench.report import describe_machine
from siamusic_fast.cli.console import note, progress
from siamusic_fast.config import dump
from siamusic_fast.evaluation.evaluate import PREDICTIONS, evaluate
from siamusic_fast.evaluation.intervals import mean_interval
from siamusic_fast.evaluation.probe import ProbeResult, probe
from siamusic_fast.files import atomic_write
from siamusic_fast.shards.manifest import MANIFEST, ShardSet, read_manifest
from siamusic_fast.shards.pack import pack
from siamusic_fast.shards.tables import read_tracks
from siamusic_fast.training.finetune import finetune
from siamusic_fast.training.pretrain import pretrain

RESULTS = Path(__file__).parent / "results"
TRAINED = "trained.json"
"""File in the folder of a run that is whole, with what its training came to."""
SPLITS = ("training", "validation")
"""Splits that encoders learn from, without labels."""

Row = dict[str, Any]


def packed(audio: Path, work: Path) -> ShardSet:
    """Return the shards of `audio`, packed if they are not there."""
    folder = work / "shards"
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    return pack(load_folder(audio, labels=audio / "labels.csv"), folder)


def run_of(name: str, seed: int, shard_set: ShardSet, work: Path) -> Path:
    """Return the run of a configuration, which is trained if it is not there."""
    run = work / "runs" / f"{name.replace(', ', '-')}-{seed}"
    if (run / TRAINED).exists():
        return run
    config = replace(settings.pretraining(name, seed, shard_set.tracks(SPLITS)), splits=SPLITS)
    result = pretrain(config, shard_set, run, force=True, progress=progress(quiet=False))
    figures = {"seconds": result.seconds, "steps": result.steps, "loss": result.loss}
    (run / TRAINED).write_text(json.dumps(figures), encoding="utf-8")
    return run


def scored(name: str, seed: int, shard_set: ShardSet, work: Path) -> Row:
    """Pre-train a configuration and probe the encoder; return its settings and all measures."""
    run = run_of(name, seed, shard_set, work)
    about = json.loads((run / "config.json").read_text(encoding="utf-8"))
    found = probe(run, shard_set, config=replace(settings.PROBE, seed=seed), force=True)
    return {
        "name": name,
        "seed": seed,
        "settings": {key: value for key, value in about.items() if key not in ("data", "processes")},
        "training": json.loads((run / TRAINED).read_text(encoding="utf-8")),
        **figures(found),
    }


def figures(found: ProbeResult) -> Row:
    """Return the measures of a probe by name, and the effective ranks by features."""
    return {
        "measures": {measure.name: asdict(measure) for measure in found.measures},
        "ranks": {name: one.effective_rank for name, one in found.probes.items()},
    }


def classified(fraction: float, seed: int, from_scratch: bool, shard_set: ShardSet, work: Path) -> Row:
    """Train a classifier on the encoder of music, or from scratch, and score it on the test tracks."""
    run = run_of("music", seed, shard_set, work)
    config = replace(settings.FINETUNE, seed=seed, label_fraction=fraction, from_scratch=from_scratch)
    out = work / "classifiers" / f"{'scratch' if from_scratch else 'music'}-{fraction:g}-{seed}"
    started = time.perf_counter()
    finetune(config, run, shard_set, out, force=True)
    evaluate(out, shard_set, backend=config.backend)
    groups = {row.track_id: row.group for row in read_tracks(shard_set.folder)}
    lines = (out / "evaluate" / PREDICTIONS).read_text(encoding="utf-8").splitlines()[1:]
    cells = [line.split(",") for line in lines]
    right = [float(truth == prediction) for _, truth, prediction, *_ in cells]
    return {
        "name": "from scratch" if from_scratch else "fine-tuned",
        "fraction": fraction,
        "seed": seed,
        "settings": dump(config),
        "seconds": time.perf_counter() - started,
        "keys": [key for key, *_ in cells],
        "right": right,
        "accuracy": float(np.mean(right)),
        "interval": mean_interval(right, [groups[key] for key, *_ in cells]),
        "groups": [groups[key] for key, *_ in cells],
    }


def keep(stage: str, wanted: dict[tuple[Any, ...], Callable[[], Row]]) -> None:
    """Measure each of `wanted` that is not in the results of `stage` yet, and add it to them."""
    path = RESULTS / f"{stage}.json"
    known: Row = {"machine": describe_machine(), "rows": []}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
    have = {(row["name"], row.get("fraction"), row["seed"]) for row in known["rows"]}
    for number, (key, measure) in enumerate(wanted.items(), start=1):
        if key not in have:
            note(f"{number} of {len(wanted)}: {', '.join(map(str, filter(None, key)))}")
            known["rows"].append(measure())
            with atomic_write(path) as file:
                file.write(json.dumps(known, indent=1).encode())


def main(stage: str, audio: Path, work: Path) -> None:
    shard_set = packed(audio, work)
    RESULTS.mkdir(exist_ok=True)
    wanted: dict[tuple[Any, ...], Callable[[], Row]] = {}
    if stage == "encoders":
        for name, seed in ((name, seed) for name, seeds in settings.SEEDS.items() for seed in seeds):
            wanted[name, None, seed] = partial(scored, name, seed, shard_set, work)
    else:
        kinds = [(share, seed) for share, seeds in settings.LABEL_FRACTIONS.items() for seed in seeds]
        for (fraction, seed), scratch in itertools.product(kinds, (False, True)):
            key = "from scratch" if scratch else "fine-tuned", fraction, seed
            wanted[key] = partial(classified, fraction, seed, scratch, shard_set, work)
    keep(stage, wanted)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
