"""`siamusic-fast verify`: every byte of a shard set against its manifest."""

import dataclasses
import json
import sys
from pathlib import Path

import click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import output, progress, show_error
from siamusic_fast.shards import verify as verification
from siamusic_fast.shards.manifest import find_folder


@click.command()
@click.argument("shards")
@options.data_dir
@click.option("--procs", type=click.IntRange(min=1), help="Processes that read.  [default: one per core]")
@options.quiet
@options.as_json
def verify(shards: str, data_dir: Path, procs: int | None, quiet: bool, as_json: bool) -> None:
    """Check SHARDS, a folder or a name found under DATA_DIR/shards, against its manifest.

    Of every shard: size, SHA-256, number of tracks, headers, labels, index, and its rows of tracks.csv. All
    that is wrong is named; the exit code is 1 if anything is.

    \b
    siamusic-fast verify fma_medium
    siamusic-fast verify data/shards/mine --procs 8
    """
    found = verification.verify(find_folder(shards, data_dir), procs=procs, progress=progress(quiet))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
    else:
        for problem in found.problems:
            output.print(f"{problem.file}: {problem.what}", markup=False)
        if not found.problems:
            what = f"{found.shards} shards, {found.tracks:,} tracks, {found.bytes / 1e6:,.1f} MB"
            output.print(f"as they should be: {what}")
    if found.problems:
        show_error(
            f"{len(found.problems)} problems: copy the shard set again, or pack it again with --force."
        )
        sys.exit(1)
