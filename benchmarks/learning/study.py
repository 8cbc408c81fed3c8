"""Trains and scores every configuration of the study on one set of labelled music, and keeps the figures.

python -m benchmarks.learning.study encoders AUDIO WORK      encoders and baselines, scored on the test tracks
python -m benchmarks.learning.study classifiers AUDIO WORK   classifiers, fine-tuned and from scratch

AUDIO is a folder of audio with labels.csv, which has the columns path, label, split and group; no group is in
two splits. Shards and runs go to WORK. A figure that is there already is not measured again.
"""

import csv
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning import settings
from benchmarks.learning.settings import Encoder
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


def packed(audio: Path, work: Path, tracks: int | None = None) -> ShardSet:
    """Return the shards of `audio`, or of so many of its tracks for learning, packed if need be."""
    folder = work / ("shards" if tracks is None else f"shards-{tracks}")
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    labels = audio / "labels.csv"
    if tracks is not None:
        labels = work / f"labels-{tracks}.csv"
        _draw(audio / "labels.csv", labels, tracks)
    return pack(load_folder(audio, labels=labels), folder)


def _draw(source: Path, target: Path, tracks: int) -> None:
    """Write the lines of so many of the tracks for learning, drawn at random, to `target`."""
    with source.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in SPLITS]
    drawn = random.Random(0).sample(rows, tracks)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(drawn)


def run_of(encoder: Encoder, audio: Path, work: Path) -> Path:
    """Return the run of an encoder, which is trained if it is not there."""
    drawn = "" if encoder.tracks is None else f"-{encoder.tracks}-tracks"
    name = encoder.name.replace(", ", "-")
    run = work / "runs" / f"{name}-{encoder.seed}-{encoder.steps}-steps{drawn}"
    if (run / TRAINED).exists():
        return run
    shard_set = packed(audio, work, encoder.tracks)
    tracks = shard_set.tracks(SPLITS)
    config = replace(settings.pretraining(encoder, tracks), splits=SPLITS)
    result = pretrain(config, shard_set, run, force=True, progress=progress(quiet=False))
    figures = {"tracks": tracks, "seconds": result.seconds, "steps": result.steps, "loss": result.loss}
    (run / TRAINED).write_text(json.dumps(figures), encoding="utf-8")
    return run


def scored(encoder: Encoder, audio: Path, work: Path) -> Row:
    """Pre-train an encoder and probe it; return its settings and all measures."""
    run = run_of(encoder, audio, work)
    about = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config = replace(settings.PROBE, seed=encoder.seed)
    found = probe(run, packed(audio, work), config=config, force=True)
    return {
        **asdict(encoder),
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


def classified(fraction: float, seed: int, from_scratch: bool, audio: Path, work: Path) -> Row:
    """Train a classifier on the encoder of music, or from scratch, and score it on the test tracks."""
    run, shard_set = run_of(Encoder("music", seed), audio, work), packed(audio, work)
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


def keep(stage: str, wanted: Sequence[tuple[Row, Callable[[], Row]]]) -> None:
    """Measure each of `wanted`, by what its row begins with, unless the results of `stage` have it."""
    path = RESULTS / f"{stage}.json"
    known: Row = {"machine": describe_machine(), "rows": []}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
    for number, (key, measure) in enumerate(wanted, start=1):
        if not any(key.items() <= row.items() for row in known["rows"]):
            note(f"{number} of {len(wanted)}: {', '.join(f'{name} {value}' for name, value in key.items())}")
            known["rows"].append(measure())
            with atomic_write(path) as file:
                file.write(json.dumps(known, indent=1).encode())


def main(stage: str, audio: Path, work: Path) -> None:
    RESULTS.mkdir(exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    if stage == "encoders":
        encoders = settings.ENCODERS + settings.CURVES
        keep(stage, [(asdict(one), partial(scored, one, audio, work)) for one in encoders])
        return
    kinds = [(share, seed) for share, seeds in settings.LABEL_FRACTIONS.items() for seed in seeds]
    wanted = []
    for (fraction, seed), scratch in itertools.product(kinds, (False, True)):
        key = {"name": "from scratch" if scratch else "fine-tuned", "fraction": fraction, "seed": seed}
        wanted.append((key, partial(classified, fraction, seed, scratch, audio, work)))
    keep(stage, wanted)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
