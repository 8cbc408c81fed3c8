"""What the workers of a cluster must have in common with the process that packs or verifies with them."""

import hashlib
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from siamusic_fast.audio.store import open_store
from siamusic_fast.errors import DataError, SiamusicError
from siamusic_fast.files import MANIFEST_LIMIT, file_sha256
from siamusic_fast.processes.cluster import not_shared
from siamusic_fast.shards.manifest import MANIFEST
from siamusic_fast.shards.resuming import UNFINISHED, software
from siamusic_fast.storage.remote import RemoteFolder

_SEEN_WITHIN = 90.0
"""Seconds after which a file that another machine wrote is seen here; NFS may need 60."""


@dataclass(frozen=True, kw_only=True)
class SharedForPacking:
    """What a worker that packs must see: a file of the audio, and the permit beside the shards."""

    software: str
    audio: Path | str
    in_tables: bool
    path: str
    """A file of the audio."""
    size: int
    """Its size in bytes."""
    folder: Path
    token: str

    @property
    def permit(self) -> Path:
        """File that lets workers pack as long as it is there."""
        return self.folder / UNFINISHED / f"permit-{self.token}"

    def check(self) -> str:
        """Raise `DataError` on a worker that would not pack the same bytes, or not into the same folder.

        Returns the name of a file that it has written beside the permit.
        """
        host = socket.gethostname()
        if software() != self.software:
            raise DataError(
                f"the worker on {host} has {software()}, not {self.software}, so that bytes could differ: "
                f"give it the environment of this machine."
            )
        try:
            size = open_store(self.audio, self.in_tables).size_now(self.path)
        except SiamusicError:
            size = None
        if size != self.size:
            raise not_shared(host, f"does not see {self.audio}, or not with the same {self.path!r}")
        if not self.permit.exists():
            raise not_shared(host, f"does not see what is written into {self.folder} here")
        greeting = self.permit.with_name(f"seen-{secrets.token_hex(8)}")
        try:
            greeting.write_text(host)
        except OSError as error:
            raise not_shared(host, f"cannot write into {self.folder} ({error.strerror})") from None
        return greeting.name

    def confirm(self, host: str, said: str) -> None:
        """Raise `DataError` unless the file that the worker on `host` wrote is seen here."""
        if not _comes(self.permit.with_name(said)):
            raise not_shared(host, f"writes into another {self.folder} than this machine sees")


@contextmanager
def permit(shared: SharedForPacking) -> Iterator[None]:
    """Let workers pack as long as the context is open; those that are still at it then stop."""
    shared.permit.touch()
    try:
        yield
    finally:
        shared.permit.unlink(missing_ok=True)


def wait_for_result(folder: Path, stem: str) -> None:
    """Return when the result of shard `stem`, which a worker has written, is seen here."""
    if not _comes(folder / UNFINISHED / f"{stem}.json"):
        raise DataError(
            f"a worker has packed {stem}, and {_SEEN_WITHIN:g} s later it is not seen in {folder}: mend the "
            f"file system that all machines share; the same command goes on."
        )


@dataclass(frozen=True, kw_only=True)
class SharedForVerifying:
    """What a worker that verifies must see: the manifest of the shard set."""

    folder: Path
    url: str = ""
    """Where the shard set is, if that is object storage."""
    sha256: str
    """SHA-256 of manifest.json."""

    def check(self) -> str:
        """Raise `DataError` on a worker that does not see the shard set: nothing would be there for it."""
        try:
            if self.url:
                seen = hashlib.sha256(RemoteFolder(self.url).read(MANIFEST, MANIFEST_LIMIT)).hexdigest()
            else:
                seen = file_sha256(self.folder / MANIFEST, MANIFEST_LIMIT)
        except OSError:
            seen = ""
        except SiamusicError as error:
            raise DataError(
                f"the worker on {socket.gethostname()} cannot read {self.url or self.folder}: {error}"
            ) from None
        if seen != self.sha256:
            place = self.url or self.folder
            raise not_shared(socket.gethostname(), f"does not see {place}, or not with the same {MANIFEST}")
        return ""

    def confirm(self, host: str, said: str) -> None:
        """Do nothing: a worker that verifies writes nothing."""


def _comes(path: Path) -> bool:
    """Return whether the file `path` is there, or comes in time."""
    until = time.monotonic() + _SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
