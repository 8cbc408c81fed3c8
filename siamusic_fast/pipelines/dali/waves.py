"""From the spans of a batch to the spectrograms of a view, in DALI: what that is fed, and its nodes."""

import numpy as np
from nvidia.dali import fn, types

from siamusic_fast.pipelines import noise
from siamusic_fast.pipelines.changes import PITCH_GRID, AddNoise, WaveChange, WaveFunction
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
from siamusic_fast.pipelines.dali.nodes import DataNode, Inputs
from siamusic_fast.pipelines.draws import Array
from siamusic_fast.pipelines.plan import Mix, Plan, TrackPlan, View

_PITCH_QUALITY = 28
"""Of DALI's scale, where 0 is 3 lobes of the sinc filter and 50 is 16: about 6, torchaudio's default."""
_RATE_QUALITY = 50


def wave_arrays(view: View, plan: Plan | TrackPlan) -> dict[str, Array]:
    """Return what the nodes of `log_mels` are fed, by name."""
    arrays: dict[str, Array] = {}
    for place, change in enumerate(view.wave):
        arrays |= {f"{place}.{name}": array for name, array in _change_arrays(change).items()}
        if isinstance(change, Mix) and view.step is not None:
            arrays[f"{place}.start"] = _int32(change.starts)
    if view.step is None or view.grid_pitch is None:
        return arrays
    mel, ratio = plan.frontend.mel, plan.frontend.mel.sample_rate / plan.rate
    scale = ratio * PITCH_GRID / view.grid_pitch
    arrays |= {"start": _int32(view.starts), "samples": _int32(view.samples)}
    arrays |= {"scale": scale.astype(np.float32)}
    if ratio == 1.0:
        arrays["shifted"] = view.grid_pitch != PITCH_GRID
    if half := low_pass_half(ratio / plan.max_pitch, mel):
        arrays["taps"] = low_pass(scale, half)
    arrays["begin"], arrays["end"] = frame_box(view.step, mel)
    return arrays


def log_mels(spans: DataNode, view: View, inputs: Inputs) -> DataNode:
    """Return the log-mels, float32 [n_mels, frames, 1], of a view of `spans`, int16 [samples].

    With tempo r and pitch k, r times as many samples are taken and resampled to 1 / k of their number: the
    pitch is right, and frame j of the result lies at frame j r / k of the spectrogram.
    """
    plan, mel = inputs.plan, inputs.mel
    wave = to_float(_cut(spans, view, inputs, inputs))
    for place, change in enumerate(view.wave):
        wave = _changed(wave, spans, view, change, inputs, inputs.of(f"{place}"))
    ratio = mel.sample_rate / plan.rate
    if view.step is None:
        return log_mel(spectrogram(_at_rate(wave, ratio, inputs), mel, power=2), plan.frontend)
    half = low_pass_half(ratio / plan.max_pitch, mel)
    taps = inputs.data("taps") if half else None
    if ratio != 1.0:
        wave = _resampled(wave, inputs.cpu("scale"), taps, _RATE_QUALITY)
    else:
        wave = _pitch_shifted(wave, inputs.cpu("shifted"), inputs.cpu("scale"), taps)
    magnitude = spectrogram(wave, mel, power=1)
    magnitude = at_frames(magnitude, inputs.cpu("begin"), inputs.cpu("end"), mel, inputs.rows)
    return log_mel(magnitude * magnitude, plan.frontend)


def _pitch_shifted(wave: DataNode, shifted: DataNode, scale: DataNode, taps: DataNode | None) -> DataNode:
    """Resample where a pitch was drawn: that is dear, even at scale 1."""
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
    half = low_pass_half(ratio, inputs.mel)
    taps = _constant(low_pass(np.array([ratio]), half)[0], inputs) if half else None
    wave = _resampled(wave, ratio, taps, _RATE_QUALITY)
    return fn.slice(wave, start=0, shape=inputs.mel.samples, axes=[0], out_of_bounds_policy="pad")


def _cut(spans: DataNode, view: View, inputs: Inputs, at: Inputs) -> DataNode:
    """Return the crops of a view that begin `at` its input start; without a tempo, spans are the crops."""
    if view.step is None:
        return spans
    return fn.slice(spans, start=at.cpu("start"), shape=inputs.cpu("samples"), axes=[0])


def _change_arrays(change: WaveChange | Mix) -> dict[str, Array]:
    if isinstance(change, Mix):
        return {"partner": _int32(change.partner), "weight": change.weight.astype(np.float32)}
    if isinstance(change, AddNoise):
        factor = (change.factor / noise.SCALE).astype(np.float32)
        return {"factor": factor, "offset": _int32(change.offset)}
    assert isinstance(change, WaveFunction)
    return dict(change.values)


def _changed(
    wave: DataNode, spans: DataNode, view: View, change: WaveChange | Mix, inputs: Inputs, at: Inputs
) -> DataNode:
    """Return `wave` changed; `at` are the inputs of the change, `inputs` those of the view."""
    if isinstance(change, Mix):
        partner = _cut(fn.permute_batch(spans, indices=at.cpu("partner")), view, inputs, at)
        return wave + at.data("weight") * (to_float(partner) - wave)
    if isinstance(change, AddNoise):
        return wave + _noise(view, inputs, at) * (fn.reductions.rms(wave) * at.data("factor"))
    assert isinstance(change, WaveFunction)
    return change.dali(wave, {name: at.data(name) for name in change.values})


def _noise(view: View, inputs: Inputs, at: Inputs) -> DataNode:
    """Return noise as long as the crops, from a table that goes on until it has the longest at any offset."""
    table = _constant(np.resize(noise.table(), noise.LENGTH + inputs.plan.max_samples), inputs)
    samples = inputs.plan.span if view.step is None else inputs.cpu("samples")
    return to_float(fn.slice(table, start=at.cpu("offset"), shape=samples, axes=[0]))


def _constant(values: Array, inputs: Inputs) -> DataNode:
    return types.Constant(values, device="gpu" if inputs.on_gpu else "cpu")


def _int32(values: Array) -> Array:
    return values.astype(np.int32)
