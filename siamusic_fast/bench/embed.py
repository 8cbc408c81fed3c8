"""Measures how fast tracks are embedded, from MP3s and from shards, and what the parts of the work allow."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.bench.corpus import make_corpus, make_shards
from siamusic_fast.bench.report import Measurement, Ratio, Report
from siamusic_fast.config import CropConfig, PretrainConfig
from siamusic_fast.embedding.extract import Extractor, spectrograms
from siamusic_fast.embedding.results import Listening
from siamusic_fast.embedding.sources import Sources, open_sources
from siamusic_fast.frontend import Frontend
from siamusic_fast.models import networks
from siamusic_fast.pipelines.torch.features import LogMel
from siamusic_fast.processes.pool import cores
from siamusic_fast.progress import SILENT, Progress

FRONTEND = Frontend(mean=-40.0, std=15.0)
"""The paper's features; the statistics do not change the speed."""
_READING = {"MP3s": "decoding", "shards": "reading"}
"""What is embedded, and the part of the work in which they differ."""
_ALONE = 8
"""Tracks of which each part of the work is measured alone, in one thread."""


def measure(
    backbone: str,
    device: torch.device,
    *,
    tracks: int = 200,
    windows: int = 3,
    progress: Progress = SILENT,
) -> Report:
    """Embed `tracks` clips of 30 s `windows` times, as MP3s and as shards, with random weights.

    In turns with that, reading or decoding, the spectrograms and the network are measured alone, in one
    thread. What they allow is the cores over the sum of their CPU seconds, or on a GPU the tightest of cores
    over CPU seconds and one over seconds of the GPU.
    """
    encoder = networks.encoder(PretrainConfig(backbone=backbone).architecture)
    encoder.frontend = FRONTEND
    listening = networks.listening_of(networks.place(encoder, device).eval(), CropConfig())
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="siamusic-fast-") as scratch:
        corpus = make_corpus(Path(scratch) / "mp3", tracks, "mp3", progress=progress)
        shard_set = make_shards(Path(scratch), tracks, progress=progress)
        sources = dict(zip(_READING, (open_sources(corpus.folder), open_sources(shard_set)), strict=True))
        with progress.task("Embedding", windows * len(_READING), "windows") as task:
            for _ in range(windows):
                for name, source in sources.items():
                    values = _alone(listening, source, name) | _together(listening.extractor(), source, name)
                    for what, value in values.items():
                        found.setdefault(what, []).append(value)
                    task.advance(note=f"{name}: {values[_embedding(name)]:,.1f} tracks/s")
    measurements = {
        name: Measurement(
            name=name,
            unit="tracks/s",
            windows=tuple(values),
            setting="one thread" if name.startswith("alone") else f"{cores()} cores",
            ours=not name.startswith("limit"),
        )
        for name, values in found.items()
    }
    return Report(
        title=f"Embedding {tracks:,} clips of 30 s with {backbone} on {device.type}",
        settings={"backbone": backbone, "device": device.type, "tracks": tracks, "windows": windows},
        measurements=tuple(measurements.values()),
        ratios=tuple(
            Ratio.of(measurements[of(name)], measurements[_limit(name)])
            for name in _READING
            for of in (_embedding, _of_cpu)
        ),
    )


def _embedding(name: str) -> str:
    return f"embedding {name}"


def _of_cpu(name: str) -> str:
    return f"embedding {name}, if no core had other work"


def _limit(name: str) -> str:
    return f"limit of {name}"


def _together(extractor: Extractor, source: Sources, name: str) -> dict[str, float]:
    """Return tracks per second of the whole work in all threads, and tracks per second of the CPU."""
    started, cpu_started = time.perf_counter(), time.process_time()
    count = sum(1 for _ in extractor.extract(source.all_items(), source.samples))
    cpu_seconds, seconds = time.process_time() - cpu_started, time.perf_counter() - started
    return {_embedding(name): count / seconds, _of_cpu(name): cores() * count / cpu_seconds}


def _alone(listening: Listening, source: Sources, name: str) -> dict[str, float]:
    """Return tracks per second of each part of the work in one thread, and what all cores allow of the whole.

    On a CPU the seconds are those of the CPU; so a machine that is busy otherwise shows the same limit.
    """
    on_cpu = listening.device.type == "cpu"
    items = list(itertools.islice(source.all_items(), _ALONE))
    pcm: list[Tensor] = []
    mels: list[Tensor] = []
    log_mel = LogMel(listening.frontend, listening.frontend.mel.sample_rate, listening.device)

    def read() -> None:
        for item in items:
            for piece in item.open(listening.frontend):
                starts = piece.starts(listening.frontend, listening.config)
                crops = np.empty((len(starts), listening.frontend.mel.samples), np.int16)
                piece.read(starts, crops)
                pcm.append(torch.from_numpy(crops))

    def transform() -> None:
        mels.extend(
            spectrograms(log_mel, crops.to(listening.device))
            for crops in (pcm if on_cpu else [torch.cat(pcm)])
        )

    def apply() -> None:
        for some in mels:
            listening.network(some)

    parts = {_READING[name]: read, "spectrograms": transform, "network": apply}
    with _one_thread(), torch.no_grad():
        seconds = {
            part: _seconds(call, on_cpu or call is read, listening.device) / len(items)
            for part, call in parts.items()
        }
    rates = {f"alone: {part}, {name}": 1 / value for part, value in seconds.items()}
    reading, *others = seconds.values()
    limit = cores() / sum(seconds.values()) if on_cpu else min(cores() / reading, 1 / sum(others))
    return rates | {_limit(name): limit}


def _seconds(call: Callable[[], None], of_cpu: bool, device: torch.device) -> float:
    """Return the seconds that `call` takes: of this process's CPU, or on the clock when a GPU is done."""
    clock = time.process_time if of_cpu else time.perf_counter
    started = clock()
    call()
    if not of_cpu:
        torch.cuda.synchronize(device)
    return clock() - started


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
