import dataclasses
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import pytest
import soundfile

from siamusic_fast.audio.folder import load_folder
from siamusic_fast.audio.rejects import Reject
from siamusic_fast.audio.scan import scan
from siamusic_fast.audio.store import _FolderStore, open_store
from siamusic_fast.errors import DataError
from siamusic_fast.processes.pool import Count, WorkerDiedError, run_in_processes
from siamusic_fast.progress import Task
from siamusic_fast.shards import pack as pack_module
from siamusic_fast.shards.manifest import read_manifest
from siamusic_fast.shards.pack import PackConfig, pack
from siamusic_fast.shards.pack_shard import ShardToPack, decode_alone, pack_shard
from siamusic_fast.shards.plan import plan_shards
from siamusic_fast.shards.resuming import UNFINISHED, Unfinished, unfinished
from siamusic_fast.shards.tables import read_rejects
from tests.shards.killing import CONFIG, Serial, contents, kill_readers, pack_serially

Make = Callable[[int], Path]
COMMAND: list[str | Path] = [sys.executable, "-m", "siamusic_fast", "shard"]


@pytest.fixture(scope="module")
def make_audio(tmp_path_factory: pytest.TempPathFactory) -> Make:
    def make(count: int) -> Path:
        folder = tmp_path_factory.mktemp("audio")
        rng = np.random.default_rng(0)
        for number in range(count):
            soundfile.write(folder / f"{number:03d}.flac", rng.normal(0, 0.1, 40_000), 16_000)
        (folder / "broken.mp3").write_text("no audio")
        (folder / "copy.flac").write_bytes((folder / "000.flac").read_bytes())
        return folder

    return make


@pytest.fixture(scope="module")
def audio(make_audio: Make) -> Path:
    return make_audio(5)


