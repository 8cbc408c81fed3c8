"""One cell of a study: pre-training, fine-tuning and evaluation, each going on where it was stopped."""

from pathlib import Path

from siamusic_fast.evaluation.evaluate import RESULTS, evaluate
from siamusic_fast.models import checkpoint
from siamusic_fast.models.run_files import Checkpoints, save_json
from siamusic_fast.processes.world import World
from siamusic_fast.progress import SILENT, Progress
from siamusic_fast.studies.study import ERROR, RESULT, Cell, Study, StudyFolder, with_seed
from siamusic_fast.training.finetune import finetune
from siamusic_fast.training.pretrain import pretrain
from siamusic_fast.training.run_log import read_log

PRETRAINING = "pretraining"
"""Folder of the pre-training in that of a cell; each classifier has one with the name of its protocol."""
_LOGGED = ("loss", "collapse", "encoder_rank", "projector_rank", "pairs_per_second")
"""Figures of the last line of the log of a pre-training that are kept with the scores."""


def run_cell(
    study: Study, cell: Cell, folder: StudyFolder, *, world: World | None = None, progress: Progress = SILENT
) -> None:
    """Do what is left of `cell`: pre-train, then for each protocol fine-tune and score on the test tracks.

    Called in every process of `world`. The result is written last; then the checkpoints go that only serve to
    go on, and the encoder and the classifiers remain. Raises what `pretrain`, `finetune` and `evaluate` do.
    """
    world = world or World()
    path = folder.cell(cell)
    run = path / PRETRAINING
    goes_on = _goes_on(Checkpoints(run), cell.config.epochs, world)
    if goes_on is not None:
        pretrain(
            cell.config, cell.data, run, world=world, resume=goes_on, force=not goes_on, progress=progress
        )
    for protocol, config in study.finetuning.items():
        out = path / protocol
        if world.once((out / "evaluate" / RESULTS).is_file):
            continue
        goes_on = _goes_on(Checkpoints(out, "finetuning"), config.epochs, world)
        if goes_on is not None:
            finetune(
                with_seed(config, cell),
                run,
                study.test,
                out,
                world=world,
                resume=goes_on,
                force=not goes_on,
                progress=progress,
            )
        evaluate(out, study.test, backend=config.backend, world=world, progress=progress)
    world.once(lambda: _finish(study, cell, path))


def _goes_on(checkpoints: Checkpoints, epochs: int, world: World) -> bool | None:
    """Return whether a training goes on from its checkpoint; None if it has all of its epochs."""

    def found() -> bool | None:
        if not checkpoints.exist():
            return False
        saved = checkpoint.load(checkpoints.newest_whole(), checkpoints.kind)
        return None if saved["epoch"] >= epochs else True

    return world.once(found)


def _finish(study: Study, cell: Cell, path: Path) -> None:
    last = next(line for line in reversed(read_log(path / PRETRAINING)) if "loss" in line)
    values = {name: last[name] for name in _LOGGED}
    save_json(path / RESULT, {"row": list(cell.row), "seed": cell.config.seed, "pretraining": values})
    (path / ERROR).unlink(missing_ok=True)
    for checkpoints in (
        Checkpoints(path / PRETRAINING),
        *(Checkpoints(path / protocol, "finetuning") for protocol in study.finetuning),
    ):
        checkpoints.previous.unlink(missing_ok=True)
        if checkpoints.kind == "finetuning":
            checkpoints.last.unlink(missing_ok=True)
