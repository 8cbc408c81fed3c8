"""What networks said of tracks, as tables: embeddings, and probabilities of classes or tags."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.audio.decode import AudioError
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.config import CropConfig
from siamusic_fast.embedding.extract import CROPS_PER_PASS, Extractor, Heard, Network
from siamusic_fast.embedding.pieces import wave_piece
from siamusic_fast.embedding.sources import Given, Sources, WaveSource, open_sources
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.frontend import Frontend
from siamusic_fast.progress import Progress

Audible = Given | Iterable[Given] | Tensor | np.ndarray[Any, Any]
"""What may be given to a network: sources, waveforms, or mel spectrograms."""


@dataclass(frozen=True, kw_only=True)
class TrackTable:
    """What is known of each row: of each track, or of each crop."""

    keys: list[str]
    """Name of the track."""
    paths: list[str]
    """File of the track; of a track in a shard set, the path that the corpus had it at. Empty for tensors."""
    labels: list[str]
    """Class of the track, empty if unknown."""
    splits: list[str]
    """Split of the track, empty if it has none."""
    seconds: list[float]
    """Length of the track; 0 for mel spectrograms."""
    starts: list[float]
    """Second at which the crop starts, if there is a row for each crop; else empty."""
    rejects: list[Reject]
    """Files that could not be used, with the reason."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)


@dataclass(frozen=True, kw_only=True)
class Embeddings(TrackTable):
    """Features of tracks, or of each crop of them."""

    vectors: Tensor
    """float32 [rows, d], on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Predictions(TrackTable):
    """Probabilities of the classes, or of tags, for tracks, or for each crop of them."""

    classes: tuple[str, ...]
    """Names of the classes or tags."""
    target: str
    """`class`, whose probabilities add up to 1, or `tags`, each of which has one of its own."""
    probabilities: Tensor
    """float32 [rows, classes], on the CPU."""

    def top(self, count: int = 1) -> list[list[tuple[str, float]]]:
        """Return for each row the `count` most probable classes with their probabilities, the best first."""
        best = self.probabilities.topk(min(count, len(self.classes)), dim=1)
        return [
            [(self.classes[index], value) for index, value in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Listening:
    """How a network is to hear what it is given."""

    network: Network
    frontend: Frontend
    device: torch.device
    config: CropConfig
    per_crop: bool = False

    def extractor(self, threads: int | None = None) -> Extractor:
        """Return what computes the outputs in so many threads, by default as many as this process may use."""
        return Extractor(
            self.network, self.frontend, self.device, self.config, per_crop=self.per_crop, threads=threads
        )

    def hear(
        self, given: Audible, sample_rate: int | None, splits: Sequence[str] | None, progress: Progress
    ) -> tuple[dict[str, Any], Tensor]:
        """Return the fields of a `TrackTable`, and the outputs of all rows, float32 on the CPU."""
        if isinstance(given, Tensor | np.ndarray):
            given = torch.as_tensor(given)
            if given.ndim == 4:
                return self._hear_mels(given)
            source = _waves(given, sample_rate)
        else:
            source = open_sources(given, splits=splits)
        return self.hear_sources(source, progress)

    def hear_sources(self, source: Sources, progress: Progress) -> tuple[dict[str, Any], Tensor]:
        """Return what `hear` does, of open sources. Raises `DataError` if no file can be used."""
        found: list[Heard] = []
        rejects: list[Reject] = []
        with progress.task("Listening", source.samples, "tracks") as task:
            for one in self.extractor().extract(source.all_items(), source.samples):
                if isinstance(one, Reject):
                    rejects.append(one)
                else:
                    found.append(one)
                task.advance()
        if not found:
            raise nothing_left(rejects)
        return self._table(found) | {"rejects": rejects}, torch.cat([one.outputs for one in found])

    def _table(self, found: list[Heard]) -> dict[str, Any]:
        repeated = [one for one in found for _ in range(len(one.outputs))]
        return {
            "keys": [one.item.key for one in repeated],
            "paths": [one.item.path for one in repeated],
            "labels": [one.item.label for one in repeated],
            "splits": [one.item.split for one in repeated],
            "seconds": [one.seconds for one in repeated],
            "starts": [start for one in found for start in one.starts] if self.per_crop else [],
        }

    @torch.no_grad()
    def _hear_mels(self, mels: Tensor) -> tuple[dict[str, Any], Tensor]:
        expected = (1, self.frontend.mel.n_mels)
        if tuple(mels.shape[1:3]) != expected or not len(mels):
            raise ConfigError(
                f"mels of shape {tuple(mels.shape)} do not fit: [B, {expected[0]}, {expected[1]}, frames] "
                f"are expected."
            )
        passes = torch.split(mels, CROPS_PER_PASS[self.device.type])
        outputs = torch.cat([self.network(part.to(self.device)).float().cpu() for part in passes])
        rows = len(mels)
        unknown = {name: [""] * rows for name in ("paths", "labels", "splits")}
        keys = [str(row) for row in range(rows)]
        return unknown | {"keys": keys, "seconds": [0.0] * rows, "starts": [], "rejects": []}, outputs


def nothing_left(rejects: Sequence[Reject]) -> DataError:
    """Return the error for sources of which no file could be used."""
    first = str(AudioError(rejects[0].path, rejects[0].reason, rejects[0].detail))
    return DataError(
        first if len(rejects) == 1 else f"none of {len(rejects)} files can be used; the first: {first}"
    )


def _waves(waves: Tensor, sample_rate: int | None) -> Sources:
    """Return waveforms as a source. Raises `ConfigError` or `DataError` if they are none."""
    if sample_rate is None or sample_rate <= 0:
        raise ConfigError(
            f"sample_rate = {sample_rate} must be that of the waveforms in Hz, such as sample_rate=44100."
        )
    if waves.ndim not in (1, 2) or not waves.numel() or not waves.is_floating_point():
        raise ConfigError(
            f"an array of shape {tuple(waves.shape)} and type {waves.dtype} is no batch of waveforms: give "
            f"float [B, samples] or [samples] with a full scale of 1, or mels [B, 1, n_mels, frames]."
        )
    rows = waves.detach().cpu().float().numpy().reshape(-1, waves.shape[-1])
    if not np.isfinite(rows).all():
        raise DataError("the waveforms hold NaN or infinity: replace them, as by torch.nan_to_num(waves).")
    return Sources([WaveSource([partial(wave_piece, row, sample_rate) for row in rows])])