@pytest.fixture(scope="module")
def expected(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shard set of `audio`, made without interruption."""
    folder = tmp_path_factory.mktemp("expected")
    pack_serially(audio, folder)
    return folder


class StopAfter:
    """A display on which the user presses Ctrl-C after some tracks are packed."""

    def __init__(self, tracks: int) -> None:
        self.left = tracks

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Task]:
        self.packing = description == "Packing"
        yield self

    def advance(self, steps: int = 1, note: str = "", values: Mapping[str, float] | None = None) -> None:
        self.left -= steps * self.packing
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(audio: Path, tmp_path: Path) -> Path:
    """A folder in which packing has stopped after two of three shards."""
    folder = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        pack(load_folder(audio), folder, CONFIG, executor=Serial(), progress=StopAfter(4))
    for file in folder.glob("*-000002.*"):
        file.unlink()
    (folder / UNFINISHED / "training-unlabelled-000002.json").unlink()
    return folder


def test_finished_shards_are_not_done_again(audio: Path, expected: Path, interrupted: Path) -> None:
    assert unfinished(interrupted) == Unfinished(finished=2, shards=3)
    before = {file.name: file.stat().st_ino for file in interrupted.glob("*.tar")}
    assert len(before) == 2
    pack_serially(audio, interrupted)
    assert contents(interrupted) == contents(expected)
    assert {name: (interrupted / name).stat().st_ino for name in before} == before
    assert unfinished(interrupted) is None
    assert not (interrupted / UNFINISHED).exists()


@pytest.mark.parametrize("damage", ["tar", "idx", "json", "one bit of tar", "one bit of idx"])
def test_a_finished_shard_that_was_damaged_since_is_done_again(
    audio: Path, expected: Path, interrupted: Path, damage: str
) -> None:
    folder = interrupted / UNFINISHED if damage == "json" else interrupted
    file = folder / f"training-unlabelled-000000.{damage.split()[-1]}"
    content = bytearray(file.read_bytes())
    if damage.startswith("one bit"):
        content[len(content) // 2] ^= 1
    else:
        del content[-10:]
    file.write_bytes(content)
    pack_serially(audio, interrupted)
    assert contents(interrupted) == contents(expected)


def test_what_a_killed_writer_left_is_removed(audio: Path, expected: Path, interrupted: Path) -> None:
    (interrupted / ".training-unlabelled-000002.tar.tmp").write_bytes(b"half")
    pack_serially(audio, interrupted)
    assert contents(interrupted) == contents(expected)


def test_other_options_are_refused_and_named_and_force_starts_over(
    audio: Path, expected: Path, interrupted: Path
) -> None:
    before = contents(interrupted)
    other = PackConfig(sample_rate=16_000, min_seconds=0.1, tracks_per_shard=2, max_seconds=1)
    with pytest.raises(
        DataError,
        match=r"--sample-rate 8000, not 16000, --max-seconds unset, not 1: .* --force to start over",
    ):
        pack_serially(audio, interrupted, other)
    with pytest.raises(DataError, match="--tracks-per-shard 2, not 3: use the same"):
        pack_serially(audio, interrupted, dataclasses.replace(CONFIG, tracks_per_shard=3))
    assert contents(interrupted) == before
    assert unfinished(interrupted) == Unfinished(finished=2, shards=3)
    pack_serially(audio, interrupted, other, force=True)
    assert read_manifest(interrupted).sample_rate == 16_000
    pack_serially(audio, interrupted, force=True)
    assert contents(interrupted) == contents(expected)


def test_other_audio_is_refused(audio: Path, interrupted: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(audio, tmp_path / audio.name))
    with (changed / "003.flac").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="unfinished work with other audio or metadata: use the same"):
        pack_serially(changed, interrupted)


def test_other_groups_are_refused(audio: Path, interrupted: Path) -> None:
    corpus = load_folder(audio)
    tracks = tuple(dataclasses.replace(track, group="Ann") for track in corpus.tracks)
    with pytest.raises(DataError, match="unfinished work with other audio or metadata: use the same"):
        pack(dataclasses.replace(corpus, tracks=tracks), interrupted, CONFIG, executor=Serial())


@pytest.mark.parametrize("zipped", [False, True])
def test_other_audio_of_the_same_size_is_refused(audio: Path, tmp_path: Path, zipped: bool) -> None:
    source = tmp_path / "music.zip" if zipped else Path(shutil.copytree(audio, tmp_path / "music"))
    if zipped:
        shutil.make_archive(str(tmp_path / "music"), "zip", audio)
    folder = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt):
        pack(load_folder(source), folder, CONFIG, executor=Serial(), progress=StopAfter(4))
    content = bytearray((audio / "003.flac").read_bytes())
    content[-100] ^= 1
    changed = source / "003.flac"
    if zipped:
        shutil.copytree(audio, tmp_path / "other")
        changed = tmp_path / "other" / "003.flac"
    changed.write_bytes(content)
    if zipped:
        shutil.make_archive(str(tmp_path / "music"), "zip", tmp_path / "other")
    with pytest.raises(DataError, match="unfinished work with other audio or metadata: use the same"):
        pack_serially(source, folder)


def test_other_software_is_refused(audio: Path, interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "ffmpeg_version_info", "9.9")
    with pytest.raises(DataError, match=r"FFmpeg [\d.]+, .* not .* FFmpeg 9\.9,"):
        pack_serially(audio, interrupted)


@pytest.mark.parametrize("how", ["gone", "cut", "disk"])
def test_audio_that_goes_away_ends_the_run_which_then_goes_on(
    audio: Path, expected: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(audio, tmp_path / audio.name))
    there, aside = source / "003.flac", tmp_path / "aside"

    class GoesAway(Serial):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            """Run a job after the plan has been made."""
            if not aside.exists():
                shutil.copy2(there, aside)
                if how == "gone":
                    there.unlink()
                elif how == "cut":
                    there.write_bytes(there.read_bytes()[:-10])
            return super().submit(function, *args, **kwargs)

    def fails(store: _FolderStore, path: str) -> BinaryIO:
        if aside.exists() and path == there.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(store, path)

    whole = _FolderStore.open
    folder = tmp_path / "folder"
    with monkeypatch.context() as broken:
        if how == "disk":
            broken.setattr(_FolderStore, "open", fails)
        with pytest.raises(DataError, match=r"003\.flac changed or went away while packing"):
            pack(load_folder(source), folder, CONFIG, executor=GoesAway())
    assert unfinished(folder) is not None
    assert not (folder / "manifest.json").exists()
    shutil.copy2(aside, there)
    pack_serially(source, folder)
    assert contents(folder) == contents(expected)


def test_work_that_force_has_begun_goes_on_with_force(audio: Path, expected: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(expected, tmp_path / "set"))
    with pytest.raises(KeyboardInterrupt):
        pack(load_folder(audio), folder, CONFIG, executor=Serial(), progress=StopAfter(4), force=True)
    state = unfinished(folder)
    assert state is not None
    assert state.forced
    before = {file.name: file.stat().st_ino for file in folder.glob("*.tar")}
    assert before
    pack_serially(audio, folder, force=True)
    assert contents(folder) == contents(expected)
    assert {name: (folder / name).stat().st_ino for name in before} == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("lock", [None, "mine\n", "mine", "[1]\n", '{"half'])
def test_a_folder_of_that_name_which_no_packer_made_is_not_touched(
    audio: Path, tmp_path: Path, lock: str | None, force: bool
) -> None:
    (tmp_path / "training-000000.tar").write_text("mine")
    theirs = tmp_path / UNFINISHED
    theirs.mkdir()
    (theirs / "notes.txt").write_text("mine")
    if lock:
        (theirs / "lock").write_text(lock)
    with pytest.raises(DataError, match=r"was not made by siamusic-fast|holds files of no shard set"):
        pack_serially(audio, tmp_path, force=force)
    assert (theirs / "notes.txt").read_text() == "mine"
    assert not lock or lock.startswith("{") or (theirs / "lock").read_text() == lock
    assert (tmp_path / "training-000000.tar").read_text() == "mine"


def test_what_others_put_beside_the_mark_stays(audio: Path, expected: Path, interrupted: Path) -> None:
    (interrupted / UNFINISHED / "notes.json").write_text("mine")
    pack_serially(audio, interrupted)
    assert contents(interrupted) == contents(expected)
    assert [file.name for file in (interrupted / UNFINISHED).iterdir()] == ["notes.json"]


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(make_audio: Make, tmp_path: Path) -> None:
    audio = make_audio(12)
    command = [*COMMAND, audio, "--min-seconds", "1", "--tracks-per-shard", "4", "--procs", "2", "--out"]
    subprocess.run([*command, tmp_path / "expected"], check=True, capture_output=True)
    sizes = [file.stat().st_size for file in (tmp_path / "expected").glob("*.tar")]

    def fill_disk() -> None:
        # Of three shards, the one that is smallest fits: beyond, writing fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(sizes), min(sizes)))

    folder = tmp_path / "folder"
    done = subprocess.run([*command, folder], preexec_fn=fill_disk, capture_output=True, text=True)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: packing stopped: {folder} cannot be written: File too large.")
    assert re.search(r"the same command goes on( from the [12] shards that are finished)?\.$", error)
    expected = contents(tmp_path / "expected")
    assert all(content == expected[name] for name, content in contents(folder).items())
    assert not (folder / "manifest.json").exists()
    subprocess.run([*command, folder], check=True, capture_output=True)
    assert contents(folder) == expected


def heed_ctrl_c() -> None:
    """Undo what a shell does to the jobs it runs in the background: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("finished", [0, 1])
def test_ctrl_c_ends_with_what_is_there_and_how_to_go_on(
    make_audio: Make, tmp_path: Path, finished: int
) -> None:
    folder = tmp_path / "folder"
    command = [
        *COMMAND,
        make_audio(300),
        "--tracks-per-shard",
        "5",
        "--procs",
        "2",
        "--min-seconds",
        "1",
        "--out",
        folder,
    ]
    packer = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_ctrl_c
    )
    while (state := unfinished(folder)) is None or state.finished < finished:
        time.sleep(0.005)
    os.killpg(packer.pid, signal.SIGINT)
    start = time.monotonic()
    _, words = packer.communicate(timeout=10)
    assert time.monotonic() - start < 2
    assert packer.returncode == 130
    state = unfinished(folder)
    assert state is not None
    assert words.splitlines()[-1] == (
        f"stopped: {state.finished} of 61 shards are finished in {folder}; "
        f"the same command goes on from there, --force starts over."
    )
    assert "Traceback" not in words


