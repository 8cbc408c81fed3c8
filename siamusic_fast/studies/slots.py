"""The cells of a study on its devices: one at a time in this process, or several in processes beside it."""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from siamusic_fast.errors import SiamusicError
from siamusic_fast.models.run_files import LOG_FILE
from siamusic_fast.processes import launch
from siamusic_fast.processes.failures import OF_CELLS, WorkerError, os_error_message
from siamusic_fast.processes.parent import children_end_with_this_process
from siamusic_fast.processes.pool import cores
from siamusic_fast.processes.signals import Stopped
from siamusic_fast.progress import SILENT, Progress, Task
from siamusic_fast.studies.run_cell import PRETRAINING, run_cell
from siamusic_fast.studies.study import ERROR, Cell, Study, StudyFolder

TASK = "Cells"
_POLL_SECONDS = 0.5
_NEWS_SECONDS = 10.0
"""Seconds between two looks at what the cells are doing."""


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What a study runs on."""

    slots: int
    """Cells at a time."""
    gpus_per_cell: int
    """GPUs of each of them; 0: the CPU."""
    idle_gpus: int = 0
    """GPUs that are left over."""

    @property
    def processes(self) -> int:
        """Processes of a cell."""
        return max(1, self.gpus_per_cell)


@dataclass(frozen=True)
class _Named:
    """A display of the work on one cell, which says which one that is."""

    shown: Progress
    name: str

    def task(self, description: str, total: int, unit: str = "") -> AbstractContextManager[Task]:
        return self.shown.task(f"{self.name}: {description}", total, unit)


def run_cells(
    study: Study, cells: Sequence[Cell], folder: StudyFolder, devices: Devices, progress: Progress
) -> dict[str, str]:
    """Run `cells`, as many at a time as there are slots, and return the errors of those that fail, by name.

    The error of a cell is in its folder too, with the traceback if it is no mistake of a user. Raises Stopped
    or KeyboardInterrupt on a request to stop, when the cells that were running have saved.
    """
    if devices.slots == 1:
        return _in_this_process(study, cells, folder, devices, progress)
    return _in_other_processes(study, cells, folder, devices, progress)


def _in_this_process(
    study: Study, cells: Sequence[Cell], folder: StudyFolder, devices: Devices, progress: Progress
) -> dict[str, str]:
    failed = {}
    for number, cell in enumerate(cells, start=1):
        shown = progress if progress is SILENT else _Named(progress, f"{number}/{len(cells)} {cell.name}")
        try:
            launch.launch(
                functools.partial(run_cell, study, cell, folder, progress=shown), gpus=devices.gpus_per_cell
            )
        except Exception as error:  # whatever it is, the other cells go on
            failed[cell.name] = _note_error(folder.cell(cell), error)
    return failed


def _note_error(path: Path, error: Exception) -> str:
    """Write `error` into the folder of its cell, and return it in one line."""
    if isinstance(error, SiamusicError):
        words = details = str(error)
    elif isinstance(error, OSError):
        words = details = os_error_message(error)
    elif isinstance(error, WorkerError):
        words, details = f"a process failed, {path / ERROR} says how.", str(error)
    else:
        words = f"{type(error).__name__}: {error}"
        details = "".join(traceback.format_exception(error))
    with open(path / ERROR, "w", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123
        file.write(details + "\n")
    return words


@dataclass
class _Running:
    cell: Cell
    process: BaseProcess
    answer: Connection
    slot: int
    error: str = ""
    """Error of the cell; empty if it has told none."""


def _in_other_processes(
    study: Study, cells: Sequence[Cell], folder: StudyFolder, devices: Devices, progress: Progress
) -> dict[str, str]:
    """Run each cell in a process of its own, which sees the GPUs of its slot alone."""
    waiting, failed, running = list(cells), dict[str, str](), list[_Running]()
    free = list(range(devices.slots))
    news_at = 0.0
    with progress.task(TASK, len(cells), "cells") as task, children_end_with_this_process():
        try:
            while waiting or running:
                while waiting and free:
                    running.append(_start(study, waiting.pop(0), folder, devices, free.pop(0)))
                for one in running:
                    _listen(one)
                for one in [one for one in running if not one.process.is_alive()]:
                    running.remove(one)
                    free.append(one.slot)
                    if words := _outcome(one, folder):
                        failed[one.cell.name] = words
                    task.advance(note=f"{one.cell.name} {'failed' if words else 'is finished'}")
                if time.monotonic() > news_at + _NEWS_SECONDS:
                    news_at = time.monotonic()
                    task.advance(0, note="; ".join(_news(one.cell, folder) for one in running))
                time.sleep(_POLL_SECONDS)
        except BaseException:
            _stop(running)
            raise
    return failed


def _start(study: Study, cell: Cell, folder: StudyFolder, devices: Devices, slot: int) -> _Running:
    context = multiprocessing.get_context("spawn")
    answer, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(study, cell, folder, devices, slot, sender), name=cell.name)
    process.start()
    sender.close()
    return _Running(cell, process, answer, slot)


def _work(
    study: Study, cell: Cell, folder: StudyFolder, devices: Devices, slot: int, sender: Connection
) -> None:
    """Be the process of one cell: send the words of each warning, and those of the error if it fails."""
    warnings.showwarning = lambda message, *_, **__: sender.send((str(message), ""))
    if devices.gpus_per_cell:
        first = slot * devices.gpus_per_cell
        names = _gpu_names()[first : first + devices.gpus_per_cell]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)  # read when torch first uses a GPU
    torch.set_num_threads(max(1, cores() // devices.slots))
    try:
        launch.launch(
            functools.partial(run_cell, study, cell, folder),
            gpus=devices.gpus_per_cell,
            remedy=OF_CELLS,
        )
    except Exception as error:  # the process that started this one shows it
        sender.send(("", _note_error(folder.cell(cell), error)))
    except KeyboardInterrupt as stop:
        raise SystemExit(stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT) from None


def _gpu_names() -> list[str]:
    """Return the GPUs that CUDA may use, as CUDA_VISIBLE_DEVICES names them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return allowed.split(",") if allowed else [str(number) for number in range(torch.cuda.device_count())]


