import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from siamusic_fast import __version__
from siamusic_fast.cli import COMMANDS, main
from siamusic_fast.shards.manifest import ShardSet

QUIET: dict[object, tuple[str, ...]] = {"bench": ("--quiet",), "pretrain": ("--quiet",)}


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def error_line(result: Result) -> str:
    """Return the one line that a user's mistake is answered with."""
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_python_dash_m_is_the_same_command() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "siamusic_fast", "--version"], capture_output=True, text=True, check=True
    )
    assert answer.stdout == f"siamusic-fast, version {__version__}\n"


def test_help_answers_without_loading_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from siamusic_fast.cli import main; "
        "CliRunner().invoke(main, ['--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"siamusic-fast {command} " in f"{result.stdout} ".replace("\n", " ")


def test_an_unknown_command_is_a_mistake_of_usage() -> None:
    result = run("pertrain")
    assert result.exit_code == 2
    assert "pertrain" in result.stderr


def test_preview_writes_the_picture_and_prints_its_path(shard_set: ShardSet, tmp_path: Path) -> None:
    path = tmp_path / "views.png"
    result = run("preview", "--data", shard_set.folder, "--tracks", 1, "--out", path)
    assert result.exit_code == 0
    assert result.stdout == f"{path}\n"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_preview_replaces_a_file_only_if_told_to(shard_set: ShardSet, tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    path.write_text("mine")
    words = ("preview", "--data", shard_set.folder, "--tracks", 1, "--aug", "none", "--out", path)
    assert f"{path} exists: choose another file" in error_line(run(*words))
    assert path.read_text() == "mine"
    result = run(*words, "--force", "--play", "--crops", "independent")
    assert result.exit_code == 0
    assert [Path(line).suffix for line in result.stdout.splitlines()] == [".png", ".wav", ".wav"]
    assert all(Path(line).is_file() for line in result.stdout.splitlines())


def test_preview_names_what_makes_missing_shards(tmp_path: Path) -> None:
    line = error_line(run("preview", "--data", "fma_medium", "--data-dir", tmp_path))
    assert "fma_medium" in line
    assert "siamusic-fast shard fma_medium" in line


def test_preview_refuses_a_crop_longer_than_the_tracks(shard_set: ShardSet, tmp_path: Path) -> None:
    words = ("preview", "--data", shard_set.folder, "--seconds", 60, "--out", tmp_path / "x.png")
    assert "longer than the longest track" in error_line(run(*words))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("pretrain", "--gpus", 0, "--batch-size", 8, "--out", "/proc/run"), "/proc/run: No such file"),
        (("preview", "--out", "/proc/views.png"), "/proc/views.png: No such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(shard_set: ShardSet, words: tuple[object, ...], answer: str) -> None:
    assert answer in error_line(run(*words, "--data", shard_set.folder, *QUIET.get(words[0], ())))


@pytest.mark.parametrize("seed", [-1, 2**31])
@pytest.mark.parametrize("command", ["preview", "pretrain", "demo"])
def test_a_seed_that_is_none_is_a_mistake_of_usage(command: str, seed: int) -> None:
    result = run(command, "--seed", seed)
    assert result.exit_code == 2
    assert str(seed) in result.stderr


@pytest.mark.parametrize("command", [("preview",), ("bench", "loader"), ("pretrain",)])
def test_an_unknown_recipe_is_refused_with_the_names_there_are(
    shard_set: ShardSet, command: tuple[str, ...]
) -> None:
    line = error_line(run(*command, "--data", shard_set.folder, "--aug", "jazz"))
    assert all(name in line for name in ("'jazz'", "image", "audio", "none"))
