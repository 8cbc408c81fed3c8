import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from siamusic_fast.audio.corpus import Corpus, Track
from siamusic_fast.cli import main
from siamusic_fast.files import MANIFEST_LIMIT
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.sealed import read_sealed, write_sealed
from tests.conftest import BROKEN, tone
from tests.shards.small import pack_small


def run(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_inspect_shows_splits_classes_and_rejects(shard_set: ShardSet) -> None:
    result = run("inspect", shard_set.folder)
    assert result.exit_code == 0, result.output
    words = [line.split() for line in result.stdout.splitlines()]
    # 33 tracks with a class and 3 without last 6, 7, 8, 9 s in turn: 24 + 6 + 6 of them, 270 s in all.
    assert next(line for line in words if line[:1] == ["training"])[:3] == ["training", "24", "2"]
    assert next(line for line in words if line[:1] == ["all"])[:4] == ["all", "36", "3", "0.07"]
    bars = {line[0]: (line[1], line[2]) for line in words if len(line) > 2 and set(line[1]) == {"█"}}
    assert bars["Electronic"] == ("█" * 24, "12"), "the largest class has the longest bar"
    assert bars["Rock"] == ("█" * 18, "9")
    for reason in BROKEN.values():
        assert f"left out  1 {reason}: " in result.stdout


def test_inspect_says_the_same_as_json(shard_set: ShardSet) -> None:
    result = run("inspect", shard_set.folder.name, "--data-dir", shard_set.folder.parent, "--json")
    assert result.exit_code == 1, "names are looked up in DATA_DIR/shards"
    result = run("inspect", shard_set.folder, "--json")
    found = json.loads(result.stdout)
    assert found["classes"] == {"Electronic": 12, "Folk": 12, "Rock": 9}
    assert found["unlabelled"] == 3
    assert (found["groups"], found["divided_groups"]) == (12, 0)
    assert found["rejected"] == dict.fromkeys(BROKEN.values(), 1)
    assert found["equal_audio"] == []
    assert sum(split["hours"] for split in found["splits"].values()) == pytest.approx(270 / 3600, abs=2e-3)
    size = sum(file.stat().st_size for file in shard_set.folder.glob("*.tar"))
    assert sum(split["bytes"] for split in found["splits"].values()) == size


def test_inspect_lists_tracks_with_the_same_samples_in_other_files(tmp_path: Path) -> None:
    audio = tone(0.2, 440, 22_050, np.random.default_rng(0))
    pcm = np.rint(audio * 32_767).astype(np.int16)
    other = pcm[::-1].copy()
    for name, content in {"a.wav": pcm, "b.flac": pcm, "c.wav": other}.items():
        soundfile.write(tmp_path / name, content, 22_050)
    tracks = (
        Track("a", "a.wav", "training", "[red]Rock", group="Ann"),
        Track("b", "b.flac", "test", "[red]Rock", group="Ann"),
        Track("c", "c.wav", "test", "", group="Bob"),
    )
    corpus = Corpus(name="mine", folder=tmp_path, tracks=tracks)
    pack(corpus, tmp_path / "set", PackConfig(min_seconds=0.1), procs=1)
    result = run("inspect", tmp_path / "set")
    assert "same      a (training, 'a.wav'), b (test, 'b.flac')" in result.stdout
    assert "[red]Rock" in result.stdout
    assert "groups    2: training 1, test 2\n          1 group in more than one split: " in result.stdout
    found = json.loads(run("inspect", tmp_path / "set", "--json").stdout)
    assert (found["groups"], found["divided_groups"], found["splits"]["test"]["groups"]) == (2, 1, 2)
    (group,) = found["equal_audio"]
    assert [track["key"] for track in group] == ["a", "b"]


def test_verify_is_content_with_what_was_packed(shard_set: ShardSet) -> None:
    result = run("verify", shard_set.folder, "--quiet", "--procs", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(
        f"as they should be: {sum(map(len, shard_set.splits.values()))} shards, 36"
    )
    assert result.stderr == ""


def test_verify_names_all_that_is_wrong_and_exits_with_1(shard_set: ShardSet, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shard_set.folder, tmp_path / "shards" / "mine"))
    (folder / "test-000000.tar").unlink()
    (folder / "training-000000.idx").write_text("v1.2 0\n")
    result = run("verify", "mine", "--data-dir", tmp_path, "--quiet", "--procs", 1)
    assert result.exit_code == 1
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [
        *("training-000000.idx", "training-000000.idx"),
        "test-000000.tar",
    ]
    assert result.stderr.startswith("error: 3 problems")
    as_json = run("verify", folder, "--quiet", "--procs", 1, "--json")
    assert as_json.exit_code == 1
    assert len(json.loads(as_json.stdout)["problems"]) == 3


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_shards_that_are_not_there_are_one_line_with_the_remedy(command: str, tmp_path: Path) -> None:
    result = run(command, "fma_small", "--data-dir", tmp_path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"`siamusic-fast shard fma_small --data-dir {tmp_path} --download` fetches" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("left", [-1, -3, -40, -70])
def test_a_table_that_was_cut_is_one_line(shard_set: ShardSet, tmp_path: Path, left: int) -> None:
    folder = Path(shutil.copytree(shard_set.folder, tmp_path / "mine"))
    table = folder / "tracks.csv"
    table.write_bytes(table.read_bytes()[:left])
    result = run("inspect", folder)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "tracks.csv is missing or damaged (it has SHA-256 " in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(24, "Too many open files"), "error: Too many open files."),
        (OSError("no more threads"), "error: no more threads."),
        (PermissionError(13, "Permission denied", "a/b.csv"), "error: a/b.csv: Permission denied. Choose a"),
    ],
)
def test_an_error_of_the_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: OSError, line: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    module = importlib.import_module("siamusic_fast.cli.shards")
    monkeypatch.setattr(module, "find_shards", fail)
    result = run("inspect", "mine")
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
        {"COLUMNS": "40", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
    ],
    ids=["latin-1", "locale C", "narrow"],
)
def test_odd_terminals_show_all_figures(environment: dict[str, str], tmp_path: Path) -> None:
    folder = pack_small(tmp_path).folder
    manifest, _ = read_sealed(folder / "manifest.json", MANIFEST_LIMIT)
    write_sealed(folder / "manifest.json", {**manifest, "classes": ["Chanson française", "Пісня", "Rock"]})
    words = (sys.executable, "-m", "siamusic_fast", "inspect", str(folder))
    done = subprocess.run(words, capture_output=True, env=os.environ | environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Rock" in done.stdout
    assert b"\x1b" not in done.stdout
    bar, escaped = ("█".encode(), b"\\u041f") if "COLUMNS" in environment else (b"#", "П".encode())
    assert bar in done.stdout
    assert escaped not in done.stdout
