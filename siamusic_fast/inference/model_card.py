"""Model cards: what a reader must know of an exported network, as Markdown with a head for machines."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.evaluate import RESULTS
from siamusic_fast.files import LIST_LIMIT, read_regular
from siamusic_fast.models.run_files import CONFIG

_CITATION = """\
> Kim, Hong, Lee 2022. Self-supervised Learning for Music Genre Classification using Image Augmentation.

and siamusic-fast, as its CITATION.cff says."""
_LICENSES = """\
siamusic-fast is under the MIT license. FMA (Defferrard et al. 2017) has its metadata under CC BY 4.0, and
each of its tracks under the license that its artist chose, often one of Creative Commons and often not for
commercial use: see the column `license` of its `tracks.csv`. Whether the licenses of the music extend to the
weights is for you to judge, as it is for music of your own."""


_WORDS = {"roc_auc": "macro ROC-AUC", "pr_auc": "macro PR-AUC"}


@dataclass(frozen=True)
class RunFacts:
    """What a card says of a run."""

    settings: dict[str, Any]
    scores: list[str]
    """A line for each result."""


def read_facts(run: Path) -> RunFacts:
    """Return what the folder `run` says of itself. Raises `DataError` if a file of it is damaged."""
    return RunFacts(_read(run / CONFIG), list(_scores(run)))


def model_card(facts: RunFacts, file: str, sha256: str, about: Mapping[str, Any]) -> str:
    """Return the card of `file`, exported from the run of `facts`; `about` is the metadata in the file."""
    settings = dict(facts.settings)
    data = Path(settings.pop("data", "unknown")).name  # paths of this machine mean nothing to readers
    settings.pop("run", None)
    head = {"library_name": "siamusic-fast", "tags": ["audio", "music", about["backbone"]]}
    results = facts.scores or ["`siamusic-fast probe` and `evaluate` have not been run."]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {file}",
        f"A {about['backbone']} {about['network']} of mel spectrograms of music, exported by siamusic-fast "
        f"{about['version']}.{_unlike_torchvision(about)}",
        "## Data",
        f"Shards: `{data}`. Splits that the encoder was "
        f"pre-trained on: {', '.join(about['pretrained_on']) or 'none'}.",
        "## Scores",
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


def _unlike_torchvision(about: Mapping[str, Any]) -> str:
    """Return sentences on what the weights do not say of the network; none if it is torchvision's."""
    first, first_pool = ("features.0.0", "") if about["backbone"] == "swin_t" else ("conv1", " and maxpool")
    stride = (1, 4) if about["backbone"] == "swin_t" else (1, 2)
    sentences = {
        "frequency-channel": f" Stem frequency-channel: {first} has a second input channel, which rises from "
        "-1 at the lowest mel band to 1 at the highest (Liu et al. 2018).",
        "keep-frequency": f" Stem keep-frequency: the stride of {first}{first_pool} is {stride}.",
        "mean-max": " Pooling mean-max: the features of a frame are the mean over frequency, and those of a "
        "spectrogram their mean over time plus their maximum over time (Kong et al. 2020).",
    }
    return "".join(sentences.get(about[name], "") for name in ("stem", "pooling"))


def _scores(run: Path) -> Iterator[str]:
    """Yield a line for each result in the folder of the run."""
    path = run / "probe" / RESULTS
    if path.is_file():
        with _naming_damage(path):
            values = _read(path)
            by_cv = values["scored_on"] == "cross-validation"
            scored = "tracks by grouped cross-validation" if by_cv else "test tracks"
            for name in ("knn", "linear"):
                line = _line(values["probes"]["pretrained"][name], values["target"], scored)
                yield f"- {name} probe of the frozen encoder: {line}"
            if values["warning"]:
                yield f"- {values['warning']}"
    for path in (run / "evaluate" / RESULTS, run / "finetune" / "evaluate" / RESULTS):
        if path.is_file():
            with _naming_damage(path):
                values = _read(path)
                yield f"- fine-tuned classifier: {_line(values, values['target'], 'test tracks')}"


def _line(scores: Mapping[str, Any], target: str, scored: str) -> str:
    """Return in words the scores of classes or tags on tracks, which `scored` names."""
    of_tags = target == "tags"
    number = "{:.3f}" if of_tags else "{:.1%}"
    figures = (
        f"{_WORDS.get(name, name)} {number.format(scores[name])} "
        f"({number.format(low)} to {number.format(high)})"
        for name, (low, high) in scores["intervals"].items()
    )
    chance = f"{'ROC-AUC 0.5 and PR-AUC ' if of_tags else ''}{number.format(scores['chance'])} by chance"
    return f"{', '.join(figures)}; {scores['tracks']} {scored}, {chance}, 95% intervals"


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error


def _block(values: Mapping[str, Any]) -> str:
    return f"```json\n{json.dumps(values, indent=2, ensure_ascii=False)}\n```"


def _read(path: Path) -> dict[str, Any]:
    """Return what the JSON file `path` says; nothing if there is none."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(read_regular(path, LIST_LIMIT))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(values, dict):
        raise _damaged(path, "no JSON object")
    return values


def _damaged(path: Path, reason: object) -> DataError:
    return DataError(f"{path} is damaged ({reason!r}): put back a copy of it, or move it out of the folder.")
