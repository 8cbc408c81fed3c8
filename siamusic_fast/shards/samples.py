"""Streams shards as plain samples through the `webdataset` library, for training loops that are not ours."""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import webdataset as wds
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander

from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.shards.manifest import Shard, ShardSet, find_shards

Handler = Callable[[Exception], bool]
"""Error handler of webdataset: raises the error, or returns whether to continue."""

_URL = re.compile(r"^[\w+]+:|\.(?:tar|tgz|tar\.\w+)$")
"""Recognizes URLs and paths of tars, with or without braces."""
_AUDIO = ("wav", "flac", "ogg", "opus", "mp3")
"""Endings of audio members."""
_EXACT = ("PCM_16", "VORBIS")
"""Encodings that libsndfile decodes to 16 bits itself, as our loaders read them."""
_CHUNK = 1 << 20


def samples(
    data: ShardSet | str | Path,
    *,
    split: str | None = None,
    shuffle: int = 0,
    shuffle_shards: bool = False,
    seed: int = 0,
    handler: Handler = wds.reraise_exception,
) -> wds.FluidWrapper:
    """Iterate over the samples of a shard set, or of any WebDataset tars, as (key, pcm, label, about).

    - key: name of the sample in its shard, str.
    - pcm: mono audio, int16 [samples]. Channels are averaged; the sample rate is that of the file.
    - label: class of the sample from KEY.cls, int, or None if it has none.
    - about: the JSON object of KEY.json, or an empty dict, always with the `sample_rate` of `pcm` in Hz.

    `data` is a shard set of ours (a `ShardSet`, its folder, or its name) or a URL pattern of webdataset, such
    as `path/shard-{000000..000009}.tar`, `https://...` or `pipe:COMMAND`. `split` chooses a split of a shard
    set; None reads all of them.

    `shuffle` is the number of samples in the shuffle buffer; 0 keeps the order of the shards.
    `shuffle_shards` draws the order of the shards anew in each epoch. `seed` is the seed of both. Each
    iteration is another epoch; workers of a `DataLoader` need `persistent_workers=True` for that, or another
    seed in each epoch.

    `handler` decides what happens on an error: `webdataset.reraise_exception`, `warn_and_continue`,
    `ignore_and_continue`, `warn_and_stop` or `ignore_and_stop`.

    The result is a `webdataset` pipeline, a torch `IterableDataset` that has `map`, `batched`, `with_epoch`
    and so on. Shards are divided among the processes of a distributed job and among the workers of a
    `DataLoader`, so there should be at least as many shards as processes times workers. Checksums are not
    compared: `verify` does that. Raises `DataError` if there is no such shard set or split, and `ConfigError`
    for `split` with a URL.
    """
    urls, opened = _urls(data, split)
    stages: list[Any] = [wds.split_by_node, wds.split_by_worker]
    if shuffle_shards:
        stages.insert(0, wds.detshuffle(len(urls), len(urls), seed))
    stages += [
        partial(_open_urls, opened=opened, handler=handler),
        partial(tar_file_expander, handler=handler),
        partial(group_by_keys, handler=handler),
    ]
    if shuffle:
        stages.append(wds.detshuffle(shuffle, shuffle, seed))
    return wds.FluidWrapper(wds.SimpleShardList(urls)).compose(*stages).map(_decoded, handler=handler)


def _urls(data: ShardSet | str | Path, split: str | None) -> tuple[list[str], Callable[[str], Any]]:
    """Return the names of the tars, and what opens one."""
    if not isinstance(data, ShardSet) and _URL.search(str(data)):
        if split is not None:
            raise ConfigError(
                f"split = {split!r} needs a shard set, and {str(data)!r} names tars: leave it out."
            )
        return list(expand_urls(str(data))), wds.gopen
    shard_set = data if isinstance(data, ShardSet) else find_shards(data)
    shards = shard_set.shards(list(shard_set.splits) if split is None else [split])
    if shard_set.url:
        tars = {str(shard_set.shown(shard.file)): shard for shard in shards}
        return list(tars), partial(_open_remote, shard_set, tars)
    # An absolute path is never taken for a URL.
    return [str(shard_set.path(shard.file).absolute()) for shard in shards], wds.gopen


def _open_remote(shard_set: ShardSet, tars: dict[str, Shard], name: str) -> FileIO:
    return shard_set.open_tar(tars[name])


def _open_urls(
    sources: Iterable[dict[str, str]], opened: Callable[[str], Any], handler: Handler
) -> Iterator[dict[str, Any]]:
    """Open the tars one after the other, and close each, which webdataset itself leaves to Python."""
    for source in sources:
        try:
            stream = opened(source["url"])
            try:
                yield {"url": source["url"], "stream": stream}
                while stream.read(_CHUNK):  # a command that cannot write its last bytes would fail
                    pass
            except GeneratorExit:
                with suppress(OSError):
                    stream.close()
                raise
            stream.close()
        except Exception as error:
            if not handler(error):
                break


def _decoded(sample: dict[str, Any]) -> tuple[str, npt.NDArray[np.int16], int | None, dict[str, Any]]:
    key, url = sample["__key__"], sample["__url__"]
    audio = next((name for name in sample if name.rpartition(".")[2] in _AUDIO), None)
    if audio is None:
        raise DataError(
            f"sample {key} of {url} has no audio: one of its files must end in {', '.join(_AUDIO)}."
        )
    try:
        pcm, sample_rate = _mono(sample[audio])
        about = json.loads(sample.get("json", b"{}"))
        label = int(sample.get("cls", b"-1"))
    except (soundfile.LibsndfileError, ValueError) as error:
        raise DataError(
            f"sample {key} of {url} cannot be decoded ({error}): "
            f"handler=webdataset.warn_and_continue skips such samples."
        ) from error
    about = about if isinstance(about, dict) else {}
    return key, pcm, label if label >= 0 else None, about | {"sample_rate": sample_rate}


def _mono(content: bytes) -> tuple[npt.NDArray[np.int16], int]:
    """Return the audio of a file as mono samples, and its sample rate."""
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        if file.channels == 1 and file.subtype in _EXACT:
            return file.read(dtype="int16"), file.samplerate
        audio = file.read(dtype="float32", always_2d=True).mean(axis=1)
        if not np.isfinite(audio).all():
            raise ValueError("it holds NaN or infinity")
        return np.rint(audio * 32_768).clip(-32_768, 32_767).astype(np.int16), file.samplerate
