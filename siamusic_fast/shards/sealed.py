"""JSON files that state the SHA-256 of their own content, so that no change of them goes unseen."""

import hashlib
import json
from pathlib import Path
from typing import Any

from siamusic_fast.files import atomic_write, read_regular

_SEAL = "sha256"
"""Field with the SHA-256 of all other fields, in their order, as JSON without line breaks or spaces."""


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Write `values`, and their checksum after them, to `path` atomically."""
    with atomic_write(path) as file:
        file.write(_text({**values, _SEAL: _seal(values)}))


def read_sealed(path: Path, limit: int, *, every_byte: bool = False) -> tuple[dict[str, Any], str]:
    """Return what `write_sealed` wrote, and in words what has changed since then: nothing if that is empty.

    With `every_byte`, another way to write the same values is a change as well. Raises `OSError` if `path`
    cannot be read or has more than `limit` bytes, and `ValueError` if it holds no JSON object.
    """
    content = read_regular(path, limit)
    try:
        values = json.loads(content)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    as_written = not every_byte or content == _text(values)
    stated, found = values.pop(_SEAL, None), _seal(values)
    if stated != found:
        return values, f"was changed: its own SHA-256 is {found}, it says {stated}"
    if not as_written:
        return values, "was changed: it is not written as siamusic-fast writes it"
    return values, ""


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def _text(values: dict[str, Any]) -> bytes:
    return f"{json.dumps(values, indent=2)}\n".encode()
