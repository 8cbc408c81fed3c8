"""What the folder of a run says about it: settings, log and scores."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siamusic_fast import config as settings
from siamusic_fast.config import MelConfig, PretrainConfig
from siamusic_fast.config.fields import settings_of
from siamusic_fast.errors import DataError
from siamusic_fast.evaluation.baselines import PRETRAINED
from siamusic_fast.evaluation.evaluate import RESULTS
from siamusic_fast.evaluation.intervals import Difference
from siamusic_fast.evaluation.measures import Measure
from siamusic_fast.evaluation.scores import ClassScores, Scores
from siamusic_fast.evaluation.tag_scores import TagScore, TagScores
from siamusic_fast.files import LIST_LIMIT, read_regular
from siamusic_fast.models.run_files import CONFIG, LOG_FILE
from siamusic_fast.training.run_log import read_log

_SCORES = ("accuracy", "recall", "precision", "f1")
_TAG_SCORES = ("roc_auc", "pr_auc")

Lines = Sequence[Mapping[str, float]]
"""Lines of a metrics.jsonl, in the order of their steps."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A pre-training run as its folder describes it."""

    folder: Path
    name: str
    """Name that no other run of the page has."""
    config: PretrainConfig
    data: str
    """Folder of the shards that it was made from."""
    processes: int
    lines: Lines
    """Log of the pre-training."""
    finetuned: Lines
    """Log of the fine-tuning; empty if there is none."""
    classifier: Scores | None
    """Scores of the classifier on the test split; None if it was not evaluated, or says tags."""
    tagger: TagScores | None
    """Scores of the classifier of tags on the test split; None if there is none, or it was not evaluated."""
    probes: list[Measure]
    """Measures of the frozen encoder's features and of the baselines; empty if it was not probed."""

    @property
    def linear(self) -> Measure | None:
        """The measure of the linear probe, if there is one."""
        return next((one for one in self.probes if one.name in ("linear", "linear_roc_auc")), None)

    @property
    def missing(self) -> list[tuple[str, tuple[str, ...]]]:
        """What has not been measured, and the words of the command that measures it."""
        run = str(self.folder)
        missing: list[tuple[str, tuple[str, ...]]] = []
        if self.classifier is None and self.tagger is None:
            command = "evaluate" if self.finetuned else "finetune"
            missing.append(("The scores of a classifier", ("siamusic-fast", command, run)))
        if not self.probes:
            missing.append(("The probes of the encoder", ("siamusic-fast", "probe", run)))
        return missing

    @property
    def settings(self) -> list["ShownSetting"]:
        """All settings, in the order of the configuration page."""
        shown = [
            ShownSetting(
                name=setting.name,
                value=_words(getattr(config, setting.name)),
                help=setting.help,
                is_default=getattr(config, setting.name) == setting.default,
            )
            for config, described in (
                (self.config, settings_of(PretrainConfig)),
                (self.config.mel, settings_of(MelConfig)),
            )
            for setting in described
        ]
        shown.append(ShownSetting(name="data", value=self.data, help="Shards that the run was made from."))
        words = "Number of processes that trained together."
        shown.append(ShownSetting(name="processes", value=str(self.processes), help=words))
        return shown


