import csv
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from siamusic_fast.audio import folder
from siamusic_fast.audio.corpus import SPLITS
from siamusic_fast.audio.folder import ENDINGS, draw_splits, load_folder
from siamusic_fast.audio.labels import ListedFile, read_labels
from siamusic_fast.audio.sources import open_corpus
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.shards.manifest import read_manifest
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.tables import read_tracks
from siamusic_fast.shards.verify import verify
from tests.conftest import write_metadata

ODD_NAMES = (
    *("plain.wav", "plain.flac", "with space.wav", "line\nbreak.wav", "carriage\rreturn.wav", "音楽.wav"),
    *(
        'comma, quote".wav',
        "two.dots.wav",
        "-dash.wav",
        "UPPER.WAV",
        os.fsdecode(b"latin-\xe9.wav"),
        "a" * 240 + ".wav",
    ),
)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write_labels(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_every_ending_of_audio_is_found_whatever_the_case(tmp_path: Path) -> None:
    names = [*(f"a{ending}" for ending in ENDINGS), "h.Mp3", "deep/er/i.AIF"]
    touch(tmp_path, *names, "cover.jpg", "notes.txt", "mp3", "deep/.mp3x")
    corpus = load_folder(tmp_path)
    assert [track.path for track in corpus.tracks] == sorted(names)
    assert {(track.split, track.genre) for track in corpus.tracks} == {("training", "")}
    assert corpus.name == tmp_path.name


def test_keys_are_plain_unique_and_a_function_of_the_path_alone(tmp_path: Path) -> None:
    touch(tmp_path / "all", *ODD_NAMES, "x/plain.wav", "y/plain.wav")
    keys = {track.path: track.key for track in load_folder(tmp_path / "all").tracks}
    assert len(set(keys.values())) == len(keys) == len(ODD_NAMES) + 2
    for key in keys.values():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,60}", key)
    (alone,) = load_folder(touch(tmp_path / "one", "x/plain.wav")).tracks
    assert alone.key == keys["x/plain.wav"]


def test_links_that_go_round_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "sub/b.wav")
    (tmp_path / "sub" / "up").symlink_to("..")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    assert [track.path for track in load_folder(tmp_path).tracks] == ["a.wav", "loop.wav", "sub/b.wav"]


def test_sub_folders_are_classes_when_asked_for(tmp_path: Path) -> None:
    names = [f"{genre}/{n}.wav" for genre in ("jazz", "rock", "Drum & Bass") for n in range(10)]
    touch(tmp_path, *names, "rock/live/10.wav", "loose.wav")
    corpus = load_folder(tmp_path, labels="folders")
    assert corpus.classes == ("Drum & Bass", "jazz", "rock")
    assert Counter(track.genre for track in corpus.tracks) == {
        "": 1,
        "jazz": 10,
        "rock": 11,
        "Drum & Bass": 10,
    }
    for genre in corpus.classes:
        counts = Counter(track.split for track in corpus.tracks if track.genre == genre)
        assert (counts["validation"], counts["test"]) == (1, 1)
    assert next(track.split for track in corpus.tracks if track.path == "loose.wav") == "training"


