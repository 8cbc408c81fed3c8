import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from siamusic_fast.audio.labels import read_labels
from siamusic_fast.audio.sources import open_corpus
from siamusic_fast.cli import main
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.manifest import ShardSet, read_manifest
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.samples import samples
from siamusic_fast.shards.tables import read_tracks
from siamusic_fast.shards.verify import verify
from tests.audio.test_folder import write_labels
from tests.conftest import tone
from tests.shards.small import fit_tracks

TAGS = (("rock", "loud"), ("slow",), (), ("Café", "rock", "slow"), ("rock",), ("loud",))
RATE = 8000


@pytest.fixture
def music(tmp_path: Path) -> Path:
    (tmp_path / "music").mkdir()
    for number in range(len(TAGS)):
        audio = tone(0.2, 220 + 20 * number, RATE, np.random.default_rng(number))
        soundfile.write(tmp_path / "music" / f"{number}.wav", audio, RATE)
    return tmp_path / "music"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    rows = [f"{number}.wav,{'|'.join(tags)},training" for number, tags in enumerate(TAGS)]
    return write_labels(tmp_path / "tags.csv", "path,tags,split", *rows)


@pytest.fixture
def tagged(music: Path, labels: Path, tmp_path: Path) -> ShardSet:
    config = PackConfig(sample_rate=RATE, min_seconds=0.1, tracks_per_shard=4)
    return pack(open_corpus(music, labels=labels, tags=True), tmp_path / "set", config, procs=1)


def tags_in(path: Path) -> list[tuple[str, ...]]:
    return [file.tags for file in read_labels(path, tags=True)]


def test_tags_stand_in_one_column_or_in_one_column_each(tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    rows = ["path,Tags,mood", "a.wav,rock | Cafe\u0301 ;rock||,1", "b.wav,,2", "c.wav,new age,3"]
    assert tags_in(write_labels(path, *rows)) == [("Caf\u00e9", "rock"), (), ("new age",)]
    columns = ["clip_id\tNo Vocals\trock\tmp3_path", "2\t1\t0\ta.mp3", "3\t 1 \t1\tb.mp3", "4\t\t0\tc.mp3"]
    assert tags_in(write_labels(path, *columns)) == [("No Vocals",), ("No Vocals", "rock"), ()]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["path,label", "a.wav,Rock"], "has no tags: with --tags it needs a column tags"),
        (["path,artist", "a.wav,Bach"], "row 2: 'Bach' in the column 'artist', which as a tag has 0 or 1"),
        (["path,rock,rock", "a.wav,0,1"], "'rock' cannot be the name of a tag"),
        (["path,a|b", "a.wav,0"], r"'a\|b' cannot be the name of a tag"),
        (["path,rock,", "a.wav,0,"], "'' cannot be the name of a tag"),
        (["path,tags,Tags", "a.wav,,"], "has 2 columns tags: keep one"),
        (["tags", "rock"], "has no column path"),
        (["path,tags", "a.wav,r\udce9"], "row 2: the tag .* is not UTF-8"),
    ],
)
def test_what_is_wrong_with_tags_is_named(tmp_path: Path, lines: list[str], words: str) -> None:
    (tmp_path / "tags.csv").write_text("\n".join(lines) + "\n", errors="surrogateescape")
    with pytest.raises(DataError, match=words):
        tags_in(tmp_path / "tags.csv")


@pytest.mark.parametrize("labels", [None, "folders"])
def test_tags_need_a_file(music: Path, labels: str | None) -> None:
    with pytest.raises(ConfigError, match=r"name it with --labels FILE\.csv"):
        open_corpus(music, labels=labels, tags=True)
    with pytest.raises(ConfigError, match=r"top_tags = 3 is for audio with tags"):
        open_corpus(music, labels=labels, top_tags=3)


