"""Weights that left the program: files of torch and safetensors, each with its SHA-256 beside it."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from siamusic_fast.errors import DataError, not_installed
from siamusic_fast.files import SETTINGS_LIMIT, WEIGHTS_LIMIT, file_sha256, open_regular, read_regular

SAFETENSORS = ".safetensors"


def sha256_file(path: Path) -> Path:
    """Return the file that holds the SHA-256 of `path`, in the format that `sha256sum -c` reads."""
    return path.with_name(f"{path.name}.sha256")


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Return the state dict in a file of torch or, by its ending, of safetensors, with tensors on the CPU.

    If the SHA-256 of the file lies beside it, it is checked before anything is read. Nothing but tensors and
    plain values is unpickled. Raises DataError if the file cannot be read, has changed, or holds no state
    dict; ConfigError if safetensors is not installed.
    """
    try:
        _check(path)
        content = _safetensors(path) if path.suffix == SAFETENSORS else _torch(path)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise DataError(
            f"{str(path)!r} is no state dict: save one with torch.save(model.state_dict(), FILE), or "
            f"give the folder of a run."
        )
    return content


def _check(path: Path) -> None:
    open_regular(path, WEIGHTS_LIMIT).close()
    beside = sha256_file(path)
    if not beside.is_file():
        return
    expected = read_regular(beside, SETTINGS_LIMIT).decode(errors="replace").split()[:1]
    if expected != [file_sha256(path, WEIGHTS_LIMIT)]:
        raise DataError(
            f"{str(path)!r} is damaged: it does not have the SHA-256 in {beside}; export it again."
        )


def _torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{str(path)!r} holds no weights that can be loaded safely "
            f"({type(error).__name__}): save a state dict with torch.save(model.state_dict(), FILE)."
        ) from error


def _safetensors(path: Path) -> object:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise not_installed("safetensors", "export") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{str(path)!r} is no file of safetensors ({error}): use another one.") from error
