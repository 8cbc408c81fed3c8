"""`siamusic-fast evaluate` and `probe`: how good a classifier is, and what an encoder learnt."""

from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import count, note, output, show_facts, table_of
from siamusic_fast.cli.launching import launch, next_command, shards_of, show_result
from siamusic_fast.cli.options import CommonOptions
from siamusic_fast.config import FinetuneConfig, ProbeConfig


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.common(
    options.settings(FinetuneConfig, "backend", "seed"), default_out="evaluate beside the classifier"
)
def evaluate(run: Path, common: CommonOptions, **settings: Any) -> None:
    """Score the classifier of RUN on every test track once.

    RUN is a pre-training run that was fine-tuned, or the folder of a classifier. Probabilities are averaged
    over crops that cover a track, up to 128. A classifier of classes has accuracy, recall, precision and F1,
    one of tags macro ROC-AUC and PR-AUC. Intervals are those of 95% over 1,000 bootstrap samples of the
    tracks, or of their groups where these are known. Writes results.json, predictions.csv and confusion.png,
    or tags.png.

    \b
    siamusic-fast evaluate runs/20260102-030405-music-resnet50
    """
    from siamusic_fast.evaluation.checks import check_evaluation
    from siamusic_fast.processes.environment import processes_wanted

    given, data = options.given(settings), shards_of(common)
    processes_wanted(common.gpus, common.procs)
    backend = given.get("backend", FinetuneConfig.backend)
    check_evaluation(run, data, common.out, backend=backend, force=common.force)

    from siamusic_fast.analysis import plots  # from here on torch is needed
    from siamusic_fast.evaluation import evaluate as evaluation

    result = launch(evaluation.evaluate, run, data, common.out, common=common, **given)
    plots.evaluation(result)
    values = {"folder": str(result.folder), **evaluation.as_json(result)}
    _show(values, result, run, common)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.common(options.settings(ProbeConfig), default_out="RUN/probe")
def probe(run: Path, common: CommonOptions, **settings: Any) -> None:
    """Score the frozen features of RUN's encoder, and those of baselines that learnt nothing.

    The kNN probe takes the vote of the 20 most similar training tracks; the linear probe is a logistic
    regression on the training tracks, whose L2 penalty is chosen by cross-validation that leaves out whole
    groups, such as artists. Both are scored on the test tracks, whose features are averaged over crops that
    cover a track, up to 128; --cv scores all labelled tracks instead. Retrieval takes no labels: whether the
    crop nearest to a crop is of the same track (R@1), and how well crops of other tracks of the same artist
    are found (mAP).

    The baselines are a random encoder, the initial one of the run's seed, and means and
    deviations of log-mels and of MFCCs. Each measure is compared with the strongest of them, with a 95%
    interval of the paired difference. Writes results.json and probes.png.

    \b
    siamusic-fast probe runs/20260102-030405-music-resnet50
    siamusic-fast probe runs/first --cv 4 --label-curve
    """
    from siamusic_fast.evaluation.checks import check_probe
    from siamusic_fast.processes.environment import processes_wanted

    config, data = ProbeConfig(**options.given(settings)), shards_of(common)
    processes_wanted(common.gpus, common.procs)
    check_probe(run, data, common.out, config, force=common.force)

    from siamusic_fast.analysis import plots  # from here on torch is needed
    from siamusic_fast.evaluation import probe as probes

    result = launch(probes.probe, run, data, common.out, config, common=common)
    plots.probes(result)
    _show(probes.as_json(result), result, run, common)


def _show(values: dict[str, Any], result: Any, run: Path, common: CommonOptions) -> None:
    """Show a result, and say if the encoder had heard test tracks before."""
    from siamusic_fast.evaluation.evaluate import EvaluateResult, overlap_warning

    def render() -> None:
        if isinstance(result, EvaluateResult):
            render_scores(result, run)
            words = overlap_warning(result.pretrained_on)
        else:
            render_probes(result)
            words = overlap_warning(result.pretrained_on, result.scored_splits)
        if words:
            note(words)

    show_result(values, render, result.folder, common)


def render_scores(result: Any, run: Path) -> None:
    """Print the scores by class or tag and overall, the folder of the results, and what to do next."""
    facts = (_render_tags if result.target == "tags" else _render_classes)(result.scores)
    facts |= {
        "data": f"{count(result.scores.tracks, 'test track')} of {result.data}",
        "results": str(result.folder),
    }
    if (run / "checkpoint.pt").is_file():
        facts["next"] = next_command("probe", run)
    show_facts(facts.items())


