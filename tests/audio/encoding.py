"""Audio files of many formats, encoded by FFmpeg through PyAV, and ways to damage them."""

import io
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import InputContainer

from tests.conftest import tone

FORMATS = {
    "mp3": ("mp3", "libmp3lame"),
    "mp2": ("mp2", "mp2"),
    "wav 8-bit": ("wav", "pcm_u8"),
    "wav 16-bit": ("wav", "pcm_s16le"),
    "wav 24-bit": ("wav", "pcm_s24le"),
    "wav 32-bit": ("wav", "pcm_s32le"),
    "wav float": ("wav", "pcm_f32le"),
    "wav double": ("wav", "pcm_f64le"),
    "wav A-law": ("wav", "pcm_alaw"),
    "wav mu-law": ("wav", "pcm_mulaw"),
    "wav ADPCM": ("wav", "adpcm_ms"),
    "wav IMA ADPCM": ("wav", "adpcm_ima_wav"),
    "wav Yamaha ADPCM": ("wav", "adpcm_yamaha"),
    "w64": ("w64", "pcm_s16le"),
    "w64 float": ("w64", "pcm_f32le"),
    "flac": ("flac", "flac"),
    "flac in ogg": ("ogg", "flac"),
    "ogg": ("ogg", "vorbis"),
    "opus": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"),
    "aac": ("adts", "aac"),
    "alac": ("ipod", "alac"),
    "wma": ("asf", "wmav2"),
    "aiff": ("aiff", "pcm_s16be"),
    "aiff float": ("aiff", "pcm_f32be"),
    "au": ("au", "pcm_s16be"),
    "au float": ("au", "pcm_f32be"),
    "caf": ("caf", "pcm_s16le"),
    "caf float": ("caf", "pcm_f32be"),
    "mov": ("mov", "pcm_s16le"),
    "mka": ("matroska", "flac"),
    "webm": ("webm", "libopus"),
    "wv": ("wv", "wavpack"),
    "tta": ("tta", "tta"),
}
"""Name -> container and encoder, as FFmpeg calls them."""


def music(seconds: float, rate: int = 48_000, channels: int = 2) -> npt.NDArray[np.float32]:
    """Return tones and noise of shape [channels, samples], the channels being alike but not equal."""
    mono = tone(seconds, 440, rate, np.random.default_rng(0))
    return np.stack([mono * (1 - 0.1 * channel) for channel in range(channels)])


def encode(name: str, audio: npt.NDArray[np.float32], rate: int = 48_000, **options: str) -> bytes:
    """Return `audio`, [channels, samples], as a file of the format `name`, one of `FORMATS`."""
    container_name, codec = FORMATS[name]
    file = io.BytesIO()
    with av.open(file, "w", format=container_name) as container:
        options = {"strict": "experimental", **options}  # FFmpeg's own encoder of Vorbis is
        stream = cast(AudioStream, container.add_stream(codec, rate=rate, options=options))
        stream.layout = "mono" if len(audio) == 1 else "stereo"
        stream.bit_rate = 192_000
        for packet in _encoded(stream, audio, rate):
            container.mux(packet)
    return file.getvalue()


def _encoded(stream: AudioStream, audio: npt.NDArray[np.float32], rate: int) -> list[Any]:
    layout = "mono" if len(audio) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio), format="fltp", layout=layout)
    frame.sample_rate = rate
    frame.time_base = Fraction(1, rate)
    frame.pts = 0
    return [*stream.encode(frame), *stream.encode(None)]


def with_video(audio: npt.NDArray[np.float32], rate: int = 48_000) -> bytes:
    """Return a Matroska file with a stream of video before that of `audio`, [1 or 2 channels, samples]."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("flac", rate=rate)
        sound.layout = "mono" if len(audio) == 1 else "stereo"
        sound.format = "s16"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        packets = [*video.encode(picture), *video.encode(None), *_encoded(sound, audio, rate)]
        for packet in packets:
            container.mux(packet)
    return file.getvalue()


def decoded_by_ffmpeg(content: bytes) -> npt.NDArray[np.float32]:
    """Return all samples of a sound file, [channels, samples], by nothing but FFmpeg."""
    resampler = av.AudioResampler(format="fltp")
    blocks: list[npt.NDArray[Any]] = []
    with av.open(io.BytesIO(content)) as container:
        for frame in cast(InputContainer, container).decode(audio=0):
            blocks += [part.to_ndarray() for part in resampler.resample(frame)]
        blocks += [part.to_ndarray() for part in resampler.resample(None)]
    return np.concatenate(blocks, axis=1)
