"""Self-supervised pre-training of music encoders, at the speed of the GPU.

    import siamusic_fast as sf

Prepare data: `open_corpus` finds audio and labels, `pack` writes them into shards, `find_shards` opens a
shard set, and `samples` streams the audio of one into other people's loops.

Load batches: `TwoViewLoader` for pre-training, `LabelledLoader` for training a classifier, and `TrackLoader`
for evaluation. A `Frontend` is the settings and statistics of their mel spectrograms. What their `aug` takes
is text such as "image", or a tuple of augmentations such as `(sf.CutMix(p=0.3), sf.HorizontalFlip())`;
subclasses of `WaveAugmentation` and `ImageAugmentation` are your own.

Train and use: `pretrain` with a `PretrainConfig`, `load_encoder`, `finetune` with a `FinetuneConfig`,
`evaluate` and `probe`.

A mistake of the caller raises a `SiamusicError`, whose message says what to do. Importing the package imports
neither torch nor DALI: the module that defines a name is imported when the name is first used.
"""

import ast
import getpass
import importlib
import os
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    name.name: str(statement.module)
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_bytes()).body
    if isinstance(statement, ast.ImportFrom)
    for name in statement.names
}
"""The module that defines each public name, as `__init__.pyi` lists them."""

__all__ = sorted(_MODULES)

try:
    getpass.getuser()
except (KeyError, OSError):
    # In a container, a user may have a number only; torch needs a name for a folder before it starts.
    os.environ["USER"] = str(os.getuid())


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