@dataclass(frozen=True, kw_only=True)
class ShownSetting:
    """A setting of a run, in words."""

    name: str
    value: str
    help: str
    is_default: bool = True


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in `folders`; one that is named twice comes once.

    Raises DataError if a folder holds no pre-training run, if the run has logged nothing yet, or if a file of
    it is damaged.
    """
    folders = list(dict.fromkeys(folders))
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    return [
        _read_run(folder, name if unique else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def _read_run(folder: Path, name: str) -> Run:
    values = _read_config(folder)
    data, processes = str(values.pop("data", "")), int(values.pop("processes", 1))
    finetuned = folder / "finetune"
    classifier = _read_classifier(folder)
    return Run(
        folder=folder,
        name=name,
        config=settings.load_pretrain(values),
        data=data,
        processes=processes,
        lines=_read_lines(folder),
        finetuned=_read_lines(finetuned) if (finetuned / LOG_FILE).is_file() else [],
        classifier=classifier if isinstance(classifier, Scores) else None,
        tagger=classifier if isinstance(classifier, TagScores) else None,
        probes=_read_probes(folder),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise DataError(f"no run {str(folder)!r}: give the folder that pretrain made.")
    values = _read_json(folder / CONFIG, "give the folder of a run, which has one")
    if "run" in values:
        raise DataError(f"{folder} is the folder of a classifier: give that of its run, {values['run']}.")
    if not isinstance(values.get("mel"), dict):
        raise DataError(f"{folder / CONFIG} is not that of a run: give the folder that pretrain made.")
    return values


def _read_lines(folder: Path) -> Lines:
    """Return what a run logged. Raises DataError if that is nothing, or not the log of a run."""
    path = folder / LOG_FILE
    try:
        lines = read_log(folder) if path.is_file() else []
        numbers = [value for line in lines for value in (line["epoch"], *line.values())]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("it holds more than numbers")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): put back a copy of it, or train anew.") from error
    if not lines:
        raise DataError(
            f"{folder} has logged no figures yet: wait for the first ones, or let the run go on by "
            f"`siamusic-fast pretrain --resume {folder}`."
        )
    return lines


def _read_classifier(run: Path) -> Scores | TagScores | None:
    for folder in (run / "finetune", run):
        path = folder / "evaluate" / RESULTS
        if path.is_file():
            values = _read_json(path, f"`siamusic-fast evaluate {run}` writes it anew")
            read = _tag_scores if values.get("target") == "tags" else _scores
            return read(path, values, "evaluate", run)
    return None


def _read_probes(run: Path) -> list[Measure]:
    """Return the measures that a probe wrote. Raises DataError if they are not measures."""
    path = run / "probe" / RESULTS
    if not path.is_file():
        return []
    values = _read_json(path, f"`siamusic-fast probe {run}` writes it anew")
    try:
        return [_measure(one) for one in values["measures"]]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, error, "probe", run) from error


def _measure(values: Mapping[str, Any]) -> Measure:
    names = {PRETRAINED, values["strongest"]}
    difference = values["difference"]
    return Measure(
        name=str(values["name"]),
        title=str(values["title"]),
        values={name: float(values["values"][name]) for name in names},
        intervals={name: _interval(values["intervals"][name]) for name in names},
        strongest=str(values["strongest"]),
        difference=Difference(
            difference=float(difference["difference"]),
            low=float(difference["low"]),
            high=float(difference["high"]),
            groups=int(values["groups"]),
        ),
        items=int(values["items"]),
        groups=int(values["groups"]),
    )


def _interval(values: Any) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        values = json.loads(read_regular(path, LIST_LIMIT))
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): {remedy}.") from error
    return values


def _scores(path: Path, values: Any, command: str, run: Path) -> Scores:
    """Return the scores that `path` has as plain `values`. Raises DataError if they are not scores."""
    with _naming_damage(path, command, run):
        found = {field.name: values[field.name] for field in dataclasses.fields(Scores)}
        found["classes"] = tuple(ClassScores(**one) for one in found["classes"])
        found["intervals"] = {name: _interval(found["intervals"][name]) for name in _SCORES}
        found["confusion"] = tuple(tuple(map(int, row)) for row in found["confusion"])
        if {len(found["classes"])} != {len(found["confusion"]), *map(len, found["confusion"])}:
            raise ValueError("its confusion matrix does not fit its classes")
        found |= {name: float(found[name]) for name in ("chance", *_SCORES)}
        return Scores(**found)


def _tag_scores(path: Path, values: Any, command: str, run: Path) -> TagScores:
    """Return the scores of tags that `path` has as plain `values`. Raises DataError if they are none."""
    with _naming_damage(path, command, run):
        found = {field.name: values[field.name] for field in dataclasses.fields(TagScores)}
        found["tags"] = tuple(TagScore(**one) for one in found["tags"])
        found["intervals"] = {name: _interval(found["intervals"][name]) for name in _TAG_SCORES}
        found |= {name: float(found[name]) for name in ("chance", *_TAG_SCORES)}
        if not all((one.roc_auc is None) == (one.pr_auc is None) for one in found["tags"]):
            raise ValueError("it has half of the scores of a tag")
        return TagScores(**found)


@contextmanager
def _naming_damage(path: Path, command: str, run: Path) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, error, command, run) from error


def _damaged(path: Path, error: Exception, command: str, run: Path) -> DataError:
    return DataError(f"{path} is damaged ({error!r}): `siamusic-fast {command} {run}` writes it anew.")


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(value)
    return "automatic" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
