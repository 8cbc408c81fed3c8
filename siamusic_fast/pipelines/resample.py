"""DALI nodes that change how many samples a wave has, and with it its rate or its pitch."""

import math

import numpy as np

from siamusic_fast.config import MelConfig
from siamusic_fast.pipelines.dali import DataNode, dmath, fn, types
from siamusic_fast.pipelines.draws import like

PITCH_QUALITY = 28
"""Of DALI's scale, where 0 is 3 lobes of the sinc filter and 50 is 16: about 6, torchaudio's default."""
RATE_QUALITY = 50

_LOBES = 16
"""Of the sinc that limits the band, on either side."""
_ROLLOFF = 0.99
"""Where it begins to fall, of the band that is kept: torchaudio's default."""


def resampled(
    wave: DataNode, scale: DataNode | float, *, lowest: float, mel: MelConfig, quality: float
) -> DataNode:
    """Return `wave`, [samples], with `scale` times as many samples; `scale` is never below `lowest`.

    DALI does not limit the band: what the fewer samples cannot hold comes back, mirrored at the upper end of
    their band. So it is filtered out before, unless it stays above the mels.
    """
    if (2 - 1 / lowest) * mel.sample_rate / 2 < mel.f_max:
        wave = _band_limited(wave, scale, lowest)
    return fn.audio_resample(wave, scale=scale, quality=quality)


def _band_limited(wave: DataNode, scale: DataNode | float, lowest: float) -> DataNode:
    """Return `wave` without what lies above `scale` of its band, if that is below 1.

    A sinc under a Hann window, as in `torchaudio.functional.resample`.
    """
    half = math.ceil(_LOBES / (_ROLLOFF * min(lowest, 1.0)))
    places = np.arange(-half, half + 1, dtype=np.float32)
    places[half] = 1e-4  # instead of 0, where sin(x) / x is not defined
    time = types.Constant(places)
    kept = min(scale, 1.0) if isinstance(scale, float) else dmath.min(scale, 1.0)
    cutoff = _ROLLOFF * kept
    window = dmath.cos(math.pi / 2 * dmath.clamp(cutoff * time / _LOBES, -1.0, 1.0))
    taps = dmath.sin(math.pi * cutoff * time) / (math.pi * time) * window * window
    row = fn.reshape(wave, shape=[1, -1], layout="HW")
    filtered = fn.filter(row, like(wave, fn.reshape(taps, shape=[1, -1])), border="constant")
    return fn.reshape(filtered, shape=[-1])
