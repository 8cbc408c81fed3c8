"""Tries every promise about faults at length: `make faults`, and `make soak` for the longest one.

python -m tests.faults.run [--share S] [--only NAME ...] [--out FILE]    --share 0.05 tries a twentieth of the
long form. The rows of what was run replace those of FILE, of which `python -m tests.faults.page` makes
docs/reliability.md.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from siamusic_fast.files import atomic_write
from tests.faults.promises import PROMISES, Promise, promise_of
from tests.faults.tries import PROPERTY, SHARE

FORMAT = 1
SOAK = "soak"
"""Name of the promise that only `make soak` tries at length."""
OUT = Path("benchmarks/here/faults.json")


@dataclass
class Row:
    """What came of a promise."""

    name: str
    tried: int = 0
    survived: int = 0
    seconds: float = 0.0
    date: str = dataclasses.field(default_factory=lambda: time.strftime("%Y-%m-%d"))

    @property
    def kept(self) -> bool:
        return self.tried == self.survived > 0


class Recorder:
    """A plugin of pytest that prints the plan, counts the tries of each promise, and prints the table."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.rows: dict[str, Row] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[SHARE] = self.share

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        cases = Counter(promise_of(item.nodeid).name for item in session.items)
        write = session.config.get_terminal_writer().line
        write(plan(cases, self.share))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        row = self.rows.setdefault(name := promise_of(report.nodeid).name, Row(name))
        row.seconds += report.duration
        if report.when != "call" and report.passed:
            return
        if report.skipped:
            return
        properties: dict[str, Any] = dict(report.user_properties)
        tried, survived = properties.get(PROPERTY, (0, 0))
        if report.failed and tried == survived:
            tried += 1
        row.tried += tried or 1
        row.survived += survived if tried else report.passed

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(table(list(self.rows.values())))


def plan(cases: Counter[str], share: float) -> str:
    """Return what will be tried, so many cases of each promise, with totals."""
    lines, tried, seconds = [f"{'tries':>9} {'minutes':>8}  promise"], 0, 0.0
    for promise in PROMISES:
        if count := cases[promise.name] * promise.count(share):
            tried, seconds = tried + count, seconds + count * promise.seconds
            lines.append(f"{count:>9,} {count * promise.seconds / 60:>8.1f}  {promise.words}")
    lines.append(f"{tried:>9,} {seconds / 60:>8.1f}  in all, on two slow cores that do nothing else")
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """Return a line for each of `rows`."""
    words = {promise.name: promise.words for promise in PROMISES}
    lines = [f"{'tried':>9} {'survived':>9} {'seconds':>8}  promise"]
    for row in rows:
        verdict = "" if row.kept else "BROKEN: " if row.tried else "not tried: "
        lines.append(f"{row.tried:>9,} {row.survived:>9,} {row.seconds:>8.1f}  {verdict}{words[row.name]}")
    return "\n".join(lines)


def keep(rows: Sequence[Row], path: Path) -> None:
    """Write `rows` to `path`, beside those of other promises that it has."""
    # Not above: processes that are spawned import this module, and torch with it.
    from siamusic_fast.bench.report import describe_machine

    try:
        before = {row.name: row for row in read(path).rows}
    except FileNotFoundError:
        before = {}
    found = before | {row.name: row for row in rows}
    ordered = [found[promise.name] for promise in PROMISES if promise.name in found]
    document = {
        "format": FORMAT,
        "machine": describe_machine(),
        "rows": [dataclasses.asdict(row) for row in ordered],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(document, indent=1).encode() + b"\n")


@dataclass(frozen=True)
class Found:
    """What is kept of runs on one machine."""

    machine: dict[str, Any]
    rows: tuple[Row, ...]


def read(path: Path) -> Found:
    """Return what `keep` wrote."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["format"] != FORMAT:
        sys.exit(f"{path} has format {document['format']}, not {FORMAT}: run `make faults`.")
    return Found(document["machine"], tuple(Row(**row) for row in document["rows"]))


def chosen(names: Sequence[str]) -> list[Promise]:
    """Return the promises called `names`; all but the soak if there are none."""
    return [one for one in PROMISES if (one.name in names if names else one.name != SOAK)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", default=[], choices=[one.name for one in PROMISES])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    recorder = Recorder(options.share)
    tests = [promise.test for promise in chosen(options.only)]
    marks = "" if options.share >= 1 else "not slow"
    code = pytest.main(["-q", "-m", marks, "-p", "no:cacheprovider", *tests], plugins=[recorder])
    if recorder.rows:
        keep(list(recorder.rows.values()), options.out)
        sys.stdout.write(f"Kept: {options.out}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
