"""The encoder of a pre-training run, ready to use, and what its checkpoint says about it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from torch import Tensor, nn

from siamusic_fast import config as settings
from siamusic_fast.config import CHECKPOINTS
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.frontend import Frontend
from siamusic_fast.models import checkpoint, networks
from siamusic_fast.models.run_files import BEST, Checkpoints

_PARTS = ("config", "frontend", "encoder", "projector", "epoch")


class Encoder(nn.Module):
    """A pre-trained encoder of mel spectrograms; `load_encoder` returns one.

        encoder = siamusic_fast.load_encoder("runs/first")
        loader = siamusic_fast.TrackLoader("fma_small", frontend=encoder.frontend)
        for mels, labels in loader:  # [tracks, crops, 1, n_mels, frames]
            with torch.no_grad():
                features = encoder(mels.flatten(0, 1))  # [tracks * crops, encoder.dim]

    `encoder(mels)` maps float32 [B, 1, n_mels, frames] to [B, dim]. The spectrograms must be those of
    `encoder.frontend`, with any number of frames: normalized log-mels, as the loaders compute them.

    It is torchvision's ResNet or Swin Transformer of the same name with one input channel, and with an
    identity in place of the last layer (`fc`, or `head` of swin_t). So its state dict has the names that
    torchvision's has, its layers are attributes such as `encoder.layer4`, and a classifier is made by
    `encoder.fc = nn.Linear(encoder.dim, 10)`. It is in evaluation mode; `encoder.train()` ends that.
    """

    backbone: str
    """Name of the network, such as resnet50."""
    dim: int
    """Number of features of a spectrogram."""
    frontend: Frontend
    """Settings and statistics of the mel spectrograms that the encoder was trained on."""
    epoch: int
    """Epochs of pre-training behind these weights."""

    if TYPE_CHECKING:

        def __call__(self, mels: Tensor) -> Tensor: ...


class _ResNetEncoder(Encoder, torchvision.models.ResNet):  # type: ignore[misc]
    pass


class _SwinEncoder(Encoder, torchvision.models.SwinTransformer):  # type: ignore[misc]
    pass


def load_encoder(run: Path | str, checkpoint: str = "last", device: torch.device | str = "cpu") -> Encoder:
    """Return the encoder of the pre-training run in the folder `run`, on `device` and in evaluation mode.

    `checkpoint` is "last" for the weights that the run ended with, or that it had when it was last saved;
    "best" is those of the epoch with the best kNN accuracy on the validation tracks, if the run measured it.
    Memory is laid out channels last, in which convolutions are fastest.

    Raises `DataError` if the folder holds no such checkpoint or if the file is damaged, and `ConfigError` for
    another name of a checkpoint.
    """
    return load_pretrained(Path(run), checkpoint).build_encoder(torch.device(device))


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What a checkpoint of a pre-training run holds, besides what only resuming needs."""

    path: Path
    """File of the checkpoint."""
    backbone: str
    """Name of the encoder's network."""
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

    def build_encoder(self, device: torch.device) -> Encoder:
        """Return the encoder with its weights, on `device` and in evaluation mode."""
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
            encoder, dim = networks.encoder(self.backbone)
        # As in torch's fully_shard: the object gets a class that is also torchvision's, and keeps its layers.
        encoder.__class__ = _SwinEncoder if self.backbone == "swin_t" else _ResNetEncoder
        assert isinstance(encoder, Encoder)
        encoder.backbone, encoder.dim, encoder.frontend = self.backbone, dim, self.frontend
        encoder.epoch = self.epoch
        encoder.load_state_dict(self.encoder)
        return networks.place(encoder, device).eval()


def load_pretrained(run: Path, which: str = "last") -> Pretrained:
    """Return the `last` checkpoint of the pre-training run `run`, or its `best` by kNN accuracy.

    Raises `DataError` if the file is missing or damaged: an older one is not taken in its place. Raises
    `ConfigError` if `which` is another name.
    """
    if which not in CHECKPOINTS:
        raise ConfigError(f"checkpoint = {which!r} is unknown: choose {' or '.join(CHECKPOINTS)}.")
    checkpoints = Checkpoints(run)
    path = run / BEST if which == "best" else checkpoints.last
    if which == "best" and not path.is_file() and checkpoints.last.is_file():
        raise DataError(
            f"{path} does not exist: the run never measured kNN accuracy; use checkpoint='last' (on the "
            f"command line --checkpoint last)."
        )
    try:
        saved = checkpoint.load(path, "pretraining", _PARTS)
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
        backbone=config.backbone,
        frontend=Frontend.load(saved["frontend"]),
        splits=config.splits,
        encoder=saved["encoder"],
        projector=saved["projector"],
        epoch=saved["epoch"],
        pretraining=saved["config"],
    )
