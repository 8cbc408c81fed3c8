"""`siamusic-fast preview`: a picture of what the augmentations do."""

from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import output
from siamusic_fast.config import MelConfig, PretrainConfig
from siamusic_fast.errors import DataError
from siamusic_fast.shards.manifest import find_shards


@click.command()
@options.data
@options.data_dir
@options.cache
@click.option("--split", default="training", show_default=True, help="Split of the tracks.", panel="Data")
@click.option(
    "--tracks", metavar="N", type=int, default=4, show_default=True, help="Number of tracks.", panel="Data"
)
@options.settings(PretrainConfig, "aug", "crops", "max_distance", "short_tracks", "seed", filled=True)
@options.settings(MelConfig, "seconds", filled=True)
@click.option("--each", is_flag=True, help="Draw one track, with a row for each augmentation by itself.")
@click.option(
    "--play", is_flag=True, help="Write both views as WAV files too, into a folder beside the picture."
)
@options.out("preview-AUG.png, or preview-AUG-each.png")
@options.force
def preview(
    data: str | None,
    data_dir: Path,
    split: str,
    tracks: int,
    aug: str,
    short_tracks: str,
    seconds: float,
    each: bool,
    play: bool,
    out: Path | None,
    force: bool,
    **settings: Any,
) -> None:
    """Draw original, view 1 and view 2 of a few tracks.

    Each row is a track: the crop as it is, and the two views that the encoder is asked to see as one. With
    --play you hear what the steps before the spectrogram did; those after it cannot be heard.

    \b
    siamusic-fast preview --data fma_small --aug audio --out preview.png
    siamusic-fast preview --data fma_small --aug both --each
    siamusic-fast preview --data fma_small --aug pitch,stretch --each --play
    """
    from siamusic_fast.analysis import preview as drawing
    from siamusic_fast.pipelines.estimate import estimate_frontend
    from siamusic_fast.pipelines.recipes import file_name, parse_recipe

    if out is not None and out.exists() and not force:
        raise DataError(f"{out} exists: choose another file with --out, or replace it with --force.")
    shard_set = find_shards(data or options.DATA, data_dir)
    mel = MelConfig(sample_rate=shard_set.sample_rate, seconds=seconds)
    path = out or Path(f"preview-{file_name(aug)}{'-each' if each else ''}.png")
    recipe = parse_recipe(aug)
    frontend = estimate_frontend(shard_set, mel, short_tracks=short_tracks)
    if each:
        found = drawing.each_alone(shard_set, frontend, recipe=recipe, split=split, **settings)
        title = f"{shard_set.source}, {found[0].track.key}: each of --aug {aug}"
    else:
        found = drawing.examples(shard_set, frontend, recipe=recipe, count=tracks, split=split, **settings)
        title = f"{shard_set.source}: --aug {aug}"
    drawing.draw(found, mel, title, path)
    output.print(str(path), markup=False)
    if play:
        for wave in drawing.write_waves(found, mel, path.with_suffix("")):
            output.print(str(wave), markup=False)
