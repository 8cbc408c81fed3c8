"""Batch norm over the batches of all processes, on GPUs and on the CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class CpuSyncBatchNorm(_BatchNorm):
    """What `torch.nn.SyncBatchNorm` computes, on the CPU, where that refuses tensors; of differentiable sums.

    Every process must have the same number of values per channel.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        processes = torch.distributed.get_world_size()
        others = [dim for dim in range(input.dim()) if dim != 1]
        mean = _sum(input.mean(others)) / processes
        centered = input - _along_channels(mean, input)
        variance = _sum(centered.square().mean(others)) / processes
        self._track(mean.detach(), variance.detach(), input.numel() // input.size(1) * processes)
        output = centered * _along_channels((variance + self.eps).rsqrt(), input)
        if self.affine:
            output = output * _along_channels(self.weight, input) + _along_channels(self.bias, input)
        return output

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


def with_sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` with its batch norms taking their statistics over the batches of all processes."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for name, child in model.named_children():
        setattr(model, name, with_sync_batchnorm(child, device))
    if not isinstance(model, _BatchNorm):
        return model
    norm = CpuSyncBatchNorm(
        model.num_features, model.eps, model.momentum, model.affine, model.track_running_stats
    )
    for name, own in (*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)):
        setattr(norm, name, own)  # the same tensors: an optimizer may hold them
    return norm.train(model.training)


def _sum(values: Tensor) -> Tensor:
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return total


def _along_channels(values: Tensor, like: Tensor) -> Tensor:
    """Return `values` [C] in the shape that multiplies the channels of `like` [B, C, ...]."""
    return values.view(1, -1, *(1,) * (like.dim() - 2))
