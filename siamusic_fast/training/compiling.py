"""torch.compile, or not: a model that cannot be compiled trains as it is."""

import warnings

import torch
from torch import Tensor, nn

from siamusic_fast.training.losses import simsiam_loss


def compiled(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a SimSiam network compiled, or, with one warning, `model` itself where that fails.

    Code is made for views of the shape and the place of `example` in one pass forth and back, of which
    nothing stays: neither batch norm's statistics nor gradients nor random numbers drawn.
    """
    on_gpu = example.device.type == "cuda"
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    faster = torch.compile(model)
    try:
        with torch.random.fork_rng(devices=[example.device] if on_gpu else []):
            with torch.autocast(example.device.type, torch.bfloat16, enabled=on_gpu):
                loss = simsiam_loss(*faster(example, example))
            loss.backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # compilers fail in many ways
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"torch.compile failed, training goes on without it ({reason})", stacklevel=2)
        return model
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
        model.zero_grad()
    assert isinstance(faster, nn.Module)
    return faster
