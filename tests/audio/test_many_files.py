"""Sources of many files take few seconds and little memory. Bounds are generous: machines are busy."""

import subprocess
import sys
from pathlib import Path

import pytest

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.errors import DataError
from siamusic_fast.shards.pack import pack
from siamusic_fast.shards.tables import read_rejects

MEASURED = """if True:
    import sys, time
    from pathlib import Path
    from siamusic_fast.audio.folder import load_folder
    from tests.shards.memory import peak_memory
    before = peak_memory()
    start = time.process_time()
    corpus = load_folder(Path(sys.argv[1]), labels=Path(sys.argv[2]))
    seconds = time.process_time() - start
    print(len(corpus.tracks), seconds, peak_memory() - before)
"""


def write_rows(path: Path, rows: int) -> Path:
    with path.open("w") as file:
        file.write("path,label,split,group\n")
        file.writelines(
            f"music/{n:08d}.mp3,genre {n % 17},{('training', 'test')[n // 10 % 2]},artist {n // 10}\n"
            for n in range(rows)
        )
    return path


@pytest.mark.parametrize("rows", [30_000, pytest.param(300_000, marks=pytest.mark.slow)])
def test_a_label_file_costs_few_bytes_and_microseconds_per_row(tmp_path: Path, rows: int) -> None:
    labels = write_rows(tmp_path / "labels.csv", rows)
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(labels)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tracks, seconds, mb = map(float, output.split())
    assert tracks == rows
    assert seconds < 40e-6 * rows
    assert mb < 5 + 230e-6 * rows


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_junk_is_looked_over_to_the_last_file(tmp_path: Path, count: int) -> None:
    for number in range(count):
        folder = tmp_path / "junk" / str(number // 1000)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"junk{number}.mp3").write_text(f"<!DOCTYPE html><title>404 Not Found {number}</title>")
    with pytest.raises(DataError, match=rf"nothing to pack: .* was left out \({count} not-audio\)"):
        pack(load_folder(tmp_path / "junk"), tmp_path / "set", procs=1)
    assert sum(reject.reason == "not-audio" for reject in read_rejects(tmp_path / "set")) == count
