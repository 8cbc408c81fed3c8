import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.errors import DataError
from siamusic_fast.shards import verify as module
from siamusic_fast.shards.frontends import write_frontends
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.verify import verify

PCM_AT = 512 + 44
"""Where the first sample of the first track lies: after a tar header and a WAV header."""
CLS_AT = 512 + 4608
"""Where its label's tar header lies: 44 + 2 * 2205 = 4454 bytes of WAV fill 9 blocks of 512."""


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of audio, and its shard set beside it, of 3 shards with 2 tracks of 0.1 s each.

    Two shards are of training, one of them unlabelled, one is of test.
    """
    audio = tmp_path_factory.mktemp("verify") / "music"
    audio.mkdir()
    rng = np.random.default_rng(0)
    tracks = []
    for number in range(6):
        content = rng.uniform(-0.5, 0.5, 2205)
        soundfile.write(audio / f"{number}.wav", content, 22_050)
        split = "test" if number < 2 else "training"
        genre = "Rock" if number < 4 else ""
        tracks.append(Track(f"{number:06d}", f"{number}.wav", split, genre, group=f"artist {number}"))
    (audio / "bad.wav").touch()
    tracks.append(Track("bad", "bad.wav", "training", "Rock"))
    corpus = Corpus(name="mine", folder=audio, tracks=tuple(tracks))
    pack(corpus, audio.parent / "set", PackConfig(min_seconds=0.1), procs=1)
    return audio


@pytest.fixture
def folder(music: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(music.parent / "set", tmp_path / "set"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the jobs here: to start a process takes most of a second."""

    def run(function: Any, jobs: Any, **_: object) -> None:
        for job in jobs:
            function(job, lambda _: None)

    monkeypatch.setattr(module, "run_in_processes", run)


def problems(folder: Path) -> list[str]:
    return [f"{problem.file}: {problem.what}" for problem in verify(folder, procs=1).problems]


