"""`siamusic-fast export`: networks as files for other programs."""

import dataclasses
import json
from pathlib import Path

import rich_click as click

from siamusic_fast.cli import options
from siamusic_fast.cli.console import output, show_facts
from siamusic_fast.config import FinetuneConfig


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=options.Choices(("torch", "safetensors", "onnx")),
    default="torch",
    help="Format of the file. [torch, safetensors, onnx]  [default: torch]",
)
@click.option(
    "--from",
    "source",
    type=options.Choices(("mels", "waveform")),
    default="mels",
    help="What an ONNX file takes: normalized mel spectrograms or audio. [mels, waveform]  [default: mels]",
)
@click.option("--classifier", is_flag=True, help="Export the fine-tuned classifier instead of the encoder.")
@options.settings(FinetuneConfig, "checkpoint", filled=True)
@options.out("RUN/export")
@options.force
@options.quiet
@options.as_json
def export(
    run: Path,
    to: str,
    source: str,
    classifier: bool,
    checkpoint: str,
    out: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the encoder of RUN, or its classifier, to a file for other programs.

    torch and safetensors: a state dict with torchvision's names, which --init of pretrain reads too. onnx: a
    network with a free batch size, with the spectrogram inside if it is from waveform; a classifier gives
    probabilities. Beside the file are a model card and its SHA-256, which `sha256sum -c` checks.

    \b
    siamusic-fast export runs/first --to safetensors
    siamusic-fast export runs/first --to onnx --from waveform --classifier
    """
    from siamusic_fast.inference import export as exporting

    result = exporting.export(
        run, out, to=to, source=source, classifier=classifier, checkpoint=checkpoint, force=force
    )
    values = {**dataclasses.asdict(result), "file": str(result.file), "card": str(result.card)}
    facts = {"file": str(result.file), "card": str(result.card), "SHA-256": result.sha256}
    if result.difference is not None:
        facts["checked"] = f"differs from torch by at most {result.difference:.1g} under onnxruntime"
    if as_json:
        output.print_json(json.dumps(values), indent=None)
    elif quiet:
        output.print(str(result.file), markup=False)
    else:
        show_facts(facts.items())
