"""Measured windows, what they say, and on which machine."""

import datetime
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from siamusic_fast.errors import DataError
from siamusic_fast.processes.pool import cores

FORMAT = "siamusic-fast benchmark"
FEWEST_WINDOWS = 3
"""Fewer say nothing of the spread, so there is no verdict."""
_ENOUGH_WINDOWS = 5
"""Fewer seldom come upon the extremes: what they spread is doubled."""
TOO_FEW = "too few windows"
SAME = "no difference within the spread"
_PACKAGES = ("torchaudio", "torchvision", "soundfile", "siamusic-fast")
"""Whose versions a report names, beside those of torch and DALI."""


class _Windows:
    """What is known of the same thing measured several times."""

    windows: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the windows."""
        return statistics.median(self.windows)

    @property
    def spread(self) -> float:
        """The largest distance of a window from the median, as a share of it; doubled for less than five.

        Of windows that only chance tells apart, the median of a second run then is farther away in one of
        ten cases with three or five windows, in one of thirty with seven, and in one of a hundred with nine.
        """
        return self._distance / self.median if self.median else 0.0

    @property
    def low(self) -> float:
        """The least that the windows allow for: the median less its spread."""
        return self.median - self._distance

    @property
    def high(self) -> float:
        """The most that the windows allow for."""
        return self.median + self._distance

    @property
    def _distance(self) -> float:
        farthest = max(abs(value - self.median) for value in self.windows)
        return farthest if len(self.windows) >= _ENOUGH_WINDOWS else 2 * farthest

    def _against(self, target: float, *, at_most: bool) -> str:
        """Return on which side of the `target` the median is, if it is so within the whole spread."""
        if len(self.windows) < FEWEST_WINDOWS:
            return TOO_FEW
        if self.high <= target if at_most else self.low >= target:
            return "reached"
        missed = self.low > target if at_most else self.high < target
        return "not reached" if missed else "not certain within the spread"


@dataclass(frozen=True, kw_only=True)
class Measurement(_Windows):
    """Rates of equally long windows of the same work."""

    name: str
    unit: str
    """Such as pairs/s."""
    windows: tuple[float, ...]
    cpu_windows: tuple[float, ...] = ()
    """CPU milliseconds, of all processes, that one item took in each window: one pair if that is the unit."""
    setting: str = ""
    """How it was set up, such as 2 workers."""
    ours: bool = False
    """Whether it is this package's work, and not what it is compared with."""
    target: float | None = None
    """What the project asks for, at least or `at_most`."""
    at_most: bool = False
    """Whether less is better, and `target` what the project allows."""

    @property
    def cpu_ms(self) -> float | None:
        """Median CPU milliseconds of an item."""
        return statistics.median(self.cpu_windows) if self.cpu_windows else None

    @property
    def verdict(self) -> str:
        """Say whether the target is reached; nothing if there is none."""
        return "" if self.target is None else self._against(self.target, at_most=self.at_most)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, every window included."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "spread": self.spread,
            "windows": list(self.windows),
            "cpu_ms": self.cpu_ms,
            "cpu_windows": list(self.cpu_windows),
            "setting": self.setting,
            "ours": self.ours,
            "target": self.target,
            "at_most": self.at_most,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, kw_only=True)
