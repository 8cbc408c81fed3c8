"""`siamusic-fast ablate`: what each augmentation of a recipe adds."""

from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options, studies
from siamusic_fast.cli.console import progress
from siamusic_fast.config.studies import AblateConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.shards.manifest import find_shards

DATA = "fma_small"


@click.command()
@click.option(
    "--data",
    help=f"Shard set to pre-train on, fine-tune and test on: its folder, or its name.  [default: {DATA}]",
    panel="Data",
)
@options.data_dir
@options.cache
@options.settings(AblateConfig)
@studies.running("studies/ablate-AUG, or studies/ablate-AUG-tiny")
def ablate(
    data: str | None,
    data_dir: Path,
    gpus: int | None,
    gpus_per_cell: int,
    procs: int | None,
    tiny: bool,
    dry_run: bool,
    out: Path | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train with parts of a recipe, and say what each part changes.

    Pre-trains with the whole recipe --aug, with nothing, with each augmentation alone, and with each left
    out; with --pairs also with each pair, and with --scale with all probabilities times a factor. Fine-tunes
    each encoder and scores it on the test tracks. Each row is compared with the whole recipe, track by track.

    Says first how many runs, hours and gigabytes that is, and goes on where it was stopped, as `reproduce`.
    More --seeds, --pairs and --scale add cells to a study.

    \b
    siamusic-fast ablate --tiny
    siamusic-fast ablate --aug image --data fma_small --dry-run
    siamusic-fast ablate --aug "cutmix,mask,hflip" --pairs --scale 0.5,1.5
    """
    given = options.given(settings)
    if "scale" in given:
        given["scale"] = tuple(map(_factor, given["scale"]))
    config = AblateConfig(**(studies.tiny_settings(given, backbone="resnet18") if tiny else given))

    from siamusic_fast.pipelines.recipes import file_name

    name = f"ablate-{file_name(config.aug)}"
    folder = out or studies.FOLDER / (f"{name}-tiny" if tiny else name)
    if tiny and data:
        raise click.UsageError("--tiny makes its own music: leave out --data.")
    shard_set = None if tiny else find_shards(data or DATA, data_dir)

    from siamusic_fast.processes.pool import cores  # from here on torch is needed
    from siamusic_fast.studies.ablate import plan_ablation, recipes
    from siamusic_fast.studies.running import devices_for
    from siamusic_fast.studies.tiny import REMARK, tiny_shards

    recipes(config)
    devices = devices_for(gpus, procs, gpus_per_cell)
    with studies.stopped_study():
        if shard_set is None:
            shard_set = tiny_shards(folder / "data", procs=cores(), progress=progress(quiet))
        planned = plan_ablation(config, shard_set, shard_set, folder, devices, remark=REMARK if tiny else "")
        studies.run(planned, dry_run=dry_run, quiet=quiet, as_json=as_json)


def _factor(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"scale = {text!r} is no number: write factors such as 0.5,1.5.") from None
