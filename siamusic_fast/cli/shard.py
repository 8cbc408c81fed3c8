"""`siamusic-fast shard`: audio files into tar shards."""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from siamusic_fast.audio.corpus import Corpus
from siamusic_fast.audio.decode import REASONS, REMEDIES
from siamusic_fast.audio.fma_download import download as fetch
from siamusic_fast.audio.sources import open_corpus
from siamusic_fast.audio.store import local_name
from siamusic_fast.cli import console, options
from siamusic_fast.cli.packing import PackingTable
from siamusic_fast.shards.codec import CODECS
from siamusic_fast.shards.manifest import REJECTED, ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.resuming import unfinished
from siamusic_fast.shards.summary import MARKS, count_marks
from siamusic_fast.shards.tables import read_rejects, read_tracks

_NAMED = 3
"""Files that are named per reason; rejected.csv has all."""


@click.command()
@click.argument("source")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    help="FMA's tracks.csv, its zip, or the folder with one of them.  [default: beside the audio]",
)
@click.option(
    "--labels",
    metavar="FILE|folders",
    help="For audio that is not FMA's: a CSV file with the columns path, label and, if you like, split and "
    "group; or the word folders if each class is a sub-folder.  [default: no classes]",
)
@click.option("--download", is_flag=True, help="Fetch FMA's zips first, if SOURCE is the name of a subset.")
@options.data_dir
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder of the shard set.  [default: DATA_DIR/shards/NAME]",
)
@click.option("--procs", type=click.IntRange(min=1), help="Processes that decode.  [default: one per core]")
@options.seed
@click.option(
    "--codec",
    type=click.Choice(list(CODECS)),
    default="wav",
    show_default=True,
    help=" ".join(f"{codec}: {what}." for codec, what in CODECS.items()),
)
@click.option(
    "--quality",
    type=click.FloatRange(0, 10),
    default=5.0,
    show_default=True,
    help="Of Vorbis, for --codec ogg.",
)
@click.option(
    "--sample-rate", type=int, default=22_050, show_default=True, help="Of the packed audio, in Hz."
)
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
@click.option(
    "--max-hours",
    type=click.FloatRange(min=0, min_open=True),
    default=12.0,
    show_default=True,
    help="Leave out longer files.",
)
@click.option(
    "--max-damage",
    type=click.FloatRange(0, 1),
    default=0.75,
    show_default=True,
    help="Leave out files of which a larger share is lost; others that are damaged are packed and marked.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Cut longer tracks into segments of this length, silent ones dropped.  [default: keep them whole]",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 1 if any file was left out; dropped segments of a packed file do not count.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Start over: replace the shard set that is there, finished or not. Stopped, the same command goes "
    "on with what it had begun.",
)
@options.quiet
@options.as_json
def shard(
    source: str,
    metadata: Path | None,
    labels: str | None,
    download: bool,
    data_dir: Path,
    out: Path | None,
    procs: int | None,
    seed: int,
    codec: str,
    quality: float,
    sample_rate: int,
    shard_size: int,
    min_seconds: float,
    max_hours: float,
    max_damage: float,
    max_seconds: float | None,
    strict: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pack the audio of SOURCE into WebDataset shards.

    SOURCE is fma_small, fma_medium, fma_large or fma_full, found in --data-dir, or the path of such a folder
    or zip, or any other folder or zip of audio. Files that cannot be used are left out and listed with the
    reason. Stopped at any moment, the same command goes on from the shards that are finished.

    \b
    siamusic-fast shard fma_medium
    siamusic-fast shard fma_small --download
    siamusic-fast shard /music/fma_full --max-seconds 30 --codec flac --procs 8
    siamusic-fast shard /music/mine --labels labels.csv --out data/shards/mine
    """
    config = PackConfig(
        codec=codec,
        quality=quality,
        sample_rate=sample_rate,
        min_seconds=min_seconds,
        max_hours=max_hours,
        max_damage=max_damage,
        max_seconds=max_seconds,
        tracks_per_shard=shard_size,
        seed=seed,
    )
    if download:
        fetch(source, data_dir, progress=console.progress(quiet))
    corpus = open_corpus(source, data_dir=data_dir, metadata=metadata, labels=labels, seed=seed)
    if not corpus.classes and not quiet:
        console.note(
            f"{corpus.name} has no classes: its shards are for pre-training only; --labels gives them."
        )
    folder = out or data_dir / "shards" / local_name(corpus.name)
    try:
        packed = _pack(corpus, folder, config, procs, force, quiet)
    except KeyboardInterrupt:
        console.note(_how_to_go_on(folder))
        sys.exit(130)
    summary = _summary(packed)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _show(packed, summary)
    if strict and packed.rejected:
        console.show_error(
            f"{sum(packed.rejected.values())} files were left out, which --strict does not allow: "
            f"see {folder / REJECTED}."
        )
        sys.exit(1)


def _pack(
    corpus: Corpus, folder: Path, config: PackConfig, procs: int | None, force: bool, quiet: bool
) -> ShardSet:
    if quiet or not console.console.is_terminal:
        return pack(corpus, folder, config, procs=procs, force=force, progress=console.progress(quiet))
    table = PackingTable(console.console)
    return pack(corpus, folder, config, procs=procs, force=force, progress=table, watch=table.watch)


def _how_to_go_on(folder: Path) -> str:
    state = unfinished(folder)
    if not state:
        return "stopped: nothing was packed yet."
    return (
        f"stopped: {state.finished} of {state.shards} shards are finished in {folder}; "
        f"the same command goes on from there{'' if state.forced else ', --force starts over'}."
    )


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
        "codec": packed.codec,
        "sample_rate": packed.sample_rate,
        "splits": splits,
        "classes": {genre: classes[genre] for genre in packed.classes},
        "unlabelled": classes[""],
        "marks": count_marks(read_tracks(packed.folder), read_rejects(packed.folder)),
        "rejected": packed.rejected,
    }


def _left_out(packed: ShardSet) -> list[str]:
    """Return a line for every reason, with the first paths, and what to do about it."""
    paths: dict[str, list[str]] = defaultdict(list)
    for reject in read_rejects(packed.folder):
        if len(paths[reject.reason]) < _NAMED:
            paths[reject.reason].append(repr(local_name(reject.path)))
    lines = []
    for reason, count in packed.rejected.items():
        more = ", ..." if count > _NAMED else ""
        lines.append(f"left out  {count} {reason}: {REASONS[reason]}: {', '.join(paths[reason])}{more}")
        if reason in REMEDIES:
            lines.append(f"          {REMEDIES[reason]}")
    if packed.rejected:
        lines.append(f"          listed in {packed.folder / REJECTED}")
    return lines


def _show(packed: ShardSet, summary: dict[str, Any]) -> None:
    table = Table("split", box=None, pad_edge=False)
    of_what = "tracks" if packed.max_seconds is None else "segments"
    for heading in (of_what, "hours", "shards", "MB"):
        table.add_column(heading, justify="right")
    for split, of in summary["splits"].items():
        figures = (of["tracks"], f"{of['hours']:.2f}", of["shards"], f"{of['bytes'] / 1e6:.1f}")
        table.add_row(split, *map(str, figures))
    console.output.print(table)

    classes = [f"{genre} {count}" for genre, count in summary["classes"].items()]
    unlabelled = [f"none {summary['unlabelled']}"] if summary["unlabelled"] else []
    lines = [f"classes   {', '.join(classes + unlabelled)}"]
    for mark, count in summary["marks"].items():
        lines.append(f"marked    {count} {mark}: {MARKS[mark]}")
    lines += _left_out(packed)
    by_name = packed.folder == Path("data") / "shards" / packed.folder.name
    lines.append(f"shards    {packed.folder}")
    if packed.codec == "wav":
        name = packed.folder.name if by_name else packed.folder
        lines.append(f"next      siamusic-fast pretrain --data {name}")
    console.output.print("\n".join(lines), markup=False)
