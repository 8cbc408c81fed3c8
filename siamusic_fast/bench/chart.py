"""Draws a report: a bar for each rate."""

from pathlib import Path

from matplotlib.figure import Figure

from siamusic_fast.bench.report import Report, number

_OURS, _OTHERS = "#3b6ea5", "#b0b4ba"
_MAX_BARS = 8


def draw(report: Report, path: Path) -> None:
    """Write a PNG to `path` with the first eight measurements that have the unit of the first one.

    A whisker reaches from the slowest window to the fastest.
    """
    unit = report.measurements[0].unit
    bars = [one for one in report.measurements if one.unit == unit][:_MAX_BARS]
    figure = Figure(figsize=(9, 1.4 + 0.4 * len(bars)), layout="constrained")
    axis = figure.subplots()
    for place, one in enumerate(bars):
        whisker = [[one.median - min(one.windows)], [max(one.windows) - one.median]]
        axis.barh(place, one.median, xerr=whisker, color=_OURS if one.ours else _OTHERS, height=0.7)
        axis.annotate(f" {number(one.median)}", (max(one.windows), place), va="center", fontsize="small")
    axis.set_yticks(range(len(bars)), [one.name for one in bars])
    axis.invert_yaxis()
    if 0 < 30 * min(one.median for one in bars) < max(one.median for one in bars):
        axis.set_xscale("log")
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel(unit)
    figure.suptitle(f"{report.title}\n{hardware(report)}, {unit}", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png")


def hardware(report: Report) -> str:
    """Return the GPU, or the processor with its cores, in words."""
    machine = report.machine
    return machine["gpus"][0] if machine["gpus"] else f"{machine['cpu']}, {machine['cores']} cores"
