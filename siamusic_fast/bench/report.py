"""The windows that a benchmark measured, their median and spread, and the machine that they are of."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from siamusic_fast.processes.pool import cores

FORMAT = "siamusic-fast benchmark"
_ENOUGH_WINDOWS = 5
"""Number of windows below which extremes are seldom seen, so that the spread is doubled."""
_PACKAGES = ("torchaudio", "torchvision", "soundfile", "siamusic-fast")
"""Packages whose versions a report names, beside those of torch and DALI."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """One quantity, measured in several windows."""

    name: str
    windows: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the windows."""
        return statistics.median(self.windows)

    @property
    def distance(self) -> float:
        """Largest distance of a window from the median; doubled for less than five windows.

        With this rule, if only chance tells two runs apart, the median of the second run lies outside the
        spread in one of ten cases with three or five windows, and in one of a hundred with nine.
        """
        largest = max(abs(value - self.median) for value in self.windows)
        return largest if len(self.windows) >= _ENOUGH_WINDOWS else 2 * largest

    @property
    def spread(self) -> float:
        """The distance as a share of the median."""
        return self.distance / self.median if self.median else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain values, every window included."""
        return {**dataclasses.asdict(self), "median": self.median, "spread": self.spread}


@dataclass(frozen=True, kw_only=True)
class Measurement(Windows):
    """The rates of one workload."""

    unit: str
    """Unit of the rates, such as pairs/s."""
    cpu_windows: tuple[float, ...] = ()
    """CPU milliseconds of all threads that one item took in each window."""
    setting: str = ""
    """How it was set up, such as 2 threads."""
    ours: bool = False
    """Whether it is a part of this package, and not a baseline or a limit."""
    extends: str = ""
    """Name of the stage that this one extends, if it is a stage."""
    limit: float | None = None
    """What this machine allows, in the same unit, if that was measured."""

    @property
    def cpu_ms(self) -> float | None:
        """Median of the CPU milliseconds of one item."""
        return statistics.median(self.cpu_windows) if self.cpu_windows else None


@dataclass(frozen=True, kw_only=True)
class Ratio(Windows):
    """One measurement over another that was made in turns with it: a quotient for each pair of windows."""

    @classmethod
    def of(cls, above: Measurement, below: Measurement) -> "Ratio":
        """Divide the rates window by window."""
        pairs = zip(above.windows, below.windows, strict=True)
        return cls(name=f"{above.name} / {below.name}", windows=tuple(a / b for a, b in pairs))


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one benchmark found."""

    title: str
    settings: dict[str, Any]
    measurements: tuple[Measurement, ...]
    ratios: tuple[Ratio, ...] = ()
    notes: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())
    """The hardware and the versions that the figures depend on."""
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    """Day of the measurement, such as 2026-11-22."""
    seconds: float | None = None
    """Time that the whole benchmark took."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "format": FORMAT,
            **dataclasses.asdict(self),
            "measurements": [one.as_json() for one in self.measurements],
            "ratios": [one.as_json() for one in self.ratios],
        }


def named(measurements: Iterable[Measurement], name: str) -> Measurement:
    """Return the measurement of that name."""
    return next(one for one in measurements if one.name == name)


def added_ms(measurements: Iterable[Measurement], stage: Measurement) -> float:
    """Return how many milliseconds an item takes longer with `stage` than with the stage that it extends."""
    return 1000 / stage.median - 1000 / named(measurements, stage.extends).median


def number(value: float) -> str:
    """Return `value` with about three digits."""
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def describe_machine() -> dict[str, Any]:
    """Return the processor, its cores, memory, GPUs and versions."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": gpus,
        "driver": _driver() if gpus else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dali": importlib.metadata.version("nvidia-dali-cuda120"),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _driver() -> str | None:
    """Return the version of the GPU's driver, if nvidia-smi tells it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return found.stdout.partition("\n")[0].strip() or None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
