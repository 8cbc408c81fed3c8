"""torch.compile, and the first pass through a network; a network that cannot be compiled trains as it is."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from siamusic_fast.models.precision import autocast
from siamusic_fast.processes.world import World, gradients_kept_apart


def compiled(model: nn.Module, example: Tensor, world: World) -> nn.Module:
    """Return a `Method` compiled, or, with one warning, `model` itself if that fails in any process.

    Called in every process of `world`. The code is made for views with the shape and the device of `example`.
    An error about the GPU's memory is raised.
    """
    reason = ""
    if world.world_size > 1:
        # Without a compiler, fail before the processes wait for one another in synchronized batch norms.
        reason = _error_of(lambda: torch.compile(nn.GELU())(torch.zeros(2, device=example.device)), world)
    if not reason:
        faster: nn.Module = torch.compile(model)  # type: ignore[assignment]
        # A process in which this fails sends no gradients: the others must not wait for them.
        with gradients_kept_apart(model, True):
            reason = _error_of(
                lambda: rehearse(model, lambda: example_loss(faster, example), example.device), world
            )
        if not reason:
            return faster
    if world.leads:
        warnings.warn(f"torch.compile failed, training goes on without it ({reason})", stacklevel=2)
    return model


def _error_of(attempt: Callable[[], object], world: World) -> str:
    """Return the error of `attempt` in the first process of `world` in which it fails, or an empty text."""
    reason = ""
    try:
        attempt()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in many ways
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return next(filter(None, world.gather(reason)), "")


def example_loss(network: nn.Module, example: Tensor) -> Tensor:
    """Return the loss of a `Method` for two views that are both equal to `example`."""
    loss: Tensor = network(example, example.clone()).loss  # one tensor twice would be compiled otherwise
    return loss


def rehearse(model: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> None:
    """Take one pass forward and backward through `model`, then undo its effects.

    Buffers, gradients and random generators are as before. What stays is code that a compiler made, and the
    buckets in which DistributedDataParallel sends gradients, which it chooses in its first pass. Sums over
    three processes or more depend on the buckets, so a resumed run must have them from its first step.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            with autocast(device):
                value = loss()
            value.backward()  # type: ignore[no-untyped-call]
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        model.zero_grad()