def hang(job: int, count: Count) -> None:
    count((1,))
    time.sleep(100)


def test_a_worker_that_hangs_does_not_hold_up_the_end() -> None:
    def interrupt(counts: tuple[int, ...]) -> None:
        if counts[0]:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_in_processes(hang, [0, 1], procs=2, counters=1, on_counts=interrupt)
    assert time.monotonic() - start < 50


def crash(job: int, count: Count) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_one_line() -> None:
    with pytest.raises(DataError, match=r"died \(killed, perhaps for lack of memory\): close other"):
        run_in_processes(crash, [0], procs=1, counters=1, on_counts=lambda counts: None)


def test_a_kill_before_anything_is_decided_leaves_foreign_files_safe(audio: Path, tmp_path: Path) -> None:
    (tmp_path / "training-000000.tar").write_text("mine")
    (tmp_path / UNFINISHED).mkdir()
    (tmp_path / UNFINISHED / "lock").write_text(json.dumps({"half": "a line"}))
    for force in (False, True):
        with pytest.raises(DataError, match="holds files of no shard set"):
            pack_serially(audio, tmp_path, force=force)
    assert (tmp_path / "training-000000.tar").read_text() == "mine"


def deadly_at_its_second_step(job: int, count: Count) -> None:
    count((1,))
    if job == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)


