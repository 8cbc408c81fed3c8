"""`siamusic-fast pretrain`: an encoder from music without labels."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from siamusic_fast import config as settings
from siamusic_fast.analysis import plots
from siamusic_fast.cli import config_file, options
from siamusic_fast.cli.console import note, output
from siamusic_fast.cli.panel import training_progress
from siamusic_fast.config import (
    BACKBONES,
    BACKENDS,
    CROPS,
    OPTIMIZERS,
    PRESETS,
    SCHEDULES,
    SHORT_TRACKS,
    MelConfig,
    PretrainConfig,
)
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.recipes import file_name, parse_recipe
from siamusic_fast.processes import launch as distributed
from siamusic_fast.processes.environment import is_leader, starts_again
from siamusic_fast.processes.signals import Stopped
from siamusic_fast.shards.manifest import find_shards
from siamusic_fast.training import pretrain as training
from siamusic_fast.training import run_folder as runs

RUNS = Path("runs")
_DATA = "fma_medium"
DEFAULTS = PretrainConfig()
_MEL = [field.name for field in dataclasses.fields(MelConfig)]


def _setting(name: str, kind: Any, words: str, default: str | None = None, **more: Any) -> Any:
    """Return an option that sets a field of the configuration; not given, its value is None."""
    field = name.removeprefix("--").split("/")[0].replace("-", "_")
    if default is None:
        value = getattr(DEFAULTS if hasattr(DEFAULTS, field) else DEFAULTS.mel, field)
        default = f"{value:g}" if isinstance(value, float) else str(value)
    return click.option(name, type=kind, default=None, help=f"{words}  [default: {default}]", **more)


_PRESET = "as the preset"
_SETTINGS = (
    _setting(
        "--aug",
        str,
        "Augmentations of the two views: image, audio, both, none, or a list such as "
        '"mask,cutout" or "cutmix(p=0.3),hflip".',
        metavar="RECIPE",
    ),
    _setting("--crops", str, "Which seconds of a track the two views show.", metavar="|".join(CROPS)),
    _setting("--max-distance", float, "Seconds between the starts of independent crops.", "anywhere"),
    _setting(
        "--short-tracks", str, "What is done with tracks shorter than a crop.", metavar="|".join(SHORT_TRACKS)
    ),
    _setting(
        "--backend", str, "What computes the spectrograms; torch needs no DALI.", metavar="|".join(BACKENDS)
    ),
    _setting(
        "--window",
        int,
        "Shards among whose tracks the order is drawn, for disks and networks that are slow at random reads.",
        "all",
    ),
    _setting("--backbone", str, "Encoder.", metavar="|".join(BACKBONES)),
    _setting("--epochs", int, "Passes over the tracks."),
    _setting("--batch-size", int, "Pairs per process that go through the network together."),
    _setting("--grad-accum-steps", int, "Batches whose gradients are averaged for a step."),
    _setting("--optimizer", str, "What takes the steps.", _PRESET, metavar="|".join(OPTIMIZERS)),
    _setting("--momentum", float, "Of SGD."),
    _setting("--lr", float, "Highest learning rate.", _PRESET),
    _setting("--weight-decay", float, "L2 penalty.", _PRESET),
    _setting("--schedule", str, "Of the learning rate.", _PRESET, metavar="|".join(SCHEDULES)),
    _setting("--warmup-epochs", float, "Time in which the learning rate rises from 0."),
    _setting(
        "--fixed-predictor-lr/--no-fixed-predictor-lr",
        bool,
        "Leave the predictor's learning rate out of the schedule.",
        _PRESET,
    ),
    _setting(
        "--sync-batchnorm/--no-sync-batchnorm",
        bool,
        "Let batch norm see the batches of all processes.",
        "if they are several, below 64 pairs each",
    ),
    _setting("--compile/--no-compile", bool, "Use torch.compile.", "on GPUs"),
    _setting("--knn-every", int, "Epochs between two looks at the kNN accuracy; 0: never."),
    _setting("--checkpoint-minutes", float, "Longest time between two checkpoints."),
    _setting("--splits", str, "What to learn from, such as training,validation.", "training"),
    _setting("--seconds", float, "Length of a crop."),
    _setting("--n-fft", int, "Length of the FFT, in samples."),
    _setting("--win-length", int, "Length of the window, in samples.", "that of the FFT"),
    _setting("--hop-length", int, "Samples between two frames."),
    _setting("--n-mels", int, "Mel bands."),
    _setting("--f-max", float, "Upper edge of the bands, in Hz."),
    _setting("--floor-db", float, "Lowest value of the decibel scale."),
    _setting("--sample-rate", int, "Of the features, in Hz.", "that of the shards"),
    _setting("--seed", click.IntRange(0, settings.MAX_SEED), "Seed of everything random."),
)


def _all_settings(command: Callable[..., None]) -> Callable[..., None]:
    return functools.reduce(lambda decorated, option: option(decorated), reversed(_SETTINGS), command)


@click.command()
@click.option("--data", help=f"Shards: a folder, or a name.  [default: {_DATA}]")
@options.data_dir
@click.option("--preset", metavar="|".join(PRESETS), help="Whose way to train.  [default: paper]")
@config_file.option
@_all_settings
@click.option("--all-splits", is_flag=True, help="Learn from every track, those of the test split included.")
@options.gpus
@options.procs
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How often all processes start again from the last checkpoint after one has died.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the run.  [default: runs/DATE-AUG-BACKBONE]",
)
@click.option(
    "--resume",
    metavar="RUN|auto",
    default=None,
    help="Go on where RUN was stopped, as it was configured; auto: the run in --out or the newest unfinished "
    "one in runs, or a new one if there is none.",
)
@options.force
@options.quiet
@options.as_json
def pretrain(
    data: str | None,
    data_dir: Path,
    preset: str | None,
    all_splits: bool,
    gpus: int | None,
    procs: int | None,
    max_restarts: int,
    out: Path | None,
    resume: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Pre-train an encoder with SimSiam.

    The folder of the run gets config.json, checkpoint.pt and the one before it, best.pt where there are
    labels to judge it by, metrics.jsonl with TensorBoard's event file, and plots. Ctrl-C saves and stops.

    \b
    siamusic-fast pretrain --gpus 2 --aug image
    siamusic-fast pretrain --data fma_small --gpus 0 --backbone resnet18 --epochs 5
    siamusic-fast pretrain --resume runs/20260102-030405-image-resnet50
    """
    given = {name: value for name, value in given.items() if value is not None}
    given = _without_what_a_typed_preset_sets(given)
    if resume not in (None, "auto"):
        _refuse_settings(given, preset=preset, out=out, all_splits=all_splits, force=force)
    if starts_again() and out is None and resume is None:
        raise ConfigError("torchrun starts this again if a process dies: name the run with --out to go on.")
    earlier = _run_to_resume(resume, out)
    old_config, old_data = runs.load_run(earlier) if earlier else (None, None)
    shard_set = find_shards(data or old_data or _DATA, data_dir)
    if all_splits:
        given["splits"] = ",".join(shard_set.splits)
    processes = distributed.processes_wanted(gpus, procs)
    config = _configured(given, preset, processes, shard_set.sample_rate, old_config)
    parse_recipe(config.aug)
    run = earlier or out or RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-{file_name(config.aug)}-{config.backbone}"
    if not quiet and is_leader():
        note(f"Run: {run}")
    try:
        result = distributed.launch(
            functools.partial(
                training.pretrain,
                config,
                shard_set,
                run,
                resume=earlier is not None,
                force=force or (resume == "auto" and runs.is_abandoned(run)),
                progress=training_progress(quiet, config.epochs),
            ),
            gpus=gpus,
            procs=procs,
            max_restarts=max_restarts,
        )
    except KeyboardInterrupt as stop:
        _say_how_to_go_on(run, gpus, procs)
        sys.exit(stop.exit_code if isinstance(stop, Stopped) else 130)
    if not is_leader():
        return
    plots.pretraining(result.run)
    if as_json:
        values = {**dataclasses.asdict(result), "run": str(result.run)}
        output.print_json(json.dumps(values), indent=None)
    elif quiet:
        output.print(str(result.run))
    else:
        render(result)


