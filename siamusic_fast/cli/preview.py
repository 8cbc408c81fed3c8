"""`siamusic-fast preview`: a picture of what the augmentations do."""

from pathlib import Path

import click

from siamusic_fast.analysis import preview as drawing
from siamusic_fast.cli import options
from siamusic_fast.cli.console import output
from siamusic_fast.config import CROPS, SHORT_TRACKS, MelConfig
from siamusic_fast.errors import DataError
from siamusic_fast.pipelines.estimate import estimate_frontend
from siamusic_fast.pipelines.recipes import file_name, parse_recipe
from siamusic_fast.shards.manifest import find_shards


@click.command()
@options.data
@options.data_dir
@options.aug
@click.option("--tracks", type=int, default=4, show_default=True, help="How many tracks to draw.")
@click.option(
    "--each", is_flag=True, help="One track, with a row for each augmentation of the recipe by itself."
)
@click.option("--split", default="training", show_default=True, help="Where to take the tracks from.")
@click.option(
    "--crops",
    type=click.Choice(CROPS),
    default=CROPS[0],
    show_default=True,
    help="Which seconds of a track the two views show.",
)
@click.option(
    "--max-distance",
    type=float,
    default=None,
    help="Seconds between the starts of independent crops.  [default: anywhere]",
)
@click.option(
    "--short-tracks",
    type=click.Choice(SHORT_TRACKS),
    default=SHORT_TRACKS[0],
    show_default=True,
    help="What is done with tracks shorter than a crop.",
)
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Length of a crop.")
@click.option(
    "--play", is_flag=True, help="Write both views as WAV files too, into a folder beside the picture."
)
@options.seed
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="PNG file to write.  [default: preview-AUG.png]",
)
@click.option("--force", is_flag=True, help="Replace the file that --out names.")
def preview(
    data: str,
    data_dir: Path,
    aug: str,
    tracks: int,
    each: bool,
    split: str,
    crops: str,
    max_distance: float | None,
    short_tracks: str,
    seconds: float,
    play: bool,
    seed: int,
    out: Path | None,
    force: bool,
) -> None:
    """Draw original, view 1 and view 2 of a few tracks.

    Each row is a track: the crop as it is, and the two views that the encoder is asked to see as one. With
    --play you hear what the steps before the spectrogram did; those after it cannot be heard.

    \b
    siamusic-fast preview --data fma_small --aug audio --out preview.png
    siamusic-fast preview --data fma_small --aug both --each
    siamusic-fast preview --data fma_small --aug pitch,stretch --each --play
    """
    if out is not None and out.exists() and not force:
        raise DataError(f"{out} exists: choose another file with --out, or replace it with --force.")
    shard_set = find_shards(data, data_dir)
    mel = MelConfig(sample_rate=shard_set.sample_rate, seconds=seconds)
    path = out or Path(f"preview-{file_name(aug)}.png")
    recipe = parse_recipe(aug)
    config = drawing.PreviewConfig(split=split, crops=crops, max_distance=max_distance, seed=seed)
    frontend = estimate_frontend(shard_set, mel, short_tracks=short_tracks)
    if each:
        found = drawing.each_alone(shard_set, frontend, recipe=recipe, config=config)
        title = f"{shard_set.source}, {found[0].track.key}: augmentations of {aug}"
    else:
        found = drawing.examples(shard_set, frontend, recipe=recipe, count=tracks, config=config)
        title = f"{shard_set.source}: recipe {aug}"
    drawing.draw(found, mel, title, path)
    output.print(str(path))
    if play:
        for wave in drawing.write_waves(found, mel, path.with_suffix("")):
            output.print(str(wave))
