"""How the processes of one machine find each other, so that nobody on the network can join them."""

import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from torch.distributed import FileStore, HashStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from siamusic_fast.errors import SiamusicError
from siamusic_fast.folder_lock import LOCK, FolderLock, is_locked
from siamusic_fast.processes.failures import error_from_words, error_to_words

RENDEZVOUS = "siamusic-fast-one-machine"
"""Name under which torch's launcher finds `OneMachineRendezvous`."""
_LOOPBACK = "127.0.0.1"
_FOLDERS = "siamusic-fast-"
"""Beginning of the names of launchers' folders."""
_STALE_AFTER = 60.0
"""Seconds. A launcher locks its folder sooner than that after it has made it."""
_NO_RESTART = "no-restart.json"


class OneMachineRendezvous(RendezvousHandler):
    """Tells torch's launcher that it is the only one, without a network.

    Torch's own handlers each open a store to all networks, without a password. What the launcher writes to
    this store stays in its memory.
    """

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._folder: Path = parameters.get("folder")
        self._store = HashStore()

    def get_backend(self) -> str:
        return RENDEZVOUS

    def next_rendezvous(self) -> RendezvousInfo:
        """Return that this launcher is the first of one, before each start of the processes.

        The processes need no address, see `file_store`. Raises the error of `prevent_restart`.
        """
        note = self._folder / _NO_RESTART
        if note.exists():
            raise error_from_words(*json.loads(note.read_text()))
        return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo(_LOOPBACK, 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


rendezvous_handler_registry.register(RENDEZVOUS, OneMachineRendezvous)


def prevent_restart(folder: Path, error: SiamusicError) -> None:
    """Have the launcher of `folder` raise `error` instead of starting processes that would meet it again."""
    own = folder / f"{os.getpid()}-{_NO_RESTART}"
    own.write_text(json.dumps(error_to_words(error)))
    own.replace(folder / _NO_RESTART)  # whole, whichever process ends the others


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that only this user can read, for a launcher, and remove it afterwards.

    Folders that killed launchers of the same user left are removed as well. In the context, temporary files
    of this process are made in the folder: torch's launcher reads pickles from some of them, and in a folder
    that all users share, others could take their names.
    """
    with tempfile.TemporaryDirectory(prefix=_FOLDERS) as name, FolderLock() as lock:
        folder, before = Path(name), tempfile.tempdir
        lock.take(folder)
        for other in folder.parent.glob(f"{_FOLDERS}*"):
            if _is_stale(other):
                shutil.rmtree(other, ignore_errors=True)
        tempfile.tempdir = name
        try:
            yield folder
        finally:
            tempfile.tempdir = before


def _is_stale(folder: Path) -> bool:
    """Whether `folder` is one that a launcher of this user made and, killed, could not remove."""
    try:
        ours, locked = folder.lstat(), (folder / LOCK).lstat()
    except OSError:  # no folder of a launcher, another user's, or removed meanwhile
        return False
    return (
        ours.st_uid == os.getuid()
        and stat.S_ISDIR(ours.st_mode)
        and time.time() - locked.st_mtime > _STALE_AFTER
        and not is_locked(folder)
    )


def file_store(folder: Path) -> Store:
    """Return the store of processes that the launcher started: a file in its private `folder`.

    Each start has a file of its own: a process that was killed may have left half a record in the last one.
    """
    return FileStore(str(folder / f"store-{os.environ['TORCHELASTIC_RESTART_COUNT']}"))


def loopback_store(rank: int, world_size: int, port: int, timeout: timedelta) -> Store:
    """Return the store of processes that SLURM started on this machine, all with the same `port`.

    With torch's `env://`, the first process listens to all networks.
    """
    if rank > 0:
        return TCPStore(_LOOPBACK, port, world_size, timeout=timeout)
    listening = socket.create_server((_LOOPBACK, port))
    return TCPStore(
        _LOOPBACK, port, world_size, is_master=True, timeout=timeout, master_listen_fd=listening.detach()
    )


def keep_to_loopback() -> None:
    """Have gloo and NCCL, which this process has not used yet, listen on this machine's loopback only.

    This replaces what the user chose for training on several machines. NCCL does not take the loopback of
    IPv6.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["NCCL_SOCKET_IFNAME"] = "=lo"
    os.environ["NCCL_SOCKET_FAMILY"] = "AF_INET"
