"""torch.compile, or not: a model that cannot be compiled trains as it is."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from siamusic_fast.models.losses import simsiam_loss
from siamusic_fast.models.precision import autocast
from siamusic_fast.processes.world import World, gradients_kept_apart


def compiled(model: nn.Module, example: Tensor, world: World) -> nn.Module:
    """Return a SimSiam network compiled, or, with one warning, `model` itself where that fails.

    Called in every process of `world`: if it fails in one, none goes on with it. Code is made for views of
    the shape and the place of `example`. Raises torch.OutOfMemoryError as it comes.
    """
    reason = _failure(lambda: _compile_a_trifle(example.device), world) if world.world_size > 1 else ""
    if not reason:
        faster: nn.Module = torch.compile(model)  # type: ignore[assignment]
        reason = _failure(lambda: _compile_here(model, faster, example), world)
        if not reason:
            return faster
    if world.leads:
        warnings.warn(f"torch.compile failed, training goes on without it ({reason})", stacklevel=2)
    return model


def _failure(attempt: Callable[[], None], world: World) -> str:
    """Return why `attempt` failed in a process of `world`, the first of several; empty if in none."""
    reason = ""
    try:
        attempt()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in many ways
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return next(filter(None, world.gather(reason)), "")


def _compile_a_trifle(device: torch.device) -> None:
    """Find out whether there is a compiler, before processes meet in the batch norms of a network."""
    torch.compile(nn.GELU())(torch.zeros(2, device=device))


def _compile_here(model: nn.Module, faster: nn.Module, example: Tensor) -> None:
    # A process that fails does not meet the others: they must not wait for its gradients.
    with gradients_kept_apart(model, True):
        rehearse(model, example, through=faster)


def rehearse(model: nn.Module, example: Tensor, through: nn.Module | None = None) -> None:
    """Take one pass forth and back on `example`, `through` the compiled `model` or itself, without a trace.

    Neither batch norm's statistics nor gradients nor random numbers drawn stay. What does is the code that a
    compiler made, and how DistributedDataParallel bundles gradients: it finds that out in its first pass.
    Sums over three processes and more depend on it, so a run that goes on must have it from the start.
    """
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    on_gpu = example.device.type == "cuda"
    network = model if through is None else through
    try:
        with torch.random.fork_rng(devices=[example.device] if on_gpu else []):
            with autocast(example.device):
                loss = simsiam_loss(*network(example, example.clone()))  # one tensor would be another graph
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
        model.zero_grad()
