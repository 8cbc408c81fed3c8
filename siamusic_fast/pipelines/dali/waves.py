"""From the spans of a batch to the spectrograms of a view, as DALI nodes."""

import numpy as np
from nvidia.dali import fn, types

from siamusic_fast.pipelines import noise, ops
from siamusic_fast.pipelines.dali.features import (
    at_frames,
    filtered,
    frame_box,
    log_mel,
    low_pass,
    low_pass_half,
    spectrogram,
    to_float,
)
from siamusic_fast.pipelines.dali.inputs import DataNode, Inputs
from siamusic_fast.pipelines.ops import PITCH_GRID
from siamusic_fast.pipelines.plan import Plan, TrackPlan, View
from siamusic_fast.pipelines.random_numbers import Array

_PITCH_QUALITY = 28
"""About 6 lobes of the sinc filter, torchaudio's default. On DALI's scale, 0 is 3 lobes and 50 is 16."""
_RATE_QUALITY = 50


def log_mels(spans: DataNode, view: View, inputs: Inputs) -> DataNode:
    """Return the log-mels, float32 [n_mels, frames, 1], of a view of `spans`, int16 [samples].

    With tempo r and pitch k, r times as many samples are taken and resampled to 1 / k of their number: the
    pitch is right, and frame j of the result lies at frame j r / k of the spectrogram.
    """
    plan, mel = inputs.plan, inputs.plan.frontend.mel
    ratio = mel.sample_rate / plan.rate
    samples = None if view.stretch is None else inputs.attribute("samples", np.int32)
    wave = to_float(_cut(spans, samples, inputs))
    for index, op in enumerate(view.wave):
        wave = _changed(wave, op, spans, samples, inputs.of_op("wave", index))
    if samples is None:
        return log_mel(spectrogram(_at_rate(wave, ratio, inputs), mel, power=2), plan.frontend)
    half = low_pass_half(ratio / plan.max_pitch, mel)
    taps = inputs.data(_taps) if half else None
    scale = inputs.cpu(_scale)
    if ratio != 1.0:
        wave = _resampled(wave, scale, taps, _RATE_QUALITY)
    else:
        wave = _pitch_shifted(wave, inputs.cpu(_is_shifted), scale, taps)
    begin, end = inputs.several(_frame_box, 2)
    magnitude = at_frames(spectrogram(wave, mel, power=1), begin, end, mel, inputs.batch_size)
    return log_mel(magnitude * magnitude, plan.frontend)


def _scale(view: View, plan: Plan | TrackPlan) -> Array:
    return _exact_scale(view, plan).astype(np.float32)


def _exact_scale(view: View, plan: Plan | TrackPlan) -> Array:
    return np.asarray(plan.frontend.mel.sample_rate / plan.rate * PITCH_GRID / np.asarray(view.grid_pitch))


def _taps(view: View, plan: Plan | TrackPlan) -> Array:
    mel = plan.frontend.mel
    half = low_pass_half(mel.sample_rate / plan.rate / plan.max_pitch, mel)
    return low_pass(_exact_scale(view, plan), half)


def _is_shifted(view: View, plan: Plan | TrackPlan) -> Array:
    return np.asarray(np.asarray(view.grid_pitch) != PITCH_GRID)


def _frame_box(view: View, plan: Plan | TrackPlan) -> tuple[Array, Array]:
    return frame_box(np.asarray(view.stretch), plan.frontend.mel)


def _pitch_shifted(wave: DataNode, shifted: DataNode, scale: DataNode, taps: DataNode | None) -> DataNode:
    """Resample only where a pitch was drawn: resampling is slow, even at scale 1."""
    if shifted:
        wave = _resampled(wave, scale, taps, _PITCH_QUALITY)
    return wave


def _resampled(wave: DataNode, scale: DataNode | float, taps: DataNode | None, quality: float) -> DataNode:
    """Return `wave` with `scale` times as many samples; DALI does not limit the band, so `taps` do."""
    if taps is not None:
        wave = filtered(wave, taps)
    return fn.audio_resample(wave, scale=scale, quality=quality)


def _at_rate(wave: DataNode, ratio: float, inputs: Inputs) -> DataNode:
    """Return `wave`, as long as a crop, at the sample rate of the features."""
    if ratio == 1.0:
        return wave
    mel = inputs.plan.frontend.mel
    half = low_pass_half(ratio, mel)
    taps = _constant(low_pass(np.array([ratio]), half)[0], inputs) if half else None
    wave = _resampled(wave, ratio, taps, _RATE_QUALITY)
    return fn.slice(wave, start=0, shape=mel.samples, axes=[0], out_of_bounds_policy="pad")


def _cut(spans: DataNode, samples: DataNode | None, inputs: Inputs) -> DataNode:
    """Return the crops that begin at the `starts` of a view or a mix; without a tempo, the spans."""
    if samples is None:
        return spans
    return fn.slice(spans, start=inputs.attribute("starts", np.int32), shape=samples, axes=[0])


def _changed(
    wave: DataNode, op: ops.WaveOp, spans: DataNode, samples: DataNode | None, inputs: Inputs
) -> DataNode:
    """Return `wave` after `op`, whose `inputs` these are."""
    if isinstance(op, ops.MixWaves):
        partner = _cut(
            fn.permute_batch(spans, indices=inputs.attribute("partner", np.int32)), samples, inputs
        )
        return wave + inputs.on_device(inputs.attribute("weight", np.float32)) * (to_float(partner) - wave)
    if isinstance(op, ops.AddNoise):
        return wave + _noise(samples, inputs) * (fn.reductions.rms(wave) * inputs.data(_noise_factor))
    assert isinstance(op, ops.WaveFunction)
    return op.dali(wave, inputs.values(list(op.values)))


def _noise_factor(op: ops.AddNoise, plan: Plan | TrackPlan) -> Array:
    return (op.factor / noise.SCALE).astype(np.float32)


def _noise(samples: DataNode | None, inputs: Inputs) -> DataNode:
    """Return noise as long as the crops, from a table that is repeated to serve any offset."""
    table = _constant(np.resize(noise.table(), noise.LENGTH + inputs.plan.max_samples), inputs)
    shape = inputs.plan.crop_samples if samples is None else samples
    return to_float(fn.slice(table, start=inputs.attribute("offset", np.int32), shape=shape, axes=[0]))


def _constant(values: Array, inputs: Inputs) -> DataNode:
    return types.Constant(values, device="gpu" if inputs.on_gpu else "cpu")
