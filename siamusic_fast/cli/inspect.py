"""`siamusic-fast inspect`: what a shard set holds."""

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from siamusic_fast.audio.decode import REASONS
from siamusic_fast.cli import options
from siamusic_fast.cli.console import output
from siamusic_fast.shards.manifest import REJECTED, ShardSet, find_shards
from siamusic_fast.shards.summary import MARKS, SplitSummary, Summary, summarize

_BAR = 24
"""Characters of the longest bar."""
_MOST_GROUPS = 10
"""Groups of equal tracks that are listed; --json has all."""


@click.command()
@click.argument("shards")
@options.data_dir
@options.as_json
def inspect(shards: str, data_dir: Path, as_json: bool) -> None:
    """Show what is in SHARDS, a folder or a name found under DATA_DIR/shards.

    Splits, classes, hours, sizes, tracks that are marked, the files that were left out and why, and tracks
    whose audio is the same, sample by sample, as that of another: a copy in two splits makes a test easier
    than it should be.

    \b
    siamusic-fast inspect fma_medium
    siamusic-fast inspect data/shards/mine --json
    """
    shard_set = find_shards(shards, data_dir)
    summary = summarize(shard_set)
    if as_json:
        click.echo(json.dumps(_plain(shard_set, summary)))
    else:
        _show(shard_set, summary)


def _plain(shard_set: ShardSet, summary: Summary) -> dict[str, Any]:
    splits = {
        name: {
            "tracks": split.tracks,
            "hours": round(split.seconds / 3600, 3),
            "shards": split.shards,
            "bytes": split.bytes,
            "classes": split.classes,
            "unlabelled": split.unlabelled,
        }
        for name, split in summary.splits.items()
    }
    equal = [
        [{"key": track.key, "split": track.split, "path": track.path} for track in group]
        for group in summary.equal_audio
    ]
    return {
        "folder": str(shard_set.folder),
        "source": shard_set.source,
        "codec": shard_set.codec,
        "sample_rate": shard_set.sample_rate,
        "seed": shard_set.seed,
        "min_seconds": shard_set.min_seconds,
        "max_seconds": shard_set.max_seconds,
        "splits": splits,
        "classes": {name: summary.of_class(name) for name in shard_set.classes},
        "unlabelled": summary.unlabelled,
        "marks": summary.marks,
        "rejected": shard_set.rejected,
        "equal_audio": equal,
    }


def _show(shard_set: ShardSet, summary: Summary) -> None:
    longest = f", at most {shard_set.max_seconds:g} s" if shard_set.max_seconds else ""
    output.print(
        f"{shard_set.source}: {shard_set.codec}, {shard_set.sample_rate} Hz, at least "
        f"{shard_set.min_seconds:g} s{longest}, seed {shard_set.seed}\n",
        markup=False,
    )
    output.print(_split_table(summary))
    output.print()
    output.print(_class_table(shard_set, summary))
    output.print()
    for mark, count in summary.marks.items():
        output.print(f"marked    {count} {mark}: {MARKS[mark]}", markup=False)
    for reason, count in shard_set.rejected.items():
        output.print(f"left out  {count} {reason}: {REASONS.get(reason, '?')}", markup=False)
    if shard_set.rejected:
        output.print(f"          listed in {shard_set.path(REJECTED)}", markup=False)
    for group in summary.equal_audio[:_MOST_GROUPS]:
        tracks = ", ".join(f"{track.key} ({track.split}, {track.path!r})" for track in group)
        output.print(f"same      {tracks}", markup=False)
    more = len(summary.equal_audio) - _MOST_GROUPS
    if more > 0:
        output.print(f"          and {more} more groups of tracks with the same audio: --json lists them")


def _split_table(summary: Summary) -> Table:
    table = Table("split", box=None, pad_edge=False)
    for heading in ("tracks", "no class", "hours", "shards", "MB"):
        table.add_column(heading, justify="right")
    for name, split in summary.splits.items():
        table.add_row(name, *_figures([split]))
    table.add_row("all", *_figures(list(summary.splits.values())))
    return table


def _figures(splits: list[SplitSummary]) -> tuple[str, ...]:
    return (
        f"{sum(split.tracks for split in splits):,}",
        f"{sum(split.unlabelled for split in splits):,}",
        f"{sum(split.seconds for split in splits) / 3600:,.2f}",
        f"{sum(split.shards for split in splits):,}",
        f"{sum(split.bytes for split in splits) / 1e6:,.1f}",
    )


def _class_table(shard_set: ShardSet, summary: Summary) -> Table:
    """One line per class, its bar relative to the largest."""
    table = Table("class", "", box=None, pad_edge=False)
    for heading in ("tracks", *summary.splits):
        table.add_column(heading, justify="right")
    counts = {name: [split.classes[name] for split in summary.splits.values()] for name in shard_set.classes}
    if summary.unlabelled:
        counts[""] = [split.unlabelled for split in summary.splits.values()]
    largest = max(map(sum, counts.values()), default=1)
    for name, per_split in counts.items():
        bar = "█" * max(round(_BAR * sum(per_split) / largest), 1 if sum(per_split) else 0)
        label = Text(" ".join(name.split()) or "no class", style="" if name else "dim")
        table.add_row(label, bar, f"{sum(per_split):,}", *(f"{count:,}" for count in per_split))
    return table
