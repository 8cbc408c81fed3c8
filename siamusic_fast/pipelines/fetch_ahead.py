"""Fetches the shards of object storage that the next batches read, before they are read."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO

from siamusic_fast.errors import DataError
from siamusic_fast.pipelines.plan import Place, Plan, TrackPlan
from siamusic_fast.pipelines.tracks import Tracks
from siamusic_fast.storage.cache import Fetching, FetchStoppedError

THREADS = 4
"""Shards that are fetched at a time, besides those that a reader waits for."""


class FetchAhead:
    """Opens the tars of `tracks`, and has threads that fetch the next ones if they are in object storage.

    Any number of threads may call it at once.
    """

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks
        self._lock = threading.Lock()
        self._fetching = Fetching()
        self._threads: ThreadPoolExecutor | None = None
        self._wanted: tuple[int, ...] = ()
        self._asked: set[int] = set()
        """Shards that the threads fetch, or will."""

    def start(self) -> None:
        """Let shards be fetched again after `stop`."""
        if self._fetching.stopped.is_set():
            self._fetching, self._wanted, self._asked = Fetching(waited=self._fetching.waited), (), set()

    def stop(self) -> None:
        """End what is being fetched, for whomever; threads that wait for it get `FetchStoppedError`."""
        self._fetching.stopped.set()
        with self._lock:
            threads, self._threads = self._threads, None
        if threads:
            threads.shutdown(wait=True, cancel_futures=True)

    @property
    def waited(self) -> float:
        """Seconds that `open` has waited for the network, of all threads together."""
        return self._fetching.waited

    def open(self, shard: int) -> FileIO:
        """Return the tar of the shard numbered so in `Tracks.shards`, opened; it may be fetched first."""
        tracks = self._tracks
        return tracks.shard_set.open_tar(tracks.shards[shard], self._fetching)

    def reach(self, plan: Plan | TrackPlan, place: Place) -> set[int] | None:
        """Begin to fetch what `plan` reads for the batch at `place`, and then in the next window.

        When that changes, returns the shards that are still of use: those from before, and those from now on.
        Returns None otherwise, and for shards on a disk.
        """
        cache = self._tracks.shard_set.cache
        if cache is None:
            return None
        wanted = plan.shards_ahead(place)
        with self._lock:
            if wanted == self._wanted or self._fetching.stopped.is_set():
                return None
            before, self._wanted = self._wanted, wanted
            self._threads = self._threads or ThreadPoolExecutor(THREADS, "siamusic-fast-fetch")
            # What is here counts as used before anything is fetched, or it would make room for that.
            missing = [shard for shard in wanted if not cache.use(self._tracks.shards[shard].sha256)]
            for shard in missing:
                if shard not in self._asked:
                    self._asked.add(shard)
                    self._threads.submit(self._fetch, shard, self._asked)
        return {*before, *wanted}

    def _fetch(self, shard: int, asked: set[int]) -> None:
        # Whoever reads the shard meets the same error, and reports it.
        with suppress(DataError, FetchStoppedError):
            if shard in self._wanted:  # it may be over before its turn
                self._tracks.shard_set.open_tar(self._tracks.shards[shard], self._fetching.silent()).close()
        asked.discard(shard)
