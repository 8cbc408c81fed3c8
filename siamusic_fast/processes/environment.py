"""Which process this is, as variables of torch's launcher or of SLURM say, and how many GPUs there are."""

import ctypes
import os
import re
import sys
from collections.abc import Mapping

from siamusic_fast.errors import ConfigError, DeviceError

TIMEOUT = 600.0
"""Seconds that processes wait for each other unless told otherwise: as long as NCCL does by default."""
_FIRST_PORT = 20_000
_PORTS = 20_000


def launched_environment() -> dict[str, str]:
    """Return RANK, WORLD_SIZE and so on of a process that torchrun or `srun` started; empty for another."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return dict(os.environ)
    return slurm_environment(os.environ)


def is_leader() -> bool:
    """Whether this process is alone or the first of those of torchrun or SLURM: the one that prints."""
    return launched_environment().get("RANK", "0") == "0"


def starts_again() -> bool:
    """Whether torchrun starts this process again if one of its processes dies."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def processes_wanted(gpus: int | None = None, procs: int | None = None) -> int:
    """Return how many processes `launch` would have, or raise its errors."""
    if environment := launched_environment():
        check_gpus(gpus and 1)
        return int(environment["WORLD_SIZE"])
    found = check_gpus(gpus)
    if found and procs not in (None, found):
        raise ConfigError(
            f"procs = {procs} does not fit gpus = {gpus}: each GPU has one process; leave procs out "
            f"(on the command line --procs)."
            if gpus
            else f"procs = {procs} asks for processes on the CPU, and a GPU is visible: add gpus=0 (on "
            f"the command line --gpus 0)."
        )
    return found or procs or 1


def check_gpus(gpus: int | None) -> int:
    """Return how many GPUs `gpus` means, or raise DeviceError if there are not so many."""
    if gpus == 0:
        return 0
    visible = visible_gpus()
    if gpus is None:
        return min(visible, 1)
    if gpus > 0 and visible == 0:
        raise DeviceError(
            f"gpus = {gpus} asks for a GPU and none is visible: use 0 for the CPU (on the command line "
            f"--gpus 0)."
        )
    if gpus > visible:
        raise DeviceError(
            f"gpus = {gpus} asks for more than the {visible} visible: use {visible} (on the command line "
            f"--gpus {visible})."
        )
    return gpus


def visible_gpus() -> int:
    """Return how many GPUs torch can use; it is imported only if there is a driver or it is there already."""
    if "torch" not in sys.modules and not _has_driver():
        return 0
    import torch

    return torch.cuda.device_count()


def _has_driver() -> bool:
    """Whether the library is there without which torch finds no GPU."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def on_one_machine() -> bool:
    """Whether all processes that train with this one are on this machine."""
    return os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]


def slurm_environment(slurm: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE and so on of a task of `srun`, from the environment variables of SLURM.

    The result is empty outside of a job, in a batch script before `srun`, in a shell of `srun --pty`, and in
    a step with one task. All tasks of a step get the same address and port.
    """
    tasks = int(slurm.get("SLURM_STEP_NUM_TASKS", slurm.get("SLURM_NTASKS", "1")))
    if "SLURM_STEP_ID" not in slurm or "SLURM_PROCID" not in slurm or tasks < 2:
        return {}
    nodes = slurm.get("SLURM_STEP_NODELIST", slurm["SLURM_JOB_NODELIST"])
    per_node = tasks_per_node(slurm.get("SLURM_STEP_TASKS_PER_NODE", str(tasks)))
    node = int(slurm.get("SLURM_NODEID", "0"))
    return {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(per_node[node]),
        "MASTER_ADDR": slurm.get("MASTER_ADDR", first_host(nodes)),
        "MASTER_PORT": slurm.get("MASTER_PORT", str(_port(slurm))),
    }


def first_host(nodes: str) -> str:
    """Return the first name of a list of hosts: ``node[07-09,12],gpu3`` gives node07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None  # the pattern matches every text
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def tasks_per_node(counts: str) -> list[int]:
    """Return the number of tasks on each node: ``4(x2),1`` gives 4, 4, 1."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(tasks) for tasks, nodes in found for _ in range(int(nodes or 1))]


def _port(slurm: Mapping[str, str]) -> int:
    """Return a port that other jobs on the same machine do not choose, nor other steps of this job."""
    return _FIRST_PORT + (101 * int(slurm["SLURM_JOB_ID"]) + int(slurm["SLURM_STEP_ID"])) % _PORTS
