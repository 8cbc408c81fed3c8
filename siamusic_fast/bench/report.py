"""Measured windows, what they say, and on which machine."""

import importlib.metadata
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from siamusic_fast.errors import DataError
from siamusic_fast.shards.pool import cores

FORMAT = "siamusic-fast benchmark"


class _Windows:
    """What is known of the same thing measured several times."""

    windows: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the windows."""
        return statistics.median(self.windows)

    @property
    def spread(self) -> float:
        """Half the distance between the slowest and the fastest window, as a share of the median."""
        return (max(self.windows) - min(self.windows)) / 2 / self.median


@dataclass(frozen=True, kw_only=True)
class Measurement(_Windows):
    """Rates of equally long windows of the same work."""

    name: str
    unit: str
    """Such as pairs/s."""
    windows: tuple[float, ...]
    cpu_ms: float | None = None
    """CPU milliseconds, of all processes, that one item took: one pair if the unit is pairs/s."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values, every window included."""
        values = {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "spread": self.spread,
            "windows": list(self.windows),
        }
        return values if self.cpu_ms is None else {**values, "cpu_ms": self.cpu_ms}


@dataclass(frozen=True, kw_only=True)
class Ratio(_Windows):
    """One measurement over another that was made in turns with it: a quotient for each pair of windows."""

    name: str
    windows: tuple[float, ...]
    target: float | None = None
    """What the project asks for, at least."""

    @classmethod
    def of(cls, above: Measurement, below: Measurement, target: float | None = None) -> "Ratio":
        """Divide window by window."""
        pairs = zip(above.windows, below.windows, strict=True)
        return cls(name=f"{above.name} / {below.name}", windows=tuple(a / b for a, b in pairs), target=target)

    @property
    def verdict(self) -> str:
        """Say what the ratio shows: nothing if it is on either side of what matters within its spread."""
        goal = 1.0 if self.target is None else self.target
        if min(self.windows) >= goal:
            return "more" if self.target is None else "reached"
        if max(self.windows) < goal:
            return "less" if self.target is None else "not reached"
        return "no difference within the spread" if self.target is None else "not certain within the spread"

    def as_json(self) -> dict[str, Any]:
        """Return plain values, every window included."""
        return {
            "name": self.name,
            "median": self.median,
            "spread": self.spread,
            "target": self.target,
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

    def as_json(self) -> dict[str, Any]:
        """Return plain values with the machine that they are of."""
        return {
            "format": FORMAT,
            "title": self.title,
            "machine": machine(),
            "settings": self.settings,
            "results": [one.as_json() for one in self.measurements],
            "ratios": [one.as_json() for one in self.ratios],
            "limits": self.limits,
            "notes": list(self.notes),
        }


def read_report(document: dict[str, Any], name: str) -> Report:
    """Return the report that `as_json` made the document called `name` of; raise `DataError` if not."""
    try:
        if document["format"] != FORMAT:
            raise ValueError(document["format"])
        return Report(
            title=document["title"],
            settings=document["settings"],
            measurements=tuple(
                Measurement(
                    name=one["name"],
                    unit=one["unit"],
                    windows=tuple(one["windows"]),
                    cpu_ms=one.get("cpu_ms"),
                )
                for one in document["results"]
            ),
            ratios=tuple(
                Ratio(name=one["name"], windows=tuple(one["windows"]), target=one["target"])
                for one in document["ratios"]
            ),
            limits=document["limits"],
            notes=tuple(document["notes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{name} is no result of a benchmark ({type(error).__name__}: {error}): give what "
            f"`siamusic-fast bench --out` kept."
        ) from error


def named(measurements: Sequence[Measurement], name: str) -> Measurement:
    """Return the measurement of that name."""
    return next(one for one in measurements if one.name == name)


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, GPU and versions."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _processor(),
        "cores": cores(),
        "gpus": gpus,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dali": importlib.metadata.version("nvidia-dali-cuda120"),
        "siamusic-fast": importlib.metadata.version("siamusic-fast"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
