"""A part of embeddings on a worker of a Dask cluster, and what the worker must see for it."""

import io
import socket
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from siamusic_fast.audio.rejects import Reject
from siamusic_fast.audio.store import open_store
from siamusic_fast.config import EmbedConfig
from siamusic_fast.embedding.extract import Extractor, Heard
from siamusic_fast.embedding.sources import Item, Source
from siamusic_fast.errors import DataError, SiamusicError
from siamusic_fast.inference.vector_file import save_part
from siamusic_fast.models.networks import Encoder, listening_of, weights_digest
from siamusic_fast.models.pretrained import load_encoder
from siamusic_fast.processes.cluster import not_shared
from siamusic_fast.processes.launch import device_for
from siamusic_fast.processes.pool import Count
from siamusic_fast.shards.resuming import software

_LOADING = threading.Lock()
"""Held while a worker looks for its encoder, so that only one of its threads loads it."""


@dataclass(frozen=True, kw_only=True)
class SharedForEmbedding:
    """What a worker that embeds must see: the run with the encoder, and files of the sources."""

    software: str
    run: Path
    checkpoint: str
    weights: str
    """SHA-256 of the encoder's weights."""
    files: tuple[tuple[Path, str, int | None], ...]
    """Folder or zip, path therein, and size in bytes of some files; None if there is no such file here."""

    @classmethod
    def of(cls, run: Path | str, encoder: Encoder, checkpoint: str, source: Source) -> "SharedForEmbedding":
        """Return what a worker must see to embed `source` with the `encoder` in `checkpoint` of `run`."""
        examples = [(root.absolute(), path) for root, path in source.examples()]
        return cls(
            software=_software(),
            run=Path(run).absolute(),
            checkpoint=checkpoint,
            weights=weights_digest(encoder),
            files=tuple((root, path, _size(root, path)) for root, path in examples),
        )

    def check(self) -> str:
        """Raise `DataError` on a worker that would compute something else."""
        host = socket.gethostname()
        if _software() != self.software:
            raise DataError(
                f"the worker on {host} has {_software()}, not {self.software}, so that embeddings could "
                f"differ: give it the environment of this machine."
            )
        for root, path, size in self.files:
            if _size(root, path) != size:
                raise not_shared(host, f"does not see {root}, or not with the same {path!r}")
        try:
            with _LOADING:
                encoder = _encoder(self)
            same = weights_digest(encoder) == self.weights
        except SiamusicError:
            same = False
        if not same:
            raise not_shared(host, f"does not see {self.run}, or not with the same weights")
        return ""

    def confirm(self, host: str, said: str) -> None:
        """Do nothing: what a worker computes comes back through Dask."""


def embed_part(
    shared: SharedForEmbedding, config: EmbedConfig, samples: int, items: list[Item], report: Count
) -> bytes:
    """Return the content of the part of `items`, of `samples` in all; counts tracks."""
    heard: list[Heard | Reject] = []
    with _LOADING:
        extractor = _extractor(shared, config)
    for one in extractor.extract(items, samples):
        heard.append(one)
        report((len(heard),))
    content = io.BytesIO()
    save_part(content, heard, config.dtype)
    return content.getvalue()


@lru_cache(1)
def _encoder(shared: SharedForEmbedding) -> Encoder:
    return load_encoder(shared.run, shared.checkpoint, device_for(None))


@lru_cache(1)
def _extractor(shared: SharedForEmbedding, config: EmbedConfig) -> Extractor:
    """Return what computes the outputs for every thread of this worker, each of which takes a core."""
    return listening_of(_encoder(shared), config, per_crop=config.per_crop).extractor(threads=1)


def _software() -> str:
    return f"{software()}, torch {torch.__version__}"


def _size(root: Path, path: str) -> int | None:
    try:
        return open_store(root).size(path)
    except SiamusicError:
        return None
