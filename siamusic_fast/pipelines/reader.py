"""Reads the planned spans of tracks as int16 samples, and nothing else.

In wav shards, samples lie at fixed places of the tars: `preadv` reads them straight into the buffer of the
batch. From flac and ogg shards, the compressed file is read, and libsndfile seeks to the span and decodes it.
"""

import io
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby

import numpy as np
import soundfile

from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.fetch_ahead import FetchAhead
from siamusic_fast.pipelines.plan import Place, Plan, Spans, TrackPlan
from siamusic_fast.pipelines.random_numbers import Array
from siamusic_fast.pipelines.tracks import Tracks
from siamusic_fast.shards.codec import WAV_HEADER
from siamusic_fast.shards.index import CLS_SIZE
from siamusic_fast.shards.manifest import naming_damage

_MAX_OPEN = 256
"""Tars that are open at a time: a process may have 1,024 files."""

_Crop = tuple[int, Array]
"""The first sample of a crop in its track, and the array to fill."""


class Reader:
    """Reads spans of tracks; any number of threads may call it at once.

    A track shorter than a crop is repeated or followed by silence, as `frontend` says. If `tracks` have
    labels, the label beside the audio of every track that is read is compared with that in tracks.csv.
    """

    def __init__(self, tracks: Tracks, frontend: Frontend) -> None:
        self._tracks = tracks
        self._repeats = frontend.short_tracks == "repeat"
        self._ahead = FetchAhead(tracks)
        self._tars = _OpenTars(tracks, self._ahead)

    def read(self, spans: Spans, rows: slice, out: Array) -> None:
        """Read the `rows` of `spans` into those of `out`, int16 [batch, samples].

        If a span is shorter than a row of `out`, the end of the row is left as it is. Raises `DataError` if a
        tar ends early or cannot be read, if audio cannot be decoded, or if a label differs.
        """
        wanted = zip(
            spans.tracks[rows].tolist(),
            spans.starts[rows].tolist(),
            spans.samples[rows].tolist(),
            out[rows],
            strict=True,
        )
        for track, group in groupby(wanted, key=lambda row: row[0]):
            if self._tracks.labels is not None:
                self._check_label(track, int(self._tracks.labels[track]))
            crops = [(start, row[:samples]) for _, start, samples, row in group]
            if self._tracks.shard_set.codec == "wav":
                for start, crop in crops:
                    fill_crop(
                        crop,
                        start,
                        int(self._tracks.samples[track]),
                        partial(self._pread, track),
                        self._repeats,
                    )
            else:
                self._decode(track, crops)

    def reach(self, plan: Plan | TrackPlan, place: Place) -> None:
        """Prepare for the batch of `plan` at `place`: begin to fetch what is in object storage.

        Tars that are of no more use are closed: one that made room in the cache keeps its space till then.
        """
        useful = self._ahead.reach(plan, place)
        if useful is not None:
            self._tars.keep(useful)

    @property
    def waited(self) -> float:
        """Seconds that reading has waited for object storage, of all threads together."""
        return self._ahead.waited

    def start(self) -> None:
        """Let object storage be read again after `stop`."""
        self._ahead.start()

    def stop(self) -> None:
        """End what is being fetched from object storage; threads that wait for it fail."""
        self._ahead.stop()

    def close(self) -> None:
        """Stop, and close the tars; they are fetched and opened again when they are read again."""
        self._ahead.stop()
        self._tars.keep(set())
        self._ahead.start()

    def _pread(self, track: int, start: int, out: Array) -> None:
        offset = int(self._tracks.offset[track]) + WAV_HEADER + 2 * start
        self._read_bytes(track, offset, out.data.cast("B"))

    def _decode(self, track: int, crops: list[_Crop]) -> None:
        """Fill `crops` of a compressed track, decoded together unless they lie far apart."""
        length = int(self._tracks.samples[track])
        encoded = bytearray(int(self._tracks.size[track]))
        self._read_bytes(track, int(self._tracks.offset[track]), memoryview(encoded))
        try:
            with soundfile.SoundFile(io.BytesIO(encoded)) as file:
                if file.frames != length:
                    raise self._tracks.damaged(track, f"it has {file.frames} samples, not {length}")
                for begin, end, members in _together(crops, length):
                    file.seek(begin)
                    decoded = file.read(end - begin, dtype="int16")
                    if len(decoded) < end - begin:
                        raise self._tracks.damaged(track, f"{len(decoded)} of {end - begin} samples decode")
                    for start, crop in members:
                        fill_crop(crop, start, length, partial(_copy, decoded, begin), self._repeats)
        except soundfile.LibsndfileError as error:
            raise self._tracks.damaged(track, error.error_string.rstrip(".")) from error

    def _check_label(self, track: int, label: int) -> None:
        found, expected = bytearray(CLS_SIZE), b"%05d" % label
        self._read_bytes(track, int(self._tracks.cls_offset[track]), memoryview(found))
        if found != expected:
            raise self._tracks.damaged(track, f"its label is {bytes(found)!r}, tracks.csv says {expected!r}")

    def _read_bytes(self, track: int, offset: int, out: memoryview) -> None:
        tar, done = self._tars.get(int(self._tracks.shard[track])), 0
        while done < len(out):
            try:
                count = os.preadv(tar.descriptor, [out[done:]], offset + done)
            except OSError as error:
                raise self._tracks.damaged(track, error.strerror or error) from error
            if count == 0:
                raise self._tracks.damaged(track, f"the tar ends at byte {offset + done}")
            done += count


