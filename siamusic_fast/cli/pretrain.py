"""`siamusic-fast pretrain`: an encoder from music without labels."""

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import rich_click as click
from click import get_current_context
from click.core import ParameterSource

from siamusic_fast.cli import options
from siamusic_fast.cli.console import command_line, count, duration, note, progress, show_facts
from siamusic_fast.cli.launching import launch, next_command, show_result
from siamusic_fast.cli.options import CommonOptions
from siamusic_fast.config import PRESETS, MelConfig, PretrainConfig, from_preset, preset_defaults
from siamusic_fast.config.fields import check_value, settings_of
from siamusic_fast.errors import ConfigError
from siamusic_fast.processes.failures import OF_PRETRAINING
from siamusic_fast.shards.manifest import ShardSet, find_shards

RUNS = Path("runs")
_MEL = {setting.name for setting in settings_of(MelConfig)}
_SET_BY_PRESETS = {name for preset in PRESETS for name in preset_defaults(preset, 1)}
_DEFAULTS = {
    setting.name: f"{setting.default_words}, or as --preset says"
    for setting in settings_of(PretrainConfig)
    if setting.name in _SET_BY_PRESETS
}


@click.command()
@options.common(
    click.option(
        "--preset",
        type=options.Choices(PRESETS),
        help="Way to train, which sets augmentations, crops, normalization, stem, pooling and optimization: "
        "music, this project's own; paper, that of Kim, Hong, Lee 2022; simsiam, the paper's with the "
        f"optimizer of Chen & He 2021.  [default: {PRESETS[0]}]",
        panel="Settings",
    ),
    options.settings(PretrainConfig, defaults=_DEFAULTS),
    click.option(
        "--all-splits",
        is_flag=True,
        help="Learn from the tracks of all splits, test included.",
        panel="Views",
    ),
    options.settings(MelConfig, defaults={"sample_rate": "that of the shards"}),
    click.option(
        "--max-restarts",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        help="How often all processes start again from the last checkpoint after one has died.  [default: 0]",
        panel="Running",
    ),
    click.option(
        "--resume",
        metavar="RUN|auto",
        help="Go on with RUN where it was stopped, with its settings, in as many processes as can share its "
        "batch; more --epochs extend it. auto: the run in --out, or else the newest unfinished one in runs, "
        "or a new one if there is none.",
    ),
    default_out="runs/DATE-AUG-BACKBONE",
    data=options.data,
)
def pretrain(
    common: CommonOptions,
    preset: str | None,
    all_splits: bool,
    max_restarts: int,
    resume: str | None,
    **settings: Any,
) -> None:
    """Pre-train an encoder without labels.

    The folder of the run gets config.json, checkpoint.pt and the one before it, best.pt where there are
    labels to judge it by, metrics.jsonl with TensorBoard's event file, and plots. Ctrl-C saves and stops.

    \b
    siamusic-fast pretrain --gpus 2 --aug image
    siamusic-fast pretrain --gpus 2 --preset paper
    siamusic-fast pretrain --data fma_small --backbone resnet18 --epochs 5
    siamusic-fast pretrain --resume runs/20260102-030405-music-resnet50
    """
    from siamusic_fast.models.run_files import OF_RUNS, check_free
    from siamusic_fast.pipelines.recipes import file_name
    from siamusic_fast.processes.environment import is_leader, processes_wanted, starts_again
    from siamusic_fast.training.checks import check_pretraining

    given = _without_what_a_typed_preset_sets(options.given(settings))
    if resume not in (None, "auto"):
        _refuse_settings(given, preset=preset, out=common.out, all_splits=all_splits, force=common.force)
    if starts_again() and common.out is None and resume is None:
        raise ConfigError("torchrun starts this again if a process dies: name the run with --out to go on.")
    _check_alone(given)
    earlier = _run_to_resume(resume, common.out)
    old = _load_run(earlier)
    shard_set = find_shards(common.data or (old.data if old else options.DATA), common.data_dir)
    if all_splits:
        given["splits"] = tuple(shard_set.splits)
    world_size = processes_wanted(common.gpus, common.procs)
    config = _configured(given, preset, world_size, shard_set, old and old.config_for(world_size))
    check_pretraining(config, shard_set, world_size)
    started = f"{datetime.now():%Y%m%d-%H%M%S}"
    run = earlier or common.out or RUNS / f"{started}-{file_name(config.aug)}-{config.backbone}"
    force = common.force or (resume == "auto" and _is_abandoned(run))
    if earlier is None and not starts_again():
        check_free(run, OF_RUNS, force)

    from siamusic_fast.analysis import plots  # from here on torch is needed
    from siamusic_fast.training import pretrain as training
    from siamusic_fast.training.run_log import keep_in_trackers

    if not common.quiet and is_leader():
        note(f"Run: {run}")
    result = launch(
        training.pretrain,
        config,
        shard_set,
        run,
        common=common,
        resume=earlier is not None,
        force=force,
        progress=training_progress(common.quiet, config),
        if_stopped=lambda: _how_to_go_on(run, common),
        remedy=OF_PRETRAINING,
        max_restarts=max_restarts,
    )
    plots.pretraining(result.run)
    keep_in_trackers(result.run, config.logger)
    values = {**dataclasses.asdict(result), "run": str(result.run)}
    show_result(values, lambda: render(result, shard_set), result.run, common)


