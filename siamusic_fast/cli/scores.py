"""`siamusic-fast evaluate` and `probe`: how good a classifier is, and what an encoder learnt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import count, note, output, show_facts, table_of
from siamusic_fast.cli.launching import launch, next_command, shards_of, show_result
from siamusic_fast.cli.options import CommonOptions
from siamusic_fast.config import CHECKPOINTS, FinetuneConfig
from siamusic_fast.config.fields import OneOf, check_value
from siamusic_fast.shards.manifest import ShardSet


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.common(
    options.settings(FinetuneConfig, "backend", "seed"), default_out="evaluate beside the classifier"
)
def evaluate(run: Path, common: CommonOptions, **settings: Any) -> None:
    """Score the classifier of RUN on every test track once.

    RUN is a pre-training run that was fine-tuned, or the folder of a classifier. Probabilities are averaged
    over crops that cover a track, up to 128. Intervals are those of 95% over 1,000 bootstrap samples of the
    tracks. Writes results.json, predictions.csv and confusion.png.

    \b
    siamusic-fast evaluate runs/20260102-030405-music-resnet50
    """
    from siamusic_fast.evaluation.checks import check_evaluation

    given, data = options.given(settings), shards_of(common)
    _check(check_evaluation, run, data, common, given)

    from siamusic_fast.analysis import plots  # from here on torch is needed
    from siamusic_fast.evaluation import evaluate as evaluation

    result = launch(evaluation.evaluate, run, data, common.out, common=common, **given)
    plots.evaluation(result)
    values = {"folder": str(result.folder), **evaluation.as_json(result)}
    _show(values, result, run, common)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.common(options.settings(FinetuneConfig, "checkpoint", "backend", "seed"), default_out="RUN/probe")
def probe(run: Path, common: CommonOptions, checkpoint: str | None, **settings: Any) -> None:
    """Classify tracks by the frozen features of RUN's encoder, and by those of random ones.

    The kNN probe takes the vote of the 20 most similar training tracks; the linear probe is a logistic
    regression on the training tracks, whose L2 penalty is chosen on validation. Both are scored on the test
    tracks. A track's features are averaged over crops that cover it, up to 128. The random encoder has
    torchvision's own initial weights; the initial one is what pre-training started from, where residual
    branches begin at zero. Writes results.json.

    \b
    siamusic-fast probe runs/20260102-030405-music-resnet50
    """
    from siamusic_fast.evaluation.checks import check_probe

    given, data = options.given({"which": checkpoint, **settings}), shards_of(common)
    check_value("checkpoint", checkpoint or CHECKPOINTS[0], OneOf(CHECKPOINTS))
    _check(check_probe, run, data, common, given)

    from siamusic_fast.evaluation import probe as probes  # from here on torch is needed

    result = launch(probes.probe, run, data, common.out, common=common, **given)
    _show(probes.as_json(result), result, run, common)


def _check(
    check: Callable[..., object],
    run: Path,
    data: ShardSet | None,
    common: CommonOptions,
    given: dict[str, Any],
) -> None:
    """Check the processes that are asked for, and by `check` the run, the shards and where results go."""
    from siamusic_fast.processes.environment import processes_wanted

    processes_wanted(common.gpus, common.procs)
    backend = given.get("backend", FinetuneConfig.backend)
    check(run, data, common.out, backend=backend, force=common.force)


def _show(values: dict[str, Any], result: Any, run: Path, common: CommonOptions) -> None:
    """Show a result, and say if the encoder had heard test tracks before."""
    from siamusic_fast.evaluation.evaluate import EvaluateResult, overlap_warning

    def render() -> None:
        if isinstance(result, EvaluateResult):
            render_scores(result, run)
        else:
            render_probes(result)
        if words := overlap_warning(result.pretrained_on):
            note(words)

    show_result(values, render, result.folder, common)


def render_scores(result: Any, run: Path) -> None:
    """Print the scores by class and overall, the folder of the results, and what to do next."""
    scores = result.scores
    table = table_of("class", "tracks", "recall", "precision", "F1")
    for one in scores.classes:
        table.add_row(one.name, str(one.tracks), f"{one.recall:.1%}", f"{one.precision:.1%}", f"{one.f1:.1%}")
    macro = (f"{scores.recall:.1%}", f"{scores.precision:.1%}", f"{scores.f1:.1%}")
    table.add_row("macro average", str(scores.tracks), *macro, style="bold")
    intervals = (_interval(scores, name) for name in ("recall", "precision", "f1"))
    table.add_row("95% interval", "", *intervals, style="dim")
    output.print(table)
    facts = {
        "accuracy": f"{scores.accuracy:.1%} ({_interval(scores, 'accuracy')}), chance {scores.chance:.1%}",
        "data": f"{count(scores.tracks, 'test track')} of {result.data}",
        "results": str(result.folder),
    }
    if (run / "checkpoint.pt").is_file():
        facts["next"] = next_command("probe", run)
    show_facts(facts.items())


def render_probes(result: Any) -> None:
    """Print the accuracies of the encoders, what pre-training added, and the folder of the results."""
    test = result.pretrained.linear
    table = table_of("accuracy (95% interval)", "kNN", "linear")
    encoders = {
        f"pre-trained, {count(result.epoch, 'epoch')}": result.pretrained,
        "random": result.random,
        "initial": result.initial,
    }
    for name, one in encoders.items():
        cells = (f"{found.accuracy:.1%} ({_interval(found, 'accuracy')})" for found in (one.knn, one.linear))
        table.add_row(name, *cells)
    output.print(table)
    facts = {
        "gain": f"Pre-training changed a random encoder's linear probe by {100 * result.gain:+.1f} points.",
        "data": f"{count(test.tracks, 'test track')} of {result.data}; chance {test.chance:.1%}",
        "results": str(result.folder),
    }
    show_facts(facts.items())


def _interval(scores: Any, name: str) -> str:
    low, high = scores.intervals[name]
    return f"{low:.1%} to {high:.1%}"