def fill_crop(
    crop: Array, start: int, length: int, read: Callable[[int, Array], None], repeats: bool
) -> None:
    """Fill `crop` from sample `start` on of a track of `length` samples, lengthened if it is too short.

    `read` fills an array from a sample of the track on. A short track `repeats`, or is followed by silence.
    """
    if start + len(crop) <= length:
        read(start, crop)
    elif repeats:
        whole = np.empty(length, dtype=np.int16)
        read(0, whole)
        crop[:] = np.take(whole, np.arange(start, start + len(crop)), mode="wrap")
    else:
        audible = max(length - start, 0)
        read(start, crop[:audible])
        crop[audible:] = 0


class _OpenTars:
    """The tars that are open: those used last, at most `_MAX_OPEN`. Any number of threads may call it."""

    def __init__(self, tracks: Tracks, ahead: FetchAhead) -> None:
        self._tracks, self._ahead = tracks, ahead
        self._lock = threading.Lock()
        self._tars: dict[int, _Tar] = {}
        """By their numbers in `Tracks.shards`, the one used last at the end."""

    def get(self, shard: int) -> "_Tar":
        """Return the tar of a shard; it is opened first unless it is open."""
        with self._lock:
            tar = self._tars.pop(shard, None)
            if tar:
                self._tars[shard] = tar
                return tar
        tar = _Tar(self._tracks, self._ahead, shard)  # others go on, since it may be fetched first
        with self._lock:
            tar = self._tars.setdefault(shard, tar)
            if len(self._tars) > _MAX_OPEN:
                del self._tars[next(iter(self._tars))]
        return tar

    def keep(self, shards: set[int]) -> None:
        """Close the tars of other shards, each as soon as no thread reads it."""
        with self._lock:
            self._tars = {shard: tar for shard, tar in self._tars.items() if shard in shards}


class _Tar:
    """A tar that is open until nobody holds it any more, not even a thread that reads it."""

    def __init__(self, tracks: Tracks, ahead: FetchAhead, shard: int) -> None:
        # A descriptor alone: Python warns of a file that the garbage collector closes, as it does where the
        # traceback of an error is the last to hold one.
        path = tracks.shard_set.shown(tracks.shards[shard].file)
        with naming_damage(path), ahead.open(shard) as file:
            self.descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _together(crops: list[_Crop], length: int) -> Iterator[tuple[int, int, list[_Crop]]]:
    """Yield what to decode at a time, begin and end, of a track of so many samples, and for which crops.

    All crops together if that is less than twice their samples. A track that is lengthened is decoded whole.
    """
    begin, end = min(start for start, _ in crops), max(start + len(crop) for start, crop in crops)
    if end > length:
        yield 0, length, crops
    elif end - begin < 2 * sum(len(crop) for _, crop in crops):
        yield begin, end, crops
    else:
        for start, crop in crops:
            yield start, start + len(crop), [(start, crop)]


def _copy(decoded: Array, begin: int, start: int, out: Array) -> None:
    """Fill `out` from sample `start` on of `decoded`, which begins at sample `begin`."""
    out[:] = decoded[start - begin : start - begin + len(out)]
