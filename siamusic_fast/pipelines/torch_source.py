"""Reading shards without DALI: any crop of any track at once, from memory-mapped tars by their indexes."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from siamusic_fast.errors import DataError
from siamusic_fast.pipelines.source import Source, remedy
from siamusic_fast.pipelines.torch_augment import Draws

Array = NDArray[Any]
Place = tuple[int, int]
"""An epoch and a batch in it."""

_MOST_MAPS = 256
"""Tars that are mapped at a time: each holds a file open, and a process may have 1,024 of them."""

ORDER, CROPS, AUGMENTATIONS = range(3)
"""What random numbers are for: the last of their seeds."""


class Crops(NamedTuple):
    """What is read of the tracks of a batch."""

    pcm: Tensor
    """int16 [crops, samples], zeros behind the end of a shorter one."""
    lengths: Tensor
    """int64 [crops]."""
    positions: Tensor
    """Where in its track each lies, float64 [crops], from 0 to 1."""
    labels: Tensor
    """int64 [tracks]."""


class Tracks:
    """Random access to the audio and the labels of all tracks of a source.

    A track shorter than `span` samples is lengthened as `source.short_tracks` says, in the same way as in the
    DALI graph: repeated, doubling its length until it suffices, or with silence at its end.
    """

    def __init__(self, source: Source, span: int) -> None:
        shard_set = source.shard_set
        self._source = source
        self._span = span
        self._paths = [shard_set.path(shard.file) for shard in source.shards]
        entries = [_index(shard_set.path(shard.index), shard_set.codec) for shard in source.shards]
        self._shard = np.repeat(np.arange(len(entries)), [len(entry) for entry in entries])
        self._audio, self._size, self._cls, self._cls_size = np.concatenate(entries).T
        self._maps: dict[int, Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps out, which would be copied: each process makes its own."""
        return {**self.__dict__, "_maps": {}}

    def lengths(self, tracks: Array) -> Array:
        """Return the samples of each of the `tracks`, lengthened if need be."""
        own = self._own_lengths(tracks)
        if self._source.short_tracks == "pad":
            return np.maximum(own, self._span)
        doublings = np.ceil(np.log2(self._span / own)).clip(min=0).astype(np.int64)
        return np.asarray(own << doublings)

    def crops(self, tracks: Array, positions: Array, samples: int) -> Crops:
        """Return `samples`, or all if there are fewer, at one of the `positions` of each of the `tracks`."""
        all_samples = self.lengths(tracks)
        lengths = np.minimum(all_samples, samples)
        starts = nearest(positions, all_samples - lengths)
        pcm = torch.empty(len(tracks), int(lengths.max()), dtype=torch.int16)
        rows = pcm.numpy()
        for row, track in enumerate(tracks.tolist()):
            rows[row, : lengths[row]] = self._pcm(track, int(starts[row]), int(lengths[row]))
            rows[row, lengths[row] :] = 0
        labels = torch.tensor([self._label(track) for track in tracks.tolist()])
        return Crops(pcm, torch.from_numpy(lengths), torch.from_numpy(positions), labels)

    def _own_lengths(self, tracks: Array) -> Array:
        if self._source.mapped:
            return np.asarray(self._size[tracks] // 2 - self._source.header)
        return np.array([self._opened(track).frames for track in tracks.tolist()], dtype=np.int64)

    def _pcm(self, track: int, start: int, samples: int) -> Array:
        found = self._read(track, start, samples)
        if len(found) == samples:
            return found
        if self._source.short_tracks == "pad":
            return np.pad(found, (0, samples - len(found)))
        whole = self._read(track, 0, samples)
        return np.asarray(whole[np.arange(start, start + samples) % len(whole)])

    def close(self) -> None:
        """Unmap the tars; they are mapped again when they are read again."""
        self._maps.clear()

    def check(self) -> None:
        """Raise `DataError` for the first track whose audio cannot be opened."""
        for track in range(len(self._shard)):
            self._opened(track).close()

    def _read(self, track: int, start: int, samples: int) -> Array:
        """Return `samples` of the track itself, or as many as there are from `start` on."""
        if self._source.mapped:
            audio = self._bytes(track, self._audio, self._size).view("<i2")[self._source.header :]
            return np.asarray(audio[start : start + samples])
        with self._opened(track) as file:
            wanted = min(samples, max(0, file.frames - start))
            try:
                file.seek(min(start, file.frames))
                found = np.asarray(file.read(samples, dtype="int16"))
            except soundfile.LibsndfileError as error:
                raise self._damaged(track, error) from error
        if len(found) < wanted:
            raise self._damaged(track, f"{len(found)} of {wanted} samples can be decoded")
        return found

    def _opened(self, track: int) -> soundfile.SoundFile:
        try:
            return soundfile.SoundFile(io.BytesIO(self._bytes(track, self._audio, self._size).tobytes()))
        except soundfile.LibsndfileError as error:
            raise self._damaged(track, error) from error

    def _damaged(self, track: int, reason: object) -> DataError:
        path = self._paths[int(self._shard[track])]
        return DataError(f"{path} is missing or damaged ({reason}): {remedy(path.parent)}")

    def _label(self, track: int) -> int:
        return int(self._bytes(track, self._cls, self._cls_size).tobytes())

    def _bytes(self, track: int, offsets: Array, sizes: Array) -> Array:
        shard = int(self._shard[track])
        if shard not in self._maps:
            if len(self._maps) == _MOST_MAPS:
                del self._maps[next(iter(self._maps))]
            try:
                self._maps[shard] = np.asarray(np.memmap(self._paths[shard], mode="r"))
            except (OSError, ValueError) as error:
                raise self._damaged(track, type(error).__name__) from error
        first, last = int(offsets[track]), int(offsets[track] + sizes[track])
        if last > len(self._maps[shard]):
            raise self._damaged(track, f"{len(self._maps[shard])} bytes, its index goes on to {last}")
        return np.asarray(self._maps[shard][first:last])


class Plan:
    """Which tracks of a source are in which batch, the same in every process."""

    def __init__(self, source: Source, batch_size: int, batches: int) -> None:
        self.batches = batches
        """Of an epoch."""
        self.source = source
        self._batch_size = batch_size
        self._epoch = -1
        self._order = np.arange(0)

    def tracks(self, place: Place) -> Array:
        """Return the tracks of a batch, int64."""
        epoch, batch = place
        if self._epoch != epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        return self._order[batch * self._batch_size : (batch + 1) * self._batch_size]

    def draws(self, place: Place, purpose: int, count: int) -> Draws:
        """Return random numbers for one `purpose` in one batch."""
        return Draws([self.source.seed, *place, self.source.rank, purpose], count)

    def _order_of(self, epoch: int) -> Array:
        """Return this rank's tracks: when shuffling, its share of a permutation of all."""
        source = self.source
        if source.shuffle:
            order: Array = np.random.default_rng([source.seed, epoch, ORDER]).permutation(source.tracks)
            return order[source.rank :: source.world_size][: self.batches * self._batch_size]
        first = source.tracks * source.rank // source.world_size
        return np.arange(first, first + source.tracks_here)


def nearest(positions: Array, spare: Array) -> Array:
    """Return where crops begin that leave `spare` samples; in float32, as the DALI graph rounds."""
    starts = np.floor(positions.astype(np.float32) * spare.astype(np.float32) + np.float32(0.5))
    return np.asarray(starts, dtype=np.int64)


def _index(path: Path, codec: str) -> Array:
    """Return offset and size of the audio, offset and size of the cls, of every track: int64 [tracks, 4]."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [_entry(line.split(), codec) for line in lines[1:]]
        if lines[0].split() != ["v1.2", str(len(entries))]:
            raise ValueError(f"{lines[0]!r} before {len(entries)} tracks")
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise DataError(
            f"{path} is missing or damaged ({type(error).__name__}: {error}): "
            f"`siamusic-fast verify {path.parent}` checks all shards."
        ) from None
    return np.array(entries, dtype=np.int64)


def _entry(words: list[str], codec: str) -> list[int]:
    files = {words[at]: (int(words[at + 1]), int(words[at + 2])) for at in range(0, len(words), 4)}
    return [*files[codec], *files["cls"]]
