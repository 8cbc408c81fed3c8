"""What can be said of a training before torch is imported, tracks are read and networks are built."""

from pathlib import Path

from siamusic_fast.config import FinetuneConfig, PretrainConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.models.run_checks import check_labels, check_run
from siamusic_fast.models.run_shards import shards_of_run
from siamusic_fast.pipelines.checks import check_backend, check_cache, check_crops, check_shard_length
from siamusic_fast.pipelines.recipes import check_unmixed, parse_recipe, to_recipe
from siamusic_fast.pipelines.tracks import count_tracks, open_tracks, with_label_fraction
from siamusic_fast.shards.manifest import ShardSet


def check_pretraining(config: PretrainConfig, shard_set: ShardSet, processes: int) -> None:
    """Raise ConfigError or DataError if `config` does not fit `shard_set` or so many `processes`."""
    check_backend(config.backend)
    shards = shard_set.shards(config.splits)
    check_share(sum(shard.tracks for shard in shards), processes, learns=True)
    check_crops(config.crops, config.max_distance)
    check_shard_length(shard_set, shards, config.mel)
    fewer = "" if config.window == 1 else ", or shuffle fewer shards together (--window)"
    check_cache(shard_set, shards, config.window, config.batch_size * processes, fewer)
    to_recipe(config.aug, config.mel)
    if config.init and Path(config.init).is_dir():
        check_run(Path(config.init))
    elif config.init and not Path(config.init).exists():
        raise DataError(
            f"init = {config.init!r} is neither the folder of a run nor a file: name one, or leave it out "
            f"(on the command line --init)."
        )


def check_finetuning(
    config: FinetuneConfig, run: Path, data: ShardSet | Path | str | None, processes: int
) -> ShardSet:
    """Return the shards that `run` is fine-tuned on; raise ConfigError or DataError if they do not fit."""
    check_backend(config.backend)
    parse_recipe(config.aug)
    check_unmixed(config.aug)
    check_run(run)
    shard_set = shards_of_run(run, data)
    target = config.target or shard_set.target
    check_labels(shard_set, ("training", "validation"), "a classifier", target)
    tracks = count_tracks(shard_set, ["training"], target)
    if config.label_fraction < 1:
        of_split = open_tracks(shard_set, ["training"], target=target)
        tracks = len(with_label_fraction(of_split, config.label_fraction, config.seed, target))
    crops = tracks * (config.resolved(target).crops_per_track or 1)
    check_share(crops, processes, learns=not config.freeze, kind="crops")
    return shard_set


def check_share(tracks: int, processes: int, *, learns: bool, kind: str = "tracks") -> None:
    """Raise ConfigError if a process gets none of the `tracks`, or if it `learns`, too few for batch norm.

    `kind` says what they are: tracks, or crops of them.
    """
    needed = 2 if learns else 1
    if tracks // processes < needed:
        each = f"each of {processes} processes" if processes > 1 else "the process"
        most = tracks // needed
        fewer = f"at most {most} processes (on the command line --procs {most} or --gpus {most}), or "
        raise ConfigError(
            f"{each} gets a batch of {tracks // processes} from these {tracks} {kind}"
            f"{', and batch norm needs two' if learns else ''}: use {fewer if most else ''}more tracks or "
            f"labels (on the command line --splits, --data or --label-fraction)."
        )


def share_of_batch(run: Path, before: int, batch_size: int, processes: int) -> int:
    """Return the batch size of each of `processes` that go on with a run of `before` processes.

    All together have a batch as large as before, thus the same tracks in every step. Raises ConfigError if
    that cannot be.
    """
    total = before * batch_size
    if total % processes == 0 and total // processes >= 2:
        return total // processes
    fewer = next(count for count in range(min(processes, total // 2), 0, -1) if total % count == 0)
    raise ConfigError(
        f"{run} was trained with batches of {before} x {batch_size} = {total}, which {processes} processes "
        f"cannot share evenly, two or more for each: use {fewer} (on the command line --gpus {fewer}, or "
        f"--procs {fewer} on the CPU)."
    )