def test_labels_name_path_class_and_split_and_other_columns_are_ignored(tmp_path: Path) -> None:
    labels = write_labels(
        tmp_path / "labels.csv",
        "\ufeffid, Split ,path,label,mood",
        "1,training,a b.wav,Rock,happy",
        '2,test,"./x//c,d.mp3", Jazz ,',
        "",
        "3,validation,gone.wav,,",
    )
    assert read_labels(labels) == [
        ListedFile("a b.wav", "Rock", "training", ""),
        ListedFile("x/c,d.mp3", "Jazz", "test", ""),
        ListedFile("gone.wav", "", "validation", ""),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("../a.wav,Rock,training", r"row 3: the path '\.\./a\.wav' leads outside"),
        ("/etc/passwd,Rock,training", r"row 3: the path '/etc/passwd' is absolute"),
        (r"C:\Music\a.wav,Rock,training", r"row 3: the path 'C:.*a\.wav' is absolute"),
        (r"..\a.wav,Rock,training", r"row 3: the path '.*a\.wav' leads outside"),
        (",Rock,training", "row 3: the path '' leads outside"),
        ("a.wav,Rock,train", "row 3: unknown split 'train', there are training, validation, test"),
        ("b.wav,Jazz,test", r"row 3: 'b\.wav' is in row 2 already"),
        ("./b.wav,Jazz,test", r"row 3: 'b\.wav' is in row 2 already"),
        ("a.wav,Rock", "row 3: 2 cells, and the header has 3"),
        ("a.wav,Rock,", "row 3: no split, and other rows have one"),
        ('a.wav,"Rock"x,test', "line 3: not CSV"),
        ("a.wav,R\udce9,test", "row 3: the label .* is not UTF-8"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: str, words: str) -> None:
    text = f"path,label,split\nb.wav,Jazz,test\n{row}\n"
    (tmp_path / "labels.csv").write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=rf"labels\.csv, {words}"):
        load_folder(touch(tmp_path, "a.wav"), labels=tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no column path and no column label"),
        ("file,label\na.wav,Rock\n", "no column path:"),
        ("path,genre\na.wav,Rock\n", "no column label: its first line is 'path', 'genre';"),
        ("path,label,Label\na.wav,Rock,Folk\n", "has 2 columns label: keep one"),
        ("path,label\n", "has no tracks"),
    ],
)
def test_a_label_file_without_what_it_takes_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DataError, match=words):
        load_folder(tmp_path, labels=tmp_path / "labels.csv")


def test_a_label_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"label file .*nowhere\.csv cannot be read.*`--labels folders`"):
        load_folder(tmp_path, labels=tmp_path / "nowhere.csv")


def entries(classes: dict[str, int], groups: int = 0) -> list[ListedFile]:
    rng = random.Random(0)
    names = [(label, n) for label, count in classes.items() for n in range(count)]
    return [
        ListedFile(f"{label}/{n}.mp3", label, "", f"artist {rng.randrange(groups)}" if groups else "")
        for label, n in names
    ]


def counts(found: dict[str, str], of: list[ListedFile]) -> dict[str, Counter[str]]:
    by_class: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in of:
        by_class[entry.label][found[entry.path]] += 1
    return by_class


def test_drawn_splits_are_stratified() -> None:
    some = entries({"Rock": 1000, "Folk": 200, "Jazz": 3, "Rare": 2, "": 50})
    by_class = counts(draw_splits(some, seed=0), some)
    assert by_class == {
        "Rock": {"training": 800, "validation": 100, "test": 100},
        "Folk": {"training": 160, "validation": 20, "test": 20},
        "Jazz": {"training": 1, "validation": 1, "test": 1},
        "Rare": {"training": 2},
        "": {"training": 50},
    }


def test_drawn_splits_depend_on_the_seed_and_not_on_the_order() -> None:
    some = entries({"Rock": 100, "Folk": 40}, groups=30)
    shuffled = random.Random(1).sample(some, len(some))
    assert draw_splits(some, seed=0) == draw_splits(shuffled, seed=0)
    assert draw_splits(some, seed=0) != draw_splits(some, seed=1)


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_in_two_splits_and_shares_are_near(seed: int) -> None:
    some = entries({"Rock": 2000, "Folk": 600, "": 100}, groups=300)
    found = draw_splits(some, seed)
    splits_of: dict[str, set[str]] = defaultdict(set)
    for entry in some:
        splits_of[entry.group].add(found[entry.path])
    assert {len(splits) for splits in splits_of.values()} == {1}
    for label, per_split in counts(found, some).items():
        for split in ("validation", "test") if label else ():
            # Groups have 9 tracks on average.
            assert per_split[split] == pytest.approx(0.1 * sum(per_split.values()), abs=9)