def test_a_worker_that_dies_tells_what_it_was_at() -> None:
    with pytest.raises(WorkerDiedError) as caught:
        run_in_processes(
            deadly_at_its_second_step, [0, 1], procs=2, counters=1, on_counts=lambda counts: None
        )
    assert (caught.value.job, caught.value.step) == (1, 1)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the reader of a file through /proc")
@pytest.mark.parametrize(
    ("times", "rejected", "words"),
    [(1, {}, "which can be decoded: it is tried again"), (2, {"error": 1}, "that file is left out")],
)
def test_a_file_at_which_a_worker_was_killed_is_left_out_if_one_that_decodes_it_alone_dies_too(
    tmp_path: Path, times: int, rejected: dict[str, int], words: str
) -> None:
    music = tmp_path / "music"
    music.mkdir()
    noise = np.random.default_rng(0).integers(-999, 999, 8000, np.int16)
    soundfile.write(music / "deadly.flac", np.tile(noise, 300), 8000)
    soundfile.write(music / "good.wav", np.full(8000, 0.1), 8000)
    target = (music / "deadly.flac", times)
    threading.Thread(target=kill_readers, args=target, daemon=True).start()
    died = r"worker process died \(killed, perhaps for lack of memory\) while it decoded deadly\.flac, "
    with pytest.warns(UserWarning, match=rf"{died}.*{words}"):
        packed = pack(load_folder(music), tmp_path / "out", CONFIG, procs=1)
    assert packed.rejected == rejected
    reason = Reject("deadly.flac", "error", "worker processes died while they decoded this file")
    assert list(read_rejects(tmp_path / "out")) == [reason] * len(rejected)