def _outcome(one: _Running, folder: StudyFolder) -> str:
    """Return the error of a cell whose process has ended; nothing if the cell is finished."""
    _listen(one)
    if one.error:
        return one.error
    code = one.process.exitcode or 0
    if folder.is_finished(one.cell):
        return ""
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return _note_error(
        folder.cell(one.cell),
        SiamusicError(
            f"its process was ended {how}: the memory may not suffice; the same command goes on from the "
            "last checkpoint."
        ),
    )


def _listen(one: _Running) -> None:
    """Take what the process of a cell has sent: warn here of what it warns of, and keep its error."""
    with contextlib.suppress(EOFError):  # it has ended
        while one.answer.poll():
            warning, error = one.answer.recv()
            one.error = error or one.error
            if warning:
                warnings.warn(f"{one.cell.name}: {warning}", stacklevel=2)


def _news(cell: Cell, folder: StudyFolder) -> str:
    """Say how far a cell is, by the log of what it is training."""
    try:
        logs = [path for path in folder.cell(cell).glob(f"*/{LOG_FILE}") if path.stat().st_size]
        if not logs:
            return f"{cell.name} begins"
        newest = max(logs, key=lambda path: path.stat().st_mtime)
        epoch = json.loads(newest.read_text(encoding="utf-8").splitlines()[-1])["epoch"]
    except (ValueError, LookupError, TypeError, OSError):  # a log that is being written or moved
        return f"{cell.name} runs"
    what = "pre-training" if newest.parent.name == PRETRAINING else f"classifier {newest.parent.name}"
    return f"{cell.name} {what} epoch {epoch}"


def _stop(running: Sequence[_Running]) -> None:
    """Let the processes save and end; kill those that are left when a person insists."""
    for one in running:
        if one.process.is_alive():
            one.process.terminate()
    try:
        for one in running:
            one.process.join()
    finally:
        for one in running:
            one.process.kill()
