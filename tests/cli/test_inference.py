"""`embed`, `predict` and `similar` as they are typed."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from siamusic_fast.inference.vector_file import read_vectors
from tests.cli.test_main import error_line, run
from tests.conftest import tone
from tests.runs import save_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of four formats, and one that is no audio."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, ending in enumerate(("flac", "mp3", "ogg", "wav")):
        audio = tone(1.5, 220 * (number + 1), 44_100, np.random.default_rng(number))
        soundfile.write(folder / f"song {number}.{ending}", audio, 44_100)
    (folder / "broken.mp3").write_text("no audio")
    return folder


def test_embed_writes_a_file_and_says_what_was_left_out(
    pretrained: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    result = run("embed", pretrained, folder, "--gpus", 0, "--out", out, "--dtype", "float16")
    assert result.exit_code == 0, result.output
    assert "4 tracks in" in result.stdout
    assert "4 rows of 512 numbers" in result.stdout
    assert f"left out  {folder / 'broken.mp3'}: not-audio: FFmpeg does not know" in result.stdout
    assert "tracks/s" in result.stderr
    assert read_vectors(out).vectors.dtype == np.float16
    assert "exists: use another out" in error_line(run("embed", pretrained, folder, "--out", out))
    again = run("embed", pretrained, folder, "--out", out, "--force", "--json", "--quiet", "--gpus", 0)
    assert json.loads(again.stdout)["rows"] == 4


def test_embed_on_a_scheduler_in_this_process_writes_the_same_file(
    pretrained: Path, folder: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    for out, words in ((here, ("--gpus", 0)), (there, ("--scheduler", "local", "--procs", 2))):
        result = run("embed", pretrained, folder, "--crops", 1, "--out", out, *words)
        assert result.exit_code == 0, result.output
    assert "dashboard: http://127.0.0.1:" in result.stderr
    assert there.read_bytes() == here.read_bytes()
    line = error_line(run("embed", pretrained, folder, "--scheduler", "local", "--gpus", 1))
    assert "--gpus 1 does not go with --scheduler local: each worker uses the GPU that it sees" in line
    line = error_line(run("embed", pretrained, folder, "--scheduler", "local", "--timeout", 5))
    assert "--timeout 5 does not go with --scheduler local: workers do not wait for each other" in line


def test_predict_shows_bars_or_a_line_per_file_and_writes_a_table(folder: Path, tmp_path: Path) -> None:
    classifier, song = save_classifier(tmp_path / "run"), folder / "song 1.mp3"
    words = ("predict", classifier, song, folder / "broken.mp3", "--device", "cpu")
    result = run(*words, "--top", 2, "--csv", tmp_path / "genres.csv", "--quiet")
    assert result.exit_code == 0, result.output
    first, *bars = result.stdout.splitlines()
    assert first == str(song)
    assert len(bars) == 2
    assert all("%" in line and "█" in line for line in bars)
    assert result.stderr.startswith(f"left out: {folder / 'broken.mp3'}: not-audio")
    with (tmp_path / "genres.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert sum(float(row[name]) for name in ("Electronic", "Folk", "Rock")) == pytest.approx(1)
    (line,) = run(*words, "--json", "--quiet").stdout.splitlines()
    assert json.loads(line)["path"] == str(song)
    assert list(json.loads(line)["genres"]) == [bar.split()[0] for bar in bars] + [
        name for name in ("Electronic", "Folk", "Rock") if name not in {bar.split()[0] for bar in bars}
    ]
    assert "genres.csv exists" in error_line(run(*words, "--csv", tmp_path / "genres.csv"))


def test_predict_over_time_says_when_the_genre_changes_and_draws_it(folder: Path, tmp_path: Path) -> None:
    run_folder = save_classifier(tmp_path / "run")
    typed = ("predict", run_folder, folder / "song 1.mp3", "--device", "cpu", "--quiet")
    words = (*typed, "--over-time", "--hop-seconds", 0.1, "--out", tmp_path / "genres")
    result = run(*words)
    assert result.exit_code == 0, result.output
    *_, spells, picture = result.stdout.splitlines()
    assert spells.strip().startswith("0:00 ")
    assert Path(picture.strip()).read_bytes().startswith(b"\x89PNG")
    assert "exists: choose another folder" in error_line(run(*words))


def test_similar_lists_the_nearest_files(pretrained: Path, folder: Path) -> None:
    words = ("similar", pretrained, folder / "song 1.mp3", "--among", folder, "--device", "cpu", "--quiet")
    result = run(*words, "--top", 2)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 2
    found = json.loads(run(*words, "--json").stdout)
    assert len(found) == 3
    assert all(Path(one["path"]).is_file() for one in found)


def test_mistakes_are_one_line(pretrained: Path, folder: Path, tmp_path: Path) -> None:
    song = folder / "song 1.mp3"
    assert f"{pretrained} has no classifier: `siamusic-fast finetune {pretrained}`" in error_line(
        run("predict", pretrained, song)
    )
    assert "is no source" in error_line(run("embed", pretrained, "nothing", "--gpus", 0))
    (tmp_path / "empty").mkdir()
    assert "has no audio" in error_line(run("embed", pretrained, tmp_path / "empty", "--gpus", 0))
    (tmp_path / "checkpoint.pt").write_bytes(b"of something else")
    assert "is damaged or no checkpoint" in error_line(run("embed", tmp_path, song, "--gpus", 0))
    assert "cannot be used (not-audio)" in error_line(
        run("embed", pretrained, folder / "broken.mp3", "--gpus", 0, "--quiet", "--out", tmp_path / "x.npz")
    )


@pytest.mark.slow
def test_the_commands_work_as_they_are_typed(pretrained: Path, folder: Path, tmp_path: Path) -> None:
    def typed(*words: object) -> str:
        command = [sys.executable, "-m", "siamusic_fast", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    listed = tmp_path / "files.txt"
    listed.write_text("\n".join(str(path) for path in folder.iterdir()))
    assert "4 tracks in" in typed("embed", pretrained, "@files.txt", "--gpus", 0)
    song = folder / "song 1.mp3"
    assert len(typed("similar", pretrained, song, "--among", "embeddings.parquet").splitlines()) == 3
    assert len(typed("predict", save_classifier(tmp_path / "run"), song).splitlines()) == 4