def overwrite(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    elsewhere = path.parent.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def edit(folder: Path, **changes: object) -> None:
    """Change what the manifest says of the shard of the test split."""
    values = json.loads((folder / "manifest.json").read_text())
    values["splits"]["test"][0].update(changes)
    (folder / "manifest.json").write_text(json.dumps(values))


def test_a_shard_set_as_it_was_packed_is_as_it_should_be(shard_set: ShardSet) -> None:
    found = verify(shard_set.folder, procs=2)
    shards = shard_set.shards(["training", "validation", "test"])
    assert found.problems == ()
    assert (found.shards, found.tracks) == (len(shards), 36)
    assert found.bytes == sum(shard_set.path(shard.file).stat().st_size for shard in shards)


@pytest.mark.parametrize("codec", ["flac", "ogg"])
@pytest.mark.usefixtures("in_process")
def test_other_codecs_are_verified_too(music: Path, tmp_path: Path, codec: str) -> None:
    tracks = (Track("a", "0.wav", "training", "Rock"), Track("b", "1.wav", "test", "Rock"))
    corpus = Corpus(name="mine", folder=music, tracks=tracks)
    pack(corpus, tmp_path / "out", PackConfig(codec=codec, min_seconds=0.1), procs=1)
    assert problems(tmp_path / "out") == []
    overwrite(tmp_path / "out" / "test-000000.tar", 512, b"XXXX")
    found = problems(tmp_path / "out")
    assert re.match(r"test-000000\.tar: has SHA-256", found[0])
    assert f"test-000000.tar: b: its {codec} header is not that of mono audio at 22050 Hz" in found


Damage = Callable[[Path], object]
TAR, IDX = "test-000000.tar", "test-000000.idx"
TABLE_CHANGED = r"tracks\.csv: has SHA-256 \w+, the manifest says \w+"
MANIFEST_CHANGED = r"manifest\.json: was changed: its own SHA-256 is \w+, it says \w+"


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(
            lambda folder: overwrite(folder / TAR, PCM_AT + 100, b"\xff\x7f"),
            [rf"{TAR}: has SHA-256 \w+, the manifest says", rf"{TAR}: 00000\d: its audio has SHA-256"],
            id="samples",
        ),
        pytest.param(
            lambda folder: overwrite(folder / TAR, 512 + 24, b"\x44\xac"),
            [
                rf"{TAR}: has SHA-256",
                rf"{TAR}: 00000\d: its wav header is not that of mono audio at 22050 Hz",
            ],
            id="sample rate",
        ),
        pytest.param(
            lambda folder: overwrite(folder / TAR, CLS_AT + 512, b"00001"),
            [
                rf"{TAR}: has SHA-256",
                rf"{TAR}: 00000\d: its label is b'00001', that of its class 'Rock' is 00000",
            ],
            id="label",
        ),
        pytest.param(
            lambda folder: overwrite(folder / TAR, CLS_AT, b"x"),
            [
                rf"{TAR}: no tar header at byte {CLS_AT}, or a damaged one: 0 of 2 tracks can be read",
                rf"{TAR}: has SHA-256",
            ],
            id="tar header",
        ),
        pytest.param(
            lambda folder: (folder / TAR).write_bytes((folder / TAR).read_bytes()[:-1]),
            [rf"{TAR}: has \d+ bytes, the manifest says \d+"],
            id="cut",
        ),
        pytest.param(
            lambda folder: (folder / TAR).unlink(), [rf"{TAR}: cannot be read: No such file"], id="gone"
        ),
        pytest.param(
            lambda folder: (folder / IDX).unlink(), [rf"{IDX}: cannot be read: No such file"], id="index gone"
        ),
        pytest.param(
            lambda folder: replace(folder / IDX, "wav 512 ", "wav 513 "),
            [
                rf"{IDX}: has SHA-256 \w+, the manifest says \w+",
                rf"{IDX}: line 2 is 'wav 513 .*', its tar says 'wav 512 ",
            ],
            id="index",
        ),
        pytest.param(
            lambda folder: edit(folder, index_sha256="0" * 64),
            [rf"{IDX}: has SHA-256 \w+, the manifest says 0{{64}}", MANIFEST_CHANGED],
            id="SHA-256 of the index",
        ),
        pytest.param(
            lambda folder: replace_by_pipe(folder / IDX),
            [rf"{IDX}: cannot be read: it is no regular file"],
            id="pipe for an index",
        ),
        pytest.param(
            lambda folder: replace(folder / "tracks.csv", ",test,Rock,0.100", ",test,Folk,0.100"),
            [rf"{TAR}: 00000\d: its description says genre 'Rock', expected 'Folk'", TABLE_CHANGED],
            id="class in tracks.csv",
        ),
        pytest.param(
            lambda folder: replace(folder / "tracks.csv", ",artist 0\n", ",artist 1\n"),
            [rf"{TAR}: 000000: its description says group 'artist 0', expected 'artist 1'", TABLE_CHANGED],
            id="group in tracks.csv",
        ),
        pytest.param(
            lambda folder: replace(folder / "tracks.csv", ",test,Rock,0.100", ",test,Rock,0.200"),
            [
                rf"{TAR}: 00000\d: tracks\.csv says test, 0\.200 s, 2205 samples; "
                r"it is test, 0\.100 s, 2205 samples",
                TABLE_CHANGED,
            ],
            id="seconds in tracks.csv",
        ),
        pytest.param(
            lambda folder: replace(folder / "tracks.csv", ",test,Rock,0.100,2205", ",test,Rock,0.100,2206"),
            [
                rf"{TAR}: 00000\d: tracks\.csv says test, 0\.100 s, 2206 samples; "
                r"it is test, 0\.100 s, 2205 samples",
                TABLE_CHANGED,
            ],
            id="samples in tracks.csv",
        ),
        pytest.param(
            lambda folder: replace(folder / "tracks.csv", TAR, "test-000009.tar"),
            [
                r"tracks\.csv: lists test-000009\.tar, the manifest does not",
                rf"tracks\.csv: has no row on 00000\d in {TAR}",
                TABLE_CHANGED,
            ],
            id="shard in tracks.csv",
        ),
        pytest.param(
            lambda folder: replace(folder / "tracks.csv", "\n0,", "\n1,"),
            [r"tracks\.csv: cannot be read: row 0 has the index 1", TABLE_CHANGED],
            id="tracks.csv",
        ),
        pytest.param(
            lambda folder: (folder / "tracks.csv").unlink(),
            [r"tracks\.csv: cannot be read: No such file"],
            id="tracks.csv gone",
        ),
        pytest.param(
            lambda folder: replace(folder / "rejected.csv", ",empty,", ",silent,"),
            [
                r"rejected\.csv: lists 0 files as empty, the manifest says 1",
                r"rejected\.csv: lists 1 files as silent, the manifest says 0",
                r"rejected\.csv: has SHA-256",
            ],
            id="rejected.csv",
        ),
        pytest.param(
            lambda folder: edit(folder, tracks=3, shortest=1),
            [
                rf"{TAR}: tracks: 2, the manifest says 3",
                rf"{TAR}: shortest: 2205, the manifest says 1",
                MANIFEST_CHANGED,
            ],
            id="counts in the manifest",
        ),
        pytest.param(
            lambda folder: edit(folder, labelled=False),
            [rf"{TAR}: 00000\d: its class is 'Rock', in a shard of unlabelled tracks", MANIFEST_CHANGED],
            id="kind in the manifest",
        ),
        pytest.param(
            lambda folder: replace(folder / "tracks.csv", ",0.000,", ",1.000,"), [TABLE_CHANGED], id="offset"
        ),
        pytest.param(
            lambda folder: replace(folder / "tracks.csv", ",2205,0,", ",2205,5,"),
            [TABLE_CHANGED],
            id="clipped",
        ),
        pytest.param(
            lambda folder: replace(folder / "rejected.csv", "0 bytes", "9 bytes"),
            [r"rejected\.csv: has SHA-256 \w+, the manifest says"],
            id="detail in rejected.csv",
        ),
        pytest.param(
            lambda folder: replace(folder / "rejected.csv", ",empty,0 bytes", ",empty,0 bytes\nx.wav"),
            [r"rejected\.csv: cannot be read: row 1 has 1 cells, not 3", r"rejected\.csv: has SHA-256"],
            id="row of rejected.csv",
        ),
        pytest.param(
            lambda folder: (folder / "rejected.csv").unlink(),
            [r"rejected\.csv: cannot be read: No such file"],
            id="rejected.csv gone",
        ),
        pytest.param(
            lambda folder: replace(folder / "manifest.json", '"seed": 0', '"seed": 1'),
            [MANIFEST_CHANGED],
            id="seed",
        ),
        pytest.param(
            lambda folder: replace(folder / "manifest.json", '"Rock"', '"Rock", "Folk"'),
            [MANIFEST_CHANGED],
            id="added class",
        ),
        pytest.param(
            lambda folder: shutil.copy(folder / TAR, folder / "training-000009.tar"),
            [r"training-000009\.tar: is not in the manifest"],
            id="stray shard",
        ),
        pytest.param(
            lambda folder: (folder / "manifest.json").write_bytes(
                (folder / "manifest.json").read_bytes()[:-1]
            ),
            [r"manifest\.json: was changed: it is not written as"],
            id="last byte of the manifest",
        ),
        pytest.param(
            lambda folder: (folder / "frontends.json").write_text("{}\n"),
            [r"frontends\.json: cannot be used: was changed: .*; remove it, and it is made again"],
            id="frontends",
        ),
        pytest.param(
            lambda folder: replace_by_pipe(folder / TAR),
            [rf"{TAR}: cannot be read: it is no regular file"],
            id="pipe for a shard",
        ),
        pytest.param(
            lambda folder: replace_by_link(folder / "tracks.csv"),
            [r"tracks\.csv: is a link, which may lead anywhere"],
            id="link for a table",
        ),
    ],
)
def test_what_is_wrong_is_named(folder: Path, damage: Damage, words: list[str]) -> None:
    assert problems(folder) == []
    damage(folder)
    found = problems(folder)
    for pattern in words:
        assert any(re.match(pattern, problem) for problem in found), (pattern, found)
    assert all(any(re.match(pattern, problem) for pattern in words) for problem in found), found


