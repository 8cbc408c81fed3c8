"""The keyword arguments that all loaders share, checked. `Loader` documents them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from siamusic_fast.config import BACKENDS, MAX_SEED
from siamusic_fast.errors import ConfigError
from siamusic_fast.frontend import Frontend

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """The keyword arguments that all loaders share; raises `ConfigError` for a value that cannot be."""

    splits: Sequence[str] = ("training",)
    frontend: Frontend | None = None
    batch_size: int = 64
    backend: str = BACKENDS[0]
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    loader_threads: int | None = None
    window: int | None = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.splits, str) or not self.splits:
            raise ConfigError(f"splits = {self.splits!r} must be a list of names, such as ['training'].")
        if self.backend not in BACKENDS:
            known = f"{', '.join(BACKENDS)} (on the command line --backend)"
            raise ConfigError(f"backend = {self.backend!r} is unknown: choose one of {known}.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype = {self.dtype} must be one of {', '.join(map(str, DTYPES))}.")
        for name in ("batch_size", "loader_threads", "window"):
            value = getattr(self, name)
            optional = value is None and name != "batch_size"
            if not optional and not (isinstance(value, int) and value >= 1):
                option = name.replace("_", "-")
                raise ConfigError(
                    f"{name} = {value!r} must be a whole number of at least 1 (on the command line "
                    f"--{option})."
                )
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed = {self.seed} must lie between 0 and {MAX_SEED}.")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank = {self.rank} must be at least 0 and below world_size = {self.world_size}."
            )

    def checked_device(self) -> torch.device:
        """Return the device, with a number if it is a GPU: engines and torch must mean the same one."""
        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError):
            device = torch.device("meta")
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"device = {self.device!s} must be cpu or cuda.")
        if device.type == "cpu":
            return torch.device("cpu")
        count = torch.cuda.device_count()
        index = (torch.cuda.current_device() if count else 0) if device.index is None else device.index
        if index >= count:
            raise ConfigError(
                f"device = {self.device!s} asks for a GPU, and {count} are visible: use device='cpu' (on the "
                f"command line --gpus 0)."
            )
        return torch.device("cuda", index)
