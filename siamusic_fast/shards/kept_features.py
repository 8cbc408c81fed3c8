"""Files of features beside the shards, in which probes keep what does not change from run to run."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from siamusic_fast.files import WEIGHTS_LIMIT, atomic_write, read_regular
from siamusic_fast.shards.manifest import naming_damage

Features = npt.NDArray[np.float32]

KEPT_FEATURES = r"baselines-[0-9a-f]{16}\.bin"
"""Pattern of the names of these files, which have the start of the SHA-256 of their key."""
_FORMAT = 1
_TYPE = np.dtype("<f4")


def kept_path(folder: Path, key: Mapping[str, Any]) -> Path:
    """Return the file for `key`, plain values that say all that the features depend on."""
    return folder / f"baselines-{hashlib.sha256(_json(key)).hexdigest()[:16]}.bin"


def write_features(folder: Path, key: Mapping[str, Any], features: Mapping[str, Features]) -> None:
    """Write `features`, each [rows, d], into `folder`, atomically and with a checksum of every byte.

    The file is one line of JSON, which says the key and the shape of each array, the arrays as float32, and
    at the end the SHA-256 of all that, 32 bytes.
    """
    arrays = dict(sorted(features.items()))  # as the names in the first line are
    about = {"format_version": _FORMAT, "key": key, "shapes": {name: a.shape for name, a in arrays.items()}}
    sha256 = hashlib.sha256()
    with atomic_write(kept_path(folder, key)) as file:
        for part in (
            _json(about),
            b"\n",
            *(np.ascontiguousarray(a, _TYPE).tobytes() for a in arrays.values()),
        ):
            sha256.update(part)
            file.write(part)
        file.write(sha256.digest())


def read_features(folder: Path, key: Mapping[str, Any]) -> dict[str, Features] | None:
    """Return what `write_features` wrote for `key`; None if there is nothing.

    Raises `DamageError` if the file is not what was written.
    """
    path = kept_path(folder, key)
    if not os.path.lexists(path):
        return None
    with naming_damage(path):
        about, content = _checked(path)
        if about["key"] != json.loads(_json(key)):
            raise ValueError("it has the key of another file")
        return dict(_arrays(about["shapes"], content))


def check_features(path: Path) -> None:
    """Raise `DamageError` if the file `path` is not what `write_features` wrote."""
    with naming_damage(path):
        about, content = _checked(path)
        dict(_arrays(about["shapes"], content))
        if kept_path(path.parent, about["key"]).name != path.name:
            raise ValueError("it has the name of another file")


def _checked(path: Path) -> tuple[dict[str, Any], memoryview]:
    """Return what the first line says and the bytes behind it. Raises `OSError` or `ValueError`."""
    content = memoryview(read_regular(path, WEIGHTS_LIMIT))
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-size]).digest() != content[-size:]:
        raise ValueError("was changed: its content does not have the SHA-256 at its end")
    end = bytes(content[: 2**16]).index(b"\n")
    match about := json.loads(bytes(content[:end])):
        case {"format_version": 1, "key": dict(), "shapes": dict()}:
            return about, content[end + 1 : -size]
    raise ValueError(f"it is none of format version {_FORMAT}")


def _arrays(shapes: Mapping[str, list[int]], content: memoryview) -> Iterator[tuple[str, Features]]:
    """Yield the arrays by name. Raises `ValueError` if `content` has another size than theirs."""
    first = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        yield name, np.frombuffer(content, _TYPE, count, offset=first).reshape(shape).copy()
        first += count * _TYPE.itemsize
    if first != len(content):
        raise ValueError(f"it has {len(content):,} bytes of features, its first line says {first:,}")


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":"), sort_keys=True).encode()
