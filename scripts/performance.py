#!/usr/bin/env python
"""Make docs/performance.md of what `siamusic-fast bench --out benchmarks/results/MACHINE` kept.

scripts/performance.py [--check]    with --check, only say whether the file is what the results say
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siamusic_fast.bench.report import Report, number, read_report
from siamusic_fast.cli.bench.rendering import added_by, target_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
ORDER = ("loader", "train", "shard", "scaling")

HEAD = """# Performance

This page is made by `scripts/performance.py` from `benchmarks/results`: every window of every figure is
there, with versions and settings. A row is the median of its windows, the spread the largest distance of a
window from it, doubled where there are fewer than five windows. Ratios are of windows measured in turns; a
target is *reached* or *not reached* if it lies outside the median and its spread, and else not certain.
A stage *adds* the milliseconds of a pair that it takes longer than the stage that it extends.
`make bench` measures your machine; `siamusic-fast bench doctor` says what to change on it.
"""


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
_PEER = "DALI: recipe {0}, beside its peers / torch: recipe {0}"
ASKED = (
    Asked(
        "recipe image: at least 20,000 pairs/s in batches of 256, or the limit that holds it",
        "loader",
        ("DALI: recipe image",),
        _PAIRS,
    ),
    Asked(
        "recipe audio: at least 10,000 pairs/s in batches of 256, or the limit that holds it",
        "loader",
        ("DALI: recipe audio",),
        _PAIRS,
    ),
    Asked(
        "both recipes: at least 2 times the pairs/s of the strongest peer, whole batches on the GPU, at no "
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
        ("train: resident batch / train: resident batch, the paper's step",),
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
    parts, kept = [HEAD], []
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        documents = {name: folder / f"{name}.json" for name in ORDER}
        found = {name: path for name, path in documents.items() if path.is_file()}
        if not found:
            continue
        reports = {name: read_report(json.loads(path.read_text()), str(path)) for name, path in found.items()}
        parts.append(f"## {title(common_machine(reports, folder.name))}")
        notes = folder / "notes.md"
        if notes.is_file():
            parts.append(notes.read_text().strip())
        parts += [section(report, folder.name, name) for name, report in reports.items()]
        kept.append(reports)
    parts.append(not_measured(kept))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def common_machine(reports: dict[str, Report], folder: str) -> dict[str, Any]:
    """Return what all of the `reports` were measured on; end with what differs if that is not one machine."""
    (first, one), *others = reports.items()
    for name, other in others:
        differing = [key for key, value in one.hardware.items() if other.hardware.get(key, value) != value]
        if differing:
            sys.exit(
                f"{folder}: {first}.json and {name}.json differ in {', '.join(differing)} of their machines: "
                f"measure all on one, or keep them in folders of their own."
            )
    return one.hardware


def title(machine: dict[str, Any]) -> str:
    gpus = machine["gpus"]
    hardware = ", ".join(gpus) or "no GPU"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {hardware} "
        f"(torch {machine['torch']}, DALI {machine['dali']})"
    )


def section(report: Report, machine: str, name: str) -> str:
    lines = [f"### {report.title}", "", f"![{report.title}](../benchmarks/results/{machine}/{name}.png)", ""]
    if report.seconds is not None:
        lines += [f"Measured on {report.date}, taking {report.seconds / 60:.1f} min.", ""]
    lines += ["| what | median | spread | unit | adds ms | CPU ms each | limit | target | verdict |"]
    lines += ["|---|---:|---:|---|---:|---:|---:|---:|---|"]
    for one in report.measurements:
        what = f"{one.name} ({one.setting})" if one.setting else one.name
        cpu = "" if one.cpu_ms is None else f"{one.cpu_ms:.2f}"
        limit = number(report.limits[one.name]) if one.name in report.limits else ""
        spread = f"{one.spread:.0%}"
        numbers = [added_by(one, report), cpu, limit, target_of(one)]
        cells = [what, number(one.median), spread, one.unit, *numbers, one.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    if report.ratios:
        lines += ["", "| ratio | median | spread | target | verdict |", "|---|---:|---:|---:|---|"]
    for ratio in report.ratios:
        cells = [ratio.name, f"{ratio.median:.2f}", f"{ratio.spread:.0%}", target_of(ratio), ratio.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    if report.notes:
        lines += ["", *(f"- {note}" for note in report.notes)]
    return "\n".join(lines)


def not_measured(kept: list[dict[str, Report]]) -> str:
    """Return a table of what is `ASKED` and in none of the `kept` results, which are by name."""
    missing = [one for one in ASKED if not any(measures(reports, one) for reports in kept)]
    if not missing:
        return ""
    lines = ["## Asked, and not measured yet", "", "| hardware | asked |", "|---|---|"]
    return "\n".join([*lines, *(f"| {GPU} | {one.words} |" for one in missing)])


def measures(reports: dict[str, Report], asked: Asked) -> bool:
    """Return whether one machine's `reports` have the figure, on the `GPU` and as it was asked for."""
    report = reports.get(asked.report)
    if report is None or not any(GPU in gpu for gpu in report.hardware["gpus"]):
        return False
    names = {one.name for one in report.measurements} | {one.name for one in report.ratios}
    settings = {"device": "cuda", **asked.settings}
    return set(asked.rows) <= names and settings.items() <= report.settings.items()


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text() != page():
            sys.exit(f"{PAGE.name} is not what {RESULTS.name} say: run scripts/performance.py.")
        sys.exit()
    PAGE.write_text(page())
