"""Packing that is killed, told to stop, or out of space, in real processes."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siamusic_fast.shards.resuming import UNFINISHED
from tests.faults.disks import small_disk
from tests.faults.processes import command, end, finish, kill, moment, send, start, succeed, typed_command
from tests.faults.tries import Tries
from tests.shards.killing import contents, pack_serially

pytestmark = pytest.mark.faults

SMALL = ("--tracks-per-shard", 2, "--min-seconds", 1, "--sample-rate", 8000, "--quiet")
_HERE = (*SMALL, "--procs", 2, "--out")


@pytest.fixture(scope="module")
def expected(music: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """The files of a pack that was never stopped, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("expected") / "set"
    log = folder.with_name("log")
    succeed(start(command, "shard", music, *_HERE, folder, log=log), log)  # the first waits for the server
    shutil.rmtree(folder)
    begun = time.monotonic()
    succeed(start(command, "shard", music, *_HERE, folder, log=log), log)
    return contents(folder), time.monotonic() - begun


def is_done(folder: Path) -> bool:
    return (folder / "manifest.json").exists() and not (folder / UNFINISHED).exists()


def assert_goes_on(music: Path, folder: Path, expected: dict[str, bytes]) -> None:
    """Pack again where packing was stopped, and compare."""
    if not is_done(folder):
        log = folder.with_name("log")
        succeed(start(command, "shard", music, *_HERE, folder, log=log), log)
    assert contents(folder) == expected


def test_a_pack_killed_at_random_moments_resumes_to_identical_bytes(
    music: Path, expected: tuple[dict[str, bytes], float], tmp_path: Path, tries: Tries
) -> None:
    files, seconds = expected
    rng = random.Random(0)
    folder = tmp_path / "set"
    for number in tries:
        program = typed_command if number == 0 else command
        after = rng.uniform(0.1, 1.0) * seconds * (2 if number == 0 else 1)
        whom = ("group", "one")[number % 2]
        with tries.attempt(f"{whom} after {after:.3f} s"):
            process = start(program, "shard", music, *_HERE, folder, log=tmp_path / "log")
            moment(after)
            kill(process, whom)
            end(process, 10)
            assert_goes_on(music, folder, files)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_pack_whose_worker_is_killed_goes_on_to_identical_bytes(
    music: Path, expected: tuple[dict[str, bytes], float], tmp_path: Path, tries: Tries
) -> None:
    files, seconds = expected
    rng = random.Random(2)
    folder, log = tmp_path / "set", tmp_path / "log"
    for _ in tries:
        after = rng.uniform(0.1, 0.9) * seconds
        with tries.attempt(f"after {after:.3f} s"):
            process = start(command, "shard", music, *_HERE, folder, log=log)
            moment(after)
            kill(process, "child")
            succeed(process, log)
            assert contents(folder) == files
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("whom", ["one", "group"])
def test_a_pack_told_to_stop_ends_and_resumes_to_identical_bytes(
    music: Path, expected: tuple[dict[str, bytes], float], tmp_path: Path, whom: str, tries: Tries
) -> None:
    files, seconds = expected
    rng = random.Random(1)
    folder = tmp_path / "set"
    for turn in tries:
        number = (signal.SIGTERM, signal.SIGHUP)[turn % 2]
        after = rng.uniform(0.3, 0.8) * seconds
        with tries.attempt(f"signal {number} after {after:.3f} s"):
            process = start(command, "shard", music, *_HERE, folder, log=tmp_path / "log")
            moment(after)
            send(process, number, whom)
            end(process, 10)
            assert finish(process) in (128 + number, -number, 0), (tmp_path / "log").read_text()
            assert_goes_on(music, folder, files)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_pack_on_a_full_disk_ends_with_one_line_and_goes_on_when_there_is_room(
    music: Path, expected: tuple[dict[str, bytes], float], tmp_path: Path, tries: Tries
) -> None:
    files, _ = expected
    needed = sum(map(len, files.values()))
    disk, log = tmp_path / "disk", tmp_path / "log"
    for number in tries:
        size = needed * (number + 1) // (tries.count + 1)
        with tries.attempt(f"{size} bytes"), small_disk(disk, size):
            log.write_bytes(b"")
            assert finish(start(command, "shard", music, *_HERE, disk / "set", log=log)) == 1
            [line] = log.read_text().splitlines()
            assert line.startswith("error: "), line
            assert "No space left" in line or "full" in line, line
            subprocess.run(["mount", "-o", f"remount,size={4 * needed}", disk], check=True)
            log.write_bytes(b"")
            succeed(start(command, "shard", music, *_HERE, disk / "set", log=log), log)
            assert contents(disk / "set") == files


@pytest.mark.parametrize("fault", ["killed", "killed with --force", "full"])
def test_a_pack_stopped_at_any_operation_on_files_resumes_to_identical_bytes(
    music: Path, tmp_path: Path, fault: str, tries: Tries
) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    for name in ("001.flac", "002.flac", "003.flac", "broken.mp3"):
        shutil.copy(music / name, audio)
    pack_serially(audio, tmp_path / "expected")
    words = [audio, tmp_path / "expected", tmp_path / "scratch", *fault.replace(" with", "").split()]
    program = [sys.executable, "-m", "tests.shards.killing", *map(str, words)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
    tries.counts[:] = [int(done.stdout)] * 2
