"""Two results of the same benchmark: what became faster, what slower, and what did neither for certain."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from siamusic_fast.bench.report import Measurement, Report
from siamusic_fast.errors import DataError

_LESS_IS_BETTER = frozenset({"s", "MiB"})


@dataclass(frozen=True, kw_only=True)
class Change:
    """One measurement, before and after."""

    name: str
    unit: str
    before: float
    after: float
    verdict: str
    """better, worse, or no difference within the spread."""

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


def changes(before: Report, after: Report) -> list[Change]:
    """Return what both reports measured; raise `DataError` if there is nothing."""
    earlier = {one.name: one for one in before.measurements}
    found = [_change(earlier[one.name], one) for one in after.measurements if one.name in earlier]
    if not found:
        raise DataError(f"{before.title!r} and {after.title!r} have no measurement in common.")
    return found


def _change(before: Measurement, after: Measurement) -> Change:
    return Change(
        name=after.name,
        unit=after.unit,
        before=before.median,
        after=after.median,
        verdict=_verdict(before, after),
    )


def _verdict(before: Measurement, after: Measurement) -> str:
    """Compare two sets of windows that were not measured in turns: they must not overlap."""
    if min(after.windows) > max(before.windows):
        return "worse" if after.unit in _LESS_IS_BETTER else "better"
    if max(after.windows) < min(before.windows):
        return "better" if after.unit in _LESS_IS_BETTER else "worse"
    return "no difference within the spread"
