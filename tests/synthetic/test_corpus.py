import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from siamusic_fast.audio.sources import open_corpus
from siamusic_fast.synthetic import corpus as synthetic
from siamusic_fast.synthetic.composition import (
    Meter,
    Note,
    Part,
    compose,
    form_artist,
    render_part,
    render_song,
)
from siamusic_fast.synthetic.corpus import GENRES, SyntheticCorpus, synthesize
from siamusic_fast.synthetic.instruments import INSTRUMENTS, SOUNDS, harmonics, midi_to_hz, play
from siamusic_fast.synthetic.styles import SCALES, STYLES

SMALL = SyntheticCorpus(tracks_per_genre=3, seconds=2.0)
SAMPLE_RATE = 22_050
KEYS = ("C", "D flat", "D", "E flat", "E", "F", "G flat", "G", "A flat", "A", "B flat", "B")
KEY_NUMBERS = {name: number for number, name in enumerate(KEYS)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("synthetic") / "fma", SMALL, procs=2)


def rows(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "fma_metadata" / "tracks.csv", header=[0, 1], index_col=0)


def mp3(root: Path, number: int) -> Path:
    return root / "fma_small" / f"{number:06d}"[:3] / f"{number:06d}.mp3"


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_tags_of_a_track_are_what_is_played_in_it(corpus: Path) -> None:
    packed = open_corpus(corpus / "fma_small", labels=corpus / "tags.csv", tags=True)
    assert len(packed.tracks) == 8 * 3
    assert {"slow", "moderate", "fast", "drums", "percussion", "electric piano"} <= set(packed.tags)
    table = rows(corpus)
    for track in packed.tracks:
        number = int(Path(track.path).stem)
        row = table.loc[number]
        assert track.split == row["set", "split"]
        assert track.group == f"artist {row['artist', 'id']:.0f}"
        bpm = float(str(row["track", "title"]).split(", ")[1].removesuffix(" bpm"))
        tempo = "slow" if bpm < 95 else "moderate" if bpm <= 120 else "fast"
        assert set(track.tags) & {"slow", "moderate", "fast"} == {tempo}
        instruments = {tag.replace(" ", "_") for tag in track.tags} & set(INSTRUMENTS)
        assert instruments | {tempo, "drums", "percussion"} >= {tag.replace(" ", "_") for tag in track.tags}


def test_pandas_reads_the_metadata_as_it_reads_fma(corpus: Path) -> None:
    table = rows(corpus)
    assert table.index.name == "track_id"
    assert len(table) == 8 * 3 + 6 + 4
    small = table[table["set", "subset"] == "small"]
    assert sorted(small["track", "genre_top"].unique()) == sorted(GENRES)
    assert set(table["set", "split"]) == {"training", "validation", "test"}
    assert table.loc[2, ("artist", "bio")] == "A biography, with commas,\nand a line break."
    assert table["track", "bit_rate"].dropna().between(0, 320_000).all()


def test_every_sound_row_has_a_file_of_its_length_and_other_subsets_have_none(corpus: Path) -> None:
    table = rows(corpus)
    for number, row in table[table.index < 98_000].iterrows():
        path = mp3(corpus, int(str(number)))
        if row["set", "subset"] == "small":
            assert soundfile.info(path).duration == pytest.approx(2.0, abs=0.1)
        else:
            assert not path.exists()


def test_the_default_corpus_has_eight_test_tracks_of_every_genre() -> None:
    sound = [track for track in SyntheticCorpus().tracks if track.number not in synthetic.DEFECTS]
    counts = Counter((track.genre, track.split) for track in sound)
    assert len(sound) == 360
    for genre in GENRES:
        assert [counts[genre, split] for split in ("training", "validation", "test")] == [32, 5, 8]
    assert len({track.number for track in SyntheticCorpus(tracks_per_genre=1_000).tracks}) == 8_000 + 6


def test_bytes_do_not_depend_on_the_number_of_workers(corpus: Path, tmp_path: Path) -> None:
    assert digests(synthesize(tmp_path / "again", SMALL, procs=1)) == digests(corpus)