def test_drawn_splits_have_every_tag_that_is_not_rare(tmp_path: Path) -> None:
    rows = [f"{n}.wav,common{'|rare' if n % 10 == 0 else ''}" for n in range(100)]
    labels = write_labels(tmp_path / "tags.csv", "path,tags", *rows)
    tracks = open_corpus(tmp_path, labels=labels, tags=True).tracks
    for tag, expected in (("rare", (8, 1, 1)), ("common", (80, 10, 10))):
        counts = Counter(track.split for track in tracks if tag in track.tags)
        assert tuple(counts[split] for split in ("training", "validation", "test")) == expected


def test_the_most_frequent_tags_are_kept_and_of_equal_ones_the_first(music: Path, labels: Path) -> None:
    corpus = open_corpus(music, labels=labels, tags=True, top_tags=2)
    assert corpus.tags == ("loud", "rock")
    assert corpus.tracks[3].tags == ("rock",)
    assert len(corpus.tracks) == len(TAGS)


def test_tags_are_kept_in_samples_table_and_manifest(tagged: ShardSet) -> None:
    assert read_manifest(tagged.folder).tags == ("Café", "loud", "rock", "slow")
    expected = {f"{number}.wav": sorted(tags) for number, tags in enumerate(TAGS)}
    assert {row.path: list(row.tags) for row in read_tracks(tagged.folder)} == expected
    found = list(samples(tagged))
    assert {about["source"]: about["tags"] for _, _, _, about in found} == expected
    assert {label for _, _, label, _ in found} == {None}
    assert verify(tagged.folder, procs=1).problems == ()


def test_a_matrix_says_which_track_has_which_tag(tagged: ShardSet) -> None:
    tracks = open_tracks(tagged, ["training"], labels=True)
    assert tracks.tags is not None
    rows = list(read_tracks(tagged.folder))
    for row, marked in zip(rows, tracks.tags, strict=True):
        assert row.tags == tuple(tag for tag, mark in zip(tagged.tags, marked, strict=True) if mark)
    chosen = tracks.only(np.array([1, 4]))
    np.testing.assert_array_equal(chosen.tags, tracks.tags[[1, 4]])


def test_a_class_may_stand_beside_tags(tmp_path: Path, music: Path) -> None:
    rows = [f"{number}.wav,{'|'.join(tags)},Rock" for number, tags in enumerate(TAGS)]
    labels = write_labels(tmp_path / "tags.csv", "path,tags,label", *rows)
    corpus = open_corpus(music, labels=labels, tags=True)
    assert (corpus.classes, len(corpus.tags)) == (("Rock",), 4)


def test_a_tag_that_the_manifest_does_not_list_is_found(tagged: ShardSet) -> None:
    text = (tagged.folder / "tracks.csv").read_bytes()
    changed = fit_tracks(tagged, text.replace(b"rock", b"folk", 1))
    with pytest.raises(DataError, match=r"it says 'folk' in training.*, which is none of the tags"):
        open_tracks(changed, ["training"], labels=True)
    problems = [problem.what for problem in verify(tagged.folder, procs=1).problems]
    assert any("its description says tags" in what and "'folk'" in what for what in problems)
    path = tagged.folder / "manifest.json"
    path.write_text(path.read_text().replace('"rock"', '"folk"'))
    problems = [problem.what for problem in verify(tagged.folder, procs=1).problems]
    assert any("its tag 'rock' is not in the manifest" in what for what in problems)


def test_shard_and_inspect_count_tags(music: Path, labels: Path, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        result = CliRunner().invoke(main, list(map(str, words)))
        assert result.exit_code == 0, result.output
        return result.stdout

    options = ("--labels", labels, "--tags", "--min-seconds", 0.1, "--procs", 1, "-q")
    text = run("shard", music, *options, "--out", tmp_path / "set")
    assert "tags      4: rock 3, loud 2, slow 2, Café 1" in text
    shown = [line.split()[:1] + line.split()[2:3] for line in run("inspect", tmp_path / "set").splitlines()]
    for line in (["rock", "3"], ["loud", "2"], ["slow", "2"], ["Café", "1"]):
        assert line in shown
    found = json.loads(run("inspect", tmp_path / "set", "--json"))
    assert found["tags"] == {"Café": 1, "loud": 2, "rock": 3, "slow": 2}
    assert (found["classes"], found["unlabelled"]) == ({}, 6)
