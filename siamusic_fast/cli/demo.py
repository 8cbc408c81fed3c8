"""`siamusic-fast demo`: the whole way in minutes, on audio that it makes itself."""

from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import count, duration, progress, show_facts, show_result, stopping
from siamusic_fast.config import PretrainConfig


@click.command()
@options.settings(PretrainConfig, "backend", "seed", filled=True)
@options.device
@options.out("demo")
@options.quiet
@options.as_json
def demo(out: Path | None, backend: str, device: Any, seed: int, quiet: bool, as_json: bool) -> None:
    """Run everything on a small synthetic corpus: shard, pretrain, finetune, evaluate.

    Makes 360 tracks of eight genres, some of them broken on purpose, as MP3s in the layout of FMA. Packs
    them, pre-trains an encoder, fine-tunes a classifier and scores it on tracks that it never met. About
    four minutes on two CPU cores; again, it uses the same audio and trains anew.

    \b
    siamusic-fast demo
    """
    from siamusic_fast.analysis import demo as whole_way
    from siamusic_fast.processes.pool import cores
    from siamusic_fast.processes.world import World

    folder = out or Path("demo")
    with stopping(lambda: f"Stopped. The same command trains anew, with the audio and shards in {folder}."):
        result = whole_way.demo(
            folder,
            seed=seed,
            backend=backend,
            procs=cores(),
            world=World(device=device),
            progress=progress(quiet),
        )
    show_result(_as_json(result), lambda: render(result), result.run, quiet=quiet, as_json=as_json)


def _as_json(result: Any) -> dict[str, object]:
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


def render(result: Any) -> None:
    """Print the scores, the speed, and where everything is."""
    scores, pretrained = result.evaluated.scores, result.pretrained
    packed = sum(result.shard_set.tracks([split]) for split in result.shard_set.splits)
    left_out = sum(result.shard_set.rejected.values())
    show_facts(
        {
            "accuracy": f"{scores.accuracy:.1%} of {scores.tracks} test tracks; chance {scores.chance:.1%}",
            "macro": f"recall {scores.recall:.1%}, precision {scores.precision:.1%}, F1 {scores.f1:.1%}; "
            f"means over {len(scores.classes)} genres",
            "speed": f"{pretrained.pairs_per_second:.0f} pairs/s, {pretrained.waiting:.0%} of the time "
            f"waiting for data",
            "packed": f"{count(packed, 'track')}; {left_out} left out, see rejected.csv",
            "time": duration(result.seconds),
            "shards": str(result.shard_set.folder),
            "encoder": str(result.run / "checkpoint.pt"),
            "classifier": str(result.finetuned.folder / "classifier.pt"),
            "predictions": str(result.evaluated.folder / "predictions.csv"),
            "confusion": str(result.evaluated.folder / "confusion.png"),
            "preview": str(result.run / "plots" / "preview.png"),
            "next": "siamusic-fast shard --help says how to pack your own music",
        }.items()
    )
