import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from siamusic_fast.cli import main
from siamusic_fast.shards.manifest import ShardSet, find_shards


def run(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, ["shard", *map(str, arguments)])


def assert_one_line_error(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_a_subset_by_name_goes_under_the_data_folder_and_ends_with_a_summary(fma_corpus: Path) -> None:
    result = run("fma_medium", "--data-dir", fma_corpus, "--workers", 1)
    assert result.exit_code == 0, result.output
    folder = fma_corpus / "shards" / "fma_medium"
    assert find_shards("fma_medium", fma_corpus).tracks(["training"]) == 24
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["training", "24", "0.05", "2"] in [line[:4] for line in lines]
    assert "Electronic 12, Folk 12, Rock 9, none 3" in result.stdout
    assert "1 silent" in result.stdout
    assert lines[-1] == ["next", "siamusic-fast", "pretrain", "--data", str(folder)]


def test_json_is_the_only_output_when_asked_for(fma_corpus: Path, tmp_path: Path) -> None:
    result = run(
        fma_corpus, "--out", tmp_path / "out", "--min-seconds", "8.5", "--quiet", "--json", "--workers", 1
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    summary = json.loads(result.stdout)
    assert summary["folder"] == str(tmp_path / "out")
    assert summary["splits"]["training"]["tracks"] == 6
    assert summary["rejected"]["too-short"] == 27 + 2  # sound tracks of 6 to 8 s, and two of the broken ones


def test_wrong_sources_are_one_line_with_the_remedy(tmp_path: Path) -> None:
    assert_one_line_error(run("fma_small", "--data-dir", tmp_path), "fma_small", "unpack")
    (tmp_path / "empty").mkdir()
    assert_one_line_error(run(tmp_path / "empty", "--data-dir", tmp_path), "no metadata", "--metadata")


def test_a_folder_without_its_files_is_one_line(fma_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "fma_small").mkdir()
    result = run("fma_small", "--data-dir", tmp_path, "--metadata", fma_corpus / "fma_metadata")
    assert_one_line_error(result, "holds none of the 30 tracks", "000/000002.mp3")


def test_an_existing_shard_set_is_one_line(fma_corpus: Path, shard_set: ShardSet) -> None:
    assert_one_line_error(run(fma_corpus, "--out", shard_set.folder), "already holds a shard set", "--force")


@pytest.mark.parametrize("option", ["--workers", "--shard-size"])
def test_impossible_counts_are_usage_errors(tmp_path: Path, option: str) -> None:
    assert run(tmp_path, option, 0).exit_code == 2
