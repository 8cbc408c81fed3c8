#!/usr/bin/env python
"""Make docs/performance.md of what `siamusic-fast bench --out benchmarks/results/MACHINE` kept.

scripts/performance.py [--check]    with --check, only say whether the file is what the results say
"""

import json
import sys
from pathlib import Path

from siamusic_fast.bench.report import Report, number, read_report
from siamusic_fast.cli.bench.rendering import target_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
ORDER = ("loader", "train", "shard", "scaling")

HEAD = """# Performance

This page is made by `scripts/performance.py` from `benchmarks/results`: every window of every figure is
there, with versions and settings. A row is the median of its windows, the spread half the distance between
the slowest and the fastest. Ratios are of windows measured in turns; a target is *reached* or *not reached*
if all windows, three at least, say so, and else not certain. `make bench` measures your machine;
`siamusic-fast bench doctor` says what to change on it.
"""


def page() -> str:
    parts = [HEAD]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        documents = {name: folder / f"{name}.json" for name in ORDER}
        found = {name: path for name, path in documents.items() if path.is_file()}
        if not found:
            continue
        parts.append(f"## {title(json.loads(next(iter(found.values())).read_text()))}")
        notes = folder / "notes.md"
        if notes.is_file():
            parts.append(notes.read_text().strip())
        for name, path in found.items():
            parts.append(section(read_report(json.loads(path.read_text()), str(path)), folder.name, name))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def title(document: dict[str, dict[str, object]]) -> str:
    machine = document["machine"]
    gpus = machine["gpus"]
    hardware = ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else "no GPU"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {hardware} "
        f"(torch {machine['torch']}, DALI {machine['dali']})"
    )


def section(report: Report, machine: str, name: str) -> str:
    lines = [f"### {report.title}", "", f"![{report.title}](../benchmarks/results/{machine}/{name}.png)", ""]
    lines += ["| what | median | spread | unit | CPU ms each | limit | target | verdict |"]
    lines += ["|---|---:|---:|---|---:|---:|---:|---|"]
    for one in report.measurements:
        what = f"{one.name} ({one.setting})" if one.setting else one.name
        cpu = "" if one.cpu_ms is None else f"{one.cpu_ms:.2f}"
        limit = number(report.limits[one.name]) if one.name in report.limits else ""
        target = "" if one.target is None else number(one.target)
        cells = [what, number(one.median), f"{one.spread:.0%}", one.unit, cpu, limit, target, one.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    if report.ratios:
        lines += ["", "| ratio | median | spread | target | verdict |", "|---|---:|---:|---:|---|"]
    for ratio in report.ratios:
        cells = [ratio.name, f"{ratio.median:.2f}", f"{ratio.spread:.0%}", target_of(ratio), ratio.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    if report.notes:
        lines += ["", *(f"- {note}" for note in report.notes)]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text() != page():
            sys.exit(f"{PAGE.name} is not what {RESULTS.name} say: run scripts/performance.py.")
        sys.exit()
    PAGE.write_text(page())
