"""Every format gives what FFmpeg itself gives, and nothing but audio is opened."""

import errno
import io
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from siamusic_fast.audio.decode import AudioError, DecodeConfig, decode, decode_file
from siamusic_fast.audio.ffmpeg import AudioFile
from siamusic_fast.audio.folder import load_folder
from siamusic_fast.audio.store import open_store
from siamusic_fast.shards.pack import PackConfig, pack
from tests.audio.encoding import FORMATS, decoded_by_ffmpeg, encode, music, with_video
from tests.shards.memory import peak_memory

RATE = 48_000
LATE = {"mp2": 481, "aac": 1024, "wma": -2048}
"""Samples by which a format without gapless information starts late, or early: the delay of its encoder."""


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_samples_that_ffmpeg_gives(tmp_path: Path, name: str) -> None:
    audio = music(2, RATE)
    content = encode(name, audio, RATE)
    (tmp_path / "a").write_bytes(content)
    found = decode(tmp_path / "a", RATE)
    np.testing.assert_allclose(found, decoded_by_ffmpeg(content).mean(axis=0), atol=1e-6)
    assert len(found) == pytest.approx(2 * RATE, abs=2500)
    late = LATE.get(name, 0)
    found, mean = found[max(0, late) :], audio.mean(axis=0)[max(0, -late) :]
    found, mean = found[: len(mean)], mean[: len(found)]
    assert np.corrcoef(found, mean)[0, 1] > 0.99
    assert np.dot(found, mean) / np.dot(mean, mean) == pytest.approx(1, abs=0.04)


def test_the_first_audio_stream_of_a_video_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(with_video(music(2, RATE)))
    assert len(decode(tmp_path / "a.mkv", RATE)) == 2 * RATE


@pytest.mark.parametrize("seconds", [1.0, 1.2345])
def test_the_delay_and_padding_that_an_mp3_states_are_cut(tmp_path: Path, seconds: float) -> None:
    audio = music(seconds, 44_100)
    (tmp_path / "a.mp3").write_bytes(encode("mp3", audio, 44_100))
    found = decode_file(open_store(tmp_path), "a.mp3", DecodeConfig(sample_rate=44_100, min_seconds=0))
    assert len(found.pcm.samples) == audio.shape[1]
    assert found.seconds_promised == pytest.approx(seconds, abs=1e-4)


def test_chained_ogg_files_are_decoded_to_the_end(tmp_path: Path) -> None:
    for name, rate in (("a.ogg", 22_050), ("b.ogg", 22_050), ("c.ogg", 44_100)):
        soundfile.write(tmp_path / name, music(2, rate).T, rate, format="OGG")
    chain = b"".join((tmp_path / name).read_bytes() for name in ("a.ogg", "b.ogg", "c.ogg"))
    (tmp_path / "chain.ogg").write_bytes(chain)
    assert len(decode(tmp_path / "chain.ogg", 22_050)) == pytest.approx(6 * 22_050, abs=2500)


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile '{path}'\n",
        "ffconcat version 1.0\nfile 'file:{path}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXTINF:9,\n{path}\n",
        "[playlist]\nFile1={path}\nNumberOfEntries=1\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
        '<?xml version="1.0"?><MPD type="static"><Period><AdaptationSet><Representation>'
        "<BaseURL>{path}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    ],
)
@pytest.mark.parametrize("ending", ["mp3", "m3u8", "ffconcat"])
def test_a_file_that_names_another_opens_nothing(tmp_path: Path, script: str, ending: str) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(encode("wav 16-bit", music(2)))
    path = tmp_path / f"a.{ending}"
    path.write_text(script.format(path=secret))
    with pytest.raises(AudioError, match="not-audio"):
        decode(path, 22_050)


@pytest.mark.parametrize("max_seconds", [pytest.param(None, marks=pytest.mark.slow), 30.0])
def test_memory_grows_with_a_long_file_by_its_16_bit_result_and_not_even_that_if_it_is_cut(
    tmp_path: Path, max_seconds: float | None
) -> None:
    (tmp_path / "audio").mkdir()
    peaks = []
    for hours in (1, 2):
        write_long(tmp_path / "audio" / "long.flac", hours)
        config = PackConfig(sample_rate=8000, min_seconds=1, max_seconds=max_seconds)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
            pack(load_folder(tmp_path / "audio"), tmp_path / str(hours), config, executor=executor)
            peaks.append(executor.submit(peak_memory).result())
    result = 3600 * 8000 * 2 / 2**20
    assert peaks[1] - peaks[0] < (1.2 * result if max_seconds is None else 0.3 * result)


def write_long(path: Path, hours: int) -> None:
    """Write clicks that compress to little: at 8 kHz, an hour of 16-bit samples has 55 MiB."""
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        block = np.zeros(8000 * 600, np.int16)
        block[::1000] = 5000
        for _ in range(6 * hours):
            file.write(block)


class FailingFile(io.BytesIO):
    """A file on a disk that fails behind its first half."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > len(self.getvalue()) // 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


@pytest.mark.parametrize("name", ["mp3", "flac", "wav 16-bit", "opus"])
def test_a_disk_that_fails_is_not_taken_for_the_end_of_a_file(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content = encode(name, music(20))
    with pytest.raises(OSError, match="Input/output error"), AudioFile(FailingFile(content)) as audio:
        list(audio.blocks())
    assert capfd.readouterr() == ("", "")


def test_a_header_that_sends_the_reader_anywhere_is_passed_over_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = encode("caf", music(2))
    place = content.index(b"data") + 4
    (tmp_path / "a").write_bytes(content[:place] + (2**62).to_bytes(8, "big") + content[place + 8 :])
    assert len(decode(tmp_path / "a", 48_000)) == 2 * 48_000
    assert capfd.readouterr() == ("", "")


def test_damage_writes_nothing_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = encode("mp3", music(4, 44_100), 44_100)
    (tmp_path / "a").write_bytes(content[:9000] + bytes(9000) + content[18_000:])
    assert len(decode(tmp_path / "a", 44_100))
    assert capfd.readouterr() == ("", "")
