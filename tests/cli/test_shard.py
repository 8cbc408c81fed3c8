import io
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from siamusic_fast.cli import main
from siamusic_fast.cli.console import progress
from siamusic_fast.shards.manifest import ShardSet, find_shards, read_manifest
from siamusic_fast.shards.pack import packing_note


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
    result = run("fma_medium", "--data-dir", fma_corpus, "--procs", 1)
    assert result.exit_code == 0, result.output
    folder = fma_corpus / "shards" / "fma_medium"
    assert find_shards("fma_medium", fma_corpus).tracks(["training"]) == 24
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["training", "24", "2", "0.05", "2"] in [line[:5] for line in lines]
    assert "Electronic 12, Folk 12, Rock 9, none 3" in result.stdout
    assert "1 silent" in result.stdout
    assert lines[-1] == ["next", "siamusic-fast", "pretrain", "--data", str(folder)]


def test_json_is_the_only_output_when_asked_for(fma_corpus: Path, tmp_path: Path) -> None:
    result = run(
        fma_corpus, "--out", tmp_path / "out", "--min-seconds", "8.5", "--quiet", "--json", "--procs", 1
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    summary = json.loads(result.stdout)
    assert summary["folder"] == str(tmp_path / "out")
    assert summary["splits"]["training"]["tracks"] == 6
    assert summary["rejected"]["too-short"] == 27 + 2  # sound tracks of 6 to 8 s, and two of the broken ones


def test_wrong_sources_are_one_line_with_the_remedy(tmp_path: Path) -> None:
    assert_one_line_error(run("fma_small", "--data-dir", tmp_path), "fma_small", "unpack")
    (tmp_path / "fma_large").mkdir()
    assert_one_line_error(run("fma_large", "--data-dir", tmp_path), "no metadata", "--metadata")


def test_a_folder_without_its_files_is_one_line(fma_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "fma_small").mkdir()
    result = run("fma_small", "--data-dir", tmp_path, "--metadata", fma_corpus / "fma_metadata")
    assert_one_line_error(result, "holds none of the 30 tracks", "000/000002.mp3")


def test_an_existing_shard_set_is_one_line(fma_corpus: Path, shard_set: ShardSet) -> None:
    assert_one_line_error(run(fma_corpus, "--out", shard_set.folder), "already holds a shard set", "--force")


@pytest.mark.parametrize("option", ["--procs", "--tracks-per-shard"])
def test_impossible_counts_are_usage_errors(tmp_path: Path, option: str) -> None:
    assert run(tmp_path, option, 0).exit_code == 2


def test_strict_fails_after_the_summary_if_anything_was_left_out(fma_corpus: Path, tmp_path: Path) -> None:
    result = run(fma_corpus, "--out", tmp_path / "out", "--quiet", "--strict", "--procs", 1)
    assert result.exit_code == 1
    assert "left out  1 silent" in result.stdout
    assert result.stderr.startswith("error: 6 files were left out, which --strict does not allow")
    (tmp_path / "sound").mkdir()
    sound = fma_corpus / "fma_medium" / "000" / "000002.mp3"
    (tmp_path / "sound" / "a.mp3").write_bytes(sound.read_bytes())
    assert run(tmp_path / "sound", "--out", tmp_path / "strict", "--strict", "--procs", 1).exit_code == 0


def test_codec_rate_and_segments_are_what_was_asked_for(fma_corpus: Path, tmp_path: Path) -> None:
    options = ("--codec", "flac", "--sample-rate", 8000, "--min-seconds", 2, "--max-seconds", 3)
    result = run(fma_corpus, "--out", tmp_path / "out", *options, "--procs", 2, "--quiet")
    assert result.exit_code == 0, result.output
    shard_set = read_manifest(tmp_path / "out")
    assert (shard_set.codec, shard_set.sample_rate, shard_set.max_seconds) == ("flac", 8000, 3.0)
    # Of 6 to 9 s, nine tracks each: 2, 3 (7 s: 2, as one second is too short), 3 (8 s) and 3 segments.
    segments = sum(shard_set.tracks([split]) for split in shard_set.splits)
    assert segments == 9 * (2 + 2 + 3 + 3)
    assert "split       segments" in result.stdout


def test_a_rate_that_the_codec_cannot_store_is_one_line(tmp_path: Path) -> None:
    result = run(tmp_path, "--codec", "ogg", "--sample-rate", 400_000)
    assert_one_line_error(result, "sample_rate = 400000", "1000 to 192000 Hz for codec ogg")


def test_a_terminal_shows_rates_time_left_and_rejects_by_reason() -> None:
    screen, now = io.StringIO(), [0.0]
    terminal = Console(file=screen, force_terminal=True, width=80, color_system=None, get_time=lambda: now[0])
    note = packing_note(files=300, size=150_000_000, seconds=10, left_out=Counter(silent=2, empty=1))
    with progress(quiet=False, screen=terminal).task("Packing", 1000, "tracks") as task:
        task.advance(100)
        now[0] = 10.0
        task.advance(300, note=note)
        time.sleep(0.3)  # until it is drawn
        last = screen.getvalue().rsplit("Packing", 1)[1]
    assert "400/1,000 tracks" in last
    # 300 tracks and 150 MB in 10 s; the 600 that are left take 20 s.
    for words in ("30.0", "15.0", "00:20 left", "1 empty, 2 silent"):
        assert words in last


def test_a_pipe_gets_plain_lines(fma_corpus: Path, tmp_path: Path) -> None:
    result = run(fma_corpus, "--out", tmp_path / "out", "--procs", 1)
    line = result.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"Packing: 40/40 tracks  [\d.]+ tracks/s, [\d.]+ MB/s, left out: 1 missing, 1 empty, 1 not-audio, "
        r"1 too-short, 1 silent, 1 non-finite",
        line,
    )