def test_given_splits_stay(tmp_path: Path) -> None:
    lines = ["path,label,split,group", *(f"{n}.wav,Rock,{SPLITS[n % 3]},{n % 3}" for n in range(9))]
    corpus = load_folder(tmp_path, labels=write_labels(tmp_path / "labels.csv", *lines))
    assert [track.split for track in corpus.tracks] == [SPLITS[n % 3] for n in range(9)]


def test_tracks_have_the_groups_of_their_rows_even_if_one_is_given_two_splits(tmp_path: Path) -> None:
    lines = ["path,label,split,group", "a.wav,Rock,training,Ann", "b.wav,Rock,test,", "c.wav,Rock,test, Ann "]
    corpus = load_folder(tmp_path, labels=write_labels(tmp_path / "labels.csv", *lines))
    assert [(track.split, track.group) for track in corpus.tracks] == [
        *(("training", "Ann"), ("test", ""), ("test", "Ann")),
    ]


def test_splits_are_named_in_upper_or_lower_case(tmp_path: Path) -> None:
    lines = ["path,label,split", "a.wav,Rock,TRAINING", "b.wav,Rock,Test"]
    found = read_labels(write_labels(tmp_path / "labels.csv", *lines))
    assert [entry.split for entry in found] == ["training", "test"]


def test_other_spellings_of_a_path_find_its_file(tmp_path: Path) -> None:
    names = ["a.wav", " b.wav", "sub/c.wav", "caf\u00e9.wav", "nai\u0308ve.wav", "odd\\name.wav"]
    touch(tmp_path / "music", *names)
    rows = [
        " a.wav ",
        " b.wav",
        "sub\\c.wav",
        "cafe\u0301.wav",
        "na\u00efve.wav",
        "odd\\name.wav",
        " gone.wav",
    ]
    labels = write_labels(tmp_path / "labels.csv", "path,label", *(f"{row},Rock" for row in rows))
    corpus = load_folder(tmp_path / "music", labels=labels)
    assert [track.path for track in corpus.tracks] == [*names, " gone.wav"]
    with pytest.raises(DataError, match=r"row 3: 'a\.wav' is in row 2 already"):
        load_folder(
            tmp_path / "music",
            labels=write_labels(tmp_path / "labels.csv", "path,label", "a.wav,Rock", " a.wav,Rock"),
        )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_label_files_are_read_as_spreadsheets_write_them(
    tmp_path: Path, delimiter: str, encoding: str
) -> None:
    lines = [("path", "label", "mood, and more"), ("a.wav", "Ro\u00e7k", "1"), ("b.wav", "Folk", "2;3")]
    with (tmp_path / "labels.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)
    found = read_labels(tmp_path / "labels.csv")
    assert [(entry.path, entry.label) for entry in found] == [("a.wav", "Ro\u00e7k"), ("b.wav", "Folk")]


def test_half_a_character_of_utf_16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("path,label\n".encode("utf-16") + b"a")
    with pytest.raises(DataError, match=r"labels\.csv is damaged UTF-16"):
        read_labels(tmp_path / "labels.csv")


@pytest.mark.parametrize("classes", [2, 3])
def test_no_class_is_no_class_among_those_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    monkeypatch.setattr(folder, "MAX_CLASSES", 2)
    rows = ["none.wav,", *(f"{n}.wav,{n}" for n in range(classes))]
    labels = write_labels(tmp_path / "labels.csv", "path,label", *rows)
    if classes == 2:
        assert len(load_folder(tmp_path, labels=labels).classes) == 2
    else:
        with pytest.raises(DataError, match="has 3 classes, at most 2 fit"):
            load_folder(tmp_path, labels=labels)


def test_odd_names_are_packed_and_come_back_from_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "music"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ODD_NAMES:
        audio = rng.uniform(-0.5, 0.5, 2000)
        with (folder / name).open("wb") as file:
            soundfile.write(file, audio, 4000, format=name[-4:].lstrip(".").upper())
    with (tmp_path / "labels.csv").open("w", errors="surrogateescape", newline="") as file:
        file.write("path,label,split\n")
        for name in ODD_NAMES:
            file.write('"{}",Rock,training\n'.format(name.replace('"', '""')))
        file.write("gone.wav,Rock,training\n")
    corpus = open_corpus(folder, labels=tmp_path / "labels.csv")
    packed = pack(corpus, tmp_path / "out", PackConfig(min_seconds=0.1, tracks_per_shard=5), procs=1)
    assert packed.rejected == {"missing": 1}
    assert {track.path for track in read_tracks(tmp_path / "out")} == set(ODD_NAMES)
    assert read_manifest(tmp_path / "out") == packed
    assert verify(tmp_path / "out", procs=1).problems == ()


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_the_bytes_of_a_shard_set_do_not_depend_on_the_locale(tmp_path: Path, locale: str) -> None:
    folder = tmp_path / "musique é"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("é.wav", "音楽.wav", os.fsdecode(b"latin-\xe9.wav")):
        with (folder / name).open("wb") as file:
            soundfile.write(file, rng.uniform(-0.5, 0.5, 4000), 4000, format="WAV")
    (folder / "ü.wav").touch()
    for name, settings in {
        "utf-8": {"PYTHONUTF8": "1"},
        "other": {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    }.items():
        command = [
            "shard",
            str(folder),
            "--data-dir",
            str(tmp_path / name),
            "--min-seconds",
            "0.5",
            "--procs",
            "1",
        ]
        subprocess.run(
            [sys.executable, "-m", "siamusic_fast", *command, "--labels", "folders"],
            env={**os.environ, **settings},
            capture_output=True,
            check=True,
        )
    files = [file.name for file in (tmp_path / "utf-8" / "shards" / folder.name).iterdir()]
    assert len(files) == 5
    for name in files:
        one, other = (tmp_path / where / "shards" / folder.name / name for where in ("utf-8", "other"))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (("fma_small/000/x.mp3",), "fma_small"),
        (("fma_small/000/x.mp3",), "."),
        (("mine/000/000002.mp3",), "mine"),
    ],
)
def test_what_looks_like_fma_is_fma(tmp_path: Path, make: tuple[str, ...], name: str) -> None:
    touch(tmp_path, *make)
    with pytest.raises(DataError, match=r"no metadata .* --labels, a CSV file or the word folders"):
        open_corpus(tmp_path / name, data_dir=tmp_path)


