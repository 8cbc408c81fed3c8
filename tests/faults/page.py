"""Makes docs/reliability.md of the promises and of what `make faults` and `make soak` kept.

python -m tests.faults.page [--check]    with --check, only say whether the page is what the results say
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.promises import PEERS, PROMISES, TOPICS, Promise
from tests.faults.run import Row, read

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "reliability.md"

HEAD = """# Reliability

What siamusic-fast promises about faults, the test behind each promise, and how often it was tried and kept
on real processes and files. Below each table is what the documentation of other loaders says of the same.
"""
TAIL = """## Try it yourself

    make faults    # prints its plan first, then tries every promise: about 35 minutes on two cores
    make soak      # loads a million samples and watches memory, open files and threads: ten minutes

Both end with a table of promises, tries, survivals and seconds, and keep it in
`benchmarks/here/faults.json`; `FAULTS=FILE` names another file. Rows of promises that were not tried again
stay in it. `make test` tries every promise a few times; `python -m tests.faults.run --share 0.1` tries a
tenth of the long form, and `--only NAME` one promise. `python -m tests.faults.page` makes this page of
`benchmarks/results/*/faults.json` and `tests/faults/promises.py`, and `make check` compares them. A small
disk that fills up takes root, who can mount one; without, errors of a full disk are injected only.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for path in sorted(RESULTS.glob("*/faults.json")):
        found = read(path)
        rows = {row.name: row for row in found.rows}
        parts.append(f"## {title(found.machine)}")
        parts += ["\n".join(section(topic, rows)) for topic in TOPICS]
        parts.append(f"In all: {totals(list(rows.values()))}.")
    return "\n\n".join(part.strip() for part in [*parts, TAIL]) + "\n"


def title(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['cores']} cores (Python {machine['python']}, torch {machine['torch']}, "
        f"DALI {machine['dali']})"
    )


def section(topic: str, rows: dict[str, Row]) -> Iterator[str]:
    """Yield the lines of the promises of one topic."""
    yield from (f"### {TOPICS[topic]}", "")
    yield "| promise | tried | kept | seconds | test |"
    yield "|---|---:|---:|---:|---|"
    for promise in PROMISES:
        if promise.topic == topic:
            yield line(promise, rows.get(promise.name, Row(promise.name)))
    yield ""
    for library, (words, link) in PEERS[topic].items():
        yield f"- [{library}]({link}): {words}"


def line(promise: Promise, row: Row) -> str:
    path, name = promise.test.split("::")
    figures = f"{row.tried:,} | {row.survived:,} | {row.seconds:,.0f}" if row.tried else "not tried | | "
    return f"| {promise.words} | {figures} | [`{name}`](../{path}) |"


def totals(rows: list[Row]) -> str:
    tried, survived = sum(row.tried for row in rows), sum(row.survived for row in rows)
    days = sorted({row.date for row in rows})
    when = days[0] if len(days) == 1 else f"tried in several runs, {days[0]} to {days[-1]}"
    minutes = sum(row.seconds for row in rows) / 60
    return f"{survived:,} of {tried:,} tries, in {minutes:.0f} minutes ({when})"


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text() != page():
            sys.exit(f"{PAGE.name} is not what {RESULTS.name} say: run python -m tests.faults.page.")
        return
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
