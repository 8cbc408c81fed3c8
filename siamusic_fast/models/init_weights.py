"""Weights that pre-training starts from: those of another run, or a file with torchvision's names."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.models.exported import read_weights
from siamusic_fast.models.networks import Encoder, input_channels
from siamusic_fast.models.pretrained import load_pretrained

_FIRST_LAYERS = ("conv1.weight", "features.0.0.weight")
"""Weights of the layer that sees the image, in a ResNet and in a Swin Transformer."""
_CLASSIFIERS = ("fc.", "head.")
_COLORS = 3
_MAX_TEXT = 600
"""Characters of an error message that list weights."""


def load_init(encoder: Encoder, init: str) -> None:
    """Give `encoder` the weights and the batch norm statistics of `init`.

    `init` is the folder of a run, or a file of torch or safetensors with a state dict that has torchvision's
    names. The weights of a first layer for three channels are summed over the channels: a spectrogram then
    counts as a gray image. The classifier in the file, `fc` or `head`, is left out. Stem and pooling may be
    others than those that the weights were trained with: a frequency channel that they do not have starts
    with weights of 0, and one that `encoder` does not have is left out.

    Raises ConfigError if the weights are those of another backbone, DataError if they cannot be read.
    """
    backbone = encoder.architecture.backbone
    weights = _of_run(Path(init), backbone) if Path(init).is_dir() else _of_file(Path(init))
    channels = input_channels(encoder.architecture)
    try:
        encoder.load_state_dict(
            {
                name: _with_channels(value, channels) if name in _FIRST_LAYERS and value.ndim == 4 else value
                for name, value in weights.items()
            }
        )
    except RuntimeError as error:  # its text has all names
        reason = textwrap.shorten(str(error).partition("\n")[2], _MAX_TEXT)
        raise ConfigError(
            f"init = {init!r} does not fit the backbone {backbone} ({reason}): use the backbone of these "
            f"weights (on the command line --backbone), or other weights (--init)."
        ) from error


def _of_run(run: Path, backbone: str) -> Mapping[str, Tensor]:
    pretrained = load_pretrained(run)
    if (found := pretrained.architecture.backbone) != backbone:
        raise ConfigError(
            f"init = {str(run)!r} is a run of {found}, and backbone = {backbone!r}: use the "
            f"same (on the command line --backbone {found})."
        )
    return pretrained.encoder


def _of_file(path: Path) -> Mapping[str, Tensor]:
    """Return the weights in a file with a state dict, without its classifier."""
    if not path.exists():
        raise DataError(
            f"init = {str(path)!r} is neither the folder of a run nor a file: name one (on the command line "
            f"--init)."
        )
    try:
        content = read_weights(path)
    except DataError as error:
        raise DataError(f"init: {error}") from error
    return {name: value for name, value in content.items() if not name.startswith(_CLASSIFIERS)}


def _with_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the weights of a first layer for the spectrogram, and for the frequency if it is a channel."""
    if weight.shape[1] == _COLORS:
        weight = weight.sum(dim=1, keepdim=True)
    if weight.shape[1] < channels:
        weight = torch.cat([weight, torch.zeros_like(weight)], dim=1)
    return weight[:, :channels]
