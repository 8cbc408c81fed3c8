"""`siamusic-fast shard`, `inspect` and `verify`: shard sets are made, shown and checked."""

import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich_click as click
from rich.table import Table
from rich.text import Text

from siamusic_fast.audio.decode import REASONS, REMEDIES
from siamusic_fast.audio.fma_download import download as fetch
from siamusic_fast.audio.sources import open_corpus
from siamusic_fast.audio.store import local_name
from siamusic_fast.cli import options
from siamusic_fast.cli.console import (
    command_line,
    count,
    note,
    output,
    progress,
    show_error,
    show_facts,
    stopping,
    table_of,
)
from siamusic_fast.cli.launching import cluster_of
from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.checks import fitting_seconds
from siamusic_fast.shards import verify as verification
from siamusic_fast.shards.manifest import REJECTED, ShardSet, find_folder, find_shards
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.resuming import unfinished
from siamusic_fast.shards.summary import MARKS, SplitSummary, Summary, summarize
from siamusic_fast.shards.tables import read_rejects
from siamusic_fast.shards.upload import work_folder
from siamusic_fast.storage.remote import is_url

_BAR = 24
"""Characters of the longest bar."""
_MAX_GROUPS = 10
"""Groups of equal tracks that are listed; --json has all."""
_CHECKED = (
    "compared: shards, indices and tables with their SHA-256 in manifest.json, manifest.json, frontends.json "
    "and baselines with their own, and every track with its headers, label, index and row of tracks.csv"
)
_MAX_TAGS = 5
"""Tags that `shard` names; `inspect` shows all."""
_MAX_FILES = 3
"""Files that are named per reason; rejected.csv has all."""


