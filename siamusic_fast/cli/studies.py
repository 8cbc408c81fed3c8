"""What `siamusic-fast reproduce` and `siamusic-fast ablate` share: options, the plan, and the result."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import (
    count,
    duration,
    note,
    output,
    progress,
    show_error,
    show_facts,
    stopping,
)
from siamusic_fast.cli.launching import this_command
from siamusic_fast.config import BACKENDS, MelConfig

TINY: dict[str, Any] = {"epochs": 1, "finetune_epochs": 1, "batch_size": 16}
"""Settings of a tiny study, as far as they are not given."""
TINY_MEL: dict[str, Any] = {"seconds": 1.0, "hop_length": 512, "n_fft": 1024}
"""Features of a tiny study."""
FOLDER = Path("studies")


def running(default_out: str) -> Callable[[Any], Any]:
    """Return the decorator that adds the options on where and how a study runs."""
    return options.together(
        click.option(
            "--gpus",
            type=click.IntRange(min=0),
            metavar="N",
            help="Number of GPUs, which run different cells of the study; 0: the CPU.  [default: all]",
            panel="Running",
        ),
        click.option(
            "--gpus-per-cell",
            type=click.IntRange(min=1),
            metavar="N",
            default=1,
            help="Number of GPUs that train each cell together.  [default: 1]",
            panel="Running",
        ),
        click.option(
            "--procs",
            type=click.IntRange(min=1),
            metavar="N",
            help="Number of cells that run at a time on the CPU.  [default: 1]",
            panel="Running",
        ),
        click.option(
            "--tiny",
            is_flag=True,
            help="Try the study on a little synthetic music with small networks. It says that the study "
            "works, and nothing about music.",
        ),
        click.option("--dry-run", is_flag=True, help="Say what the study will take, and stop."),
        options.out(default_out),
        options.quiet,
        options.as_json,
    )


def stopped_study() -> AbstractContextManager[None]:
    """Return a context that, when the work inside is stopped, says how it goes on."""
    return stopping(lambda: ("Stopped. Finished cells are kept; go on with:", this_command()))


def tiny_settings(given: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings of a tiny study."""
    return {"mel": MelConfig(**TINY_MEL), "backend": BACKENDS[-1], **TINY, **more, **given}


def run(planned: Any, *, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Run a planned study and print what came out, or with `dry_run` say only what it will take.

    Exits with 1 if a cell failed.
    """
    if dry_run:
        expected = planned.estimate(progress(quiet))
        if as_json:
            values = None if expected is None else dataclasses.asdict(expected)
            output.print_json(json.dumps(values), indent=None)
        elif expected is None:
            note("All cells are finished: the same command without --dry-run writes the tables anew.")
        else:
            show_facts(plan(expected))
        return
    result = planned.run(progress(quiet), None if quiet else _announce)
    files = {name: str(result.folder / name) for name in _FILES.values()}
    if as_json:
        values = {
            "folder": str(result.folder),
            "rows": [
                {
                    **dict(zip(result.study.columns, one.row, strict=True)),
                    **{name: getattr(one, name) for name in ("protocol", "seeds", "scores", "intervals")},
                }
                for one in result.rows
            ],
            "differences": [
                {
                    "what": one.words,
                    "protocol": one.protocol,
                    **(dataclasses.asdict(one.found) | {"shown": one.found.shown} if one.found else {}),
                }
                for one in result.answers
            ],
            "failed": result.failed,
        }
        output.print_json(json.dumps(values), indent=None, ensure_ascii=True)
    elif quiet:
        output.print(str(result.folder), markup=False)
    else:
        _show(result, files)
    for name, words in result.failed.items():
        show_error(f"{name}: {words}")
    if result.failed:
        note(f"{count(len(result.failed), 'cell')} failed; try again with:", this_command())
        raise SystemExit(1)


_FILES = {
    "page": "report.html",
    "table": "table.md",
    "CSV": "table.csv",
    "differences": "differences.csv",
    "scores": "scores.png",
    "views": "figure2.png",
}


def plan(expected: Any) -> list[tuple[str, str]]:
    """Return what a study will take, as names and words."""
    done = f", {expected.finished} are finished" if expected.finished else ""
    runs = f"{count(expected.cells, 'pre-training')} and {count(expected.finetunings, 'fine-tuning')}"
    hours = f"{duration(3600 * expected.device_hours)} of {expected.device}"
    idle = f"; {count(expected.idle_gpus, 'GPU')} idle, too few for a cell" if expected.idle_gpus else ""
    return [
        ("cells", f"{expected.cells} to do{done}: {runs}, each with an evaluation"),
        ("time", f"about {duration(3600 * expected.hours)}; together {hours}, {expected.how}{idle}"),
        (
            "disk",
            f"{expected.gigabytes:.1f} GB to keep and {expected.peak_gigabytes:.1f} GB more while cells run; "
            f"{expected.free_gigabytes:.0f} GB are free",
        ),
    ]


def _announce(expected: Any) -> None:
    for name, words in plan(expected):
        note(f"{name:9} {words}")
    if expected.gigabytes + expected.peak_gigabytes > expected.free_gigabytes:
        note("note: the disk will not suffice; free some space, or use another disk with --out")


def _show(result: Any, files: Mapping[str, str]) -> None:
    from siamusic_fast.studies import tables

    if result.study.remark:
        output.print(result.study.remark, markup=False)
    if result.study.kind == "reproduce":
        output.print(columns(*tables.side_by_side(result)), markup=False)
        output.print()
    head = tables.score_head(result)
    output.print(columns(head, [tables.score_cells(result, one) for one in result.rows]), markup=False)
    if result.answers:
        output.print(f"\n{result.study.asked}", markup=False)
        answers = [tables.answer_cells(one) for one in result.answers]
        output.print(columns(("what", "protocol", "difference of accuracy"), answers), markup=False)
    output.print()
    page = Path(files["report.html"]).resolve().as_uri()
    facts = {name: files[file] for name, file in _FILES.items()} | {"open": f"{page} in a browser"}
    show_facts(facts.items())


def columns(head: Any, rows: Any) -> str:
    """Return a table as lines of aligned columns."""
    cells = [list(head), *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
