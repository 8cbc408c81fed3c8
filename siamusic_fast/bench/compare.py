"""Two results of the same benchmark: what became faster, what slower, and what did neither for certain."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siamusic_fast.bench.report import FEWEST_WINDOWS, SAME, TOO_FEW, Measurement, Ratio, Report
from siamusic_fast.errors import DataError

Measured = Measurement | Ratio

_LESS_IS_BETTER = frozenset({"s", "MiB", "% of the time"})


@dataclass(frozen=True, kw_only=True)
class Change:
    """One measurement or ratio, before and after."""

    name: str
    unit: str
    before: float
    after: float
    verdict: str
    """better, worse, no difference within the spread, or too few windows."""
    note: str = ""
    """How it was set up, if that is not the same."""

    @property
    def ratio(self) -> float:
        """After over before; NaN if there was nothing before."""
        return self.after / self.before if self.before else float("nan")

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**dataclasses.asdict(self), "ratio": self.ratio if self.before else None}


def changes(before: Report, after: Report) -> list[Change]:
    """Return what both reports measured, and ratios that both have; raise `DataError` if there is nothing."""
    earlier = {one.name: one for one in before.measurements}
    found = [_change(earlier[one.name], one) for one in after.measurements if one.name in earlier]
    if not found:
        raise DataError(f"{before.title!r} and {after.title!r} have no measurement in common.")
    quotients = {one.name: one for one in before.ratios}
    return found + [_shifted(quotients[one.name], one) for one in after.ratios if one.name in quotients]


def differences(before: Report, after: Report) -> list[str]:
    """Return in which settings, and in what of their machines, two reports differ: one line for each."""
    return _differing(before.hardware, after.hardware) + _differing(before.settings, after.settings)


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*before, *after])
    return [
        f"{name}: {before.get(name)}, then {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _change(before: Measurement, after: Measurement) -> Change:
    same = before.setting == after.setting
    return Change(
        name=after.name,
        unit=after.unit,
        before=before.median,
        after=after.median,
        verdict=_verdict(before, after, less_is_better=after.at_most or after.unit in _LESS_IS_BETTER),
        note="" if same else f"{before.setting or 'none'}, then {after.setting or 'none'}",
    )


def _shifted(before: Ratio, after: Ratio) -> Change:
    return Change(
        name=after.name,
        unit="times",
        before=before.median,
        after=after.median,
        verdict=_verdict(before, after, less_is_better=after.at_most),
    )


def _verdict(before: Measured, after: Measured, *, less_is_better: bool) -> str:
    """Compare what was not measured in turns: medians with their spreads must not overlap."""
    if min(len(before.windows), len(after.windows)) < FEWEST_WINDOWS:
        return TOO_FEW
    if after.low > before.high:
        return "worse" if less_is_better else "better"
    if after.high < before.low:
        return "better" if less_is_better else "worse"
    return SAME