def render(result: Any, shard_set: ShardSet) -> None:
    """Print what a run came to, its folder, and what to do with it."""
    run, best = str(result.run), result.best_knn
    labelled = len(shard_set.names(shard_set.target)) > (shard_set.target == "class")
    knn_of = "ROC-AUC of tags" if shard_set.target == "tags" else "accuracy"
    trained = f"{count(result.epochs, 'epoch')}, {count(result.steps, 'step')}"
    facts = {
        "trained": f"{trained} in {duration(result.seconds)}",
        "loss": f"{result.loss:.3f}",
        "collapse": f"{result.collapse:.4f} (healthy {result.healthy_collapse:.4f}, collapsed 0)",
        "rank": f"{result.encoder_rank:.1f} of the encoder, {result.projector_rank:.1f} of the projector",
        "kNN": "not measured"
        if best is None
        else f"{knn_of} {result.knn:.1%}, best {best:.1%}, before the first step {result.initial_knn:.1%}",
        "speed": f"{result.pairs_per_second:.1f} pairs/s, {result.waiting:.0%} of the time waiting for data",
        "memory": f"{result.peak_memory / 2**30:.2f} GiB at the peak",
        "run": run,
        "next": next_command("finetune", run)
        if labelled
        else f"siamusic_fast.load_encoder({run!r}) in Python",
    }
    show_facts(facts.items())


@dataclasses.dataclass(frozen=True)
class _Figures:
    """Rows of words that show the figures of a run. Processes that train together get it by pickle."""

    epochs: int
    healthy: float
    """The collapse measure of a healthy run."""

    def __call__(self, values: Mapping[str, float]) -> list[list[str]]:
        from siamusic_fast.training.run_log import LOW_RANK

        words = {"knn": "kNN {knn:.1%}", "knn_roc_auc": "kNN, ROC-AUC of tags {knn_roc_auc:.1%}"}
        knn = [text for name, text in words.items() if name in values]
        speed = ["{pairs_per_second:,.1f} pairs/s", "{waiting:.0%} waiting for data"]
        collapse = f"collapse {{collapse:.4f}} (healthy {self.healthy:.4f})"
        rows = [
            [f"epoch {{epoch:.0f}}/{self.epochs}", "step {step:,.0f}/{steps:,.0f}"],
            ["loss {loss:.4f}", collapse, "lr {lr:.3g}"],
            ["rank {encoder_rank:.1f} of the encoder", "{projector_rank:.1f} of the projector"],
            [*speed, f"peak {values['peak_memory'] / 2**30:.2f} GiB", *knn],
        ]
        if values["collapse"] < self.healthy / 2:
            rows.append(["collapsing: all outputs are alike; try a lower learning rate or larger batches"])
        elif values["encoder_rank"] < min(LOW_RANK, values["highest_rank"] / 4):
            rows.append(["low rank: few dimensions are used; try a tenth of --lr, or --method vicreg"])
        return [[words.format(**values) for words in row] for row in rows]


