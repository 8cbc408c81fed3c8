"""The changes before the spectrogram, on waves in units of 16 bits, float32 [rows, longest]."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siamusic_fast.pipelines import noise
from siamusic_fast.pipelines.changes import AddNoise, WaveChange, WaveFunction
from siamusic_fast.pipelines.draws import Array
from siamusic_fast.pipelines.plan import Mix, View
from siamusic_fast.pipelines.torch.features import cleared, on_device


def waves(pcm: Tensor, view: View, rows: slice) -> Tensor:
    """Return the changed waves of the `rows` of a batch, with zeros behind the end of a shorter one.

    `pcm` are the spans of the whole batch, int16 [rows, samples]: partners are among them.
    """
    wave = _cut(pcm, np.arange(rows.start, rows.stop), view.starts[rows], view.samples[rows])
    for change in view.wave:
        if isinstance(change, Mix):
            partner = _cut(pcm, change.partner[rows], change.starts[rows], view.samples[rows])
            wave = wave.lerp(partner, _column(change.weight[rows], wave))
        else:
            wave = _KINDS[type(change)](wave, change, view, rows)
    return cleared(wave, on_device(view.samples[rows], wave.device)[:, None])


def _add_noise(wave: Tensor, change: AddNoise, view: View, rows: slice) -> Tensor:
    places = np.arange(wave.shape[1]) % noise.LENGTH
    index = on_device((change.offset[rows, None] + places) % noise.LENGTH, wave.device)
    samples = on_device(view.samples[rows].astype(np.float32), wave.device)[:, None]
    power = wave.square().sum(dim=1, keepdim=True) / samples
    factor = power.sqrt_().mul_(_column(change.factor[rows] / noise.SCALE, wave))
    return wave.addcmul_(_table(wave.device)[index], factor)


def _function(wave: Tensor, change: WaveFunction, view: View, rows: slice) -> Tensor:
    values = {name: on_device(value[rows], wave.device) for name, value in change.values.items()}
    result: Tensor = change.torch(wave, values)
    return result


_KINDS: dict[type[WaveChange], Callable[[Tensor, Any, View, slice], Tensor]] = {
    AddNoise: _add_noise,
    WaveFunction: _function,
}


def _table(device: torch.device) -> Tensor:
    if device not in _tables:
        _tables[device] = torch.from_numpy(noise.table()).to(device).float()
    return _tables[device]


_tables: dict[torch.device, Tensor] = {}


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
