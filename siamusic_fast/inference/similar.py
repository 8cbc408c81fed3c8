"""Finds the tracks that an encoder takes for the most similar ones, exactly, by cosine."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from siamusic_fast.config import CHECKPOINTS, CropConfig
from siamusic_fast.embedding.sources import Given, open_sources
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.inference.vector_file import ENDINGS, VectorFile, read_vectors
from siamusic_fast.models.networks import Encoder, evaluating, listening_of, weights_digest
from siamusic_fast.models.pretrained import load_encoder
from siamusic_fast.processes.pool import share_of_cores
from siamusic_fast.progress import SILENT, Progress

_ROWS_PER_BLOCK = 256
"""Vectors that are made float32 at a time, so that they stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A track, and how similar it is."""

    similarity: float
    """Cosine of the angle between the features: 1 for the same sound, 0 for none of the same features."""
    key: str
    path: str
    """Its file, or the path that the corpus had it at."""


def similar(
    run: Path | str,
    file: Path | str,
    among: Given | Iterable[Given],
    *,
    top: int = 10,
    checkpoint: str = CHECKPOINTS[0],
    splits: Sequence[str] | None = None,
    data_dir: Path | str = "data",
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> list[Neighbor]:
    """Return the `top` tracks `among` sources or embeddings that are most similar to the audio `file`.

    `among` is what `embed` wrote, or sources that are embedded now; `splits` are those of shard sets. The
    file itself is not among the results, unless it is in shards, which do not know where it is. Raises
    `DataError` if embeddings are of another encoder than that of `run` or of crops, `ConfigError` if `file`
    is not one track, and the errors of `Encoder.embed`.
    """
    if top < 1:
        raise ConfigError(f"top = {top} must be at least 1.")
    encoder = load_encoder(run, checkpoint, device)
    table = _written(among)
    config = CropConfig()
    if table is not None:
        _check_encoder(table, Path(str(among)), encoder)
        config = CropConfig(crops=table.about["crops"], hop_seconds=table.about["hop_seconds"])
    query, vector = _hear(encoder, config, file, None, data_dir, progress)
    if len(vector) != 1:
        raise ConfigError(f"{file} is {len(vector)} tracks: give one audio file.")
    if table is not None:
        keys, paths, vectors = table.keys, table.paths, torch.from_numpy(table.vectors)
        folder = Path(table.about["folder"])
    else:
        heard, vectors = _hear(encoder, config, among, splits, data_dir, progress)
        keys, paths, folder = heard["keys"], heard["paths"], Path()
    own = Path(query["paths"][0]).resolve()
    similarities, rows = nearest(vector, vectors, top + 1)
    found = [
        Neighbor(similarity=value, key=keys[row], path=_resolved(folder, paths[row]))
        for value, row in zip(similarities[0].tolist(), rows[0].tolist(), strict=True)
    ]
    return [one for one in found if Path(one.path).resolve() != own][:top]


def nearest(query: Tensor, vectors: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return the highest cosines, float32 [q, top], of `query` [q, d] and `vectors` [n, d], and their rows.

    Rows are int64 [q, top], the most similar first; less than `top` if there are fewer vectors. `vectors` may
    be float16, and are made float32 block by block.
    """
    directions = F.normalize(query.float(), dim=1)
    cosines = torch.empty(len(query), len(vectors))
    workers = share_of_cores()
    edges = [len(vectors) * worker // workers for worker in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        for done in [
            pool.submit(_fill_cosines, directions, vectors[begin:end], cosines[:, begin:end])
            for begin, end in pairwise(edges)
        ]:
            done.result()
    values, rows = cosines.topk(min(top, len(vectors)), dim=1)
    return values, rows


def _fill_cosines(directions: Tensor, vectors: Tensor, out: Tensor) -> None:
    torch.set_num_threads(1)  # in this thread: those beside it do the same with other vectors
    room = torch.empty(_ROWS_PER_BLOCK, vectors.shape[1])
    for first in range(0, len(vectors), _ROWS_PER_BLOCK):
        block = vectors[first : first + _ROWS_PER_BLOCK]
        rows = room[: len(block)].copy_(block)
        lengths = torch.linalg.vector_norm(rows, dim=1).clamp_min_(1e-12)
        out[:, first : first + len(block)] = (directions @ rows.T / lengths).clamp_(-1, 1)


def _hear(
    encoder: Encoder,
    config: CropConfig,
    given: Given | Iterable[Given],
    splits: Sequence[str] | None,
    data_dir: Path | str,
    progress: Progress,
) -> tuple[dict[str, Any], Tensor]:
    sources = open_sources(given, splits=splits, data_dir=Path(data_dir))
    with evaluating(encoder):
        return listening_of(encoder, config).hear_sources(sources, progress)


def _written(among: Given | Iterable[Given]) -> VectorFile | None:
    """Return the embeddings in the file that `among` names, or None if it names sources."""
    names_file = isinstance(among, str | Path) and Path(among).suffix in ENDINGS
    return read_vectors(Path(str(among))) if names_file else None


def _check_encoder(table: VectorFile, path: Path, encoder: Encoder) -> None:
    same_weights = table.about["weights"] == weights_digest(encoder)
    if not same_weights or table.about["frontend"] != encoder.frontend.dump():
        raise DataError(
            f"{path} has embeddings of another encoder, with which these do not compare: write it anew with "
            f"`siamusic-fast embed`, or give the run that it was written by."
        )
    if table.about["per_crop"]:
        raise DataError(
            f"{path} has a row for each crop: write one with a row for each track by `siamusic-fast embed` "
            f"without --per-crop."
        )


def _resolved(folder: Path, path: str) -> str:
    """Return `path`, which is relative to `folder`, as one that leads there from here, if it is there."""
    leads = path and folder.resolve() != Path.cwd() and (folder / path).exists()
    return str(folder / path) if leads else path