def test_seeds_genres_and_tracks_differ(corpus: Path) -> None:
    files = [path for path in (corpus / "fma_small").rglob("*.mp3") if path.stat().st_size > 1_000]
    assert len({path.read_bytes() for path in files}) == len(files)
    first = SMALL.tracks[0]
    seeds = [SyntheticCorpus(seed=seed) for seed in (0, 1)]
    assert seeds[0].compose(first, SMALL.generator(first)) != seeds[1].compose(first, SMALL.generator(first))
    artist = form_artist("Folk", np.random.default_rng(0))
    songs = [compose(artist, corpus.generator(first), 2.0) for corpus in seeds]
    assert songs[0] != songs[1]


def test_an_artist_has_one_genre_is_in_one_split_and_sounds_alike_in_all_tracks() -> None:
    corpus = SyntheticCorpus(seconds=1.0)
    sound = [track for track in corpus.tracks if track.number not in synthetic.DEFECTS]
    tracks: dict[int, list[synthetic.SyntheticTrack]] = {}
    for track in sound:
        tracks.setdefault(track.artist, []).append(track)
    assert {len({(track.genre, track.split) for track in own}) for own in tracks.values()} == {1}
    counts = Counter((own[0].genre, own[0].split) for own in tracks.values())
    for genre in GENRES:
        assert [counts[genre, split] for split in ("training", "validation", "test")] == [11, 2, 3]
    assert max(map(len, tracks.values())) == 3
    for own in list(tracks.values())[:20]:
        songs = [corpus.compose(track, corpus.generator(track)) for track in own]
        heard = {tuple((part.sound, part.brightness) for part in song.parts[:3]) for song in songs}
        assert len(heard) == 1
        assert len({song.key for song in songs} | {str(song.meter) for song in songs}) > len(songs)
    bands = {str(form_artist("Rock", np.random.default_rng(seed)).instruments) for seed in range(20)}
    assert len(bands) == 20


def test_broken_files_are_what_their_titles_say(corpus: Path) -> None:
    titles = rows(corpus)["track", "title"]
    assert titles[synthetic.MISSING] == "no such file"
    assert not mp3(corpus, synthetic.MISSING).exists()
    assert mp3(corpus, synthetic.EMPTY).read_bytes() == b""
    assert mp3(corpus, synthetic.HTML).read_text().startswith("<!DOCTYPE html>")
    assert soundfile.info(mp3(corpus, synthetic.TOO_SHORT)).duration == pytest.approx(1.5, abs=0.1)
    silence, _ = soundfile.read(mp3(corpus, synthetic.ALL_ZERO))
    assert len(silence) >= 2 * SAMPLE_RATE
    assert np.abs(silence).max() < 1e-4


def frame_ends(data: bytes) -> Iterator[int]:
    """Yield where each MPEG layer III frame should end, from the headers (ISO 11172-3 and 13818-3)."""
    place = 0
    while place + 4 <= len(data):
        assert data[place] == 0xFF
        assert data[place + 1] & 0xE6 == 0xE2  # sync, layer III
        mpeg1 = bool(data[place + 1] & 8)
        step = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
        step1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
        kbps = (step1 if mpeg1 else step)[(data[place + 2] >> 4) - 1]
        rate = (44_100, 48_000, 32_000)[data[place + 2] >> 2 & 3] // (1 if mpeg1 else 2)
        place += (144_000 if mpeg1 else 72_000) * kbps // rate + (data[place + 2] >> 1 & 1)
        yield place


def test_the_cut_file_ends_in_the_middle_of_a_frame(corpus: Path) -> None:
    cut = mp3(corpus, synthetic.CUT_OFF).read_bytes()
    assert list(frame_ends(cut))[-1] > len(cut)
    whole = mp3(corpus, 2).read_bytes()
    assert list(frame_ends(whole))[-1] == len(whole)


class Interruption:
    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator["Interruption"]:
        yield self

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_synthesis_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "fma", SMALL, procs=1, progress=Interruption())
    assert list(tmp_path.iterdir()) == []


def test_pitches_are_in_equal_temperament() -> None:
    assert midi_to_hz(69) == 440.0
    assert midi_to_hz(60) == pytest.approx(261.6256, abs=1e-4)  # middle C
    assert midi_to_hz(81) == pytest.approx(880.0)


