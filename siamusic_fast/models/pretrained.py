"""The encoder of a pre-training run and the classifier of a fine-tuned one, ready to use."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siamusic_fast import config as settings
from siamusic_fast.config import CHECKPOINTS, Architecture
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.frontend import Frontend
from siamusic_fast.models import checkpoint, networks
from siamusic_fast.models.networks import Classifier, Encoder
from siamusic_fast.models.run_checks import check_run, find_classifier
from siamusic_fast.models.run_files import BEST, Checkpoints


def load_encoder(run: Path | str, checkpoint: str = "last", device: torch.device | str = "cpu") -> Encoder:
    """Return the encoder of the pre-training run in the folder `run`, on `device` and in evaluation mode.

    `checkpoint` is "last" for the weights that the run ended with, or that it had when it was last saved;
    "best" is those of the epoch with the best kNN accuracy on the validation tracks, if the run measured it.
    Memory is laid out channels last, in which convolutions are fastest.

    Raises `DataError` if the folder holds no such checkpoint or if the file is damaged, and `ConfigError` for
    another name of a checkpoint.
    """
    return load_pretrained(Path(run), checkpoint).build_encoder(torch.device(device))


def load_classifier(run: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Return the classifier of `run`, on `device` and in evaluation mode.

    `run` is a pre-training run that was fine-tuned, or the folder of a classifier. Raises `DataError` if
    there is none, or if its file is damaged or of another format.
    """
    classifier, _ = read_classifier(find_classifier(Path(run)), torch.device(device))
    return classifier


def read_classifier(path: Path, device: torch.device) -> tuple[Classifier, dict[str, Any]]:
    """Return the classifier in the file `path`, and all values of the file."""
    saved = checkpoint.load(path, "classifier")
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
        classifier = Classifier(
            Architecture(**saved["architecture"]),
            len(saved["classes"]),
            head=saved["head"],
            features=saved["features"],
            target=saved["target"],
            **saved["projection"],
        )
    classifier.classes = tuple(saved["classes"])
    classifier.frontend = classifier.encoder.frontend = Frontend.load(saved["frontend"])
    classifier.epoch = classifier.encoder.epoch = saved["epoch"]
    classifier.load_state_dict(saved["model"])
    return networks.place(classifier, device).eval(), saved


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What a checkpoint of a pre-training run holds, besides what only resuming needs."""

    path: Path
    """File of the checkpoint."""
    architecture: Architecture
    """What the encoder is built as."""
    frontend: Frontend
    """Settings and statistics of the mel spectrograms that the encoder was trained on."""
    splits: tuple[str, ...]
    """Splits of the shard set that the encoder was trained on."""
    encoder: dict[str, Tensor]
    """State dict of the encoder."""
    projector: dict[str, Tensor]
    """State dict of the projector."""
    epoch: int
    """Epochs of pre-training behind these weights."""
    pretraining: dict[str, Any]
    """Configuration of the run as plain values."""

    @property
    def projection(self) -> dict[str, Any]:
        """What `Classifier` needs to know to build the projector."""
        config = settings.load_pretrain(self.pretraining)
        return {"method": config.method, "width": config.width}

    def build_encoder(self, device: torch.device) -> Encoder:
        """Return the encoder with its weights, on `device` and in evaluation mode."""
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
            encoder = networks.encoder(self.architecture)
        encoder.frontend, encoder.epoch = self.frontend, self.epoch
        encoder.load_state_dict(self.encoder)
        return networks.place(encoder, device).eval()


def load_pretrained(run: Path, which: str = "last") -> Pretrained:
    """Return the `last` checkpoint of the pre-training run `run`, or its `best` by kNN accuracy.

    Raises `DataError` if the file is missing or damaged: an older one is not taken in its place. Raises
    `ConfigError` if `which` is another name.
    """
    if which not in CHECKPOINTS:
        raise ConfigError(f"checkpoint = {which!r} is unknown: choose {' or '.join(CHECKPOINTS)}.")
    check_run(run)
    checkpoints = Checkpoints(run)
    path = run / BEST if which == "best" else checkpoints.last
    if which == "best" and not path.is_file() and checkpoints.last.is_file():
        raise DataError(
            f"{path} does not exist: the run never measured kNN accuracy; use checkpoint='last' (on the "
            f"command line --checkpoint last)."
        )
    try:
        saved = checkpoint.load(path, "pretraining")
    except DataError as error:
        if which != "last" or not checkpoints.only_previous_is_whole():
            raise
        command = shlex.join(("mv", str(checkpoints.previous), str(path)))
        raise DataError(
            f"{path} is {checkpoints.problem}, and the checkpoint before it is whole: to use that one, "
            f"run `{command}`."
        ) from error
    config = settings.load_pretrain(saved["config"])
    return Pretrained(
        path=path,
        architecture=config.architecture,
        frontend=Frontend.load(saved["frontend"]),
        splits=config.splits,
        encoder=saved["encoder"],
        projector=saved["projector"],
        epoch=saved["epoch"],
        pretraining=saved["config"],
    )