class Ratio(_Windows):
    """One measurement over another that was made in turns with it: a quotient for each pair of windows."""

    name: str
    windows: tuple[float, ...]
    target: float | None = None
    """What the project asks for, at least."""
    at_most: bool = False
    """Whether less is better, and `target` what the project allows."""

    @classmethod
    def of(cls, above: Measurement, below: Measurement, target: float | None = None) -> "Ratio":
        """Divide window by window."""
        pairs = zip(above.windows, below.windows, strict=True)
        return cls(name=f"{above.name} / {below.name}", windows=tuple(a / b for a, b in pairs), target=target)

    @classmethod
    def of_cpu(cls, above: Measurement, below: Measurement, target: float | None = None) -> "Ratio":
        """Divide the CPU seconds of an item, window by window; `target` is the most that is allowed."""
        pairs = zip(above.cpu_windows, below.cpu_windows, strict=True)
        return cls(
            name=f"CPU seconds: {above.name} / {below.name}",
            windows=tuple(a / b for a, b in pairs),
            target=target,
            at_most=True,
        )

    @property
    def verdict(self) -> str:
        """Say on which side of its target, or of 1, the ratio is, if it is so within the whole spread."""
        if self.target is not None:
            return self._against(self.target, at_most=self.at_most)
        if len(self.windows) < FEWEST_WINDOWS:
            return TOO_FEW
        if self.low > 1:
            return "more"
        return "less" if self.high < 1 else SAME

    def as_json(self) -> dict[str, Any]:
        """Return plain values, every window included."""
        return {
            "name": self.name,
            "median": self.median,
            "spread": self.spread,
            "target": self.target,
            "at_most": self.at_most,
            "verdict": self.verdict,
            "windows": list(self.windows),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one benchmark found."""

    title: str
    settings: dict[str, Any]
    measurements: tuple[Measurement, ...]
    ratios: tuple[Ratio, ...] = ()
    limits: dict[str, float] = field(default_factory=dict)
    """What the machine allows, by the name of the measurement that it bounds, in its unit."""
    notes: tuple[str, ...] = ()
    befores: dict[str, str] = field(default_factory=dict)
    """Of measurements that are stages: the name of the stage that each extends, "" if it is the first."""
    hardware: dict[str, Any] = field(default_factory=lambda: machine())
    """The machine that it is of, and its versions."""
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    """Of the measurement, such as 2026-11-22; "" if that was not kept."""
    seconds: float | None = None
    """That all of it took, if that was kept."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "format": FORMAT,
            "title": self.title,
            "date": self.date,
            "seconds": self.seconds,
            "machine": self.hardware,
            "settings": self.settings,
            "results": [one.as_json() for one in self.measurements],
            "ratios": [one.as_json() for one in self.ratios],
            "limits": self.limits,
            "notes": list(self.notes),
            "befores": self.befores,
        }


def read_report(document: dict[str, Any], name: str) -> Report:
    """Return the report that `as_json` made the document called `name` of; raise `DataError` if not."""
    try:
        if document["format"] != FORMAT:
            raise ValueError(document["format"])
        return Report(
            title=document["title"],
            settings=document["settings"],
            measurements=tuple(map(_read_measurement, document["results"])),
            ratios=tuple(map(_read_ratio, document["ratios"])),
            limits=document["limits"],
            notes=tuple(document["notes"]),
            befores=document.get("befores", {}),
            hardware=document["machine"],
            date=document.get("date", ""),
            seconds=document.get("seconds"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{name} is no result of a benchmark ({type(error).__name__}: {error}): give what "
            f"`siamusic-fast bench --out` kept."
        ) from error


def _read_measurement(values: dict[str, Any]) -> Measurement:
    return Measurement(
        name=values["name"],
        unit=values["unit"],
        windows=_read_windows(values),
        cpu_windows=tuple(values.get("cpu_windows", ())),
        setting=values.get("setting", ""),
        ours=values.get("ours", False),
        target=values.get("target"),
        at_most=values.get("at_most", False),
    )


def _read_ratio(values: dict[str, Any]) -> Ratio:
    return Ratio(
        name=values["name"],
        windows=_read_windows(values),
        target=values["target"],
        at_most=values.get("at_most", False),
    )


def _read_windows(values: dict[str, Any]) -> tuple[float, ...]:
    windows = tuple(map(float, values["windows"]))
    if not windows:
        raise ValueError(f"{values['name']} has no windows")
    return windows


def named(measurements: Sequence[Measurement], name: str) -> Measurement:
    """Return the measurement of that name."""
    return next(one for one in measurements if one.name == name)


def added_ms(measurements: Sequence[Measurement], stage: str, befores: Mapping[str, str]) -> float:
    """Return the milliseconds of an item that `stage` adds to those of the one that it extends."""
    whole = 1000 / named(measurements, stage).median
    before = befores[stage]
    return whole - 1000 / named(measurements, before).median if before else whole


def number(value: float) -> str:
    """Return `value` with about three digits."""
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, memory, GPUs and versions."""
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
    """Return the version of the GPU's driver, if there is a program that tells it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.partition("\n")[0].strip() or None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
