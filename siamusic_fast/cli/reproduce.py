"""`siamusic-fast reproduce`: the tables of the paper."""

from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options, studies
from siamusic_fast.cli.console import progress
from siamusic_fast.config.studies import ReproduceConfig
from siamusic_fast.shards.manifest import find_shards

PRETRAIN_ON = "fma_medium,fma_small"
TEST = "fma_small"
_TINY_BACKBONES = ("resnet18", "resnet34")


@click.command()
@click.option(
    "--pretrain-on",
    help="Shard sets to pre-train on, each by its folder or its name, with commas between them.  "
    f"[default: {PRETRAIN_ON}]",
    panel="Data",
)
@click.option(
    "--data",
    help=f"Shard set to fine-tune and to test on: its folder, or its name.  [default: {TEST}]",
    panel="Data",
)
@options.data_dir
@options.cache
@options.settings(ReproduceConfig)
@click.option(
    "--paper",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="CSV file of the paper's figures, to stand beside ours: columns pre_trained_on, backbone, "
    "augmentations, accuracy, recall, precision and f1, between 0 and 1.",
)
@studies.running("studies/reproduce, or studies/reproduce-tiny")
def reproduce(
    pretrain_on: str | None,
    data: str | None,
    data_dir: Path,
    paper: Path | None,
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
    """Train the grid of the paper's Tables 2 and 3, and write the table.

    Pre-trains each backbone with audio and with image augmentation on each of --pretrain-on, by the preset
    `paper`. Fine-tunes each encoder and scores it on the test tracks of --data, under the protocols `clean`
    and `paper`. Says first how many runs, hours and gigabytes that is. Ends with a table, whether image beats
    audio, pictures and a page.

    The same command goes on where it was stopped: finished cells are kept, and a cell in the middle goes on
    from its checkpoint. A cell that fails does not end the others.

    \b
    siamusic-fast reproduce --tiny
    siamusic-fast reproduce --dry-run
    siamusic-fast reproduce --seeds 3 --gpus 8
    """
    given = options.given(settings)
    config = ReproduceConfig(**(studies.tiny_settings(given, backbones=_TINY_BACKBONES) if tiny else given))
    folder = out or studies.FOLDER / ("reproduce-tiny" if tiny else "reproduce")
    if tiny and (pretrain_on or data):
        raise click.UsageError("--tiny makes its own music: leave out --pretrain-on and --data.")
    names = (pretrain_on or PRETRAIN_ON).split(",")
    found = [] if tiny else [find_shards(name, data_dir) for name in (*names, data or TEST)]

    from siamusic_fast.processes.pool import cores  # from here on torch is needed
    from siamusic_fast.studies.reproduce import COLUMNS, plan_reproduction
    from siamusic_fast.studies.results import read_paper
    from siamusic_fast.studies.running import devices_for
    from siamusic_fast.studies.tiny import REMARK, tiny_shards

    devices = devices_for(gpus, procs, gpus_per_cell)
    figures = read_paper(paper, COLUMNS) if paper else None
    with studies.stopped_study():
        if tiny:
            found = 2 * [tiny_shards(folder / "data", procs=cores(), progress=progress(quiet))]
        *corpora, test = found
        stand_ins = f" The paper's ResNet-50, 101 and 152 are replaced by {' and '.join(config.backbones)}."
        planned = plan_reproduction(
            config, corpora, test, folder, devices, paper=figures, remark=REMARK + stand_ins if tiny else ""
        )
        studies.run(planned, dry_run=dry_run, quiet=quiet, as_json=as_json)
