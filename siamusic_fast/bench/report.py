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
FEWEST_WINDOWS = 3
"""Fewer say nothing of the spread, so there is no verdict."""
TOO_FEW = "too few windows"
SAME = "no difference within the spread"


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
        return (max(self.windows) - min(self.windows)) / 2 / self.median if self.median else 0.0


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
    """What the project asks for, at least."""

    @property
    def cpu_ms(self) -> float | None:
        """Median CPU milliseconds of an item."""
        return statistics.median(self.cpu_windows) if self.cpu_windows else None

    @property
    def verdict(self) -> str:
        """Say whether the target is reached; nothing if there is none."""
        return "" if self.target is None else _verdict(self.windows, self.target, at_most=False)

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
        """Say what the ratio shows: nothing if it is on either side of what matters within its spread."""
        if self.target is not None:
            return _verdict(self.windows, self.target, at_most=self.at_most)
        if len(self.windows) < FEWEST_WINDOWS:
            return TOO_FEW
        if min(self.windows) > 1:
            return "more"
        return "less" if max(self.windows) < 1 else SAME

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


def _verdict(windows: Sequence[float], target: float, *, at_most: bool) -> str:
    """Return whether all `windows` are at least, or `at_most`, the target."""
    if len(windows) < FEWEST_WINDOWS:
        return TOO_FEW
    reached = [value <= target if at_most else value >= target for value in windows]
    if all(reached):
        return "reached"
    return "not certain within the spread" if any(reached) else "not reached"


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
    hardware: dict[str, Any] = field(default_factory=lambda: machine())
    """The machine that it is of, and its versions."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "format": FORMAT,
            "title": self.title,
            "machine": self.hardware,
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
            measurements=tuple(map(_read_measurement, document["results"])),
            ratios=tuple(map(_read_ratio, document["ratios"])),
            limits=document["limits"],
            notes=tuple(document["notes"]),
            hardware=document["machine"],
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


def number(value: float) -> str:
    """Return `value` with about three digits."""
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


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
