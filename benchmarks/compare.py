"""Compares two results of the same benchmark: what became faster, what slower, and what is not certain.

python -m benchmarks.compare before/loader.json after/loader.json
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.result import MIN_WINDOWS, SAME, TOO_FEW, Result, limits_of, read
from siamusic_fast.bench.report import Measurement, Report, Windows, number
from siamusic_fast.cli.console import output
from siamusic_fast.errors import DataError

_LESS_IS_BETTER = frozenset({"s", "MiB", "% of the time", "ms of one core"})


@dataclass(frozen=True, kw_only=True)
class Change:
    """One measurement or ratio, before and after."""

    name: str
    unit: str
    before: float
    after: float
    verdict: str
    """better, worse, no difference within the spread, or too few windows."""

    @property
    def ratio(self) -> float:
        """After over before; NaN if there was nothing before."""
        return self.after / self.before if self.before else float("nan")


def changes(before: Result, after: Result) -> list[Change]:
    """Return what both results have in common; raise `DataError` if there is nothing."""
    earlier = {one.name: one for one in (*before.report.measurements, *before.report.ratios)}
    found = []
    for one in (*after.report.measurements, *after.report.ratios):
        if one.name in earlier:
            target = after.targets.get(one.name)
            unit = one.unit if isinstance(one, Measurement) else "times"
            less_is_better = unit in _LESS_IS_BETTER or bool(target and target.at_most)
            found.append(_change(earlier[one.name], one, unit, less_is_better=less_is_better))
    if not found:
        raise DataError(f"{before.report.title!r} and {after.report.title!r} have no measurement in common.")
    return found


def differences(before: Report, after: Report) -> list[str]:
    """Return in which settings, and in what of their machines, two reports differ: one line for each."""
    return _differing(before.machine, after.machine) + _differing(before.settings, after.settings)


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*before, *after])
    return [
        f"{name}: {before.get(name)}, then {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _change(before: Windows, after: Windows, unit: str, *, less_is_better: bool) -> Change:
    """Compare what was not measured in turns: medians with their spreads must not overlap."""
    if min(len(before.windows), len(after.windows)) < MIN_WINDOWS:
        verdict = TOO_FEW
    elif limits_of(after)[0] > limits_of(before)[1]:
        verdict = "worse" if less_is_better else "better"
    elif limits_of(after)[1] < limits_of(before)[0]:
        verdict = "better" if less_is_better else "worse"
    else:
        verdict = SAME
    return Change(name=after.name, unit=unit, before=before.median, after=after.median, verdict=verdict)


def main() -> None:
    before, after = (read(Path(name)) for name in sys.argv[1:])
    for line in differences(before.report, after.report):
        output.print(f"Not the same: {line}", markup=False)
    table = Table("what", "before", "after", "ratio", "verdict")
    for one in changes(before, after):
        table.add_row(
            one.name,
            number(one.before),
            f"{number(one.after)} {one.unit}",
            f"{one.ratio:.2f}",
            one.verdict,
        )
    output.print(table)


if __name__ == "__main__":
    main()
