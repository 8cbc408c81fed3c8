"""torch.compile, or not: a model that cannot be compiled trains as it is."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from siamusic_fast.training.job import Job, gradients_kept_apart
from siamusic_fast.training.losses import simsiam_loss
from siamusic_fast.training.precision import autocast


def compiled(model: nn.Module, example: Tensor, job: Job) -> nn.Module:
    """Return a SimSiam network compiled, or, with one warning, `model` itself where that fails.

    Called in every process of `job`: if it fails in one, none goes on with it. Code is made for views of the
    shape and the place of `example`. Raises torch.OutOfMemoryError as it comes.
    """
    faster: nn.Module = torch.compile(model)  # type: ignore[assignment]
    reason = ""
    try:
        # A process that fails does not meet the others: they must wait for none of its gradients or buffers.
        if isinstance(model, DistributedDataParallel):
            model.require_forward_param_sync = False  # until the next pass
        with gradients_kept_apart(model, True):
            rehearse(model, example, through=faster)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in many ways
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if not any(job.highest(bool(reason))):
        return faster
    reasons = [reason for reason in job.gather(reason) if reason]
    if job.leads:
        warnings.warn(f"torch.compile failed, training goes on without it ({reasons[0]})", stacklevel=2)
    return model


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
                loss = simsiam_loss(*network(example, example))
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
        model.zero_grad()
