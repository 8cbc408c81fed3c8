"""`siamusic-fast shard`: audio files into tar shards."""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from siamusic_fast.cli import console, options
from siamusic_fast.shards.decode import REASONS
from siamusic_fast.shards.fma import SUBSETS, load_fma
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.tables import REJECTED, read_tracks


@click.command()
@click.argument("source")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    help="FMA's tracks.csv, or the folder with it.  [default: fma_metadata beside the audio]",
)
@options.data_dir
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder of the shard set.  [default: DATA_DIR/shards/NAME]",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes that decode.  [default: one per core]")
@options.seed
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Tracks per shard, at most.",
)
@click.option(
    "--min-seconds",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Leave out shorter tracks.",
)
@click.option("--force", is_flag=True, help="Replace the shard set that is there.")
@options.quiet
@options.as_json
def shard(
    source: str,
    metadata: Path | None,
    data_dir: Path,
    out: Path | None,
    workers: int | None,
    seed: int,
    shard_size: int,
    min_seconds: float,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pack the audio of SOURCE into WebDataset shards.

    SOURCE is fma_small, fma_medium, fma_large or fma_full, found in --data-dir, or the path of such a folder
    or of the folder that holds it. Files that cannot be used are left out and listed with the reason.

    \b
    siamusic-fast shard fma_medium
    siamusic-fast shard /music/fma_small --out data/shards/mine --workers 8
    """
    config = PackConfig(min_seconds=min_seconds, tracks_per_shard=shard_size, seed=seed)
    corpus = load_fma(source, data_dir, metadata)
    if corpus.name not in SUBSETS and not quiet:
        console.note(
            f"{corpus.name} is no name of an FMA subset: packing the {len(corpus.tracks)} tracks in it."
        )
    folder = out or data_dir / "shards" / corpus.name
    try:
        packed = pack(corpus, folder, config, workers=workers, force=force, progress=console.progress(quiet))
    except KeyboardInterrupt:
        console.note(f"stopped: {folder} is unfinished, the same command packs it anew.")
        sys.exit(130)
    summary = _summary(packed)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _show(packed, summary)


def _summary(packed: ShardSet) -> dict[str, Any]:
    """Return what was packed as plain values: of each split, of each class, and the rejects."""
    seconds: dict[str, float] = defaultdict(float)
    classes: Counter[str] = Counter()
    for track in read_tracks(packed.folder):
        seconds[track.split] += track.seconds
        classes[track.genre] += 1
    splits = {
        split: {
            "tracks": packed.tracks([split]),
            "hours": round(seconds[split] / 3600, 3),
            "shards": len(shards),
            "bytes": sum(shard.bytes for shard in shards),
        }
        for split, shards in packed.splits.items()
    }
    return {
        "folder": str(packed.folder),
        "source": packed.source,
        "splits": splits,
        "classes": {genre: classes[genre] for genre in packed.classes},
        "unlabelled": classes[""],
        "rejected": packed.rejected,
    }


def _show(packed: ShardSet, summary: dict[str, Any]) -> None:
    table = Table("split", box=None, pad_edge=False)
    for heading in ("tracks", "hours", "shards", "MB"):
        table.add_column(heading, justify="right")
    for split, of in summary["splits"].items():
        figures = (of["tracks"], f"{of['hours']:.2f}", of["shards"], f"{of['bytes'] / 1e6:.1f}")
        table.add_row(split, *map(str, figures))
    console.output.print(table)

    classes = [f"{genre} {count}" for genre, count in summary["classes"].items()]
    unlabelled = [f"none {summary['unlabelled']}"] if summary["unlabelled"] else []
    lines = [f"classes   {', '.join(classes + unlabelled)}"]
    for reason, count in packed.rejected.items():
        lines.append(f"left out  {count} {reason}: {REASONS[reason]}")
    if packed.rejected:
        lines.append(f"          listed in {packed.folder / REJECTED}")
    by_name = packed.folder == Path("data") / "shards" / packed.folder.name
    lines.append(f"shards    {packed.folder}")
    lines.append(
        f"next      siamusic-fast pretrain --data {packed.folder.name if by_name else packed.folder}"
    )
    console.output.print("\n".join(lines), markup=False)
