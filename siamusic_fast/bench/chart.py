"""A report as a picture: a bar for each measurement, a panel for each unit, limits as lines."""

from pathlib import Path

from matplotlib.figure import Figure

from siamusic_fast.bench.report import Measurement, Report, number

_OURS, _OTHERS, _LIMIT = "#3b6ea5", "#b0b4ba", "#c0392b"


def draw(report: Report, path: Path) -> None:
    """Write a PNG to `path`; whiskers reach from the slowest window to the fastest."""
    units = list(dict.fromkeys(one.unit for one in report.measurements))
    panels = [[one for one in report.measurements if one.unit == unit] for unit in units]
    figure = Figure(
        figsize=(10, 1.2 + sum(0.6 + 0.34 * len(panel) for panel in panels)), layout="constrained"
    )
    axes = figure.subplots(
        len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": [len(panel) + 1 for panel in panels]}
    )
    for axis, panel, unit in zip(axes[:, 0], panels, units, strict=True):
        for place, one in enumerate(panel):
            low, high = one.median - min(one.windows), max(one.windows) - one.median
            axis.barh(place, one.median, xerr=[[low], [high]], color=_colour(one), height=0.7)
            axis.annotate(
                f" {number(one.median)}",
                (max(one.windows), place),
                va="center",
                fontsize="small",
            )
            if (limit := report.limits.get(one.name)) is not None:
                axis.plot([limit, limit], [place - 0.45, place + 0.45], color=_LIMIT, linewidth=2)
        axis.set_yticks(range(len(panel)), [one.name for one in panel])
        axis.invert_yaxis()
        axis.set_xlabel(unit)
        if 0 < 30 * min(one.median for one in panel) < max(one.median for one in panel):
            axis.set_xscale("log")
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    hardware = report.hardware
    name = hardware["gpus"][0] if hardware["gpus"] else f"{hardware['cpu']}, {hardware['cores']} cores"
    figure.suptitle(f"{report.title}: {name}" + ("  (red: what the machine allows)" if report.limits else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png")


def _colour(one: Measurement) -> str:
    return _OURS if one.ours else _OTHERS
