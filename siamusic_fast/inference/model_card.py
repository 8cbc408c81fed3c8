"""Model cards: what a reader must know of an exported network, as Markdown with a head for machines."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from siamusic_fast.models.run_files import CONFIG

_CITATION = """\
> Kim, Hong, Lee 2022. Self-supervised Learning for Music Genre Classification using Image Augmentation.

and siamusic-fast, as its CITATION.cff says."""
_LICENSES = """\
siamusic-fast is under the MIT license. FMA (Defferrard et al. 2017) has its metadata under CC BY 4.0, and
each of its tracks under the license that its artist chose, often one of Creative Commons and often not for
commercial use: see the column `license` of its `tracks.csv`. Whether the licenses of the music extend to the
weights is for you to judge, as it is for music of your own."""


def model_card(run: Path, file: str, sha256: str, about: Mapping[str, Any]) -> str:
    """Return the card of `file`, exported from a checkpoint in `run`; `about` is the metadata in the file."""
    settings = _read(run / CONFIG)
    data = Path(settings.pop("data", "unknown")).name  # paths of this machine mean nothing to readers
    settings.pop("run", None)
    head = {"library_name": "siamusic-fast", "tags": ["audio", "music", about["backbone"]]}
    results = [*_scores(run)] or ["`siamusic-fast probe` and `evaluate` have not been run."]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {file}",
        f"A {about['backbone']} {about['network']} of mel spectrograms of music, exported by siamusic-fast "
        f"{about['version']}.",
        "## Data",
        f"Shards: `{data}`. Splits that the encoder was "
        f"pre-trained on: {', '.join(about['pretrained_on']) or 'none'}.",
        "## Scores on test tracks",
        "\n".join(results),
        "## Settings of the run",
        _block(settings),
        "## The file",
        f"SHA-256: `{sha256}`; `sha256sum -c {file}.sha256` compares. Metadata in it, under `siamusic_fast`:",
        _block(about),
        "## Licenses",
        _LICENSES,
        "## How to cite",
        _CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def _scores(run: Path) -> Iterator[str]:
    """Yield a line for each result in the folder of the run."""
    probes = _read(run / "probe" / "results.json")
    for name in ("knn", "linear") if probes else ():
        yield f"- {name} probe of the frozen encoder: {_line(probes['pretrained'][name])}"
    for folder in (run / "evaluate", run / "finetune" / "evaluate"):
        if found := _read(folder / "results.json"):
            yield f"- fine-tuned classifier: {_line(found)}"


def _line(scores: Mapping[str, Any]) -> str:
    figures = (
        f"{name} {scores[name]:.1%} ({low:.1%} to {high:.1%})"
        for name, (low, high) in scores["intervals"].items()
    )
    return f"{', '.join(figures)}; {scores['tracks']} tracks, chance {scores['chance']:.1%}, 95% intervals"


def _block(values: Mapping[str, Any]) -> str:
    return f"```json\n{json.dumps(values, indent=2, ensure_ascii=False)}\n```"


def _read(path: Path) -> dict[str, Any]:
    """Return what the JSON file `path` says; nothing if there is none."""
    if not path.is_file():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
