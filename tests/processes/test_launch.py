import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from siamusic_fast.cli import load_command
from siamusic_fast.errors import ConfigError, DataError, DeviceError, SiamusicError
from siamusic_fast.models.heads import predictor, projector
from siamusic_fast.models.losses import simsiam_loss
from siamusic_fast.processes.failures import (
    OF_CELLS,
    OF_EMBEDDING,
    OF_FINETUNING,
    OF_PRETRAINING,
    OF_SCORES,
    Remedy,
    WorkerError,
    is_repeated,
)
from siamusic_fast.processes.launch import _failure, _waited_in_vain, device_for, launch
from siamusic_fast.processes.world import World, gradients_kept_apart

STEPS, BATCH, FEATURES = 5, 8, 4


def batches() -> Tensor:
    """Inputs and targets of every step, [STEPS, BATCH, FEATURES + 1]."""
    return torch.randn(STEPS, BATCH, FEATURES + 1, generator=torch.Generator().manual_seed(0))


def train(*, world: World) -> list[Mapping[str, Tensor]]:
    """Fit a line to this rank's share of each batch and return all ranks' weights."""
    torch.manual_seed(world.rank)  # what the ranks start from differs until they are joined
    line = nn.Linear(FEATURES, 1)
    model = world.wrap(line)
    optimizer = torch.optim.SGD(line.parameters(), lr=0.1)
    share = BATCH // world.world_size
    for batch in batches():
        mine = batch[world.rank * share : (world.rank + 1) * share]
        loss = (model(mine[:, :-1]) - mine[:, -1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert world.once(lambda: world.rank) == 0
    torch.testing.assert_close(world.mean(torch.tensor(float(world.rank))).item(), (world.world_size - 1) / 2)
    return world.gather({name: value.clone() for name, value in line.state_dict().items()})


def fail_on_the_second(*, world: World) -> None:
    if world.rank == 1:
        raise DataError(f"rank {world.rank}: the shard is gone, pack it again")
    world.gather(None)


class SmallSimSiam(nn.Module):
    """The real heads behind a small convolutional encoder."""

    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(1, 8, 3, stride=2, bias=False)
        self.encoder = nn.Sequential(
            convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.projector = projector("simsiam", 128, 32)
        self.predictor = predictor("simsiam", 32)

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z1, z2 = (self.projector(self.encoder(view)) for view in (view1, view2))
        return self.predictor(z1), self.predictor(z2), z1, z2


class Learnt(NamedTuple):
    """What a rank has after some steps."""

    gradients: dict[str, Tensor]
    """Of the first step."""
    weights: dict[str, Tensor]
    """After the last one, with batch norm's statistics."""


def train_simsiam(*, world: World, steps: int, grad_accum_steps: int = 1) -> list[Learnt]:
    """Train with SyncBatchNorm on this rank's share of each batch and return what every rank learnt."""
    torch.manual_seed(0)
    small = SmallSimSiam().double()  # so that a difference is one of kind and not of rounding
    model = world.wrap(small, sync_batchnorm=True)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05, momentum=0.9)
    share = 8 // world.world_size
    gradients: dict[str, Tensor] = {}
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        views = torch.randn(2, grad_accum_steps, 8, 1, 16, 32, generator=generator, dtype=torch.float64)
        for part in range(grad_accum_steps):
            view1, view2 = views[:, part, world.rank * share : (world.rank + 1) * share]
            with gradients_kept_apart(model, part < grad_accum_steps - 1):
                (simsiam_loss(*model(view1, view2)) / grad_accum_steps).backward()  # type: ignore[no-untyped-call]
        if step == 0:
            gradients = {
                name: weight.grad.clone()
                for name, weight in small.named_parameters()
                if weight.grad is not None
            }
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: value.clone() for name, value in small.state_dict().items()}
    return [Learnt(*found) for found in world.gather((gradients, weights))]


def train_both_ways(*, world: World) -> tuple[list[Learnt], list[Learnt]]:
    return train_simsiam(world=world, steps=20), train_simsiam(world=world, steps=2, grad_accum_steps=3)


@pytest.fixture(scope="module")
def learnt() -> tuple[list[Learnt], list[Learnt]]:
    """Of two ranks, after 20 steps, and after 2 steps of 3 batches each."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    found = launch(train_both_ways, gpus=0, procs=2)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    return found


def test_two_ranks_with_synchronized_batch_norm_have_the_gradients_of_one_with_the_joined_batch(
    learnt: tuple[list[Learnt], list[Learnt]],
) -> None:
    # Both alone: torch's own batch norm, on all samples.
    for found, alone in zip(learnt, train_both_ways(world=World()), strict=True):
        assert (
            found[0].gradients.keys()
            == alone[0].gradients.keys()
            == dict(SmallSimSiam().named_parameters()).keys()
        )
        for name, expected in alone[0].gradients.items():
            torch.testing.assert_close(found[0].gradients[name], expected, rtol=1e-5, atol=1e-8)
        for name, expected in alone[0].weights.items():
            torch.testing.assert_close(found[0].weights[name], expected, rtol=1e-5, atol=1e-6)


def test_ranks_hold_identical_weights_after_twenty_steps(
    learnt: tuple[list[Learnt], list[Learnt]],
) -> None:
    [first, second], _ = learnt
    for name, weight in first.weights.items():
        torch.testing.assert_close(weight, second.weights[name], rtol=0, atol=0)


def die_at_first(*, world: World) -> int:
    """Be killed as the second process, until the job was started again."""
    if world.rank == 1 and world.restarts == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    assert world.max(world.rank, 7 - world.rank) == [1, 7]
    return world.restarts


def fall_over(*, world: World) -> None:
    if world.rank == 1:
        raise ZeroDivisionError("a mistake of ours")
    world.gather(None)


def test_a_killed_process_ends_the_job_with_its_rank_and_signal() -> None:
    with pytest.raises(SiamusicError, match=r"^rank 1 was ended by signal 9 \(SIGKILL\)"):
        launch(die_at_first, gpus=0, procs=2)


def test_a_job_that_may_restart_starts_all_processes_again() -> None:
    assert launch(die_at_first, gpus=0, procs=2, max_restarts=1) == 1


def hang_at_first(*, world: World) -> int:
    """Let the first process wait for the second, which hangs, until the job was started again."""
    if world.rank == 1 and world.restarts == 0:
        time.sleep(300)
    world.wait_for_all()
    return world.restarts


def test_a_process_that_hangs_ends_the_job_when_the_timeout_is_over() -> None:
    words = r"^rank \d on \S+ waited 8 s for another process in vain: it hangs\. .* \(--timeout 16\)\.$"
    with pytest.raises(SiamusicError, match=words):
        launch(hang_at_first, gpus=0, procs=2, timeout=8)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_task_that_waits_for_one_that_never_starts_says_so(
    monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    step = {"JOB_ID": str(os.getpid()), "STEP_ID": "0", "STEP_NUM_TASKS": "2", "JOB_NODELIST": "localhost"}
    for name, value in {**step, "PROCID": rank, "LOCALID": rank}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(SiamusicError, match=rf"^rank {rank} on \S+ waited 0\.5 s for another process"):
        launch(whoami, gpus=0, timeout=0.5)


def be_slow_at_first(*, world: World) -> tuple[int, list[int]]:
    """Let the others wait for the leading process for longer than the timeout."""

    def take_long() -> int:
        time.sleep(12)
        return world.rank

    return world.once(take_long), world.gather(world.rank)


@pytest.mark.slow
def test_what_the_leading_process_does_for_all_may_take_longer_than_the_timeout() -> None:
    assert launch(be_slow_at_first, gpus=0, procs=2, timeout=8) == (0, [0, 1])


@pytest.mark.parametrize(
    ("command", "remedy", "words"),
    [
        ("pretrain", OF_PRETRAINING, "--resume) goes on from the last checkpoint"),
        ("finetune", OF_FINETUNING, "--resume) goes on from the last checkpoint"),
        ("embed", OF_EMBEDDING, "the same command) goes on"),
        ("evaluate", OF_SCORES, "the same command) again"),
        ("probe", OF_SCORES, "the same command) again"),
        ("ablate", OF_CELLS, "The same command goes on"),
        ("reproduce", OF_CELLS, "The same command goes on"),
    ],
)
def test_failed_processes_recommend_what_their_command_has(command: str, remedy: Remedy, words: str) -> None:
    killed = ProcessFailure(local_rank=1, pid=1, exitcode=-9, error_file="")
    ended = str(_failure(ChildFailedError("", {1: killed}), remedy))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("LOCAL_WORLD_SIZE", "2")
        waited = _waited_in_vain(8.0, remedy)
    options = {option for parameter in load_command(command).params for option in parameter.opts}
    assert words in ended
    assert words in waited
    assert set(re.findall(r"--[a-z-]+", ended + waited)) <= options
    assert ("--timeout 16" in waited) is ("--timeout" in options)
    assert ("--max-restarts" in ended) is ("--max-restarts" in options)


@pytest.mark.slow
def test_a_job_that_may_restart_does_so_after_a_process_hung() -> None:
    assert launch(hang_at_first, gpus=0, procs=2, timeout=20, max_restarts=1) == 1


@pytest.mark.slow
def test_a_mistake_of_ours_is_shown_once_with_its_rank_and_traceback() -> None:
    with pytest.raises(WorkerError) as error:
        launch(fall_over, gpus=0, procs=2)
    text = str(error.value)
    assert text.startswith("rank 1 failed:\nTraceback (most recent call last):")
    assert text.endswith("ZeroDivisionError: a mistake of ours")
    assert text.count("Traceback") == 1
    assert "in fall_over" in text


def whoami(*, world: World) -> list[int]:
    return world.gather(world.rank)


@pytest.mark.slow
def test_tasks_of_slurm_join_each_other() -> None:
    environment = {
        **os.environ,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_JOB_NODELIST": "localhost",
    }
    code = "from tests.processes.test_launch import launch, whoami; print(launch(whoami, gpus=0))"
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**environment, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    assert [task.communicate()[0] for task in tasks] == ["[0, 1]\n"] * 2


def count_restarts(ids: Path, *, world: World) -> list[int]:
    """Be killed as the second process at the first start; say what each process knows of restarts.

    The leading one adds the job's id to the file `ids` at each start.
    """
    if world.leads:
        with ids.open("a") as file:
            file.write(f"{world.id}\n")
    world.wait_for_all()
    if world.rank == 1 and world.restarts == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return world.gather(world.restarts)


@pytest.mark.slow
def test_two_nodes_of_torchrun_start_again_together_when_one_loses_its_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import functools\n"
        "from pathlib import Path\n"
        "from tests.processes.test_launch import count_restarts, launch\n"
        "if __name__ == '__main__':\n"
        f"    print(launch(functools.partial(count_restarts, Path({str(tmp_path / 'ids')!r})), gpus=0))\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--max-restarts=1"]
    nodes = [
        subprocess.Popen(
            [*torchrun, *meeting, str(program)],
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [node.communicate(timeout=120)[0] for node in nodes] == ["[1, 1]\n"] * 2
    before, after = (tmp_path / "ids").read_text().split()
    assert before == after != "none"


def fail(attempts: Path, ranks: Sequence[int], *, world: World) -> None:
    with attempts.open("a") as file:
        file.write(f"{world.rank}")
    world.wait_for_all()
    if world.rank in ranks:
        raise DataError("the loss became NaN")
    world.wait_for_all()


@pytest.mark.parametrize("ranks", [(0, 1), pytest.param((1,), marks=pytest.mark.slow)])
def test_an_error_of_the_user_in_any_process_is_not_tried_again(tmp_path: Path, ranks: Sequence[int]) -> None:
    function = functools.partial(fail, tmp_path / "attempts", ranks)
    with pytest.raises(DataError, match=r"^the loss became NaN$"):
        launch(function, gpus=0, procs=2, max_restarts=2)
    assert sorted((tmp_path / "attempts").read_text()) == ["0", "1"]


def test_two_processes_learn_what_one_learns_from_the_joined_batch() -> None:
    [alone] = launch(train, gpus=0)
    first, second = launch(train, gpus=0, procs=2)
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6)


def test_a_mistake_found_by_any_process_ends_the_job_as_the_same_error() -> None:
    with pytest.raises(DataError, match=r"^rank 1: the shard is gone, pack it again$"):
        launch(fail_on_the_second, gpus=0, procs=2)


def refuse_once(*, world: World) -> list[tuple[str, bool]]:
    """Return, of all, what they hear when the leading process cannot do what it alone was to do."""

    def refuse() -> None:
        raise DataError("the folder is full")

    with pytest.raises(DataError) as error:
        world.once(refuse)
    kind, words = (AwkwardError, "^1, 2") if world.leads else (RuntimeError, "^AwkwardError: 1, 2")
    with pytest.raises(kind, match=words):
        world.once(refuse_awkwardly)
    return world.gather((str(error.value), is_repeated(error.value)))


class AwkwardError(Exception):
    """An error that cannot be made again from its arguments."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one}, {other}")


