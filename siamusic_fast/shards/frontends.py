"""The file frontends.json of a shard set, in which pipelines keep mean and standard deviation."""

import math
import os
from pathlib import Path
from typing import Any

from siamusic_fast.files import SETTINGS_LIMIT
from siamusic_fast.shards.manifest import FRONTENDS, naming_damage
from siamusic_fast.shards.sealed import read_sealed, write_sealed

_FORMAT = 1
_MAX_DB = 1_000.0
"""Largest mean and standard deviation of log-mels that can be true, in dB."""


def read_frontends(folder: Path, *, every_byte: bool = False) -> list[dict[str, Any]]:
    """Return what `write_frontends` wrote into `folder`: entries with `key`, `mean` and `std`; none at first.

    Mean and std are numbers of decibels, or lists with one for each mel band.

    Raises `DamageError` if the file is not what was written, for `every_byte` see `read_sealed`.
    """
    path = folder / FRONTENDS
    if not os.path.lexists(path):
        return []
    with naming_damage(path):
        values, change = read_sealed(path, SETTINGS_LIMIT, every_byte=every_byte)
        if change:
            raise ValueError(change)
        if values.get("format_version") != _FORMAT or not isinstance(values.get("entries"), list):
            raise ValueError(f"it is none of format version {_FORMAT}")
        for entry in values["entries"]:
            _check(entry)
        entries: list[dict[str, Any]] = values["entries"]
        return entries


def write_frontends(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Write frontends.json into `folder`, atomically and with its checksum."""
    write_sealed(folder / FRONTENDS, {"format_version": _FORMAT, "entries": entries})


def _check(entry: Any) -> None:
    """Raise `ValueError` for an entry that no shard set can have."""
    match entry:
        case {"key": dict(), "mean": float(mean), "std": float(std)}:
            statistics = [(mean, std)]
        case {"key": dict(), "mean": [float(), *_] as means, "std": [float(), *_] as stds} if len(
            means
        ) == len(stds) and {type(value) for value in means + stds} == {float}:
            statistics = list(zip(means, stds, strict=True))
        case _:
            raise ValueError(f"it has the entry {entry!r}")
    for mean, std in statistics:
        if not (math.isfinite(mean) and abs(mean) <= _MAX_DB and 0 < std <= _MAX_DB):
            raise ValueError(f"mean {mean:g} dB and std {std:g} dB cannot be")
