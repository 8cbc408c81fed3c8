"""Where the processes of one machine meet, so that nobody on the network can join them."""

import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import FileStore, HashStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from siamusic_fast.folder_lock import LOCK, FolderLock, is_locked

RENDEZVOUS = "siamusic-fast-one-machine"
"""Name under which torch's launcher finds `LoneLauncher`."""
_LOOPBACK = "127.0.0.1"
_FOLDERS = "siamusic-fast-"
"""How the names of launchers' folders begin."""
_STALE_AFTER = 60.0
"""Seconds. A folder is younger while its launcher has made it and not yet locked it."""


class LoneLauncher(RendezvousHandler):
    """Tells torch's launcher that no other launcher takes part, which it need not listen to find out.

    Torch's own handlers each open a store to all networks, without a password. What the launcher notes here
    stays in its memory.
    """

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._notes = HashStore()

    def get_backend(self) -> str:
        return RENDEZVOUS

    def next_rendezvous(self) -> RendezvousInfo:
        """Return that this launcher is the first of one; its processes need no address, see `file_store`."""
        return RendezvousInfo(self._notes, 0, 1, RendezvousStoreInfo(_LOOPBACK, 0))

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


rendezvous_handler_registry.register(RENDEZVOUS, LoneLauncher)


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder for a launcher that only its user can read, and remove it afterwards.

    Folders that killed launchers of the same user left are removed now. In the context, temporary files of
    this process are made in the folder: torch's launcher reads pickles from some, by names that others could
    take in a folder that all share.
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
    """Return the store of the processes that the launcher started together: a file in its private `folder`.

    After a restart it is another file: a process that was killed may have left half a record in the last one.
    """
    return FileStore(str(folder / f"store-{os.environ['TORCHELASTIC_RESTART_COUNT']}"))


def loopback_store(rank: int, world_size: int, port: int) -> Store:
    """Return the store of processes that something else started on this machine, each with the same `port`.

    Torch's `env://` has the first process listen to all networks.
    """
    if rank > 0:
        return TCPStore(_LOOPBACK, port, world_size)
    listening = socket.create_server((_LOOPBACK, port))
    return TCPStore(_LOOPBACK, port, world_size, is_master=True, master_listen_fd=listening.detach())


def all_are_here() -> bool:
    """Whether all processes of the job that this one belongs to are on this machine."""
    return os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]


def keep_to_loopback() -> None:
    """Have gloo and NCCL, which this process has not used yet, listen on this machine's loopback only.

    Whatever the user chose for jobs of several machines. NCCL does not take the loopback of IPv6.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["NCCL_SOCKET_IFNAME"] = "=lo"
    os.environ["NCCL_SOCKET_FAMILY"] = "AF_INET"
