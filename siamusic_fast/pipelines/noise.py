"""A table of white Gaussian noise that both engines read from, so that neither has a generator of its own."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

LENGTH = 1 << 17
"""Values, about 6 s at 22,050 Hz. On a GPU, DALI keeps a copy for each row of a batch, longer by a crop: of
256 rows and crops of 5 s, 118 MiB for each view."""
SCALE = 4096
"""Values are multiples of 1 / SCALE, kept as int16: 8 standard deviations fit."""


@functools.cache
def table() -> NDArray[Any]:
    """Return the noise, int16 [LENGTH]; a longer stretch of noise repeats it."""
    values = np.random.default_rng(0).standard_normal(LENGTH)
    return np.rint(values * SCALE).astype(np.int16)