@pytest.mark.parametrize("path", ["000002.mp3", "000/2.mp3", "001/000002.mp3", "blues/000002.mp3"])
def test_anything_else_is_a_folder_of_audio(tmp_path: Path, path: str) -> None:
    write_metadata(tmp_path / "fma_metadata", [(2, "training", "small", "Folk")])
    touch(tmp_path / "mine", path)
    assert [track.path for track in open_corpus("mine", data_dir=tmp_path).tracks] == [path]


def test_metadata_and_labels_decide_when_they_are_given(tmp_path: Path) -> None:
    write_metadata(tmp_path / "fma_metadata", [(2, "training", "small", "Folk")])
    touch(tmp_path / "fma_small", "000/000002.mp3", "other.mp3")
    assert [t.genre for t in open_corpus("fma_small", data_dir=tmp_path).tracks] == ["Folk"]
    labels = write_labels(tmp_path / "labels.csv", "path,label", "other.mp3,Jazz")
    assert [t.genre for t in open_corpus("fma_small", data_dir=tmp_path, labels=labels).tracks] == ["Jazz"]
    with pytest.raises(ConfigError, match="give one"):
        open_corpus("fma_small", data_dir=tmp_path, metadata=tmp_path, labels=labels)


@pytest.mark.parametrize("labels", [None, "folders"])
def test_a_folder_without_audio_is_refused(tmp_path: Path, labels: str | None) -> None:
    with pytest.raises(DataError, match=r"has no tracks: files that end in \.3gp"):
        open_corpus(touch(tmp_path, "notes.txt"), labels=labels)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no folder and no zip nowhere or .*nowhere: give the path of the audio"
    ):
        open_corpus("nowhere", data_dir=tmp_path)
