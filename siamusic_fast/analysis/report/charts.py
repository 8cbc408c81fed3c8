"""Charts of a page, drawn by Bokeh in the browser, each with its figures in words and as a table."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    DataRange1d,
    HoverTool,
    NumeralTickFormatter,
    ResetTool,
    TapTool,
)
from bokeh.plotting import figure
from numpy.typing import NDArray

from siamusic_fast.analysis.plots import curve, validation_chance
from siamusic_fast.analysis.report.runs import Lines, Run
from siamusic_fast.analysis.report.track_map import TrackMap
from siamusic_fast.errors import DataError
from siamusic_fast.training.run_log import healthy_collapse

COLORS = ("#0e8a80", "#d9702b", "#7a6fd0", "#c4478d", "#5b9a2f", "#b8870b", "#3b86d1", "#a5694f")
"""Colors that can be told from each other, and from a white and from a black page."""
MARKERS = {
    **{"circle": "●", "square": "■", "triangle": "▲", "diamond": "◆"},
    **{"inverted_triangle": "▼", "star": "★", "hex": "⬢"},
}
"""Bokeh's markers, as the characters that a legend shows."""
MAP_POINTS = "tracks"
"""Name of the points of the map, by which the page finds them."""
_TABLE_ROWS = 12


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure of the log and how it is shown."""

    name: str
    """Name of the values in metrics.jsonl."""
    title: str
    about: str
    """What the figure is and which values are good."""
    is_share: bool = False
    """Whether the values are shares, shown in percent."""
    of_finetuning: bool = False
    """Whether the fine-tuning logs it rather than the pre-training."""
    from_zero: bool = True
    """Whether the vertical axis begins at 0."""
    number: str = "0.[000]"
    """How Bokeh writes a value."""

    def words(self, value: float) -> str:
        """Return a value as one reads it."""
        return f"{value:.1%}" if self.is_share else f"{value:.4g}"


PANELS = (
    Panel(
        name="loss",
        title="Loss",
        about="What pre-training makes small: that of SimSiam is -1 at best.",
        from_zero=False,
    ),
    Panel(
        name="collapse",
        title="Collapse measure",
        about="Spread of the projections; 0 means that all are equal.",
        number="0.[0000]",
    ),
    Panel(
        name="encoder_rank",
        title="Effective rank",
        about="Number of dimensions that the features of a batch use.",
        number="0.[0]",
    ),
    Panel(
        name="knn",
        title="kNN accuracy",
        about="Accuracy of nearest neighbors on the validation tracks.",
        is_share=True,
    ),
    Panel(
        name="knn_roc_auc",
        title="kNN, ROC-AUC",
        about="Macro ROC-AUC of the tags of nearest neighbors on the validation tracks; chance is 50%.",
        is_share=True,
    ),
    Panel(name="lr", title="Learning rate", about="Learning rate of the optimizer.", number="0.[000000]"),
    Panel(
        name="validation_accuracy",
        title="Fine-tuning: accuracy",
        about="Accuracy of the classifier on the validation tracks.",
        is_share=True,
        of_finetuning=True,
    ),
    Panel(
        name="validation_roc_auc",
        title="Fine-tuning: ROC-AUC",
        about="Macro ROC-AUC of the tags on the validation tracks; 0.5 is chance.",
        of_finetuning=True,
    ),
    Panel(
        name="validation_pr_auc",
        title="Fine-tuning: PR-AUC",
        about="Macro PR-AUC of the tags on the validation tracks.",
        of_finetuning=True,
    ),
    Panel(
        name="validation_loss",
        title="Fine-tuning: loss",
        about="Cross-entropy of the classifier on the validation tracks; 0 is the lowest.",
        of_finetuning=True,
    ),
    Panel(
        name="pairs_per_second",
        title="Throughput",
        about="Pairs of views per second, of all processes.",
        number="0,0.[0]",
    ),
    Panel(
        name="waiting",
        title="Waiting for data",
        about="Share of the time in which training waited for a batch; 0 is best.",
        is_share=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with all that a page says of it."""

    title: str
    about: str
    item: Mapping[str, Any]
    """What BokehJS embeds."""
    sentences: list[str]
    """What each curve does."""
    legend: list[tuple[str, str]]
    """Color and name of each curve; empty if there is one."""
    columns: list[str]
    rows: list[list[str]]
    """Figures as a table, thinned out."""


