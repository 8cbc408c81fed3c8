"""Small DALI pipelines around one function, fed with given arrays: how the tests look inside a graph."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def

Array = NDArray[Any]


def run(
    function: Callable[[Any], Any], batch: list[Array], *, layout: str | None = None, seed: int = 0
) -> list[Array]:
    """Return `function` of every array of the `batch`, computed by DALI on the CPU."""

    @pipeline_def(
        batch_size=len(batch),
        num_threads=2,
        device_id=None,
        seed=seed,
        enable_conditionals=True,
        prefetch_queue_depth=1,
    )
    def graph() -> Any:
        return function(
            fn.external_source(source=lambda: [np.ascontiguousarray(array) for array in batch], layout=layout)
        )

    (output,) = graph().run()
    return [np.array(output[index]) for index in range(len(output))]