@click.command()
@click.argument("source")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    help="FMA's tracks.csv, its zip, or the folder with one of them; annotations_final.csv of MagnaTagATune; "
    "or the repository of MTG-Jamendo.  [default: beside the audio]",
    panel="Data",
)
@click.option(
    "--labels",
    metavar="FILE|folders",
    help="For audio of your own: a CSV file with the columns path, label and, if you like, split and "
    "group; or the word folders if each class is a sub-folder.  [default: no classes]",
    panel="Data",
)
@click.option(
    "--tags",
    is_flag=True,
    help="The file of --labels has tags: a column tags with | between those of a track, or a column of 0 "
    "and 1 for each tag.",
    panel="Data",
)
@click.option(
    "--top-tags",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of tags that are kept, the most frequent ones.  [default: 50 of magnatagatune, all "
    "of others]",
    panel="Data",
)
@click.option(
    "--label-column",
    metavar="NAME",
    help="For Parquet and Arrow files: the column with the classes.  [default: no classes]",
    panel="Data",
)
@click.option(
    "--split-column",
    metavar="NAME",
    help="For Parquet and Arrow files: the column with the splits.  [default: names of files tell it, such "
    "as train-00000-of-00004.parquet; if they do not, splits are drawn]",
    panel="Data",
)
@click.option(
    "--group-column",
    metavar="NAME",
    help="For Parquet and Arrow files: the column with the groups, such as artists. Splits that are drawn "
    "keep a group together.  [default: no groups]",
    panel="Data",
)
@click.option(
    "--download",
    is_flag=True,
    help="Fetch FMA's zips first, if SOURCE is the name of a subset.",
    panel="Data",
)
@options.data_dir
@options.cache
@options.settings(PackConfig)
@options.packing_procs
@options.scheduler
@click.option(
    "--out",
    "-o",
    type=options.FolderOrUrl(),
    help="Folder of the shards, or a URL such as s3://bucket/mine.  [default: DATA_DIR/shards/NAME]",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 1 if any file was left out; dropped segments of a packed file do not count.",
)
@options.force
@options.quiet
@options.as_json
def shard(
    source: str,
    metadata: Path | None,
    labels: str | None,
    tags: bool,
    top_tags: int | None,
    label_column: str | None,
    split_column: str | None,
    group_column: str | None,
    download: bool,
    data_dir: Path,
    procs: int | None,
    scheduler: str | None,
    out: Path | str | None,
    strict: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Pack the audio of SOURCE into WebDataset shards.

    SOURCE is fma_small, fma_medium, fma_large, fma_full, magnatagatune or mtg_jamendo, found in --data-dir,
    or the path of such a folder or zip, or any other folder or zip of audio, or a folder of Parquet or Arrow
    files with a column audio, or the URL of a folder of audio, such as s3://bucket/music. Files that cannot
    be used are left out and listed with the reason. Stopped at any moment, the same command goes on from the
    shards that are finished, and --force starts over.

    \b
    siamusic-fast shard fma_medium
    siamusic-fast shard fma_small --download
    siamusic-fast shard /music/fma_full --max-seconds 30 --codec flac
    siamusic-fast shard /music/mine --labels labels.csv --out data/shards/mine
    siamusic-fast shard /music/gtzan-parquet --label-column genre
    siamusic-fast shard magnatagatune
    siamusic-fast shard fma_full --scheduler tcp://node1:8786
    siamusic-fast shard s3://bucket/music --labels folders --out s3://bucket/shards/mine
    """
    config = PackConfig(**options.given(settings))
    if download:
        fetch(source, data_dir, progress=progress(quiet))
    corpus = open_corpus(
        source,
        data_dir=data_dir,
        metadata=metadata,
        labels=labels,
        tags=tags,
        top_tags=top_tags,
        label_column=label_column,
        split_column=split_column,
        group_column=group_column,
        seed=config.seed,
    )
    if not (quiet or corpus.classes or corpus.tags):
        option = "--label-column" if corpus.in_tables else "--labels"
        note(f"{corpus.name} has no classes: its shards are for pre-training only; {option} gives them.")
    folder = out or data_dir / "shards" / local_name(corpus.name)
    with stopping(lambda: (_how_to_go_on(folder),)), cluster_of(scheduler, procs, quiet) as cluster:
        packed = pack(
            corpus, folder, config, procs=procs, cluster=cluster, force=force, progress=progress(quiet)
        )
    summary = summarize(packed)
    if as_json:
        click.echo(json.dumps(_as_json(packed, summary)))
    else:
        output.print(_split_table(packed, summary))
        counts = [f"{name} {summary.of_class(name)}" for name in packed.classes]
        unlabelled = [f"none {summary.unlabelled}"] if summary.unlabelled else []
        show_facts(
            [
                *([("classes", ", ".join(counts + unlabelled))] if packed.classes or not packed.tags else []),
                *_tag_facts(packed, summary),
                *_facts(packed, summary),
                ("shards", packed.place),
                ("next", _next(packed)),
            ]
        )
    if strict and packed.rejected:
        show_error(
            f"{sum(packed.rejected.values())} files were left out, which --strict does not allow: "
            f"see {packed.shown(REJECTED)}."
        )
        sys.exit(1)


@click.command()
@click.argument("shards")
@options.data_dir
@options.cache
@options.as_json
def inspect(shards: str, data_dir: Path, as_json: bool) -> None:
    """Show what is in SHARDS, a folder, a name found under DATA_DIR/shards, or a URL.

    Splits, classes, groups, hours, sizes, tracks that are marked, the files that were left out and why, and
    tracks whose audio is the same, sample by sample, as that of another: a copy or an artist in two splits
    makes a test easier than it should be.

    \b
    siamusic-fast inspect fma_medium
    siamusic-fast inspect data/shards/mine --json
    """
    shard_set = find_shards(shards, data_dir)
    summary = summarize(shard_set)
    if as_json:
        click.echo(json.dumps(_as_json(shard_set, summary)))
        return
    longest = f", at most {shard_set.max_seconds:g} s" if shard_set.max_seconds else ""
    output.print(
        f"{shard_set.source}: {shard_set.codec}, {shard_set.sample_rate} Hz, at least "
        f"{shard_set.min_seconds:g} s{longest}, seed {shard_set.seed}\n",
        markup=False,
    )
    output.print(_split_table(shard_set, summary), "", _class_table(shard_set, summary), "", sep="\n")
    if shard_set.tags:
        output.print(_tag_table(shard_set, summary), "", sep="\n")
    show_facts(_facts(shard_set, summary))


@click.command()
@click.argument("shards")
@options.data_dir
@options.cache
@options.packing_procs
@options.scheduler
@options.quiet
@options.as_json
def verify(
    shards: str, data_dir: Path, procs: int | None, scheduler: str | None, quiet: bool, as_json: bool
) -> None:
    """Check SHARDS, a folder, a name found under DATA_DIR/shards, or a URL, against its manifest.

    Every file of the set is compared with its SHA-256, so that a single changed bit is found: shards,
    indices and tables with that in manifest.json, manifest.json, frontends.json and baselines with their
    own. Of every shard also size, number of tracks, headers, labels, index, and its rows of tracks.csv. All
    that is wrong is named; the exit code is 1 if anything is. Files that are no part of the set are named
    too.

    \b
    siamusic-fast verify fma_medium
    siamusic-fast verify data/shards/mine --procs 8
    siamusic-fast verify fma_full --scheduler tcp://node1:8786
    siamusic-fast verify s3://bucket/shards/mine
    """
    folder = shards if is_url(shards) else find_folder(shards, data_dir)
    with cluster_of(scheduler, procs, quiet) as cluster:
        found = verification.verify(folder, procs=procs, cluster=cluster, progress=progress(quiet))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
    else:
        for problem in found.problems:
            output.print(f"{problem.file}: {problem.what}", markup=False)
        for name in found.unknown:
            output.print(f"{name!r} is no part of the shard set: nothing reads or checks it", markup=False)
        if not found.problems:
            sizes = f"{count(found.shards, 'shard')}, {count(found.tracks, 'track')}"
            output.print(f"as they should be: {sizes}, {found.bytes / 1e6:,.1f} MB")
            output.print(_CHECKED)
    if found.problems:
        problems = count(len(found.problems), "problem")
        show_error(f"{problems}: copy the shard set again, or pack it again with --force.")
        sys.exit(1)


def _how_to_go_on(folder: Path | str) -> str:
    state = unfinished(folder if isinstance(folder, Path) else work_folder(folder))
    if not state:
        return "stopped: nothing was packed yet."
    return (
        f"stopped: {state.finished} of {state.shards} shards are finished in {folder}; "
        f"the same command goes on from there{'' if state.forced else ', --force starts over'}."
    )


def _next(packed: ShardSet) -> str:
    """Return a command that trains on these shards, with crops that their tracks and their rate allow."""
    words: list[object] = ["siamusic-fast", "pretrain", "--data", packed.place]
    splits = ["training"] if "training" in packed.splits else list(packed.splits)
    if splits != ["training"]:
        words += ["--splits", ",".join(splits)]
    mel = MelConfig()
    longest = max(shard.longest for shard in packed.shards(splits))
    if longest < mel.seconds * packed.sample_rate:
        words += ["--seconds", f"{fitting_seconds(longest, packed.sample_rate):g}"]
    if packed.sample_rate < 2 * mel.f_max:
        words += ["--f-max", f"{packed.sample_rate / 2:g}"]
    return command_line(*words)


def _as_json(shard_set: ShardSet, summary: Summary) -> dict[str, Any]:
    splits = {
        name: {**dataclasses.asdict(split), "hours": round(split.seconds / 3600, 3)}
        for name, split in summary.splits.items()
    }
    equal = [
        [{"key": track.key, "split": track.split, "path": track.path} for track in group]
        for group in summary.equal_audio
    ]
    about = ("source", "codec", "sample_rate", "seed", "min_seconds", "max_seconds", "rejected")
    return {
        "folder": shard_set.place,
        **{name: getattr(shard_set, name) for name in about},
        "splits": splits,
        "classes": {name: summary.of_class(name) for name in shard_set.classes},
        "unlabelled": summary.unlabelled,
        "tags": {name: summary.with_tag(name) for name in shard_set.tags},
        "groups": summary.groups,
        "divided_groups": summary.divided_groups,
        "marks": summary.marks,
        "equal_audio": equal,
    }


def _split_table(shard_set: ShardSet, summary: Summary) -> Table:
    unit = "tracks" if shard_set.max_seconds is None else "segments"
    table = table_of("split", unit, "no class", "hours", "shards", "MB")
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
    counts = {name: [split.classes[name] for split in summary.splits.values()] for name in shard_set.classes}
    if summary.unlabelled:
        counts[""] = [split.unlabelled for split in summary.splits.values()]
    return _bars("class", counts, summary)


def _tag_table(shard_set: ShardSet, summary: Summary) -> Table:
    counts = {name: [split.tags[name] for split in summary.splits.values()] for name in shard_set.tags}
    return _bars("tag", dict(sorted(counts.items(), key=lambda one: -sum(one[1]))), summary)


def _tag_facts(shard_set: ShardSet, summary: Summary) -> Iterator[tuple[str, str]]:
    """Give the number of tags and the most frequent of them."""
    top = sorted(shard_set.tags, key=lambda name: -summary.with_tag(name))[:_MAX_TAGS]
    if top:
        more = ", ..." if len(top) < len(shard_set.tags) else ""
        counts = ", ".join(f"{name} {summary.with_tag(name)}" for name in top)
        yield "tags", f"{len(shard_set.tags)}: {counts}{more}"


def _bars(kind: str, counts: dict[str, list[int]], summary: Summary) -> Table:
    """Return one line per class or tag with its tracks in each split, its bar relative to the largest."""
    table = table_of(kind, "", "tracks", *summary.splits)
    table.columns[1].justify = "left"
    largest = max(map(sum, counts.values()), default=1)
    block = "#" if output.options.ascii_only else "█"
    for name, per_split in counts.items():
        bar = block * max(round(_BAR * sum(per_split) / largest), 1 if sum(per_split) else 0)
        label = Text(" ".join(name.split()) or "no class", style="" if name else "dim")
        table.add_row(label, bar, f"{sum(per_split):,}", *(f"{tracks:,}" for tracks in per_split))
    return table


def _facts(shard_set: ShardSet, summary: Summary) -> Iterator[tuple[str, str]]:
    """Give what is said of groups, marked tracks, files that were left out, and tracks that are the same."""
    if summary.groups:
        per_split = ", ".join(f"{name} {split.groups:,}" for name, split in summary.splits.items())
        yield "groups", f"{summary.groups:,}: {per_split}"
    if summary.divided_groups:
        divided = count(summary.divided_groups, "group")
        yield (
            "",
            f"{divided} in more than one split: scores are too high if an artist is in training and test",
        )
    for mark, tracks in summary.marks.items():
        yield "marked", f"{tracks} {mark}: {MARKS[mark]}"
    paths: dict[str, list[str]] = defaultdict(list)
    for reject in read_rejects(shard_set.folder):
        if len(paths[reject.reason]) < _MAX_FILES:
            paths[reject.reason].append(repr(local_name(reject.path)))
    for reason, files in shard_set.rejected.items():
        more = ", ..." if files > _MAX_FILES else ""
        yield "left out", f"{files} {reason}: {REASONS.get(reason, '?')}: {', '.join(paths[reason])}{more}"
        if reason in REMEDIES:
            yield "", REMEDIES[reason]
    if shard_set.rejected:
        yield "", f"listed in {shard_set.shown(REJECTED)}"
    for group in summary.equal_audio[:_MAX_GROUPS]:
        yield "same", ", ".join(f"{track.key} ({track.split}, {track.path!r})" for track in group)
    more_groups = len(summary.equal_audio) - _MAX_GROUPS
    if more_groups > 0:
        yield "", f"and {count(more_groups, 'group')} more of tracks with the same audio: --json lists them"
