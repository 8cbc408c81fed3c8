"""`siamusic-fast demo`: the whole way in minutes, on audio that it makes itself."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import count, duration, output, progress, show_facts, stopping
from siamusic_fast.config import PretrainConfig


@click.command()
@options.settings(PretrainConfig, "backend", "seed", filled=True)
@options.device
@options.out("demo")
@click.option("--quick", is_flag=True, help="Make 24 short tracks and train for one epoch.")
@options.quiet
@options.as_json
def demo(
    out: Path | None, quick: bool, backend: str, device: Any, seed: int, quiet: bool, as_json: bool
) -> None:
    """Run everything on a small synthetic corpus: shard, pretrain, finetune, evaluate, report.

    Makes 360 tracks of eight genres, some of them broken on purpose, as MP3s in the layout of FMA. Packs
    them, pre-trains an encoder, fine-tunes a classifier, scores it on tracks that it never met, and writes a
    page about all that for a browser. About four minutes on two CPU cores; again, it uses the same audio and
    trains anew. With --quick it takes half a minute, in the folder `quick` of --out, and scores mean nothing.

    \b
    siamusic-fast demo
    siamusic-fast demo --quick
    """
    from siamusic_fast.analysis import demo as whole_way
    from siamusic_fast.evaluation.scores import Scores
    from siamusic_fast.processes.pool import cores
    from siamusic_fast.processes.world import World
    from siamusic_fast.synthetic.corpus import SyntheticCorpus

    folder = (out or Path("demo")) / ("quick" if quick else "")
    corpus = whole_way.QUICK_CORPUS if quick else SyntheticCorpus()
    pretraining = whole_way.QUICK_PRETRAIN if quick else whole_way.PRETRAIN
    finetuning = whole_way.QUICK_FINETUNE if quick else whole_way.FINETUNE
    with stopping(lambda: (f"Stopped. The same command trains anew, with the audio in {folder}.",)):
        result = whole_way.demo(
            folder,
            corpus,
            dataclasses.replace(pretraining, seed=seed, backend=backend),
            dataclasses.replace(finetuning, seed=seed, backend=backend),
            procs=cores(),
            world=World(device=device),
            progress=progress(quiet),
        )
    scores, pretrained = result.evaluated.scores, result.pretrained
    if as_json:
        names = ("accuracy", "recall", "precision", "f1", "chance")
        values = {name: getattr(scores, name) for name in names} | {"test_tracks": scores.tracks}
        speed = {"pairs_per_second": pretrained.pairs_per_second, "seconds": result.seconds}
        places = {"run": str(result.run), "report": str(result.reported.path)}
        output.print_json(json.dumps({**places, **values, **speed}), indent=None, ensure_ascii=True)
        return
    assert isinstance(scores, Scores)  # the corpus has classes
    packed = sum(result.shard_set.tracks([split]) for split in result.shard_set.splits)
    left_out = sum(result.shard_set.rejected.values())
    facts = {
        "accuracy": f"{scores.accuracy:.1%} of {scores.tracks} test tracks; chance {scores.chance:.1%}",
        "macro": f"recall {scores.recall:.1%}, precision {scores.precision:.1%}, F1 {scores.f1:.1%}",
        "speed": f"{pretrained.pairs_per_second:.0f} pairs/s, {pretrained.waiting:.0%} waiting for data",
        "packed": f"{count(packed, 'track')}; {left_out} left out, see rejected.csv",
        "time": duration(result.seconds),
        "shards": result.shard_set.folder,
        "encoder": result.run / "checkpoint.pt",
        "classifier": result.finetuned.folder / "classifier.pt",
        "predictions": result.evaluated.folder / "predictions.csv",
        "confusion": result.evaluated.folder / "confusion.png",
        "preview": result.run / "plots" / "preview.png",
        "report": f"open {result.reported.path.resolve().as_uri()} in a browser",
        "next": "siamusic-fast shard --help",
    }
    show_facts((name, str(words)) for name, words in facts.items())
