"""Options that mean the same in every command."""

from pathlib import Path

import click

from siamusic_fast.config import BACKENDS, MAX_SEED

quiet = click.option("--quiet", "-q", is_flag=True, help="No progress, only the result.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
data = click.option("--data", default="fma_medium", show_default=True, help="Shards: a folder, or a name.")
labelled_data = click.option(
    "--data", default="fma_small", show_default=True, help="Shards: a folder, or a name."
)
aug = click.option(
    "--aug",
    metavar="RECIPE",
    default="image",
    show_default=True,
    help="Augmentations of the two views: image, audio, both, none, or a list such as "
    '"mask,cutout" or "cutmix(p=0.3),hflip".',
)
backend = click.option(
    "--backend",
    metavar="|".join(BACKENDS),
    default=BACKENDS[0],
    show_default=True,
    help="What computes the spectrograms; torch needs no DALI.",
)
seed = click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Seed of everything random.",
)
gpus = click.option(
    "--gpus",
    type=click.IntRange(min=0),
    default=None,
    help="GPUs to use; 0 is the CPU.  [default: one if there is one]",
)
procs = click.option(
    "--procs",
    type=click.IntRange(min=1),
    default=None,
    help="Processes that share the work on the CPU; each GPU has one anyway.  [default: 1]",
)
force = click.option("--force", is_flag=True, help="Replace the earlier run in the folder.")
data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Folder that names such as fma_small are looked up in.",
)
