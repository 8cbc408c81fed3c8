"""Calls functions in processes of their own, and says how much memory a process has."""

import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")

_ROOT = Path(__file__).parents[1]
_PROGRAM = "import sys; from benchmarks.process import answer; answer(*sys.argv[1:])"


def call_in_process(function: Callable[..., T], **options: Any) -> T:
    """Return what `function`, which returns a dataclass of plain values, does in a process of its own.

    `options` are plain values. Raises `RuntimeError` if the process fails.
    """
    command = [sys.executable, "-c", _PROGRAM, function.__module__, function.__name__, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
    if done.returncode:
        raise RuntimeError(f"{function.__name__}({options}) failed in its process:\n{done.stderr}")
    result: T = get_type_hints(function)["return"](**json.loads(done.stdout))
    return result


def answer(module: str, name: str, options: str) -> None:
    """Print what the function `name` of `module` returns."""
    found = getattr(importlib.import_module(module), name)(**json.loads(options))
    sys.stdout.write(json.dumps(dataclasses.asdict(found)))


def mebibytes(key: str) -> float:
    """Return what the kernel says of this process's memory, such as its peak, VmHWM."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").split()
    return int(status[status.index(f"{key}:") + 1]) / 1024


def forget_peak() -> None:
    """Let VmHWM be the peak from now on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