@pytest.mark.parametrize("pitch", [52, 69])
@pytest.mark.parametrize("name", sorted(INSTRUMENTS.keys() - {"wind", "drone", "bell", "power_chord"}))
def test_the_fundamental_of_a_note_is_its_pitch(name: str, pitch: int) -> None:
    note = play(name, pitch, 2.0, SAMPLE_RATE)
    spectrum = np.abs(np.fft.rfft(note * np.hanning(len(note))))
    hertz = np.fft.rfftfreq(len(note), 1 / SAMPLE_RATE)
    expected = 440.0 * 2.0 ** ((pitch - 69) / 12)
    near = np.abs(np.log2(hertz.clip(1.0) / expected)) < 0.25
    assert hertz[near][spectrum[near].argmax()] == pytest.approx(expected, rel=0.009)  # 15 cents
    assert spectrum[near].max() > 10 * spectrum[hertz < 0.7 * expected].max()


def test_distortion_gives_a_fifth_its_difference_tone() -> None:
    note = play("power_chord", 69, 2.0, SAMPLE_RATE)
    spectrum = np.abs(np.fft.rfft(note * np.hanning(len(note))))  # bins of half a hertz
    difference = 220 - 0.002 * 440  # the fifth, 1.498, is tempered
    assert spectrum[: 2 * 400].argmax() / 2 == pytest.approx(difference, abs=0.5)


def test_horners_rule_sums_the_harmonics() -> None:
    time = np.arange(1_000) / SAMPLE_RATE
    weights, fade = np.array([0.5, 0.0, 0.3, 0.2]), np.exp(-5.0 * time)
    expected = sum(
        weight * fade**k * np.sin(2 * np.pi * k * 220.0 * time) for k, weight in enumerate(weights, start=1)
    )
    np.testing.assert_allclose(harmonics(220.0 * time, weights, fade), expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SOUNDS))
@pytest.mark.parametrize("seconds", [0.05, 1.0])
def test_every_sound_is_finite_and_ends_softly(name: str, seconds: float) -> None:
    note = play(name, 60, seconds, SAMPLE_RATE)
    assert note.dtype == np.float32
    assert len(note) == round(seconds * SAMPLE_RATE)
    assert np.isfinite(note).all()
    assert abs(note[-1]) < 1e-3


def test_kicks_on_every_beat_are_60_over_bpm_apart() -> None:
    meter = Meter(bpm=125.0, steps=16)
    notes = tuple(Note(meter.start(step), 0.1, 31, 1.0) for step in range(0, 64, 4))
    part = Part(sound="kick", brightness=0.5, level_db=0.0, pan=0.0, notes=notes)
    loud = np.abs(render_part(part, 8 * SAMPLE_RATE, SAMPLE_RATE)).reshape(-1, 210).max(axis=1)
    onsets = np.flatnonzero((loud[1:] > 0.5) & (loud[:-1] < 0.2)) * 210 / SAMPLE_RATE
    np.testing.assert_allclose(np.diff(onsets), 60.0 / 125.0, atol=0.02)
    assert len(onsets) >= 14


def test_swing_delays_every_second_sixteenth() -> None:
    meter = Meter(bpm=60.0, steps=16, swing=0.25)
    assert [meter.start(step) for step in range(4)] == [0.0, 0.3125, 0.5, 0.8125]


@pytest.mark.parametrize("genre", GENRES)
def test_melody_and_chords_keep_to_the_scale_of_the_key(genre: str) -> None:
    rng = np.random.default_rng(3)
    song = compose(form_artist(genre, rng), rng, 10.0)
    scale = max((name for name in SCALES if song.key.endswith(f" {name}")), key=len)
    tonic = KEY_NUMBERS[song.key.removesuffix(f" {scale}")]
    chords, _, lead = song.parts[:3]
    played = {(note.pitch - tonic) % 12 for note in (*chords.notes, *lead.notes)}
    assert played <= set(SCALES[scale])


@pytest.mark.parametrize("genre", GENRES)
def test_a_recording_is_as_loud_as_its_recording_says_whatever_the_genre(genre: str) -> None:
    rng = np.random.default_rng(5)
    song = compose(form_artist(genre, rng), rng, 4.0)
    audio = render_song(song, 4.0, SAMPLE_RATE, 2)
    assert audio.shape == (4 * SAMPLE_RATE, 2)
    assert np.abs(audio).max() < 1.0
    assert 20 * np.log10(audio.std()) == pytest.approx(song.recording.level_db, abs=1.5)


def test_styles_name_sounds_and_scales_that_exist() -> None:
    for style in STYLES.values():
        drums = itertools.chain.from_iterable(style.kits)
        assert {*style.chords, *style.basses, *style.leads, *drums} <= SOUNDS.keys()
        assert set(style.scales) <= SCALES.keys()
