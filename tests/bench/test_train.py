import contextlib
import itertools
from collections.abc import Iterator

import pytest
import torch

from siamusic_fast.bench import loader, train
from siamusic_fast.bench.timing import Contender, Timing, waiting_of
from siamusic_fast.bench.train import (
    PAPER,
    RESIDENT,
    WITH_DALI,
    WITH_PAPER,
    WITH_TORCH,
    _flops,
    _noise,
    _papers_step,
    fed_step,
    measure,
)
from siamusic_fast.config import MelConfig
from siamusic_fast.shards.manifest import ShardSet

CPU = torch.device("cpu")


def test_the_step_is_measured_with_each_loader_and_with_none(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = loader.torch_loaders
    monkeypatch.setattr(loader, "torch_loaders", lambda *arguments: many(*arguments)[:1])
    # The process of its own is started in the next test.
    nothing = contextlib.nullcontext(itertools.repeat(None))
    monkeypatch.setattr(train, "_papers_step", lambda *arguments: nothing)
    found = measure(
        shard_set,
        backbone="resnet18",
        mel=MelConfig(seconds=0.25),
        batch_size=4,
        timing=Timing(windows=1, seconds=0.1),
    )
    fed = [WITH_DALI, WITH_TORCH, WITH_PAPER]
    assert [one.name for one in found.measurements] == [RESIDENT, *fed, PAPER, *map(waiting_of, fed)]
    assert all(one.median > 0 for one in found.measurements[:5])
    assert all(0 <= one.median <= 100 for one in found.measurements[5:])
    assert found.measurements[2].setting == "0 workers, samples at a time"
    assert found.ratios[0].target == 0.98
    reached = found.settings["flops_per_second"] / found.settings["flops_per_pair"]
    assert reached == pytest.approx(found.measurements[0].median)


def test_a_process_that_dies_is_an_error_and_no_hang() -> None:
    with (
        _papers_step("no such backbone", (2, 1, 48, 20), torch.device("cpu")) as steps,
        pytest.raises(RuntimeError, match="the process of the paper's step ended"),
    ):
        next(steps)


def test_waiting_is_the_share_of_time_until_a_batch_is_there() -> None:
    @contextlib.contextmanager
    def opened() -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        yield [(torch.zeros(1), torch.zeros(1))] * 3

    slow = fed_step("fed", Contender(name="slow", items=1, open=opened), lambda views: None, CPU)
    with slow.open() as batches:
        assert len(list(batches)) == 3
    assert slow.stopwatch is not None
    seconds, waited = slow.stopwatch.read()
    assert 0 < waited < seconds


def test_the_operations_of_a_step_are_those_of_its_layers() -> None:
    # Twice as long an image has twice the convolutions; and a step is forward, and about twice that backward.
    one, two = (_flops("resnet18", _noise((2, 1, 64, frames), torch.device("cpu"))) for frames in (128, 256))
    assert two == pytest.approx(2 * one, rel=0.15)
