import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from siamusic_fast.audio.decode import REASONS, AudioError, DecodeConfig, Decoded, decode, decode_file
from siamusic_fast.audio.pcm import MAX_SAMPLES, to_int16
from siamusic_fast.audio.store import open_store
from siamusic_fast.shards.codec import wav_header


def write_wav(path: Path, audio: np.ndarray, sample_rate: int, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, audio, sample_rate, format="WAV", subtype=subtype)
    return path


def decoded(path: Path, min_seconds: float = 1.0, **demands: float) -> Decoded:
    asked = DecodeConfig(min_seconds=min_seconds, **demands)  # type: ignore[arg-type]
    return decode_file(open_store(path.parent), path.name, asked)


def test_channels_are_averaged(tmp_path: Path) -> None:
    audio = np.random.default_rng(0).uniform(-1, 1, (1000, 3)).astype(np.float32)
    path = write_wav(tmp_path / "a.wav", audio, 22_050)
    np.testing.assert_allclose(decode(path, 22_050), audio.mean(axis=1), atol=1e-7)


def test_a_resampled_sine_keeps_its_frequency_and_level(tmp_path: Path) -> None:
    sine = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(88_200) / 44_100)
    decoded = decode(write_wav(tmp_path / "a.wav", sine, 44_100), 22_050)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(44_100) / 22_050)
    assert decoded.dtype == np.float32
    assert decoded.shape == (44_100,)
    np.testing.assert_allclose(decoded[500:-500], expected[500:-500], atol=1e-4)


def test_16_bits_are_rounded_half_to_even_and_clipped() -> None:
    audio = np.array([0, 0.5, -1, 1, 1.19, -7, 1.5 / 32_768, 2.5 / 32_768, -0.6 / 32_768], np.float32)
    expected = [0, 16_384, -32_768, 32_767, 32_767, -32_768, 2, 2, -1]
    samples, clipped = to_int16(audio)
    assert samples.tolist() == expected
    assert clipped.tolist() == [3, 4, 5]


def test_16_bit_audio_comes_back_bit_for_bit(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).integers(-32_768, 32_768, 22_050).astype(np.int16)
    path = write_wav(tmp_path / "a.wav", pcm, 22_050, "PCM_16")
    np.testing.assert_array_equal(decoded(path).pcm.samples, pcm)


def test_a_track_of_exactly_the_shortest_length_is_kept(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.full(8000, 0.1), 8000)
    assert len(decoded(path, sample_rate=8000).pcm.samples) == 8000
    with pytest.raises(AudioError, match="too-short") as caught:
        decoded(path, sample_rate=8000, min_seconds=1.001)
    assert caught.value.reason == "too-short"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "missing"),
        (b"", "empty"),
        (b"<!DOCTYPE html>", "not-audio"),
        (b"\xff\xfb\x90\x00" + bytes(50), "not-audio"),
    ],
)
def test_what_is_no_audio_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.mp3"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AudioError) as caught:
        decode(path, 22_050)
    assert caught.value.reason == reason
    assert reason in REASONS


def encoded(kind: str, seconds: float) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * 22_050))
    soundfile.write(file, noise, 22_050, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC", "MP3", "AU", "W64", "CAF", "RF64"])
def test_a_cut_file_is_truncated_only_if_too_little_is_left(tmp_path: Path, kind: str) -> None:
    content = encoded(kind, 9)
    path = tmp_path / "a"
    path.write_bytes(content[: len(content) * 2 // 3])
    assert 5 <= decoded(path, 5.0).seconds < 7
    assert decoded(path, 5.0).seconds_promised == pytest.approx(9, abs=0.1)
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(AudioError, match=r"s left of 9\.\d\d s, at least 5 s needed") as caught:
        decoded(path, 5.0)
    assert caught.value.reason == "truncated"
    with pytest.raises(AudioError, match="at least 10 s needed") as caught:
        decoded(path, 10.0)
    assert caught.value.reason == "too-short"


def test_a_wav_of_unknown_length_is_not_truncated(tmp_path: Path) -> None:
    content = bytearray(encoded("WAV", 2))
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # what a writer to a pipe leaves
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(AudioError) as caught:
        decoded(tmp_path / "a", 5.0)
    assert caught.value.reason == "too-short"


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("rate", [22_050, 44_100])
def test_one_value_out_of_range_spoils_a_track(tmp_path: Path, rate: int, value: float) -> None:
    audio = np.full((50_000, 2), 0.1, np.float32)
    audio[20_000:20_002] = value
    with pytest.raises(AudioError, match="non-finite"):
        decoded(write_wav(tmp_path / "a.wav", audio, rate))


@pytest.mark.parametrize("rate", [1, 2_000_000])
def test_an_absurd_sample_rate_is_refused_before_it_is_resampled(tmp_path: Path, rate: int) -> None:
    path = write_wav(tmp_path / "a.wav", np.full(50_000, 0.1), rate)
    with pytest.raises(AudioError, match=f"not-audio.*sample rate of {rate} Hz"):
        decoded(path)


def promising(samples: int) -> bytes:
    """Return a FLAC of one second at 22,050 Hz whose header promises `samples`, in the last 36 bits before
    the checksum of the audio: RFC 9639, section 8.2.
    """
    content = bytearray(encoded("FLAC", 1))
    content[21] = content[21] & 0xF0 | samples >> 32
    content[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("samples", [22_050 * 3600 * 13, 2**36 - 1])
def test_a_length_beyond_max_hours_is_not_believed_and_written_down(tmp_path: Path, samples: int) -> None:
    (tmp_path / "a").write_bytes(promising(samples))
    found = decoded(tmp_path / "a")
    assert len(found.pcm.samples) == 22_050
    assert found.seconds_promised == pytest.approx(samples / 22_050)


def test_the_longest_track_fits_into_a_wav_file() -> None:
    assert int.from_bytes(wav_header(MAX_SAMPLES, 22_050)[40:], "little") == 2 * MAX_SAMPLES


def test_a_folder_and_a_link_to_itself_are_missing_files(tmp_path: Path) -> None:
    loop = tmp_path / "loop.mp3"
    loop.symlink_to(loop)
    for path in (tmp_path, loop):
        with pytest.raises(AudioError, match="missing"):
            decode(path, 22_050)
