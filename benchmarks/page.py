"""Makes docs/performance.md and its charts of the results that `make bench` and `benchmarks.run --out` kept.

python -m benchmarks.page [--check]    with --check, only say whether the page is what the results say
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.result import Result, read
from siamusic_fast.bench.chart import hardware
from siamusic_fast.bench.report import Measurement, Windows, added_ms, number
from siamusic_fast.bench.timing import waiting_of
from siamusic_fast.bench.train import RESIDENT, WITH_DALI

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
ORDER = ("loader", "train", "shard", "cluster", "scaling")
CHART = "performance.png"

HEAD = """# Performance

Pairs of views per second that each engine makes and that training takes, tracks per second of packing, and
what the machine allows. `make bench` measures your machine, and `siamusic-fast bench doctor` says what to
change on it.
"""

ABOUT = """## How it is measured

Workloads are measured in turns, in several windows each. A figure is the median of its windows. The spread is
the largest distance of a window from the median, doubled if there are fewer than five windows. A target is
*reached* or *not reached* if the median and its spread lie on one side of it, and otherwise not certain. A
stage *adds* the milliseconds of a pair that it takes longer than the stage that it extends. Every window is
in `benchmarks/results`, with versions and settings; `python -m benchmarks.page` makes this page of them.
"""

SUMMARY = (
    ("loader", "DALI: read", "reading crops"),
    ("loader", "DALI: features", "DALI engine, features alone"),
    ("loader", "DALI: image", "DALI engine, `--aug image`"),
    ("loader", "torch: image", "torch engine, `--aug image`"),
    ("loader", "DALI: audio", "DALI engine, `--aug audio`"),
    ("loader", "torch: audio", "torch engine, `--aug audio`"),
    ("train", RESIDENT, "training on one batch again and again"),
    ("train", WITH_DALI, "training with the DALI loader"),
    ("shard", "packing, from start to end", "packing MP3s"),
    ("shard", "opening 1,000,000 tracks", "opening 1,000,000 tracks"),
)
"""Report, name in it and name on the page of the rows of the table at the top."""
_COLORS = {"DALI": "#3b6ea5", "torch": "#e08e45", "paper": "#7d8a97", "none": "#b0b4ba"}
_MAX_BARS = 8


@dataclass(frozen=True)
class Asked:
    """A figure that the project asks of itself on a `GPU` that few have."""

    words: str
    report: str
    """One of `ORDER`, which holds the figure."""
    rows: tuple[str, ...]
    """Names of the measurements and ratios that the report then has."""
    settings: Mapping[str, object]
    """With which it is to be measured."""


GPU = "H200"
_PAIRS, _STEP = {"batch_size": 256, "codec": "wav"}, {"backbone": "resnet50"}
_PEER = "DALI: {0} / torch: {0}"
ASKED = (
    Asked(
        "`image`: at least 20,000 pairs/s in batches of 256, or the limit that holds it",
        "loader",
        ("DALI: image",),
        _PAIRS,
    ),
    Asked(
        "`audio`: at least 10,000 pairs/s in batches of 256, or the limit that holds it",
        "loader",
        ("DALI: audio",),
        _PAIRS,
    ),
    Asked(
        "both: at least 2 times the pairs/s of the strongest peer, whole batches on the GPU, at no "
        "more than half its CPU seconds",
        "loader",
        (_PEER.format("image"), _PEER.format("audio")),
        _PAIRS,
    ),
    Asked(
        "training ResNet-50 on 48 by 431, bf16: with the DALI loader at least 0.98 of the pairs/s of the "
        "same loop on a resident batch",
        "train",
        ("train: DALI loader / train: resident batch",),
        _STEP,
    ),
    Asked(
        "that resident batch: at least 3 times the pairs/s of the paper's public training loop",
        "train",
        ("train: resident batch, beside the paper's / train: resident batch, the paper's step",),
        _STEP,
    ),
    Asked(
        "that resident batch: the achieved share of the bf16 peak, which products of matrices measure",
        "train",
        ("train: resident batch, operations / limit: product of matrices",),
        _STEP,
    ),
)


def page() -> str:
    """Return the page; what is not in the summary is folded."""
    parts, kept = [HEAD], []
    for folder, results in found_results().items():
        notes = folder / "notes.md"
        parts += [
            f"## {title(common_machine(results, folder.name))}",
            f"![Pairs per second by engine](../benchmarks/results/{folder.name}/{CHART})"
            if has_chart(results)
            else "",
            summary(results),
            notes.read_text() if notes.is_file() else "",
            *(details(result) for result in results.values()),
        ]
        kept.append(results)
    parts += [not_measured(kept), ABOUT]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def found_results() -> dict[Path, dict[str, Result]]:
    """Return the results of each machine by its folder."""
    found = {}
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        paths = [folder / f"{name}.json" for name in ORDER]
        if results := {path.stem: read(path) for path in paths if path.is_file()}:
            found[folder] = results
    return found


def common_machine(results: Mapping[str, Result], folder: str) -> dict[str, Any]:
    """Return what all of the `results` were measured on; end with what differs if that is not one machine."""
    (first, one), *others = results.items()
    for name, other in others:
        differing = [
            key for key, value in one.report.machine.items() if other.report.machine.get(key, value) != value
        ]
        if differing:
            sys.exit(
                f"{folder}: {first}.json and {name}.json differ in {', '.join(differing)} of their machines: "
                f"measure all on one, or keep them in folders of their own."
            )
    return one.report.machine


def title(machine: dict[str, Any]) -> str:
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {gpus} "
        f"(torch {machine['torch']}, DALI {machine['dali']})"
    )


def summary(results: Mapping[str, Result]) -> str:
    """Return a table of at most ten rows, or nothing if there are none."""
    lines = [
        "| what | median | unit | what the machine allows | time spent waiting |",
        "|---|---:|---|---:|---:|",
    ]
    for name, row, words in SUMMARY:
        rows = measured(results, name)
        if one := rows.get(row):
            allowed = number(one.limit) if one.limit is not None and one.median < one.limit else ""
            waits = rows.get(waiting_of(row))
            waiting = f"{waits.median:.1f} %" if waits else ""
            lines.append(f"| {words} | {number(one.median)} | {one.unit} | {allowed} | {waiting} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def measured(results: Mapping[str, Result], name: str) -> dict[str, Measurement]:
    """Return the measurements of a report by their names."""
    return {one.name: one for one in results[name].report.measurements} if name in results else {}


def has_chart(results: Mapping[str, Result]) -> bool:
    return not results.keys().isdisjoint({"loader", "train"})


def draw(results: Mapping[str, Result], path: Path) -> None:
    """Write the chart of a machine: a bar for each engine and peer, of the loader alone and of training."""
    loaders = [
        (aug, engine, one)
        for aug in ("image", "audio")
        for engine in ("DALI", "torch", "paper")
        if (one := measured(results, "loader").get(f"{engine}: {aug}"))
    ]
    training = [
        ("training", engine, one)
        for engine, row in (("none", RESIDENT), *((engine, f"train: {words}") for engine, words in _LOADERS))
        if (one := measured(results, "train").get(row))
    ][: _MAX_BARS - len(loaders)]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[max(1, len(loaders)), max(1, len(training))])
    _bars(left, loaders, "loader alone, by --aug")
    report = next(iter(results.values())).report
    backbone = results["train"].report.settings["backbone"] if training else "nothing"
    _bars(right, training, f"training {backbone}, by what feeds it")
    figure.suptitle(f"DALI and torch engines on {hardware(report)}: pairs/s", fontsize="medium")
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None})


_LOADERS = (("DALI", "DALI loader"), ("torch", "torch loader"), ("paper", "the paper's loader"))


def _bars(axis: Axes, bars: Sequence[tuple[str, str, Measurement]], words: str) -> None:
    for place, (_, engine, one) in enumerate(bars):
        whisker = [[one.median - min(one.windows)], [max(one.windows) - one.median]]
        axis.bar(place, one.median, yerr=whisker, color=_COLORS[engine], width=0.75)
        text = f" {number(one.median)} "
        axis.annotate(text, (place, max(one.windows)), ha="center", va="bottom", fontsize="small")
    labels = {"none": "one batch", "paper": "paper's"}
    names = [
        labels.get(engine, engine) + ("" if group == "training" else f"\n{group}")
        for group, engine, _ in bars
    ]
    axis.set_xticks(range(len(bars)), names, fontsize="small")
    axis.set_title(words, fontsize="small")
    axis.set_ylabel("pairs/s", fontsize="small")
    axis.margins(y=0.15)
    axis.spines[["top", "right"]].set_visible(False)


def details(result: Result) -> str:
    """Return every figure of a report, folded."""
    report = result.report
    lines = ["| what | median | spread | unit | adds ms | CPU ms each | limit | target | verdict |"]
    lines += ["|---|---:|---:|---|---:|---:|---:|---:|---|"]
    for one in report.measurements:
        what = f"{one.name} ({one.setting})" if one.setting else one.name
        added = f"{added_ms(report.measurements, one):.2f}" if one.extends else ""
        cpu = "" if one.cpu_ms is None else f"{one.cpu_ms:.2f}"
        limit = "" if one.limit is None else number(one.limit)
        numbers = [number(one.median), f"{one.spread:.0%}", one.unit, added, cpu, limit]
        lines.append(row([what, *numbers, target_of(result, one), result.verdict(one)]))
    if report.ratios:
        lines += ["", "| ratio | median | spread | target | verdict |", "|---|---:|---:|---:|---|"]
    for ratio in report.ratios:
        numbers = [f"{ratio.median:.2f}", f"{ratio.spread:.0%}"]
        lines.append(row([ratio.name, *numbers, target_of(result, ratio), result.verdict(ratio)]))
    if report.notes:
        lines += ["", *(f"- {note}" for note in report.notes)]
    minutes = f", {report.seconds / 60:.1f} min" if report.seconds is not None else ""
    return folded(f"{report.title} ({report.date}{minutes})", lines)


def folded(words: str, lines: Sequence[str]) -> str:
    return "\n".join([f"<details><summary>{words}</summary>", "", *lines, "", "</details>"])


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def target_of(result: Result, one: Windows) -> str:
    """Return what is asked of a figure, if anything is."""
    target = result.targets.get(one.name)
    return "" if target is None else f"{'at most ' if target.at_most else ''}{number(target.value)}"


def not_measured(kept: list[dict[str, Result]]) -> str:
    """Return a table of what is `ASKED` and in none of the `kept` results, which are by name."""
    missing = [one for one in ASKED if not any(measures(results, one) for results in kept)]
    if not missing:
        return ""
    lines = ["| hardware | asked |", "|---|---|", *(f"| {GPU} | {one.words} |" for one in missing)]
    return folded("What the project asks of a GPU, not measured yet", lines)


def measures(results: dict[str, Result], asked: Asked) -> bool:
    """Return whether one machine's `results` have the figure, on the `GPU` and as it was asked for."""
    if asked.report not in results:
        return False
    report = results[asked.report].report
    if not any(GPU in gpu for gpu in report.machine["gpus"]):
        return False
    names = {one.name for one in report.measurements} | {one.name for one in report.ratios}
    settings = {"device": "cuda", **asked.settings}
    return set(asked.rows) <= names and settings.items() <= report.settings.items()


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text() != page():
            sys.exit(f"{PAGE.name} is not what {RESULTS.name} say: run python -m benchmarks.page.")
        return
    PAGE.write_text(page())
    for folder, results in found_results().items():
        if has_chart(results):
            draw(results, folder / CHART)


if __name__ == "__main__":
    main()