def with_frontends(folder: Path) -> Path:
    write_frontends(folder, [{"key": {"shards": "a", "mel": {"n_mels": 48}}, "mean": -35.25, "std": 1e-05}])
    return folder


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("flips", [40, pytest.param(1_000, marks=pytest.mark.slow)])
def test_a_single_flipped_bit_is_found_in_every_file(folder: Path, flips: int) -> None:
    rng = random.Random(0)
    files = sorted(with_frontends(folder).iterdir())
    for number in range(flips):
        file = files[number % len(files)]
        content = file.read_bytes()
        bit = rng.randrange(8 * len(content))
        overwrite(file, bit // 8, bytes([content[bit // 8] ^ 1 << bit % 8]))
        assert is_found(folder, file.name), f"bit {bit} of {file.name}"
        file.write_bytes(content)
    assert problems(folder) == []


@pytest.mark.usefixtures("in_process")
def test_every_truncation_is_found(folder: Path) -> None:
    rng = random.Random(1)
    for file in sorted(with_frontends(folder).iterdir()):
        content = file.read_bytes()
        for left in (0, rng.randrange(len(content)), len(content) - 1):
            file.write_bytes(content[:left])
            assert is_found(folder, file.name), f"{left} bytes of {file.name}"
        file.write_bytes(content)
    assert problems(folder) == []


def is_found(folder: Path, name: str) -> bool:
    try:
        return name in {problem.file for problem in verify(folder, procs=1).problems}
    except DataError as error:
        return name == "manifest.json" and name in str(error)


@pytest.mark.usefixtures("in_process")
def test_files_of_no_shard_set_are_named_and_are_no_problem(folder: Path) -> None:
    (folder / "notes.txt").touch()
    found = verify(folder, procs=1)
    assert (found.problems, found.unknown) == ((), ("notes.txt",))


def test_all_shards_are_looked_at_to_the_end(folder: Path) -> None:
    names = sorted(file.name for file in folder.glob("*.tar"))
    for name in names:
        overwrite(folder / name, PCM_AT, b"\x01\x02\x03\x04")
    found = verify(folder, procs=2).problems
    assert sorted({problem.file for problem in found}) == names
    assert len(found) == 2 * len(names), "the checksum, and the audio of the first track"


def test_a_manifest_that_leads_outside_is_refused_before_anything_is_read(folder: Path) -> None:
    edit(folder, file="../music/0.wav")
    with pytest.raises(DataError, match="not a plain file name"):
        verify(folder)


@pytest.mark.parametrize("manifest", [None, b"", b"\0" * 100])
def test_a_shard_set_without_a_sound_manifest_is_replaced_by_force_alone(
    music: Path, folder: Path, manifest: bytes | None
) -> None:
    before = (folder / "tracks.csv").read_bytes()
    (folder / "manifest.json").unlink()
    if manifest is not None:
        (folder / "manifest.json").write_bytes(manifest)
    corpus = Corpus(name="mine", folder=music, tracks=(Track("a", "0.wav", "test", "Rock"),))
    config = PackConfig(min_seconds=0.1)
    with pytest.raises(DataError, match="already holds a shard set: --force"):
        pack(corpus, folder, config, procs=1)
    assert (folder / "tracks.csv").read_bytes() == before
    pack(corpus, folder, config, procs=1, force=True)
    assert sorted(file.name for file in folder.iterdir()) == [
        *("manifest.json", "rejected.csv", "test-000000.idx", "test-000000.tar", "tracks.csv")
    ]
    (folder / "tracks.csv").write_text("key,title\n")
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds files of no shard set"):
        pack(corpus, folder, config, procs=1, force=True)