def training_progress(quiet: bool, config: PretrainConfig, **where: Any) -> Any:
    """Return what shows a run of `config` by its figures."""
    from siamusic_fast.training.pretrain import TASK
    from siamusic_fast.training.run_log import healthy_collapse

    return progress(quiet, {TASK: _Figures(config.epochs, healthy_collapse(config.width))}, **where)


def _configured(
    given: dict[str, Any],
    preset: str | None,
    processes: int,
    shard_set: ShardSet,
    old: PretrainConfig | None,
) -> PretrainConfig:
    """Return the settings `given`; the rest is that of the run `old`, or else of `preset`."""
    mel = {name: value for name, value in given.items() if name in _MEL}
    fields = {name: value for name, value in given.items() if name not in _MEL}
    if old is None:
        fields["mel"] = MelConfig(**{"sample_rate": shard_set.sample_rate, **mel})
        tracks = shard_set.tracks(fields.get("splits", PretrainConfig.splits))
        return from_preset(preset or PRESETS[0], processes, tracks, **fields)
    if preset is not None:
        total_batch = old.batch_size * old.grad_accum_steps * processes
        fields = {**preset_defaults(preset, total_batch), **fields}
    return dataclasses.replace(old, mel=dataclasses.replace(old.mel, **mel), **fields)


def _without_what_a_typed_preset_sets(given: dict[str, Any]) -> dict[str, Any]:
    """Return `given` without what a file says about a preset's fields, if --preset is on the command line."""
    source = get_current_context().get_parameter_source
    if source("preset") is not ParameterSource.COMMANDLINE:
        return given
    from_file = {name for name in given if source(name) is ParameterSource.DEFAULT_MAP}
    return {name: value for name, value in given.items() if name not in _SET_BY_PRESETS & from_file}


def _check_alone(given: dict[str, Any]) -> None:
    """Raise ConfigError for a setting that no shards and no processes could make right."""
    from siamusic_fast.pipelines.recipes import parse_recipe

    parse_recipe(given.get("aug", PretrainConfig.aug))
    for setting in settings_of(PretrainConfig):
        if setting.name in given:
            check_value(setting.name, given[setting.name], setting.rule)


def _load_run(run: Path | None) -> Any:
    """Return what is known of an earlier run, if there is one."""
    from siamusic_fast.models.run_checks import check_run

    if run is None:
        return None
    check_run(run)
    from siamusic_fast.training.run_folder import load_run

    return load_run(run)


def _is_abandoned(run: Path) -> bool:
    from siamusic_fast.training.run_folder import is_abandoned

    return is_abandoned(run)


def _run_to_resume(resume: str | None, out: Path | None) -> Path | None:
    """Return the run that --resume means; None to start one."""
    from siamusic_fast.models.run_files import Checkpoints

    if resume != "auto":
        return Path(resume) if resume else None
    if out is None:
        from siamusic_fast.training.run_folder import newest_unfinished

        return newest_unfinished(RUNS)
    return out if Checkpoints(out).exist() else None


def _refuse_settings(given: dict[str, Any], **others: object) -> None:
    """Raise UsageError if a setting but --epochs is given beside --resume RUN, which has settings already."""
    names = [
        *(name for name in given if name != "epochs"),
        *(name for name, value in others.items() if value),
    ]
    if names:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise click.UsageError(f"--resume goes on with the settings of the run: leave out {words}.")


def _how_to_go_on(run: Path, common: CommonOptions) -> tuple[str, ...]:
    from siamusic_fast.models.run_files import Checkpoints

    if not Checkpoints(run).exist():
        return (f"Stopped before the first checkpoint: {run} cannot be resumed.",)
    where = {"--gpus": common.gpus, "--procs": common.procs}
    words = [word for item in where.items() if item[1] is not None for word in item]
    command = command_line("siamusic-fast", "pretrain", "--resume", run, *words)
    return f"Stopped. {run} has a checkpoint; go on with:", command
