"""What a study will take: runs, hours of the devices, and gigabytes, from a few steps that are measured."""

import dataclasses
import itertools
import math
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from siamusic_fast.models.methods import method_of
from siamusic_fast.pipelines.augmentation import WaveAugmentation
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.pipelines.recipes import parse_recipe
from siamusic_fast.processes.launch import device_for
from siamusic_fast.processes.parent import children_end_with_this_process
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.shards.tables import read_tracks
from siamusic_fast.studies.slots import Devices
from siamusic_fast.studies.study import Cell, Study, StudyFolder
from siamusic_fast.training.training_step import TrainingStep

_MAX_BATCH_ON_CPU = 8
"""Pairs in a step that is measured on a CPU, where a step takes as long as its pairs."""
_STEPS = {"cuda": 10, "cpu": 2}
"""Steps that are measured."""
_WARM_UP = {"cuda": 3, "cpu": 1}
"""Steps before them."""
_TRAIN_SHARE = 1 / 2
"""Time of a crop in fine-tuning, of that of a pair of crops in pre-training."""
_SCORE_SHARE = 1 / 6
"""Time of a crop that is scored, of that of a pair in pre-training: forward only, which is a third."""
_OPTIMIZER_COPIES = 3
"""Numbers in a checkpoint per parameter: its value, and the two moments of Adam."""
_MAX_CROPS = 128


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the cells of a study that are not finished will take."""

    cells: int
    """Cells that are left."""
    finished: int
    """Cells that are finished."""
    finetunings: int
    """Fine-tunings that are left, each followed by an evaluation."""
    device_hours: float
    """Hours of all GPUs together, or of the CPU."""
    hours: float
    """Hours from start to end, with as many cells at a time as there are slots."""
    gigabytes: float
    """Gigabytes that remain."""
    peak_gigabytes: float
    """Gigabytes that running cells take besides, for checkpoints that are removed when a cell is finished."""
    free_gigabytes: float
    """Gigabytes that are free where the study is kept."""
    idle_gpus: int
    """GPUs that have no cell, as there are fewer of them than a cell has."""
    device: str
    """The device that steps were measured on."""
    how: str
    """How the hours were found."""


def estimate(study: Study, folder: StudyFolder, devices: Devices, progress: Progress = SILENT) -> Estimate:
    """Measure a few steps of each network of the cells that are left, and return what the study will take.

    A step is measured with its loader on one device, without torch.compile. The crops of fine-tuning and
    evaluation are counted at a half and a sixth of the time of a pair.
    """
    left = folder.left(study)
    gpus = min(devices.gpus_per_cell, 1)
    with _caller(gpus) as call:
        seconds_per_pair = _measured(left, gpus, call, progress)
        name = call(_device_name, gpus)
    longest_track = max(track.seconds for track in read_tracks(study.test.folder))
    device_seconds = [_seconds(study, cell, longest_track) * seconds_per_pair[_key(cell)] for cell in left]
    sizes = [_gigabytes(study, cell) for cell in left]
    largest = sorted((peak for _, peak in sizes), reverse=True)[: devices.slots]
    place = next(path for path in (folder.path.absolute(), *folder.path.absolute().parents) if path.exists())
    steps, networks = _STEPS["cuda" if gpus else "cpu"], len(seconds_per_pair)
    return Estimate(
        cells=len(left),
        finished=len(study.cells) - len(left),
        finetunings=len(left) * len(study.finetuning),
        device_hours=sum(device_seconds) / 3600,
        hours=_makespan(device_seconds, devices.slots) / devices.processes / 3600,
        gigabytes=sum(kept for kept, _ in sizes),
        peak_gigabytes=sum(largest),
        free_gigabytes=shutil.disk_usage(place).free / 1e9,
        idle_gpus=devices.idle_gpus,
        device=name,
        how=f"from {steps} steps of each of {networks} networks with its loader, without torch.compile",
    )


def _key(cell: Cell) -> tuple[str, bool]:
    """Return what the time of a step depends on most: the network, and whether waveforms are changed."""
    waves = any(isinstance(step, WaveAugmentation) for step in parse_recipe(cell.config.aug))
    return cell.config.backbone, waves


@contextmanager
def _caller(gpus: int) -> Iterator[Callable[..., Any]]:
    """Give what calls a function: here, or for a GPU in another process.

    A process that has used a GPU keeps some of its memory until it ends, and this one stays while cells run.
    """
    if not gpus:
        yield lambda function, *arguments: function(*arguments)
        return
    with (
        children_end_with_this_process(),
        ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is for this process
        ) as other,
    ):
        yield lambda function, *arguments: other.submit(function, *arguments).result()


def _measured(
    cells: Sequence[Cell], gpus: int, call: Callable[..., Any], progress: Progress
) -> dict[tuple[str, bool], float]:
    """Return the seconds of one pair in pre-training, on one device, of each kind of cell."""
    kinds = {_key(cell): cell for cell in reversed(cells)}
    with progress.task("Measuring", len(kinds), "networks") as task:
        found = {}
        for key, cell in kinds.items():
            found[key] = call(_seconds_per_pair, cell, gpus)
            task.advance(note=f"{cell.config.backbone}: {1 / found[key]:.1f} pairs/s")
    return found


def _seconds_per_pair(cell: Cell, gpus: int) -> float:
    config, device = cell.config, device_for(gpus)
    if device.type == "cpu":
        config = dataclasses.replace(config, batch_size=min(config.batch_size, _MAX_BATCH_ON_CPU))
    step = TrainingStep(config, device, compiles=False)
    with TwoViewLoader(
        cell.data,
        aug=config.aug,
        splits=config.splits,
        frontend=estimate_frontend(
            cell.data, config.mel, short_tracks=config.short_tracks, normalization=config.normalization
        ),
        crops=config.crops,
        max_distance=config.max_distance,
        batch_size=config.batch_size,
        backend=config.backend,
        device=device,
        seed=config.seed,
    ) as loader:
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        pairs = 0
        for number, views in enumerate(
            itertools.islice(batches, _WARM_UP[device.type] + _STEPS[device.type])
        ):
            if number == _WARM_UP[device.type]:
                _synchronize(device)
                pairs, started = 0, time.perf_counter()
            step(views)
            pairs += len(views[0])
        _synchronize(device)
    return (time.perf_counter() - started) / pairs


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(study: Study, cell: Cell, longest_track: float) -> float:
    """Return what a cell takes, in the time of one pair of pre-training.

    Every track is counted with the crops of the longest one, of `longest_track` seconds.
    """
    pairs: float = cell.config.epochs * cell.data.tracks(cell.config.splits)
    crops = min(_MAX_CROPS, math.ceil(longest_track / cell.config.mel.seconds))
    tracks = {split: study.test.tracks([split], labelled_only=True) for split in study.test.splits}
    for config in study.finetuning.values():
        trained = tracks["training"] * (config.crops_per_track or 1)
        in_epoch = trained * _TRAIN_SHARE + tracks["validation"] * crops * _SCORE_SHARE
        pairs += config.epochs * in_epoch + tracks["test"] * crops * _SCORE_SHARE
    return pairs


def _gigabytes(study: Study, cell: Cell) -> tuple[float, float]:
    """Return the gigabytes that remain of a cell, and those that it takes besides while it runs."""
    with torch.device("meta"):
        network = method_of(cell.config)
    all_, encoder = (4e-9 * sum(p.numel() for p in part.parameters()) for part in (network, network.encoder))
    checkpoint, classifier = _OPTIMIZER_COPIES * all_, encoder
    kept = checkpoint + len(study.finetuning) * classifier
    # The checkpoint before the last one and the one that is being written; then those of a fine-tuning.
    return kept, max(2 * checkpoint, checkpoint + 3 * _OPTIMIZER_COPIES * encoder * len(study.finetuning))


def _makespan(seconds: Sequence[float], slots: int) -> float:
    """Return the time until all jobs are done if each slot takes the next one when it is free."""
    busy_until = [0.0] * slots
    for one in seconds:
        first = busy_until.index(min(busy_until))
        busy_until[first] += one
    return max(busy_until)


def _device_name(gpus: int) -> str:
    return torch.cuda.get_device_name(0) if gpus else "the CPU of this machine"
