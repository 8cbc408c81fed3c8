"""Outputs of a network for one track after another, as threads read, decode and compute them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.audio.decode import AudioError
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.config import CropConfig
from siamusic_fast.embedding.pieces import Piece
from siamusic_fast.embedding.sources import Item
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.torch.features import LogMel
from siamusic_fast.processes.pool import share_of_cores

Network = Callable[[Tensor], Tensor]
"""A function from mel spectrograms [n, 1, n_mels, frames] to outputs [n, d]."""

CROPS_PER_PASS = {"cuda": 256, "cpu": 64}
"""Most crops that go through a network together, by the type of device."""
_ITEMS_PER_JOB = {"cuda": 16, "cpu": 1}
"""Tracks that a thread works on together: a GPU wants many crops at a time, a core those of one track."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a network said of one track."""

    item: Item
    seconds: float
    """Length of its audio."""
    starts: list[float]
    """Second at which each crop starts."""
    outputs: Tensor
    """float32 [crops, d] if asked for by crop; else [1, d], averaged over each piece and then over pieces."""


class Extractor:
    """Computes the outputs of a network for tracks, in several threads.

    A thread takes a track, reads or decodes it, computes the spectrograms and calls `network`; so it needs no
    other thread on a CPU. `network` must be in evaluation mode. No gradients are kept.
    """

    def __init__(
        self,
        network: Network,
        frontend: Frontend,
        device: torch.device,
        config: CropConfig,
        *,
        per_crop: bool = False,
        threads: int | None = None,
    ) -> None:
        self._network, self._frontend, self._device = network, frontend, device
        self._config, self._per_crop = config, per_crop
        self._cores = threads or share_of_cores()
        self._threads_of_torch = 1
        self._log_mel = lru_cache(lambda rate: LogMel(frontend, rate, device))

    def extract(self, items: Iterable[Item], count: int) -> Iterator[Heard | Reject]:
        """Yield what the network says of each of the `count` items, in their order, or why one is left out.

        Raises `DataError` for damaged shards.
        """
        size = _ITEMS_PER_JOB[self._device.type]
        workers = max(1, min(self._cores, -(-count // size)))
        self._threads_of_torch = max(1, self._cores // workers)
        remaining, waiting = iter(items), deque[Future[list[Heard | Reject]]]()
        with ThreadPoolExecutor(workers) as pool:
            try:
                while job := list(islice(remaining, size)):
                    waiting.append(pool.submit(self._work, job))
                    if len(waiting) > 2 * workers:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    @torch.no_grad()
    def _work(self, items: list[Item]) -> list[Heard | Reject]:
        if self._device.type == "cpu":
            torch.set_num_threads(self._threads_of_torch)  # in this thread
        opened = [self._open(item) for item in items]
        pieces = [piece for found in opened if not isinstance(found, Reject) for piece in found]
        starts = [piece.starts(self._frontend, self._config) for piece in pieces]
        outputs = iter(self._outputs(pieces, starts))
        places = iter(zip(pieces, starts, strict=True))
        return [
            found
            if isinstance(found, Reject)
            else self._heard(item, [(*next(places), next(outputs)) for _ in found])
            for item, found in zip(items, opened, strict=True)
        ]

    def _open(self, item: Item) -> list[Piece] | Reject:
        try:
            return list(item.open(self._frontend))
        except AudioError as error:
            return Reject(item.path, error.reason, error.detail)

    def _outputs(self, pieces: list[Piece], starts: list[np.ndarray]) -> list[Tensor]:
        """Return the outputs of the crops of each piece, float32 [crops, d], on the CPU."""
        found: list[Tensor] = []
        rows = [(piece, start) for piece, of_it in zip(pieces, starts, strict=True) for start in of_it]
        for rate, same in groupby(rows, key=lambda row: row[0].rate):
            while some := list(islice(same, CROPS_PER_PASS[self._device.type])):
                found.append(self._pass(rate, some))
        if not found:
            return []
        return list(torch.split(torch.cat(found).cpu(), [len(of_it) for of_it in starts]))

    def _pass(self, rate: int, rows: list[tuple[Piece, int]]) -> Tensor:
        pcm = np.empty((len(rows), self._frontend.crop_samples(rate)), np.int16)
        first = 0
        for piece, group in groupby(rows, key=lambda row: row[0]):
            starts = np.array([start for _, start in group])
            piece.read(starts, pcm[first : first + len(starts)])
            first += len(starts)
        crops = torch.from_numpy(pcm).to(self._device)
        return self._network(spectrograms(self._log_mel(rate), crops)).float()

    def _heard(self, item: Item, found: list[tuple[Piece, np.ndarray, Tensor]]) -> Heard:
        if self._per_crop:
            outputs = torch.cat([output for _, _, output in found])
        else:
            outputs = torch.stack([output.mean(dim=0) for _, _, output in found]).mean(dim=0, keepdim=True)
        return Heard(
            item=item,
            seconds=sum(piece.seconds for piece, _, _ in found),
            starts=[piece.offset + start / piece.rate for piece, starts, _ in found for start in starts],
            outputs=outputs,
        )


def spectrograms(log_mel: LogMel, crops: Tensor) -> Tensor:
    """Return the normalized log-mels, [n, 1, n_mels, frames], of `crops`, int16 [n, samples].

    On a CPU they are computed one by one, each of which stays in the cache.
    """
    parts = torch.split(crops, 1 if crops.device.type == "cpu" else len(crops))
    return torch.cat([log_mel.plain(part.float()) for part in parts]).unsqueeze(1)
