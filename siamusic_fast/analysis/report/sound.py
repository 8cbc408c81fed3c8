"""Audio and pictures as data URIs, small enough for hundreds of them in one page."""

import base64
import io
from collections.abc import Iterator, Sequence

import av
import numpy as np
from matplotlib import image
from numpy.typing import NDArray

from siamusic_fast.frontend import Frontend
from siamusic_fast.pipelines.plan import Spans
from siamusic_fast.pipelines.reader import Reader
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.manifest import ShardSet

BIT_RATE = 16_000
"""Bits per second of Opus: 3 s take 6 kB."""
_OPUS_RATE = 48_000


def opus(pcm: NDArray[np.int16], sample_rate: int, bit_rate: int = BIT_RATE) -> str:
    """Return `pcm`, int16 [samples], as the data URI of an Ogg Opus file."""
    file = io.BytesIO()
    frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
    frame.sample_rate = sample_rate
    resampler = av.AudioResampler(format="s16", layout="mono", rate=_OPUS_RATE)
    with av.open(file, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=_OPUS_RATE, layout="mono")
        stream.bit_rate = bit_rate
        for resampled in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(resampled))
    return data_uri("audio/ogg", file.getvalue())


def spectrogram(decibels: NDArray[np.float32], low: float, high: float) -> str:
    """Return a spectrogram in dB, [n_mels, frames], as the data URI of a PNG with a pixel per value."""
    file = io.BytesIO()
    image.imsave(file, decibels, vmin=low, vmax=high, cmap="magma", origin="lower", format="png")
    return data_uri("image/png", file.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Return `content` of the media type `kind` as a URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def clips(
    shard_set: ShardSet, split: str, names: Sequence[str], frontend: Frontend, seconds: float
) -> Iterator[NDArray[np.int16]]:
    """Yield the middle `seconds` of each of the tracks `names` of `split`, at the rate of the shards.

    A shorter track comes whole, and of a track that was packed in segments the first one is taken.
    """
    tracks = open_tracks(shard_set, [split], target=shard_set.target)
    numbers = {name: number for number, name in reversed(list(enumerate(tracks.names)))}
    reader = Reader(tracks, frontend)
    try:
        for name in names:
            number = numbers[name]
            length = int(tracks.samples[number])
            samples = min(length, round(seconds * shard_set.sample_rate))
            start = (length - samples) // 2
            span = Spans(tracks=np.array([number]), starts=np.array([start]), samples=np.array([samples]))
            clip = np.empty((1, samples), dtype=np.int16)
            reader.read(span, slice(0, 1), clip)
            yield clip[0]
    finally:
        reader.close()
