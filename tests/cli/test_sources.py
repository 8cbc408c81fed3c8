import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner, Result

from siamusic_fast.cli import main
from siamusic_fast.shards.tables import read_tracks
from tests.conftest import tone


def run(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, ["shard", *map(str, arguments)])


@pytest.fixture
def music(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "music" / ("rock", "jazz")[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(0.3, 220 + number, 8000, rng), 8000)
    return tmp_path / "music"


@pytest.mark.parametrize("labels", ["folders", "labels.csv", None])
def test_any_folder_is_packed_with_labels_of_either_kind_or_without(
    music: Path, tmp_path: Path, labels: str | None
) -> None:
    rows = [f"{('rock', 'jazz')[n % 2]}/{n}.wav,{('rock', 'jazz')[n % 2]}\n" for n in range(6)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(rows))
    given = str(tmp_path / labels) if labels == "labels.csv" else labels
    options = ["--labels", given] if given else []
    result = run(
        music, *options, "--data-dir", tmp_path, "--min-seconds", "0.1", "--procs", 1, "--json", "-q"
    )
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["classes"] == ({"jazz": 3, "rock": 3} if given else {})
    assert summary["unlabelled"] == (0 if given else 6)
    splits = {name: split["tracks"] for name, split in summary["splits"].items()}
    assert splits == ({"training": 2, "validation": 2, "test": 2} if given else {"training": 6})
    assert {track.path for track in read_tracks(tmp_path / "shards" / "music")} == {
        row.partition(",")[0] for row in rows
    }


@pytest.mark.parametrize(
    ("label_row", "words"), [("../secret.wav,rock", "leads outside"), ("/etc/passwd,rock", "is absolute")]
)
def test_a_label_file_that_points_outside_is_one_line(
    music: Path, tmp_path: Path, label_row: str, words: str
) -> None:
    (tmp_path / "labels.csv").write_text(f"path,label\n{label_row}\n")
    result = run(music, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "row 2" in result.stderr
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_only_fma_can_be_downloaded(music: Path) -> None:
    result = run(music, "--download")
    assert result.exit_code == 1
    assert "cannot be downloaded: there are fma_small, fma_medium, fma_large, fma_full" in result.stderr


def test_a_folder_of_parquet_is_packed_with_the_classes_of_a_column(music: Path, tmp_path: Path) -> None:
    files = sorted(music.rglob("*.wav"))
    columns = {"audio": [file.read_bytes() for file in files], "genre": [file.parent.name for file in files]}
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "hub" / "train-00000-of-00001.parquet")
    options = ("--data-dir", tmp_path, "--min-seconds", "0.1", "--procs", 1, "--json", "-q")
    result = run(tmp_path / "hub", "--label-column", "genre", *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["classes"] == {"jazz": 3, "rock": 3}
    result = run(tmp_path / "hub", "--label-column", "mood", *options)
    assert result.exit_code == 1
    assert "has no column 'mood', or several: its columns are 'audio', 'genre'" in result.stderr
