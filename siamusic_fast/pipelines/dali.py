"""The names that graphs are built with. Without DALI, which has wheels for Linux only, they are `None`:
augmentations can then be described, but only the torch backend can apply them.
"""

from typing import Any

__all__ = ["DataNode", "dmath", "fn", "pipeline_def", "types"]

DataNode = Any
"""A batch of tensors in a graph. DALI's own class is not typed."""

try:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali import math as dmath
except ModuleNotFoundError:
    dmath = fn = pipeline_def = types = None
