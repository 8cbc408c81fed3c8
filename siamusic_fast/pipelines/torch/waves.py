"""The operations before the spectrogram, on waves in units of 16 bits, float32 [rows, longest]."""

import functools

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.pipelines import noise, ops
from siamusic_fast.pipelines.plan import View
from siamusic_fast.pipelines.random_numbers import Array
from siamusic_fast.pipelines.torch.features import cleared, on_device


def changed_waves(pcm: Tensor, view: View, rows: slice) -> Tensor:
    """Return the changed waves of the `rows` of a batch, with zeros behind the end of a shorter one.

    `pcm` are the spans of the whole batch, int16 [rows, samples], because partners are among them.
    """
    samples = view.samples[rows]
    wave = _cut(pcm, np.arange(rows.start, rows.stop), view.starts[rows], samples)
    for op in view.wave:
        if isinstance(op, ops.MixWaves):
            partner = _cut(pcm, op.partner[rows], op.starts[rows], samples)
            wave = wave.lerp(partner, _column(op.weight[rows], wave))
        elif isinstance(op, ops.AddNoise):
            wave = _with_noise(wave, op, samples, rows)
        else:
            assert isinstance(op, ops.WaveFunction)
            values = {name: on_device(value[rows], wave.device) for name, value in op.values.items()}
            wave = op.torch(wave, values)
    return cleared(wave, on_device(samples, wave.device)[:, None])


def _with_noise(wave: Tensor, op: ops.AddNoise, samples: Array, rows: slice) -> Tensor:
    places = np.arange(wave.shape[1]) % noise.LENGTH
    index = on_device((op.offset[rows, None] + places) % noise.LENGTH, wave.device)
    power = wave.square().sum(dim=1, keepdim=True) / _column(samples, wave)
    factor = power.sqrt_().mul_(_column(op.factor[rows] / noise.SCALE, wave))
    return wave.addcmul_(_table(wave.device)[index], factor)


@functools.cache
def _table(device: torch.device) -> Tensor:
    return torch.from_numpy(noise.table()).to(device).float()


def _cut(pcm: Tensor, rows: Array, starts: Array, samples: Array) -> Tensor:
    """Return `samples` of each of `rows` from its start on, as float32, zeros behind the end."""
    if len(rows) == 1:
        return pcm[int(rows[0]), int(starts[0]) : int(starts[0] + samples[0])][None].float()
    if (samples == pcm.shape[1]).all():
        return pcm[on_device(rows, pcm.device)].float()
    index = torch.arange(int(samples.max()), device=pcm.device)
    lengths, first = (on_device(values, pcm.device)[:, None] for values in (samples, starts))
    where = (index + first).clamp_(max=pcm.shape[1] - 1)
    cut = pcm[on_device(rows, pcm.device)[:, None], where].float()
    return cut.mul_(index < lengths)


def _column(values: Array, like: Tensor) -> Tensor:
    return on_device(values.astype(np.float32), like.device)[:, None]