def render(result: training.PretrainResult) -> None:
    """Print what a run came to, its folder last."""
    knn = "" if result.knn is None else f", kNN accuracy {result.knn:.1%}, at best {result.best_knn:.1%}"
    output.print(
        f"{result.epochs} epochs, {result.steps} steps in {result.seconds:.0f} s: loss {result.loss:.3f}, "
        f"collapse measure {result.collapse:.4f} (healthy: {training.HEALTHY_COLLAPSE:.4f}, collapsed: 0)"
        f"{knn}, {result.pairs_per_second:.1f} pairs/s, {result.waiting:.0%} of the time waiting for data, "
        f"peak memory {result.peak_memory / 2**30:.2f} GiB"
    )
    output.print(f"Run: {result.run}", markup=False)


def _configured(
    given: dict[str, Any], preset: str | None, processes: int, sample_rate: int, old: PretrainConfig | None
) -> PretrainConfig:
    """Return the settings `given`; the rest is that of the run `old`, or else of `preset`."""
    mel = {name: value for name, value in given.items() if name in _MEL}
    fields = {name: value for name, value in given.items() if name not in _MEL}
    if "splits" in fields:
        fields["splits"] = tuple(fields["splits"].split(","))
    if old is None:
        fields["mel"] = MelConfig(**{"sample_rate": sample_rate, **mel})
        return settings.from_preset(preset or PRESETS[0], processes, **fields)
    if preset is not None:
        total_batch = old.batch_size * old.grad_accum_steps * processes
        fields = {**settings.preset_defaults(preset, total_batch), **fields}
    return dataclasses.replace(old, mel=dataclasses.replace(old.mel, **mel), **fields)


