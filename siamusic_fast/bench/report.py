"""Measured windows, what they say, and on which machine."""

import importlib.metadata
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from siamusic_fast.shards.pool import cores


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Rates of equally long windows of the same work."""

    name: str
    unit: str
    """Such as pairs/s."""
    windows: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the windows."""
        return statistics.median(self.windows)

    @property
    def spread(self) -> float:
        """Half the distance between the slowest and the fastest window, as a share of the median."""
        return (max(self.windows) - min(self.windows)) / 2 / self.median

    def as_json(self) -> dict[str, Any]:
        """Return plain values, every window included."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "spread": self.spread,
            "windows": list(self.windows),
        }


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, GPU and versions."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _processor(),
        "cores": cores(),
        "gpus": gpus,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dali": importlib.metadata.version("nvidia-dali-cuda120"),
        "siamusic-fast": importlib.metadata.version("siamusic-fast"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
