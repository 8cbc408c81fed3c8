"""`siamusic-fast evaluate`: how good a classifier is on the test tracks."""

import functools
import json
from pathlib import Path

import click
from rich.table import Table

from siamusic_fast.analysis import plots
from siamusic_fast.cli import options
from siamusic_fast.cli.console import note, output, progress
from siamusic_fast.evaluation import evaluate as training
from siamusic_fast.processes import launch as distributed
from siamusic_fast.processes.environment import is_leader
from siamusic_fast.shards.manifest import find_shards


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.labelled_data
@options.data_dir
@options.backend
@options.gpus
@options.procs
@options.seed
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the results.  [default: evaluate beside the classifier]",
)
@options.force
@options.quiet
@options.as_json
def evaluate(
    run: Path,
    data: str,
    data_dir: Path,
    backend: str,
    gpus: int | None,
    procs: int | None,
    seed: int,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Score the classifier of RUN on every test track once.

    RUN is a pre-training run that was fine-tuned, or the folder of a classifier. Probabilities are averaged
    over crops that cover a track, up to 128. Intervals are those of 95% over 1,000 bootstrap samples of the
    tracks. Writes results.json, predictions.csv and confusion.png.

    \b
    siamusic-fast evaluate runs/20260102-030405-image-resnet50 --data fma_small
    """
    shard_set = find_shards(data, data_dir)
    result = distributed.launch(
        functools.partial(
            training.evaluate,
            run,
            shard_set,
            out,
            seed=seed,
            backend=backend,
            force=force,
            progress=progress(quiet),
        ),
        gpus=gpus,
        procs=procs,
    )
    if not is_leader():
        return
    plots.evaluation(result)
    if as_json:
        values = {
            "folder": str(result.folder),
            **training.as_json(result),
        }
        output.print_json(json.dumps(values), indent=None)
    elif quiet:
        output.print(str(result.folder))
    else:
        render(result)
        if words := training.overlap_warning(result.pretrained_on):
            note(words)


def render(result: training.EvaluateResult) -> None:
    """Print the scores, by class and overall, and the folder of the results last."""
    scores = result.scores
    table = Table(
        title=f"{scores.tracks} test tracks of {result.data}; accuracy {scores.accuracy:.1%} "
        f"({_range(scores.intervals['accuracy'])}), chance {scores.chance:.1%}",
        title_justify="left",
    )
    table.add_column("class")
    for heading in ("tracks", "recall", "precision", "F1"):
        table.add_column(heading, justify="right")
    for one in scores.classes:
        table.add_row(one.name, str(one.tracks), f"{one.recall:.1%}", f"{one.precision:.1%}", f"{one.f1:.1%}")
    table.add_section()
    table.add_row(
        "macro average",
        str(scores.tracks),
        f"{scores.recall:.1%}",
        f"{scores.precision:.1%}",
        f"{scores.f1:.1%}",
    )
    table.add_row(
        "95% interval", "", *(_range(scores.intervals[name]) for name in ("recall", "precision", "f1"))
    )
    output.print(table)
    output.print(f"Results: {result.folder}", markup=False)


def _range(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:.1%} to {high:.1%}"
