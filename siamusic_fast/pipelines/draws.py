"""Random draws, one per sample of a batch, that augmentations are made of.

They are CPU nodes, as DALI wants the parameters of its operators, except what is multiplied with the data.
"""

from siamusic_fast.pipelines.dali import DataNode, dmath, fn, types

Draws = dict[str, DataNode]
"""What a step of a recipe draws, by name: CPU nodes, one scalar or vector for every sample."""


def partners() -> DataNode:
    """Return for every sample the index of another one of the batch: a permutation without fixed points."""
    return fn.batch_permutation(no_fixed_points=True)


def coin(p: float) -> DataNode:
    """Draw 1 with probability `p`, else 0, int32: it serves as a condition and as a number."""
    return fn.random.coin_flip(probability=p)


def uniform(low: float, high: float) -> DataNode:
    """Draw from [low, high): DALI's own range must not be empty, this one may."""
    return low + (high - low) * fn.random.uniform(range=[0.0, 1.0])


def beta(alpha: float) -> DataNode:
    """Draw a weight from Beta(alpha, alpha)."""
    return fn.random.beta(alpha=alpha, beta=alpha)


def like(data: DataNode, number: DataNode) -> DataNode:
    """Return `number` on the device of `data`, so that the two can be multiplied."""
    return number.gpu() if data.device == "gpu" else number


def chosen(condition: DataNode, value: DataNode, otherwise: float) -> DataNode:
    """Return `value` where `condition` holds: for scalars, cheaper than an `if`."""
    on = fn.cast(condition, dtype=types.FLOAT)
    return on * value + (1.0 - on) * otherwise


def band(extent: int, most: float) -> tuple[DataNode, DataNode]:
    """Return the width, 1 to `most` of `extent`, and the start of a band that lies within `extent`."""
    width = dmath.floor(uniform(1, max(1, int(most * extent)) + 1))
    start = dmath.floor(uniform(0, 1) * (extent - width + 1))
    return width, start


def erase(image: DataNode, anchor: DataNode, shape: DataNode | list[float], axes: str = "HW") -> DataNode:
    """Set the boxes of `shape` at `anchor` along `axes` to 0; the parts of them outside the image are cut."""
    return fn.erase(image, anchor=anchor, shape=shape, axis_names=axes, fill_value=0.0)
