"""`siamusic-fast finetune`: a classifier of genres or tags on a pre-trained encoder."""

import dataclasses
from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import count, duration, show_facts
from siamusic_fast.cli.launching import launch, next_command, shards_of, show_result, this_command
from siamusic_fast.cli.options import CommonOptions
from siamusic_fast.config import FinetuneConfig
from siamusic_fast.processes.failures import OF_FINETUNING


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.common(
    options.settings(FinetuneConfig),
    click.option("--resume", is_flag=True, help="Go on where the fine-tuning in --out was stopped."),
    default_out="RUN/finetune",
)
def finetune(run: Path, common: CommonOptions, resume: bool, **settings: Any) -> None:
    """Train a classifier of genres or tags on the encoder of RUN.

    Learns from the training split. The protocol `clean` keeps the epoch with the best accuracy on the
    validation split, or with tags the best macro ROC-AUC; `paper` keeps the last.

    \b
    siamusic-fast finetune runs/20260102-030405-music-resnet50
    siamusic-fast finetune runs/first --label-fraction 0.1 --out runs/tenth
    """
    from siamusic_fast.models.run_files import OF_CLASSIFIERS, check_free
    from siamusic_fast.processes.environment import processes_wanted
    from siamusic_fast.training.checks import check_finetuning

    config, data = FinetuneConfig(**options.given(settings)), shards_of(common)
    check_finetuning(config, run, data, processes_wanted(common.gpus, common.procs))
    if not resume:
        check_free(common.out or run / "finetune", OF_CLASSIFIERS, common.force)

    from siamusic_fast.analysis import plots  # from here on torch is needed
    from siamusic_fast.training import finetune as training
    from siamusic_fast.training.run_log import keep_in_trackers

    config = FinetuneConfig(**options.given(settings))
    result = launch(
        training.finetune,
        config,
        run,
        data,
        common.out,
        common=common,
        resume=resume,
        remedy=OF_FINETUNING,
        if_stopped=lambda: ("Stopped. Go on with:", this_command("--resume")),
    )
    plots.finetuning(result)
    keep_in_trackers(result.folder, config.logger)
    values = {**dataclasses.asdict(result), "folder": str(result.folder)}
    show_result(values, lambda: render(result, run, common), result.folder, common)


def _score(result: Any) -> dict[str, str]:
    tracks = count(result.tracks, "validation track")
    if result.accuracy is not None:
        return {"accuracy": f"{result.accuracy:.1%} of {tracks}"}
    return {"ROC-AUC": f"{result.roc_auc:.3f} of {tracks}", "PR-AUC": f"{result.pr_auc:.3f}"}


def render(result: Any, run: Path, common: CommonOptions) -> None:
    """Print what fine-tuning came to, its folder, and what to do with it."""
    which = "the best on validation" if result.protocol == "clean" else "the last"
    facts = {
        "trained": f"{count(result.epochs, 'epoch')} in {duration(result.seconds)}",
        "kept": f"epoch {result.kept_epoch}, {which}",
        **_score(result),
        "data": result.data,
        "classifier": str(result.folder),
        "next": next_command("evaluate", run if result.folder == run / "finetune" else result.folder),
    }
    show_facts(facts.items())