def _without_what_a_typed_preset_sets(given: dict[str, Any]) -> dict[str, Any]:
    """Return `given` without what a file says about a preset's fields, if --preset is on the command line."""
    source = click.get_current_context().get_parameter_source
    if source("preset") is not ParameterSource.COMMANDLINE:
        return given
    set_by_presets = {name for preset in PRESETS for name in settings.preset_defaults(preset, 1)}
    from_file = {name for name in given if source(name) is ParameterSource.DEFAULT_MAP}
    return {name: value for name, value in given.items() if name not in set_by_presets & from_file}


def _run_to_resume(resume: str | None, out: Path | None) -> Path | None:
    """Return the run that --resume means; None to start one."""
    if resume != "auto":
        return Path(resume) if resume else None
    if out is None:
        return runs.newest_unfinished(RUNS)
    return out if runs.has_checkpoint(out) else None


def _refuse_settings(given: dict[str, Any], **others: object) -> None:
    """Raise UsageError if a setting is given beside --resume RUN, which takes them all from the run."""
    names = [*given, *(name for name, value in others.items() if value)]
    if names:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise click.UsageError(f"--resume goes on with the settings of the run: leave out {words}.")


def _say_how_to_go_on(run: Path, gpus: int | None, procs: int | None) -> None:
    if not is_leader():
        return
    if runs.has_checkpoint(run):
        where = {"--gpus": gpus, "--procs": procs}
        words = "".join(f" {name} {value}" for name, value in where.items() if value is not None)
        note(f"Stopped. {run} has a checkpoint; go on with: siamusic-fast pretrain --resume {run}{words}")
    else:
        note(f"Stopped before the first checkpoint: {run} cannot be resumed.")