def _render_tags(scores: Any) -> dict[str, str]:
    """Print the scores of each tag, the best first, and return what else there is to say of them."""
    table = table_of("tag", "tracks", "ROC-AUC", "PR-AUC")
    for one in sorted(scores.tags, key=lambda tag: -(tag.roc_auc or 0)):
        if one.roc_auc is not None:
            table.add_row(one.name, str(one.tracks), f"{one.roc_auc:.3f}", f"{one.pr_auc:.3f}")
    macro = (f"{scores.roc_auc:.3f}", f"{scores.pr_auc:.3f}")
    table.add_row("macro average", str(scores.tracks), *macro, style="bold")
    intervals = ("{:.3f} to {:.3f}".format(*scores.intervals[name]) for name in ("roc_auc", "pr_auc"))
    table.add_row("95% interval", "", *intervals, style="dim")
    output.print(table)
    facts = {"chance": f"ROC-AUC 0.5, PR-AUC {scores.chance:.3f}"}
    if scores.left_out:
        facts["left out"] = f"{', '.join(scores.left_out)}: no or every test track has them"
    return facts


def _render_classes(scores: Any) -> dict[str, str]:
    """Print the scores of each class, and return what else there is to say of them."""
    table = table_of("class", "tracks", "recall", "precision", "F1")
    for one in scores.classes:
        table.add_row(one.name, str(one.tracks), f"{one.recall:.1%}", f"{one.precision:.1%}", f"{one.f1:.1%}")
    macro = (f"{scores.recall:.1%}", f"{scores.precision:.1%}", f"{scores.f1:.1%}")
    table.add_row("macro average", str(scores.tracks), *macro, style="bold")
    intervals = (_interval(scores, name) for name in ("recall", "precision", "f1"))
    table.add_row("95% interval", "", *intervals, style="dim")
    output.print(table)
    accuracy = f"{scores.accuracy:.1%} ({_interval(scores, 'accuracy')}), chance {scores.chance:.1%}"
    return {"accuracy": accuracy}


def render_probes(result: Any) -> None:
    """Print every measure of all features, what they are above the strongest baseline, and the folder."""
    table = table_of("features", *(measure.title for measure in result.measures), "rank")
    for name, one in result.probes.items():
        cells = (_value(measure, name, short=len(result.measures) > 4) for measure in result.measures)
        style = "bold" if name == "pretrained" else None
        table.add_row(name, *cells, f"{one.effective_rank:.0f}", style=style)
    output.print(table)
    facts = {measure.title: _difference(measure) for measure in result.measures}
    for point in result.label_curve:
        facts[f"{point.fraction:.0%} of labels"] = (
            f"{point.measure.title} {point.measure.values['pretrained']:.1%} from "
            f"{count(point.labels, 'track')}, {_difference(point.measure)}"
        )
    facts["encoder"] = f"{result.architecture.backbone}, pre-trained, {count(result.epoch, 'epoch')}"
    if result.init is not None:
        facts["initial"] = f"has random weights; the run itself began with {result.init}"
    where = "test track" if result.scored_on == "test" else "track"
    by = "" if result.scored_on == "test" else ", by grouped cross-validation"
    chance = f"{'ROC-AUC 50%, PR-AUC ' if result.target == 'tags' else ''}{result.chance:.1%}"
    facts["data"] = f"{count(result.tracks, where)} of {result.data}{by}; chance {chance}"
    by_groups: dict[int, list[str]] = {}
    for measure in result.measures:
        by_groups.setdefault(measure.groups, []).append(measure.title)
    groups = (f"{count(number, 'group')} ({', '.join(titles)})" for number, titles in by_groups.items())
    facts["intervals"] = f"95%, of {', '.join(groups)}"
    facts["results"] = str(result.folder)
    show_facts((name, words) for name, words in facts.items() if words)


def _value(measure: Any, name: str, *, short: bool) -> str:
    low, high = measure.intervals[name]
    value = f"{measure.values[name]:.1%}"
    return value if short else f"{value}\n{100 * low:.1f} to {100 * high:.1f}"


def _difference(measure: Any) -> str:
    return f"against {measure.strongest}, the strongest baseline: {measure.difference.words}"


def _interval(scores: Any, name: str) -> str:
    low, high = scores.intervals[name]
    return f"{low:.1%} to {high:.1%}"
