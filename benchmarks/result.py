"""What a benchmark found and what the project asks of it, as it is kept in `benchmarks/results`."""

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siamusic_fast.bench.report import FORMAT, Measurement, Ratio, Report, Windows
from siamusic_fast.cli.console import note
from siamusic_fast.errors import DataError
from siamusic_fast.files import atomic_write

MIN_WINDOWS = 3
"""Number of windows below which the spread is unknown, so that there is no verdict."""
TOO_FEW = "too few windows"
SAME = "no difference within the spread"


@dataclass(frozen=True)
class Target:
    """What the project asks of a figure: at least `value`, or at most."""

    value: float
    at_most: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """A report, and targets for some of its figures."""

    report: Report
    targets: dict[str, Target] = field(default_factory=dict)
    """Targets by the name of the measurement or ratio."""

    def verdict(self, one: Windows) -> str:
        """Return the verdict on a figure of the report."""
        return verdict(one, self.targets.get(one.name))

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        targets = {name: dataclasses.asdict(target) for name, target in self.targets.items()}
        return {**self.report.as_json(), "targets": targets}


def verdict(one: Windows, target: Target | None) -> str:
    """Say on which side of its target a figure lies, if its whole spread does.

    A ratio without a target is compared with 1; a measurement without one has no verdict.
    """
    if target is None and not isinstance(one, Ratio):
        return ""
    if len(one.windows) < MIN_WINDOWS:
        return TOO_FEW
    low, high = limits_of(one)
    if target is None:
        return "more" if low > 1 else "less" if high < 1 else SAME
    if high <= target.value if target.at_most else low >= target.value:
        return "reached"
    missed = low > target.value if target.at_most else high < target.value
    return "not reached" if missed else "not certain within the spread"


def limits_of(one: Windows) -> tuple[float, float]:
    """Return the lower and the upper end of the spread around the median."""
    return one.median - one.distance, one.median + one.distance


def cpu_ratio(above: Measurement, below: Measurement) -> Ratio:
    """Divide the CPU seconds of an item window by window."""
    pairs = zip(above.cpu_windows, below.cpu_windows, strict=True)
    return Ratio(name=f"CPU seconds: {above.name} / {below.name}", windows=tuple(a / b for a, b in pairs))


def keep(result: Result, path: Path, started: float) -> None:
    """Write `result` to `path`; it took from `started`, by `time.perf_counter`, until now."""
    report = dataclasses.replace(result.report, seconds=time.perf_counter() - started)
    document = json.dumps(dataclasses.replace(result, report=report).as_json())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(document.encode() + b"\n")
    note(f"Kept: {path}")


def read(path: Path) -> Result:
    """Return the result that `keep`, or `siamusic-fast bench --out`, wrote; raise `DataError` if not."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(document["format"])
        report = Report(
            title=document["title"],
            settings=document["settings"],
            measurements=tuple(_windows(Measurement, one) for one in document["measurements"]),
            ratios=tuple(_windows(Ratio, one) for one in document["ratios"]),
            notes=tuple(document["notes"]),
            machine=document["machine"],
            date=document["date"],
            seconds=document["seconds"],
        )
        targets = {name: Target(**values) for name, values in document.get("targets", {}).items()}
        return Result(report=report, targets=targets)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no result of a benchmark ({type(error).__name__}: {error}): give what "
            f"`siamusic-fast bench --out` or `make bench` kept."
        ) from error


def _windows(kind: type[Any], values: Mapping[str, Any]) -> Any:
    names = {one.name for one in dataclasses.fields(kind)}
    if not values["windows"]:
        raise ValueError(f"{values['name']} has no windows")
    return kind(
        **{name: tuple(of) if isinstance(of, list) else of for name, of in values.items() if name in names}
    )