def curve_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return a chart of each figure that any of `runs` has logged, with a curve for each that has."""
    charts = []
    for panel in PANELS:
        found = {run.name: _points(run, panel) for run in runs}
        found = {name: points for name, points in found.items() if len(points)}
        if found:
            charts.append(_chart(panel, found, _reference(panel, runs)))
    return charts


def _points(run: Run, panel: Panel) -> NDArray[np.float64]:
    lines: Lines = run.finetuned if panel.of_finetuning else run.lines
    return curve(lines, panel.name) if lines else np.empty((0, 2))


def _reference(panel: Panel, runs: Sequence[Run]) -> tuple[float, str] | None:
    """Return the height of a dashed line and what it means, if there is one that holds for all `runs`."""
    if panel.name == "collapse":
        heights = {healthy_collapse(run.config.width): "healthy" for run in runs}
        return heights.popitem() if len(heights) == 1 else None
    if panel.name in ("knn", "validation_accuracy"):
        with contextlib.suppress(DataError):
            chances = {validation_chance(run.data) for run in runs}
            if len(chances) == 1:
                return chances.pop(), "chance"
    return None


def _chart(
    panel: Panel, curves: Mapping[str, NDArray[np.float64]], reference: tuple[float, str] | None
) -> Chart:
    plot = _figure(height=230)
    plot.toolbar_location = None
    if panel.from_zero:
        plot.y_range = DataRange1d(start=0)
    plot.yaxis.formatter = NumeralTickFormatter(format="0.[0]%" if panel.is_share else panel.number)
    plot.xaxis.axis_label = "epoch"
    plot.xaxis.axis_label_text_font_style = "normal"
    for color, (name, points) in zip(itertools.cycle(COLORS), curves.items(), strict=False):
        source = ColumnDataSource({"epoch": points[:, 0], "value": points[:, 1], "run": [name] * len(points)})
        line = plot.line("epoch", "value", source=source, color=color, line_width=2)
        plot.scatter("epoch", "value", source=source, color=color, size=5 if len(points) <= 50 else 1)
        number = "0.0%" if panel.is_share else panel.number
        tooltips = [("epoch", "@epoch{0.[0]}"), (panel.title, f"@value{{{number}}}")]
        tooltips += [("run", "@run")] * (len(curves) > 1)
        plot.add_tools(HoverTool(renderers=[line], tooltips=tooltips, mode="vline", visible=False))
    about = panel.about
    if reference:
        height, words = reference
        plot.hspan(y=[height], line_dash="dashed", line_color="gray")
        about += f" The dashed line is {words}: {panel.words(height)}."
    return Chart(
        title=panel.title,
        about=about,
        item=json_item(plot),
        sentences=[
            f"{name}: {_sentence(panel, points)}" if len(curves) > 1 else _sentence(panel, points)
            for name, points in curves.items()
        ],
        legend=list(zip(itertools.cycle(COLORS), curves, strict=False)) if len(curves) > 1 else [],
        columns=["run", "epoch", panel.title] if len(curves) > 1 else ["epoch", panel.title],
        rows=[
            [*([name] if len(curves) > 1 else []), f"{epoch:.4g}", panel.words(value)]
            for name, points in curves.items()
            for epoch, value in _thinned(points)
        ],
    )


def _sentence(panel: Panel, points: NDArray[np.float64]) -> str:
    (_, first), (_, last) = points[0], points[-1]
    if (points[:, 1] == first).all():
        return f"{panel.words(first)} throughout."
    low, high = points[np.argmin(points[:, 1])], points[np.argmax(points[:, 1])]
    return (
        f"{panel.words(first)} at first, {panel.words(last)} at the end; lowest {panel.words(low[1])} "
        f"in epoch {low[0]:.4g}, highest {panel.words(high[1])} in epoch {high[0]:.4g}."
    )


def _thinned(points: NDArray[np.float64]) -> list[list[float]]:
    """Return up to `_TABLE_ROWS` of the points, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(points) - 1, min(len(points), _TABLE_ROWS)).round().astype(int)
    found: list[list[float]] = points[places].tolist()
    return found


def map_chart(found: TrackMap, classes: Sequence[str]) -> Mapping[str, Any]:
    """Return a chart of the tracks as points, for BokehJS to embed; hovering names a track."""
    look = {name: (color, marker) for name, color, marker, _ in map_legend(classes)}
    plot = _figure(height=460)
    plot.axis.visible = False
    plot.grid.visible = False
    points = plot.scatter(
        "x",
        "y",
        marker="marker",
        color="color",
        size=11,
        fill_alpha=0.75,
        nonselection_alpha=0.75,
        selection_fill_alpha=1.0,
        source={
            "x": [track.x for track in found.tracks],
            "y": [track.y for track in found.tracks],
            "name": [track.name for track in found.tracks],
            "genre": [track.genre for track in found.tracks],
            "color": [look[track.genre][0] for track in found.tracks],
            "marker": [look[track.genre][1] for track in found.tracks],
        },
        name=MAP_POINTS,
    )
    tooltips = [("track", "@name"), ("class", "@genre")]
    plot.add_tools(
        HoverTool(renderers=[points], tooltips=tooltips, visible=False),
        TapTool(renderers=[points], visible=False),
        BoxZoomTool(match_aspect=True),
        ResetTool(),
    )
    plot.toolbar.active_drag = None
    return json_item(plot)


def map_legend(classes: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return name, color, Bokeh's marker and the marker's character of each class.

    Markers change with every class and again after all colors, so that no color has to be told from another.
    """
    markers = list(MARKERS.items())
    return [
        (name, COLORS[place % len(COLORS)], *markers[place % len(markers)])
        for place, name in enumerate(classes)
    ]


def _figure(height: int) -> figure:
    """Return an empty figure that is as wide as the page allows, and leaves scrolling to the page."""
    plot = figure(height=height, sizing_mode="stretch_width", tools="", toolbar_location="above")
    plot.toolbar.logo = None
    plot.background_fill_color = plot.border_fill_color = plot.outline_line_color = None
    plot.min_border = 4
    return plot
