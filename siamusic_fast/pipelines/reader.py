"""Reading: the planned spans of tracks as int16 samples, and nothing else.

Those of wav shards lie at fixed places of the tars, where `preadv` takes them from, straight into the buffer
of the batch. Of flac and ogg shards, the compressed file is read and the span decoded: libsndfile finds
a sample without decoding what is before it.
"""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile

from siamusic_fast.files import open_regular
from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.draws import Array
from siamusic_fast.pipelines.plan import Spans
from siamusic_fast.pipelines.tracks import Tracks
from siamusic_fast.shards.codec import WAV_HEADER
from siamusic_fast.shards.index import CLS_SIZE
from siamusic_fast.shards.manifest import DamageError

_MAX_OPEN = 256
"""Tars that are open at a time: a process may have 1,024 files."""

_ReadInto = Callable[[int, Array], None]
"""Fills an array from a sample on."""
_Part = tuple[int, Array]
"""Where something begins in its track, and where it goes."""


class Reader:
    """Reads spans of tracks; any number of threads may call it at once.

    A track shorter than a crop is repeated, or followed by silence, as `frontend` says. With `check_labels`,
    the label beside the audio of every track that is read is compared with that of tracks.csv.
    """

    def __init__(self, tracks: Tracks, frontend: Frontend, *, check_labels: bool = False) -> None:
        self._tracks = tracks
        self._repeats = frontend.short_tracks == "repeat"
        self._check_labels = check_labels
        self._files: OrderedDict[int, _Tar] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, spans: Spans, rows: slice, out: Array) -> None:
        """Put the `rows` of `spans` into those of `out`, int16 [batch, samples].

        What lies behind the end of a span that is shorter than a row of `out` is left as it is. Raises
        `DataError` if a tar ends early or cannot be read, if audio cannot be decoded, or if a label differs.
        """
        wanted = zip(
            spans.tracks[rows].tolist(),
            spans.starts[rows].tolist(),
            spans.samples[rows].tolist(),
            out[rows],
            strict=True,
        )
        for track, group in groupby(wanted, key=lambda row: row[0]):
            if self._check_labels:
                self._check_label(track)
            parts = [(start, row[:samples]) for _, start, samples, row in group]
            if self._tracks.shard_set.codec == "wav":
                for start, part in parts:
                    self._lengthened(track, start, part, partial(self._pread, track))
            else:
                self._decode(track, parts)

    def close(self) -> None:
        """Close the tars; they are opened again when they are read again."""
        with self._lock:
            self._files.clear()

    def _lengthened(self, track: int, start: int, out: Array, read: _ReadInto) -> None:
        """Fill `out` from sample `start` on of the track as it is lengthened."""
        own = int(self._tracks.samples[track])
        if start + len(out) <= own:
            read(start, out)
        elif self._repeats:
            whole = np.empty(own, dtype=np.int16)
            read(0, whole)
            out[:] = np.take(whole, np.arange(start, start + len(out)), mode="wrap")
        else:
            there = max(own - start, 0)
            read(start, out[:there])
            out[there:] = 0

    def _pread(self, track: int, start: int, out: Array) -> None:
        offset = int(self._tracks.offset[track]) + WAV_HEADER + 2 * start
        self._read_bytes(track, offset, out.data.cast("B"))

    def _decode(self, track: int, parts: list[_Part]) -> None:
        """Decode what `parts` take of a compressed track, at once unless they lie far apart."""
        own = int(self._tracks.samples[track])
        encoded = bytearray(int(self._tracks.size[track]))
        self._read_bytes(track, int(self._tracks.offset[track]), memoryview(encoded))
        try:
            with soundfile.SoundFile(io.BytesIO(encoded)) as file:
                if file.frames != own:
                    raise self._tracks.damaged(track, f"it has {file.frames} samples, not {own}")
                for begin, end, members in _together(parts, own):
                    file.seek(begin)
                    decoded = file.read(end - begin, dtype="int16")
                    if len(decoded) < end - begin:
                        raise self._tracks.damaged(track, f"{len(decoded)} of {end - begin} samples decode")
                    for start, part in members:
                        self._lengthened(track, start, part, _from(decoded, begin))
        except soundfile.LibsndfileError as error:
            raise self._tracks.damaged(track, error.error_string.rstrip(".")) from error

    def _check_label(self, track: int) -> None:
        assert self._tracks.labels is not None
        found, expected = bytearray(CLS_SIZE), b"%05d" % int(self._tracks.labels[track])
        self._read_bytes(track, int(self._tracks.cls_offset[track]), memoryview(found))
        if found != expected:
            raise self._tracks.damaged(track, f"its label is {bytes(found)!r}, tracks.csv says {expected!r}")

    def _read_bytes(self, track: int, offset: int, out: memoryview) -> None:
        file = self._file(int(self._tracks.shard[track]))
        done = 0
        while done < len(out):
            try:
                count = os.preadv(file.descriptor, [out[done:]], offset + done)
            except OSError as error:
                raise self._tracks.damaged(track, error.strerror or error) from error
            if count == 0:
                raise self._tracks.damaged(track, f"the tar ends at byte {offset + done}")
            done += count

    def _file(self, shard: int) -> "_Tar":
        """Return a tar, opened. One that is dropped here is closed when the last thread is done with it."""
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
            path = self._tracks.shard_set.path(self._tracks.shards[shard].file)
            try:
                file = self._files[shard] = _Tar(path)
            except OSError as error:
                raise DamageError(path, error.strerror or error) from error
            if len(self._files) > _MAX_OPEN:
                self._files.popitem(last=False)
            return file


class _Tar:
    """A tar that is open until nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        # A descriptor alone: Python warns of a file that the garbage collector closes, as it does where the
        # traceback of an error is the last to hold one.
        with open_regular(path) as file:
            self.descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _together(parts: list[_Part], own: int) -> Iterator[tuple[int, int, list[_Part]]]:
    """Yield what to decode at a time, begin and end, of a track of `own` samples, and which parts it serves.

    All at once if that is less than twice what the parts take; a track that is lengthened, from its start.
    """
    if any(start + len(part) > own for start, part in parts):
        yield 0, own, parts
        return
    begin, end = min(start for start, _ in parts), max(start + len(part) for start, part in parts)
    if end - begin < 2 * sum(len(part) for _, part in parts):
        yield begin, end, parts
    else:
        for start, part in parts:
            yield start, start + len(part), [(start, part)]


def _from(decoded: Array, begin: int) -> _ReadInto:
    """Return a function that takes samples from `decoded`, which begins at sample `begin`."""

    def read(start: int, out: Array) -> None:
        out[:] = decoded[start - begin : start - begin + len(out)]

    return read
