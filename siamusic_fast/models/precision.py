"""Mixed precision: bfloat16 on GPUs that compute in it, float32 everywhere else."""

import functools
import warnings

import torch

from siamusic_fast.processes.environment import is_leader


def autocast(device: torch.device) -> torch.autocast:
    """Return a context in which networks on `device` compute in bfloat16 where that is safe and fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_computes_in_bfloat16(device))


@functools.cache
def _computes_in_bfloat16(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16; warns once if a GPU only emulates it, which is slow."""
    if device.type != "cuda":
        return False
    supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
    if not supported and is_leader():
        name = torch.cuda.get_device_name(device)
        warnings.warn(f"{name} has no bfloat16: training goes on in float32", stacklevel=3)
    return supported
