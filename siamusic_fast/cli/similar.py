"""`siamusic-fast similar`: the tracks that sound most like one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import link, output, progress, stopping
from siamusic_fast.config import EmbedConfig


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--among",
    required=True,
    multiple=True,
    metavar="SOURCE",
    help="What to search: a file that `embed` wrote, a folder of audio, or a shard set; folders and shard "
    "sets may be given more than once.",
    panel="Data",
)
@options.splits
@options.data_dir
@options.cache
@options.settings(EmbedConfig, "checkpoint")
@click.option(
    "--top", type=click.IntRange(min=1), metavar="N", default=10, show_default=True, help="Tracks to show."
)
@options.device
@options.quiet
@options.as_json
def similar(
    run: Path,
    file: Path,
    among: tuple[str, ...],
    splits: str | None,
    data_dir: Path,
    checkpoint: str | None,
    top: int,
    device: Any,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find the tracks that are most similar to FILE, as the encoder of RUN hears them.

    The similarity is the cosine of the features, and the search is exact. Embeddings that another encoder
    wrote are refused.

    \b
    siamusic-fast similar runs/first song.mp3 --among embeddings.parquet
    siamusic-fast similar runs/first song.mp3 --among folder/ --top 5
    """
    from siamusic_fast.inference import similar as inference

    with stopping(lambda: ("Stopped.",)):
        found = inference.similar(
            run,
            file,
            among[0] if len(among) == 1 else among,
            top=top,
            data_dir=data_dir,
            device=device,
            progress=progress(quiet),
            **options.given({"splits": splits, "checkpoint": checkpoint}),
        )
    if as_json:
        output.print_json(json.dumps([dataclasses.asdict(one) for one in found]), indent=None)
        return
    for one in found:
        text = link(one.path or one.key, one.path)
        output.print(f"{one.similarity:6.3f} ", text, sep=" ")
