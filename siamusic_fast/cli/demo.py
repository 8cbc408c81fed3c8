"""`siamusic-fast demo`: the whole way in minutes, on audio that it makes itself."""

import json
import sys
from pathlib import Path

import click
from rich.table import Table

from siamusic_fast.analysis import demo as whole_way
from siamusic_fast.cli import options
from siamusic_fast.cli.console import note, output, progress
from siamusic_fast.processes.launch import device_for
from siamusic_fast.processes.pool import cores
from siamusic_fast.processes.world import World


@click.command()
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for everything: audio, shards, runs.",
)
@options.backend
@options.gpus
@options.seed
@options.quiet
@options.as_json
def demo(out: Path, backend: str, gpus: int | None, seed: int, quiet: bool, as_json: bool) -> None:
    """Run everything on a small synthetic corpus: shard, pretrain, finetune, evaluate.

    Makes 360 tracks of eight genres, some of them broken on purpose, as MP3s in the layout of FMA. Packs
    them, pre-trains an encoder, fine-tunes a classifier and scores it on tracks that it never met. About
    four minutes on two CPU cores; again, it uses the same audio and trains anew.

    \b
    siamusic-fast demo
    """
    world = World(device=device_for(gpus))
    try:
        result = whole_way.demo(
            out, seed=seed, backend=backend, procs=cores(), world=world, progress=progress(quiet)
        )
    except KeyboardInterrupt:
        note(f"Stopped. The same command trains anew, with the audio and the shards that are in {out}.")
        sys.exit(130)
    if as_json:
        output.print_json(json.dumps(_as_json(result)), indent=None)
    else:
        output.print(_table(result))
        for path, what in _files(result).items():
            output.print(f"{path}  [dim]{what}[/]")
        note("Next: your own music. siamusic-fast shard --help says how.")


def _as_json(result: whole_way.DemoResult) -> dict[str, object]:
    scores = result.evaluated.scores
    return {
        "run": str(result.run),
        "accuracy": scores.accuracy,
        "recall": scores.recall,
        "precision": scores.precision,
        "f1": scores.f1,
        "chance": scores.chance,
        "test_tracks": scores.tracks,
        "pairs_per_second": result.pretrained.pairs_per_second,
        "seconds": result.seconds,
    }


def _table(result: whole_way.DemoResult) -> Table:
    scores = result.evaluated.scores
    packed = sum(result.shard_set.tracks([split]) for split in result.shard_set.splits)
    left_out = sum(result.shard_set.rejected.values())
    table = Table(title=f"Demo, {result.seconds:.0f} s", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("remark")
    table.add_row(
        "accuracy", f"{scores.accuracy:.1%}", f"of {scores.tracks} test tracks; chance {scores.chance:.1%}"
    )
    table.add_row(
        "recall", f"{scores.recall:.1%}", f"mean over {len(scores.classes)} genres, as the next two"
    )
    table.add_row("precision", f"{scores.precision:.1%}", "")
    table.add_row("F1", f"{scores.f1:.1%}", "")
    table.add_section()
    table.add_row(
        "pre-training",
        f"{result.pretrained.pairs_per_second:.0f} pairs/s",
        f"{result.pretrained.waiting:.0%} of the time waiting for data",
    )
    table.add_row("packed", f"{packed} tracks", f"{left_out} left out, see rejected.csv")
    return table


def _files(result: whole_way.DemoResult) -> dict[Path, str]:
    return {
        result.shard_set.folder: "shards, manifest, tracks.csv, rejected.csv",
        result.run / "checkpoint.pt": "encoder",
        result.finetuned.folder / "classifier.pt": "classifier",
        result.evaluated.folder / "predictions.csv": "predictions of the test tracks",
        result.evaluated.folder / "confusion.png": "confusion matrix",
        result.run / "plots" / "preview.png": "two views of a few tracks",
    }
