"""`siamusic-fast probe`: what pre-training added to an encoder."""

import functools
import json
from pathlib import Path

import click
from rich.table import Table

from siamusic_fast.cli import options
from siamusic_fast.cli.console import note, output, progress
from siamusic_fast.config import CHECKPOINTS
from siamusic_fast.evaluation import probe as analysis
from siamusic_fast.evaluation.evaluate import overlap_warning
from siamusic_fast.evaluation.scores import Scores
from siamusic_fast.processes import launch as distributed
from siamusic_fast.processes.environment import is_leader
from siamusic_fast.shards.manifest import find_shards


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.labelled_data
@options.data_dir
@click.option(
    "--checkpoint",
    "which",
    type=click.Choice(CHECKPOINTS),
    default=CHECKPOINTS[0],
    show_default=True,
    help="Which encoder of the run: the last, or the best by kNN accuracy.",
)
@options.backend
@options.gpus
@options.procs
@options.seed
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the results.  [default: RUN/probe]",
)
@options.force
@options.quiet
@options.as_json
def probe(
    run: Path,
    data: str,
    data_dir: Path,
    which: str,
    backend: str,
    gpus: int | None,
    procs: int | None,
    seed: int,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Classify tracks by the frozen features of RUN's encoder, and by those of random ones.

    The kNN probe takes the vote of the 20 most similar training tracks; the linear probe is a logistic
    regression on the training tracks, whose L2 penalty is chosen on validation. Both are scored on the test
    tracks. A track's features are averaged over crops that cover it, up to 128. The random encoder has
    torchvision's own initial weights; the initial one is what pre-training started from, where residual
    branches begin at zero. Writes results.json.

    \b
    siamusic-fast probe runs/20260102-030405-image-resnet50 --data fma_small
    """
    shard_set = find_shards(data, data_dir)
    result = distributed.launch(
        functools.partial(
            analysis.probe,
            run,
            shard_set,
            out,
            which=which,
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
    if as_json:
        output.print_json(json.dumps(analysis.as_json(result)), indent=None)
    elif quiet:
        output.print(str(result.folder))
    else:
        render(result)
        if words := overlap_warning(result.pretrained_on):
            note(words)


def render(result: analysis.ProbeResult) -> None:
    """Print the accuracies of both encoders, what pre-training added, and the folder of the results last."""
    test = result.pretrained.linear
    table = Table(
        title=f"{result.backbone}: accuracy over {test.tracks} test tracks of {result.data}, "
        f"with 95% intervals; chance {test.chance:.1%}",
        title_justify="left",
    )
    table.add_column("encoder")
    table.add_column("kNN", justify="right")
    table.add_column("linear", justify="right")
    for name, probes in (
        (f"pre-trained, {result.epoch} epochs", result.pretrained),
        ("random", result.random),
        ("initial", result.initial),
    ):
        table.add_row(name, _accuracy(probes.knn), _accuracy(probes.linear))
    output.print(table)
    output.print(
        f"Pre-training added {100 * result.gain:+.1f} points to the linear probe of a random encoder."
    )
    output.print(f"Results: {result.folder}", markup=False)


def _accuracy(scores: Scores) -> str:
    low, high = scores.intervals["accuracy"]
    return f"{scores.accuracy:.1%} ({low:.1%} to {high:.1%})"
