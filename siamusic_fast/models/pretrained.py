"""What a pre-training run left to others: its encoder, and what the encoder expects of its input."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from siamusic_fast import config as settings
from siamusic_fast.errors import DataError
from siamusic_fast.frontend import Frontend
from siamusic_fast.models import checkpoint
from siamusic_fast.models.run_files import BEST, Checkpoints

_PARTS = ("config", "frontend", "encoder", "projector", "epoch")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """An encoder's weights and frontend."""

    path: Path
    """The checkpoint that it is from."""
    backbone: str
    frontend: Frontend
    """What it expects of its input."""
    splits: tuple[str, ...]
    """What it learnt from."""
    encoder: dict[str, Tensor]
    """State dict, as the next."""
    projector: dict[str, Tensor]
    epoch: int
    """Epochs of pre-training behind it."""
    pretraining: dict[str, Any]
    """How it was pre-trained: the configuration as plain values."""


def load_pretrained(run: Path, which: str = "last") -> Pretrained:
    """Return the `last` encoder of the pre-training run `run`, or its `best` by kNN accuracy.

    Raises DataError if there is none, or if it is damaged: an older one is not taken in its place.
    """
    checkpoints = Checkpoints(run)
    path = run / BEST if which == "best" else checkpoints.last
    if which == "best" and not path.is_file() and checkpoints.last.is_file():
        raise DataError(
            f"{path} does not exist: the run was never scored by kNN while it trained; use the last one (on "
            f"the command line --checkpoint last)."
        )
    try:
        saved = checkpoint.load(path, "pretraining", _PARTS)
    except DataError as error:
        if which != "last" or not checkpoints.only_previous_is_whole():
            raise
        command = shlex.join(("mv", str(checkpoints.previous), str(path)))
        raise DataError(
            f"{path} is {checkpoints.problem}, and the checkpoint before it is whole: `{command}` goes "
            f"back to that one."
        ) from error
    config = settings.load_pretrain(saved["config"])
    return Pretrained(
        path=path,
        backbone=config.backbone,
        frontend=Frontend.load(saved["frontend"]),
        splits=config.splits,
        encoder=saved["encoder"],
        projector=saved["projector"],
        epoch=saved["epoch"],
        pretraining=saved["config"],
    )