class Deaths:
    """Stands for `run_in_processes`: so many times, a worker dies at the second track of the second shard.

    A worker that decodes that track alone dies with the error `alone`, if there is one.
    """

    def __init__(self, deaths: int, alone: WorkerDiedError | None = None) -> None:
        self.left, self.alone = deaths, alone

    def __call__(self, function: Callable[..., Any], jobs: Sequence[Any], **options: Any) -> None:
        if function is decode_alone:
            [job] = jobs
            assert len(job.plan.tracks) == len(job.sizes) == 1
            if self.alone:
                raise self.alone
        elif self.left:
            self.left -= 1
            raise WorkerDiedError("killed, perhaps for lack of memory", 2, job=1, step=1)
        else:
            for job in jobs:
                function(job)


def pack_with(deaths: Deaths, audio: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "run_in_processes", deaths)
        pack(load_folder(audio), folder, CONFIG, procs=2)


@pytest.mark.filterwarnings("ignore:a worker process died")
def test_workers_may_die_a_few_times_by_chance_and_change_no_byte(
    audio: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_with(Deaths(3), audio, tmp_path / "set", monkeypatch)
    assert contents(tmp_path / "set") == contents(expected)
    with pytest.raises(DataError, match=r"died .*: use fewer than 2 --procs; the same command goes on"):
        pack_with(Deaths(4), audio, tmp_path / "other", monkeypatch)
    pack_serially(audio, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(expected)


def test_no_file_is_left_out_where_workers_die_before_they_decode_anything(
    audio: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"a worker process died \(exit code 1\)"):
        pack_with(Deaths(1, WorkerDiedError("exit code 1", 1, job=0)), audio, tmp_path, monkeypatch)
    pack_serially(audio, tmp_path)
    assert contents(tmp_path) == contents(expected)


@pytest.mark.filterwarnings("ignore:a worker process died")
def test_a_run_that_goes_on_passes_over_a_file_at_which_workers_died_and_force_tries_it_again(
    audio: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = plan_shards(
        scan(load_folder(audio), open_store(audio)).tracks, tracks_per_shard=CONFIG.tracks_per_shard, seed=0
    )[1].tracks[1]
    dies = WorkerDiedError("killed, perhaps for lack of memory", 1, job=0, step=1)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "_write_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            pack_with(Deaths(1, dies), audio, tmp_path, monkeypatch)
    pack_serially(audio, tmp_path)
    assert deadly.path in [reject.path for reject in read_rejects(tmp_path) if reject.reason == "error"]
    assert not (tmp_path / UNFINISHED).exists()
    pack_serially(audio, tmp_path, force=True)
    assert contents(tmp_path) == contents(expected)


def test_a_shard_that_was_packed_with_other_settings_is_not_taken(audio: Path, tmp_path: Path) -> None:
    pack_serially(audio, tmp_path / "expected")
    with pytest.raises(KeyboardInterrupt):
        pack(load_folder(audio), tmp_path / "set", CONFIG, procs=1, progress=StopAfter(2))
    state = tmp_path / "set" / UNFINISHED
    late = next(
        state.glob("training*.json")
    )  # as a worker may write it that does not know of the new packing
    late.write_text(json.dumps(json.loads(late.read_text()) | {"packing": "another"}))
    pack_serially(audio, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(tmp_path / "expected")


def test_a_worker_whose_permit_is_gone_writes_nothing(audio: Path, tmp_path: Path) -> None:
    found = scan(load_folder(audio), open_store(audio))
    (plan, *_) = plan_shards(found.tracks, tracks_per_shard=2, seed=0)
    sizes = {track.path: size for track, size in zip(found.tracks, found.sizes, strict=True)}
    job = ShardToPack(
        audio=audio,
        folder=tmp_path,
        packing="",
        permit=tmp_path / UNFINISHED / "permit",
        plan=plan,
        sizes=tuple(sizes[track.path] for track in plan.tracks),
        crashed=frozenset(),
        labels={"": -1},
        demands=CONFIG,
        encoding=CONFIG,
        max_seconds=None,
    )
    (tmp_path / UNFINISHED).mkdir()
    with pytest.raises(DataError, match="is not being packed any more: this worker stops"):
        pack_shard(job)
    assert [file.name for file in tmp_path.rglob("*")] == [UNFINISHED]