def refuse_awkwardly() -> None:
    raise AwkwardError(1, 2)


def test_what_the_leading_process_cannot_do_is_an_error_in_all() -> None:
    found = launch(refuse_once, gpus=0, procs=2)
    assert found == [("the folder is full", False), ("the folder is full", True)]


def run_out_of(what: str, *, world: World) -> None:
    if what == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words")
    Path("/nowhere/at/all").read_text()


@pytest.mark.parametrize("procs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_lack_of_memory_names_the_options_that_help(procs: int) -> None:
    words = (
        r"Tried to allocate 2\.00 GiB\.\): use a smaller batch_size, .* --batch-size and --grad-accum-steps"
    )
    with pytest.raises(DeviceError, match=words):
        launch(functools.partial(run_out_of, "memory"), gpus=0, procs=procs)


def test_a_file_that_a_worker_cannot_use_is_named() -> None:
    with pytest.raises(DataError, match=r"^/nowhere/at/all: No such file or directory"):
        launch(functools.partial(run_out_of, "files"), gpus=0, procs=2)


def test_restarts_are_left_to_the_launcher_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"max_restarts = 3 .* give torchrun its own --max-restarts"):
        launch(whoami, gpus=0, max_restarts=3)


def test_gpus_that_are_not_there_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match=r"gpus = 2 asks for a GPU and none is visible: .* --gpus 0"):
        launch(train, gpus=2)
    assert device_for(None) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match=r"gpus = 3 asks for more than the 2 visible: .* --gpus 2"):
        launch(train, gpus=3)
    with pytest.raises(ConfigError, match=r"gpus = 2 is too many, .* --gpus 1"):
        device_for(2)
    with pytest.raises(ConfigError, match=r"procs = 3 does not fit gpus = 2: .* --procs"):
        launch(functools.partial(train), gpus=2, procs=3)
    with pytest.raises(ConfigError, match=r"procs = 2 asks for processes on the CPU, .* --gpus 0"):
        launch(functools.partial(train), procs=2)
