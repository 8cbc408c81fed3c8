"""A study from its plan to its page: what `reproduce` and `ablate` share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from siamusic_fast.audio.corpus import SPLITS
from siamusic_fast.errors import ConfigError
from siamusic_fast.folder_lock import FolderLock
from siamusic_fast.models.run_checks import check_labels
from siamusic_fast.pipelines.checks import check_shard_length
from siamusic_fast.processes.environment import check_gpus, launched_environment, visible_gpus
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.studies import figures, page, tables
from siamusic_fast.studies.estimate import Estimate, estimate
from siamusic_fast.studies.results import StudyResult, collect
from siamusic_fast.studies.slots import Devices, run_cells
from siamusic_fast.studies.study import Row, Study, StudyFolder
from siamusic_fast.training.checks import check_pretraining

Paper = Mapping[Row, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class PlannedStudy:
    """A study that may be started: what it is, where it is kept, and what it runs on."""

    study: Study
    folder: StudyFolder
    devices: Devices
    paper: Paper

    @classmethod
    def checked(cls, study: Study, folder: StudyFolder, devices: Devices, paper: Paper) -> Self:
        """Return a study after checking what can be known before it is started.

        Raises ConfigError or DataError if the shards do not fit the settings or each other, or if the folder
        holds something else than cells of these settings.
        """
        folder.check(study)
        for cell in study.cells:
            check_pretraining(cell.config, cell.data, devices.processes)
        check_labels(study.test, SPLITS, "a study")
        check_shard_length(
            study.test, study.test.shards(SPLITS, labelled_only=True), study.cells[0].config.mel
        )
        if unknown := [row for row in paper if row not in study.rows]:
            known = "; ".join(", ".join(row) for row in study.rows)
            raise ConfigError(
                f"the paper's scores are of {', '.join(unknown[0])}, which is no row of this study: its "
                f"rows are {known} (on the command line --paper)."
            )
        return cls(study=study, folder=folder, devices=devices, paper=paper)

    def estimate(self, progress: Progress = SILENT) -> Estimate | None:
        """Return what is left will take; None if nothing is left."""
        return (
            estimate(self.study, self.folder, self.devices, progress)
            if self.folder.left(self.study)
            else None
        )

    def run(
        self, progress: Progress = SILENT, before: Callable[[Estimate], None] | None = None
    ) -> StudyResult:
        """Run the cells that are not finished, then write tables, pictures and the page.

        `before` is called with the estimate, when nothing else uses the folder. What is written is about all
        cells that are finished, also if others failed. Raises DataError if another study runs in the folder,
        and Stopped after a request to stop, when the cells that were running have saved.
        """
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with FolderLock() as lock:
            lock.take(self.folder.path)
            self.folder.check(self.study)
            self.folder.write(self.study)
            if before and (expected := self.estimate(progress)):
                before(expected)
            failed = run_cells(self.study, self.folder.left(self.study), self.folder, self.devices, progress)
            result = collect(self.study, self.folder, failed, self.paper)
            figures.scores(result, self.folder.path / figures.SCORES)
            figures.views(self.study, self.folder.path / figures.VIEWS)
            tables.write(result)
            page.write(result)
        return result


def devices_for(gpus: int | None, procs: int | None, gpus_per_cell: int) -> Devices:
    """Return how many cells run at a time, and on what.

    `gpus` is the number of GPUs, each `gpus_per_cell` of which have a cell; None: all that there are. Without
    GPUs, `procs` cells run at a time. Raises ConfigError or DeviceError for what does not fit.
    """
    if launched_environment():
        raise ConfigError(
            "a study starts its own processes: call it by itself, without torchrun, and in SLURM without "
            "srun."
        )
    found = check_gpus(visible_gpus() if gpus is None else gpus)
    if not found:
        if gpus_per_cell > 1:
            raise ConfigError(
                f"gpus_per_cell = {gpus_per_cell} asks for GPUs, and the study runs on the CPU: leave it "
                "out (on the command line --gpus-per-cell)."
            )
        return Devices(slots=procs or 1, gpus_per_cell=0)
    if procs is not None:
        raise ConfigError(
            f"procs = {procs} is the number of cells at a time on the CPU, and there are GPUs: leave it "
            "out, or add gpus=0 (on the command line --gpus 0)."
        )
    if gpus_per_cell > found:
        raise ConfigError(
            f"gpus_per_cell = {gpus_per_cell} is more than the {found} GPUs of the study: use at most "
            f"{found} (on the command line --gpus-per-cell {found})."
        )
    slots, idle = divmod(found, gpus_per_cell)
    return Devices(slots=slots, gpus_per_cell=gpus_per_cell, idle_gpus=idle)
