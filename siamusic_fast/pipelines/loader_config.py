"""What all loaders are told, checked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from siamusic_fast.config import BACKENDS, MAX_SEED
from siamusic_fast.errors import ConfigError
from siamusic_fast.frontend import Frontend

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What all loaders are told."""

    splits: Sequence[str] = ("training",)
    """Splits of the shard set to read."""
    frontend: Frontend | None = None
    """Features; None: those of the paper at the sample rate of the shards, estimated once and kept there."""
    batch_size: int = 64
    """Tracks per batch of this process."""
    backend: str = BACKENDS[0]
    """Engine that computes the features: `dali` or `torch`."""
    device: torch.device | str = "cpu"
    """Device on which features are computed and the batches are, such as `cpu` or `cuda:0`."""
    dtype: torch.dtype = torch.float32
    """Type of the spectrograms: torch.float32 or torch.bfloat16."""
    threads: int | None = None
    """CPU threads; None: this process's share of the cores."""
    window: int | None = None
    """Number of shards among whose tracks the order is drawn; None: all of them."""
    seed: int = 0
    """Seed of order, crops and augmentations."""
    rank: int = 0
    """Number of this process; each gets tracks of its own."""
    world_size: int = 1
    """Number of processes."""

    def __post_init__(self) -> None:
        if isinstance(self.splits, str) or not self.splits:
            raise ConfigError(f"splits = {self.splits!r} must be a list of names, such as ['training'].")
        if self.backend not in BACKENDS:
            known = f"{', '.join(BACKENDS)} (on the command line --backend)"
            raise ConfigError(f"backend = {self.backend!r} is unknown: choose one of {known}.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype = {self.dtype} must be one of {', '.join(map(str, DTYPES))}.")
        optional = {"threads": self.threads, "window": self.window}
        for name, value in {"batch_size": self.batch_size, **optional}.items():
            if not (value is None and name in optional) and not (isinstance(value, int) and value >= 1):
                option = name.replace("_", "-")
                raise ConfigError(
                    f"{name} = {value!r} must be at least 1, and whole (on the command line --{option})."
                )
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed = {self.seed} must lie between 0 and {MAX_SEED}.")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank = {self.rank} must be at least 0 and below world_size = {self.world_size}."
            )


def checked_device(config: LoaderConfig) -> torch.device:
    """Return the device, with a number if it is a GPU: engines and torch must mean the same one."""
    try:
        device = torch.device(config.device)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {config.device!s} must be cpu or cuda.")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = (torch.cuda.current_device() if count else 0) if device.index is None else device.index
    if index >= count:
        raise ConfigError(
            f"device = {config.device!s} asks for a GPU, and {count} are visible: use device='cpu' (on the "
            f"command line --gpus 0)."
        )
    return torch.device("cuda", index)
