"""How much memory this process has used: a module of its own, as a worker that imports it needs no more."""

from pathlib import Path


def peak_memory() -> float:
    """Of this process, in MiB."""
    # ru_maxrss would be no less than that of the process which started this one.
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) / 1024
