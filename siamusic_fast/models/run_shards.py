"""The shards that a run was made from."""

from pathlib import Path

from siamusic_fast.errors import DataError
from siamusic_fast.models.run_files import CONFIG, read_config
from siamusic_fast.shards.manifest import ShardSet, find_shards

_REMEDY = "name labelled shards with data (on the command line --data)"


def shards_of_run(run: Path, data: ShardSet | Path | str | None = None) -> ShardSet:
    """Return the shard set `data`; by default the one that the run or the classifier in `run` was made from.

    Raises DataError if there is no such shard set, or if that of the run has no labels.
    """
    if data is not None:
        return data if isinstance(data, ShardSet) else find_shards(data)
    try:
        recorded = str(read_config(run)["data"])
    except (OSError, ValueError, KeyError):
        raise DataError(f"{run / CONFIG} does not say what {run} was made from: {_REMEDY}.") from None
    try:
        shard_set = find_shards(recorded)
    except DataError as error:
        raise DataError(
            f"{run} was made from {recorded}, which cannot be used: {_REMEDY} ({error})"
        ) from error
    if not any(shard.labelled for shards in shard_set.splits.values() for shard in shards):
        raise DataError(f"{run} was made from {recorded}, which has no labels: {_REMEDY}.")
    return shard_set
