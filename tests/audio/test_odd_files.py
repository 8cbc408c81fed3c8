"""The table "Odd files" of docs/shards.md: what becomes of files that are not as they should be."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from siamusic_fast.audio import decode as decode_module
from siamusic_fast.audio.decode import AudioError, DecodeConfig, Decoded, decode_file
from siamusic_fast.audio.downmix import Downmix
from siamusic_fast.audio.folder import load_folder
from siamusic_fast.audio.store import open_store
from siamusic_fast.shards.codec import Encoding
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.tables import read_rejects, read_tracks
from tests.audio.encoding import encode, music
from tests.shards.killing import Serial

RATE = 22_050
MP3 = encode("mp3", music(8, 44_100), 44_100)
FLAC = encode("flac", music(8, RATE), RATE)
OGG = encode("opus", music(8))


def judged(tmp_path: Path, content: bytes, **demands: float) -> Decoded:
    (tmp_path / "a").write_bytes(content)
    asked = DecodeConfig(min_seconds=1, **demands)  # type: ignore[arg-type]
    return decode_file(open_store(tmp_path), "a", asked)


def wav(audio: npt.NDArray[np.float32], subtype: str = "FLOAT", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio.T, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def with_sizes(content: bytes, riff: int, data: int) -> bytes:
    """Return a WAV file with the sizes that a writer leaves which did not finish."""
    place = content.index(b"data") + 4
    changed = content[:4] + riff.to_bytes(4, "little") + content[8:place] + data.to_bytes(4, "little")
    return changed + content[place + 4 :]


def frames_of_mp3(content: bytes) -> list[int]:
    """Return where the frames begin, which all have the same first bytes and are 300 bytes long or more."""
    head = content[content.index(b"\xff\xfb") :][:3]
    places, place = [], content.find(head[:2])
    while place >= 0:
        places.append(place)
        place = content.find(head[:2], place + 300)
    return places


def one_byte_of_a_header_flipped(content: bytes) -> bytes:
    place = frames_of_mp3(content)[150]
    return content[:place] + b"\x00" + content[place + 1 :]


def samples_unknown(content: bytes) -> bytes:
    """Return a FLAC file as a pipe leaves it: with 0 samples, in 36 bits before the checksum of the audio."""
    return content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:]


PCM = wav(music(8, RATE), "PCM_16")
AIFF, AU = encode("aiff", music(8)), encode("au", music(8))

WHOLE: dict[str, tuple[Callable[[], bytes], float]] = {
    "GSM WAV": (lambda: wav(music(8, 8000, 1), "GSM610", 8000), 8),
    "ADPCM WAV": (lambda: wav(music(8, RATE, 1), "IMA_ADPCM"), 8),
    "FLAC of unknown length": (lambda: samples_unknown(FLAC), 8),
    "FLAC in Ogg": (lambda: encode("flac in ogg", music(8)), 8),
    "WAV with data size 0": (lambda: with_sizes(wav(music(8, RATE), "PCM_16"), 0, 0), 8),
    "WAV of unknown size": (lambda: with_sizes(wav(music(8, RATE), "PCM_16"), 2**32 - 1, 2**32 - 1), 8),
    "two MP3s joined": (lambda: MP3 + MP3, 16.05),
    "two MP3s of other rates joined": (lambda: MP3 + encode("mp3", music(8, RATE), RATE), 16.05),
    "two FLACs joined": (lambda: FLAC + FLAC, 16),
    "chained Opus": (lambda: OGG + encode("opus", music(8, 48_000, 1)), 16),
    "a zero byte before an MP3": (lambda: b"\0" + MP3, 8.05),
    "zeros before an MP3": (lambda: bytes(5000) + MP3, 8.05),
    "100,000 zeros before an MP3": (lambda: bytes(100_000) + MP3, 8.05),
    "a zero byte before a FLAC": (lambda: b"\0" + FLAC, 8),
    "a zero byte before an Opus": (lambda: b"\0" + OGG, 8),
    "a zero byte before an AIFF": (lambda: b"\0" + encode("aiff", music(8)), 8),
    "words before a WAV": (lambda: b"HTTP/1.1 200 OK\n\n" + wav(music(8, RATE)), 8),
    "a WAV of a size near 2 GB": (lambda: with_sizes(wav(music(8, RATE)), 2**31 - 16, 2**31 - 60), 8),
    "a tag before and after an MP3": (lambda: id3(3000) + MP3 + b"TAG" + bytes(125), 8),
    "a tag between two MP3s": (lambda: MP3 + id3(3000) + MP3, 16.05),
    "zeros after a FLAC": (lambda: FLAC + bytes(5000), 8),
    "8 channels": (lambda: wav(music(8, RATE, 8)), 8),
    "100,000 zeros before a FLAC": (lambda: bytes(100_000) + FLAC, 8),
    "a zero byte before an M4A": (lambda: b"\0" + encode("m4a", music(8)), 8),
    "an ID3 tag of an impossible size": (lambda: b"ID3\x03\0\0" + b"\x7f" * 4 + bytes(3000) + MP3, 8.05),
    "an APE tag before an MP3": (lambda: ape_tag() + MP3, 8.05),
    "ID3v2.4 with a footer before an MP3": (lambda: id3_with_footer(3000) + MP3, 8.05),
    "MP3s of one and two channels joined": (lambda: encode("mp3", music(8, 44_100, 1), 44_100) + MP3, 16.05),
    "a WAV with an odd chunk and no padding": (lambda: with_chunk(b"junk\5\0\0\0abcde"), 8),
    "a WAV with an odd chunk and padding": (lambda: with_chunk(b"LIST\5\0\0\0INFOx\0"), 8),
    "a WAV with a picture behind it": (lambda: PCM + b"id3 \0\0\4\0" + bytes(0x40000), 8),
    "a WAV without RIFF": (lambda: b"RIFG" + PCM[4:], 8),
    "a FLAC without its signature": (lambda: b"fLaX" + FLAC[4:], 8),
    "an AIFF whose sizes were not written": (lambda: without_size(without_size(AIFF, b"FORM"), b"SSND"), 8),
    "an AU whose size was not written": (lambda: AU[:8] + bytes(4) + AU[12:], 8),
}


def ape_tag() -> bytes:
    """Return an APEv2 tag of one item, with a header and a footer."""
    item = struct.pack("<II", 5, 0) + b"Title\0hello"
    head, foot = (
        b"APETAGEX" + struct.pack("<IIII", 2000, len(item) + 32, 1, flags << 29) + bytes(8)
        for flags in (5, 4)
    )
    return head + item + foot


def id3_with_footer(size: int) -> bytes:
    head = b"\4\0\x10" + bytes([0, 0, size >> 7, size & 127])
    return b"ID3" + head + bytes(size) + b"3DI" + head


def with_chunk(chunk: bytes) -> bytes:
    """Return a WAV file with `chunk` before its audio."""
    place = PCM.index(b"data")
    return PCM[:place] + chunk + PCM[place:]


def without_size(content: bytes, name: bytes) -> bytes:
    place = content.index(name) + 4
    return content[:place] + bytes(4) + content[place + 4 :]


def id3(size: int) -> bytes:
    return b"ID3\x03\0\0" + bytes([0, 0, size >> 7, size & 127]) + bytes(size)


@pytest.mark.parametrize("name", WHOLE)
def test_odd_files_that_players_play_are_packed_whole_and_without_a_mark(tmp_path: Path, name: str) -> None:
    make, seconds = WHOLE[name]
    found = judged(tmp_path, make())
    assert found.seconds == pytest.approx(seconds, abs=0.06)
    assert found.damaged_packets == 0 or name.endswith("before an MP3")
    assert found.damage(DecodeConfig()) < 0.01
    assert found.downmix == Downmix()


def test_audio_behind_the_end_that_a_wav_states_is_not_lost_in_silence(tmp_path: Path) -> None:
    content = wav(music(8, RATE), "PCM_16")
    found = judged(tmp_path, content + content)
    assert found.seconds == 8
    assert found.seconds_promised == pytest.approx(16, abs=0.1)


def test_zeros_in_the_middle_of_pcm_leave_no_mark(tmp_path: Path) -> None:
    found = judged(tmp_path, zeros_in_the_middle(PCM, 0.2))
    assert (found.seconds, found.damaged_packets, found.damage(DecodeConfig())) == (8, 0, 0)
    middle = found.pcm.samples[int(3.5 * RATE) : int(4.5 * RATE)]
    assert not middle.any()


@pytest.mark.parametrize(("kind", "subtype"), [("AIFF", "DWVW_24"), ("MAT5", "FLOAT"), ("XI", "DPCM_16")])
def test_formats_that_ffmpeg_does_not_decode_are_no_audio(tmp_path: Path, kind: str, subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, music(2, RATE, 1).T, RATE, format=kind, subtype=subtype)
    with pytest.raises(AudioError, match="not-audio"):
        judged(tmp_path, file.getvalue())


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_a_wav_with_big_endian_numbers_is_read_as_such(tmp_path: Path, subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, music(2, RATE).T, RATE, format="WAV", subtype=subtype, endian="BIG")
    assert file.getvalue()[:4] == b"RIFX"
    found = judged(tmp_path, file.getvalue())
    expected = judged(tmp_path, wav(music(2, RATE), subtype))
    assert found.seconds == found.seconds_promised == 2
    np.testing.assert_array_equal(found.pcm.samples, expected.pcm.samples)


def test_a_wav_with_big_endian_numbers_of_a_rare_kind_is_no_audio(tmp_path: Path) -> None:
    file = io.BytesIO()
    soundfile.write(file, music(2, RATE).T, RATE, format="WAV", subtype="ULAW", endian="BIG")
    with pytest.raises(AudioError, match=r"not-audio.*big-endian"):
        judged(tmp_path, file.getvalue())


def test_a_wav_whose_data_is_longer_than_stated_is_marked(tmp_path: Path) -> None:
    place = PCM.index(b"data") + 4
    size = len(PCM) - place - 4
    found = judged(tmp_path, PCM[:place] + struct.pack("<I", size // 2) + PCM[place + 4 :])
    assert found.seconds == 4
    assert found.seconds_promised == pytest.approx(8, abs=0.01)


def test_an_mp4_without_its_index_was_cut_off(tmp_path: Path) -> None:
    content = encode("m4a", music(8))
    assert content.index(b"moov") > len(content) * 3 // 4
    with pytest.raises(AudioError, match=r"truncated.*before its index \(moov\)"):
        judged(tmp_path, content[: len(content) * 3 // 4])


@pytest.mark.parametrize("name", ["ogg", "opus", "flac in ogg"])
def test_an_ogg_file_that_ends_within_a_page_is_marked(tmp_path: Path, name: str) -> None:
    content = encode(name, music(8))
    assert judged(tmp_path, content).damaged_packets == 0
    found = judged(tmp_path, content[: len(content) // 2])
    assert 2.5 < found.seconds < 4.1
    assert found.damaged_packets == 1


def test_what_lies_between_the_packets_of_an_aac_file_counts_as_lost(tmp_path: Path) -> None:
    content = zeros_in_the_middle(encode("aac", music(8)), 0.4)
    found = judged(tmp_path, content)
    assert found.seconds == pytest.approx(8 * 0.6, abs=0.2)
    assert found.lost_share == pytest.approx(0.4, abs=0.02)
    with pytest.raises(AudioError, match="damaged"):
        judged(tmp_path, content, max_damage=0.3)


DAMAGED: dict[str, tuple[Callable[[], bytes], float]] = {
    "one byte of an MP3 frame header": (lambda: one_byte_of_a_header_flipped(MP3), 7.9),
    "zeros in the middle of an MP3": (lambda: zeros_in_the_middle(MP3, 0.5), 4),
    "a hole in the middle of an MP3": (lambda: MP3[: len(MP3) // 4] + MP3[len(MP3) * 3 // 4 :], 4),
    "zeros in the middle of a FLAC": (lambda: zeros_in_the_middle(FLAC, 0.5), 4),
    "one byte of a FLAC frame": (lambda: changed(FLAC, len(FLAC) // 2), 7.8),
    "one byte of a FLAC of unknown length": (
        lambda: samples_unknown(changed(FLAC, len(FLAC) // 2)),
        7.8,
    ),
    "zeros in the middle of an Opus": (lambda: zeros_in_the_middle(OGG, 0.02), 6),
    "zeros in the middle of an M4A": (lambda: zeros_in_the_middle(encode("m4a", music(8)), 0.5), 4),
    "zeros in the middle of a WavPack": (lambda: zeros_in_the_middle(encode("wv", music(8)), 0.2), 5),
    "zeros in the middle of a Matroska": (lambda: zeros_in_the_middle(encode("mka", music(8)), 0.2), 6.2),
}


def zeros_in_the_middle(content: bytes, share: float) -> bytes:
    start, stop = (round(len(content) * (1 + sign * share) / 2) for sign in (-1, 1))
    return content[:start] + bytes(stop - start) + content[stop:]


def changed(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_costs_what_is_damaged_and_leaves_a_mark(tmp_path: Path, name: str) -> None:
    make, seconds = DAMAGED[name]
    found = judged(tmp_path, make())
    assert found.seconds == pytest.approx(seconds, abs=0.6)
    assert found.seconds < 8
    promised = found.seconds_promised or 0
    assert found.damaged_packets > 0 or promised - found.seconds > decode_module.SHORT_SECONDS
    if found.seconds_promised:
        with pytest.raises(AudioError, match=r"damaged.*% of it is lost, 0% at most"):
            judged(tmp_path, make(), max_damage=0)


def test_a_file_that_is_lost_beyond_max_damage_is_left_out(tmp_path: Path) -> None:
    content = zeros_in_the_middle(MP3, 0.8)
    with pytest.raises(AudioError, match=r"8\d% of it is lost, 75% at most: see --max-damage") as caught:
        judged(tmp_path, content)
    assert caught.value.reason == "damaged"
    assert judged(tmp_path, content, max_damage=0.9).damaged_packets == 1


@pytest.mark.parametrize("scale", [32_767.0, 2.0**23, 2.0**31, 100.0])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_in_the_scale_of_integers_are_divided_by_their_peak(
    tmp_path: Path, scale: float, subtype: str
) -> None:
    audio = music(2, RATE, 1)
    found = judged(tmp_path, wav(audio * np.float32(scale), subtype))
    assert found.downmix.gain == pytest.approx(1 / np.abs(audio * scale).max(), rel=1e-3)
    assert len(found.pcm.clipped) == 0
    assert found.pcm.peak == 32_767
    assert np.corrcoef(found.pcm.samples, audio[0])[0, 1] > 0.99999


@pytest.mark.parametrize("share", [0.009, 0.011])
def test_a_track_is_divided_by_its_peak_if_more_than_a_hundredth_of_it_is_beyond_full_scale(
    tmp_path: Path, share: float
) -> None:
    audio = np.full((1, 100_000), 0.5, np.float32)
    audio[0, : round(share * 100_000)] = 1.25
    found = judged(tmp_path, wav(audio))
    if share < 0.01:
        assert (found.downmix.gain, len(found.pcm.clipped)) == (1, 900)
    else:
        assert found.downmix.gain == pytest.approx(0.8, rel=1e-4)
        assert len(found.pcm.clipped) == 0


@pytest.mark.parametrize(("kind", "subtype"), [("CAF", "FLOAT"), ("AIFF", "FLOAT"), ("AU", "DOUBLE")])
def test_floats_in_the_scale_of_integers_are_divided_in_any_container(
    tmp_path: Path, kind: str, subtype: str
) -> None:
    file = io.BytesIO()
    soundfile.write(file, music(2, RATE).T * 32_767, RATE, format=kind, subtype=subtype)
    found = judged(tmp_path, file.getvalue())
    assert (found.pcm.peak, found.downmix.gain < 1e-4) == (32_767, True)


@pytest.mark.parametrize("level", [1.0, 0.9, 0.8])
@pytest.mark.parametrize("name", ["wav", "mp3"])
def test_of_channels_that_cancel_each_other_the_loudest_is_taken(
    tmp_path: Path, name: str, level: float
) -> None:
    left = music(2, 48_000, 1)
    opposite = np.concatenate([left, -level * left])
    content = wav(opposite, rate=48_000) if name == "wav" else encode("mp3", opposite)
    found = judged(tmp_path, content, sample_rate=48_000)
    assert found.downmix.channel is not None
    assert abs(np.corrcoef(found.pcm.samples, left[0])[0, 1]) > 0.99


@pytest.mark.parametrize(("correlation", "channel"), [(-0.99, 0), (-0.9, None), (0.0, None)])
def test_equally_loud_channels_cancel_each_other_by_their_correlation(
    tmp_path: Path, correlation: float, channel: int | None
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 2 * RATE)).astype(np.float32)
    right = correlation * noise[0] + np.sqrt(1 - correlation**2) * noise[1] * 0.99
    found = judged(tmp_path, wav(np.stack([noise[0], right]).astype(np.float32)))
    assert (found.downmix.channel is None) == (channel is None)


def test_channels_that_differ_are_averaged_and_a_silent_one_is_no_reason_to_take_the_other(
    tmp_path: Path,
) -> None:
    left = music(2, RATE, 1)
    found = judged(tmp_path, wav(np.concatenate([left, np.zeros_like(left)])))
    assert found.downmix.channel is None
    np.testing.assert_allclose(found.pcm.samples / 32_768, left[0] / 2, atol=1e-4)


def test_a_file_longer_than_max_hours_is_left_out(tmp_path: Path) -> None:
    content = wav(music(8, RATE), "PCM_16")
    assert judged(tmp_path, content, max_hours=8 / 3600).seconds == 8
    with pytest.raises(AudioError, match="too-long"):
        judged(tmp_path, content, max_hours=7.99 / 3600)


@pytest.mark.parametrize("error", [ValueError("GSM needs 160"), MemoryError(), RuntimeError("x"), KeyError()])
def test_no_exception_of_one_file_ends_a_run(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "good.mp3").write_bytes(MP3)
    (tmp_path / "music" / "strange.mp3").write_bytes(MP3 + b"x")
    opened = decode_module._open_audio

    def fails(path: str, file: io.BufferedReader) -> object:
        if path == "strange.mp3":
            raise error
        return opened(path, file)

    monkeypatch.setattr(decode_module, "_open_audio", fails)
    packed = pack(load_folder(tmp_path / "music"), tmp_path / "out", executor=Serial())
    assert packed.rejected == {"error": 1}
    (reject,) = read_rejects(tmp_path / "out")
    assert reject.path == "strange.mp3"
    assert reject.detail.startswith(type(error).__name__)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("libsndfile"), OSError(5, "no spool")])
def test_what_fails_when_a_track_is_encoded_costs_that_track(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "good.mp3").write_bytes(MP3)
    (tmp_path / "music" / "long.flac").write_bytes(FLAC + FLAC)
    encoded = Encoding.encode

    def fails(self: Encoding, pcm: npt.NDArray[np.int16]) -> tuple[bytes | memoryview, ...]:
        if len(pcm) > 10 * RATE:
            raise error
        return encoded(self, pcm)

    monkeypatch.setattr(Encoding, "encode", fails)
    packed = pack(load_folder(tmp_path / "music"), tmp_path / "out", executor=Serial())
    assert packed.rejected == {"error": 1}
    (reject,) = read_rejects(tmp_path / "out")
    assert reject.path == "long.flac"
    assert reject.detail.startswith(type(error).__name__)


def test_the_table_says_what_was_promised_and_what_was_done(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    left = music(8, RATE, 1)
    files = {
        "cut.flac": FLAC[: len(FLAC) * 3 // 4],
        "flipped.mp3": one_byte_of_a_header_flipped(MP3),
        "loud.wav": wav(left * 300),
        "opposite.wav": wav(np.concatenate([left, -left])),
        "sound.flac": FLAC,
    }
    for name, content in files.items():
        (tmp_path / "music" / name).write_bytes(content)
    pack(load_folder(tmp_path / "music"), tmp_path / "out", PackConfig(max_seconds=5), executor=Serial())
    rows = {row.path: row for row in read_tracks(tmp_path / "out")}
    assert rows.keys() == files.keys()
    assert rows["cut.flac"].seconds_promised == 8
    assert rows["cut.flac"].seconds_missing == pytest.approx(2, abs=0.3)
    assert rows["flipped.mp3"].damaged_packets > 0
    assert rows["loud.wav"].gain < 0.01
    assert rows["opposite.wav"].channel == 0
    sound = rows["sound.flac"]
    assert (sound.seconds_missing, sound.damaged_packets, sound.channel, sound.gain) == (0, 0, None, 1)


def test_a_large_file_in_a_zip_is_unpacked_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "music.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.wav", bytes(200_000_000))
        file.writestr("good.mp3", MP3)
    (tmp_path / "good.mp3").write_bytes(MP3)
    monkeypatch.setattr("siamusic_fast.audio.store._MAX_BYTES_IN_MEMORY", 10_000)
    found = decode_file(open_store(tmp_path / "music.zip"), "good.mp3", DecodeConfig())
    expected = decode_file(open_store(tmp_path), "good.mp3", DecodeConfig())
    assert found.pcm.samples.tobytes() == expected.pcm.samples.tobytes()
    with pytest.raises(AudioError, match="not-audio"):
        decode_file(open_store(tmp_path / "music.zip"), "zeros.wav", DecodeConfig())


def test_a_duplicate_names_the_file_that_is_judged_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    short = wav(music(1, RATE, 1))
    for name, content in {"a.wav": short, "b.wav": short, "c.mp3": MP3}.items():
        (tmp_path / "music" / name).write_bytes(content)
    pack(load_folder(tmp_path / "music"), tmp_path / "out", executor=Serial())
    assert [(row.path, row.reason, row.detail) for row in read_rejects(tmp_path / "out")] == [
        ("a.wav", "too-short", "1.00 s, at least 5 s needed"),
        ("b.wav", "duplicate", "same bytes as a.wav"),
    ]
