"""Trackers of experiments, which get what metrics.jsonl gets: TensorBoard, Weights & Biases and MLflow."""

import importlib.util
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol
from uuid import uuid4

from siamusic_fast.config import NO_LOGGER
from siamusic_fast.errors import not_installed
from siamusic_fast.models.run_files import BEST, CLASSIFIER, CONFIG, LOG_FILE, Checkpoints, read_config

PROJECT = "siamusic-fast"
"""Project of Weights & Biases, unless WANDB_PROJECT is set, and experiment of MLflow, unless
MLFLOW_EXPERIMENT_NAME is."""
CLOSING_SECONDS = 60.0
"""How long the end of a run waits for a tracker that is still sending."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers see it."""

    folder: Path
    resume_at: int | None = None
    """Step from which the run is resumed; None: it is new."""

    @property
    def name(self) -> str:
        """The last two parts of the folder, such as runs/first or first/finetune."""
        return "/".join(self.folder.resolve().parts[-2:])

    @property
    def settings(self) -> dict[str, Any]:
        """What config.json says."""
        return read_config(self.folder)

    @property
    def pictures(self) -> list[Path]:
        """The pictures of the run."""
        return sorted((self.folder / "plots").glob("*.png"))

    @property
    def files(self) -> list[Path]:
        """The files of the run that a tracker keeps: settings, figures, weights and pictures."""
        names = (CONFIG, LOG_FILE, Checkpoints(self.folder).last.name, BEST, CLASSIFIER)
        own = (self.folder / name for name in names)
        return [*(path for path in own if path.is_file()), *self.pictures]

    def id_with(self, tracker: str, new: Callable[[], str]) -> str:
        """Return the id that the run has in `tracker`, kept in its folder; the first time a `new` one."""
        file = self._id_file(tracker)
        if self.resume_at is None or not file.is_file():
            file.write_text(new(), encoding="utf-8")
        return file.read_text(encoding="utf-8")

    def is_known_to(self, tracker: str) -> bool:
        """Whether `tracker` has been opened for the run: TensorBoard always is."""
        return tracker == "tensorboard" or self._id_file(tracker).is_file()

    def _id_file(self, tracker: str) -> Path:
        return self.folder / f"{tracker}.id"


class Tracker(Protocol):
    """A program that keeps the figures of runs. It is opened for a `TrackedRun`, with its settings."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add `values` of `step`."""

    def keep(self, step: int) -> None:
        """Add the pictures of the run, as those of `step`, and its files."""

    def close(self, *, finished: bool) -> None:
        """End; a run that is not `finished` was stopped, or an error has ended it."""


class _TensorBoard:
    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        purge = None if run.resume_at is None else run.resume_at + 1
        self._writer = SummaryWriter(run.folder, purge_step=purge)
        if run.resume_at is None:
            self._writer.add_text("config", f"```\n{json.dumps(run.settings, indent=2)}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def keep(self, step: int) -> None:
        from matplotlib.image import imread

        for path in self._run.pictures:
            self._writer.add_image(path.stem, imread(path), step, dataformats="HWC")

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run, self._wandb = run, wandb
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise PermissionError("no API key: run `wandb login`, or set WANDB_MODE=offline")
        self._tracked = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id_with("wandb", lambda: uuid4().hex[:8]),
            resume="allow",
            config=run.settings,
            settings=wandb.Settings(silent=True, console="off", finish_timeout=CLOSING_SECONDS),
        )
        self._tracked.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tracked.log({"step": step, **values})

    def keep(self, step: int) -> None:
        images = {path.stem: self._wandb.Image(str(path)) for path in self._run.pictures}
        self._tracked.log({"step": step, **images})
        artifact = self._wandb.Artifact(f"run-{self._tracked.id}", type="run")
        for path in self._run.files:
            artifact.add_file(str(path), str(path.relative_to(self._run.folder)))
        self._tracked.log_artifact(artifact)

    def close(self, *, finished: bool) -> None:
        self._tracked.finish(exit_code=0 if finished else 1)


class _MLflow:
    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without a server, runs are files in mlruns
        from mlflow.tracking import MlflowClient

        self._run = run
        self._client = MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").absolute().as_uri()
        )
        self._id = run.id_with("mlflow", self._create)
        self._client.update_run(self._id, status="RUNNING")

    def _create(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        created = self._client.create_run(experiment, run_name=self._run.name)
        for key, value in _flat(self._run.settings):
            self._client.log_param(created.info.run_id, key, value)
        return str(created.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def keep(self, step: int) -> None:
        for path in self._run.files:
            folder = path.relative_to(self._run.folder).parent
            self._client.log_artifact(self._id, str(path), None if folder == Path() else str(folder))

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


_TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
}


def check_loggers(names: Sequence[str]) -> None:
    """Raise ConfigError if a tracker of these names is not installed."""
    for name in names:
        if name != NO_LOGGER and importlib.util.find_spec(name) is None:
            raise not_installed(
                f"logger = {name!r}",
                name,
                ", or choose another one (on the command line --logger tensorboard)",
            )


class Trackers:
    """The trackers called `names` of a run. Each works in a thread of its own, and training waits for none.

    A tracker that fails is left out from then on, with a warning.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun) -> None:
        self._threads = [_TrackerThread(name, run) for name in dict.fromkeys(names) if name != NO_LOGGER]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add `values` of `step`."""
        self._call(lambda tracker: tracker.log(step, values))

    def keep(self, step: int) -> None:
        """Add the pictures of the run, as those of `step`, and its files."""
        self._call(lambda tracker: tracker.keep(step))

    def close(self, *, finished: bool) -> None:
        """Wait for what is still to be sent, for up to `CLOSING_SECONDS`, and end; see `Tracker.close`."""
        self._call(lambda tracker: tracker.close(finished=finished))
        until = time.monotonic() + CLOSING_SECONDS
        for thread in self._threads:
            thread.end(until)

    def _call(self, function: Callable[[Tracker], None]) -> None:
        for thread in self._threads:
            thread.call(function)


class _TrackerThread:
    """A tracker and the thread that calls it; the thread does not keep a program from ending."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self._name = name
        self._run = run
        self._calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        self._problem = ""
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            tracker = _TRACKERS[self._name](self._run)
            while call := self._calls.get():
                call(tracker)
        except Exception as error:  # of any kind: it is no reason to stop training
            self._problem = " ".join(f"{type(error).__name__}: {error}".split())

    def call(self, function: Callable[[Tracker], None]) -> None:
        self._calls.put(function)
        if self._problem:
            self._warn(f"failed ({self._problem})")
            self._problem = ""

    def end(self, until: float) -> None:
        self._calls.put(None)
        self._thread.join(max(until - time.monotonic(), 0))
        if self._problem:
            self._warn(f"failed ({self._problem})")
        elif self._thread.is_alive():
            self._warn(f"is still sending after {CLOSING_SECONDS:.0f} s")

    def _warn(self, what: str) -> None:
        warnings.warn(
            f"the logger {self._name} {what}: it may lack figures of this run, which "
            f"{self._run.folder / LOG_FILE} has all of.",
            stacklevel=4,
        )
