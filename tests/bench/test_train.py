import contextlib
import itertools
from collections.abc import Iterator

import pytest
import torch

from siamusic_fast.bench import limits, peers, train
from siamusic_fast.bench.report import named
from siamusic_fast.bench.timing import Contender, Stream, Timing, waiting_of
from siamusic_fast.bench.train import (
    ACHIEVED,
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
from siamusic_fast.errors import ConfigError
from siamusic_fast.processes.pool import cores
from siamusic_fast.shards.manifest import ShardSet

CPU = torch.device("cpu")


def test_the_step_is_measured_with_each_loader_and_with_none(
    shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_COMPARED", 32)
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
    assert [one.name for one in found.measurements] == [
        *(RESIDENT, *fed, PAPER, limits.MULTIPLYING),
        *map(waiting_of, fed),
        ACHIEVED,
    ]
    assert all(one.median > 0 for one in found.measurements[:6])
    assert all(0 <= one.median <= 100 for one in found.measurements[6:9])
    assert found.measurements[2].setting == f"{cores()} threads on the CPU"
    assert found.ratios[0].target is None  # set for ResNet-50 on a GPU
    achieved, resident = (named(found.measurements, name).median for name in (ACHIEVED, RESIDENT))
    assert achieved * 1e12 / found.settings["flops_per_pair"] == pytest.approx(resident)
    share = achieved / named(found.measurements, limits.MULTIPLYING).median
    assert found.ratios[-1].median == pytest.approx(share)
    assert found.limits[RESIDENT] == pytest.approx(resident / share)


def test_a_batch_that_is_too_small_to_train_on_is_refused(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="batch_size = 1 must be at least 2"):
        measure(shard_set, mel=MelConfig(seconds=0.25), batch_size=1)


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
        assert len(list(itertools.islice(batches, 3))) == 3
    assert slow.stopwatch is not None
    seconds, waited = slow.stopwatch.read()
    assert 0 < waited < seconds


def test_batches_made_in_advance_are_passed_over_without_training() -> None:
    taken, trained = list[int](), list[int]()

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in itertools.count():
            taken.append(number)
            yield torch.tensor(number), torch.tensor(number)

    @contextlib.contextmanager
    def opened() -> Iterator[Iterator[tuple[torch.Tensor, torch.Tensor]]]:
        yield batches()

    loader = Contender(name="any", items=1, open=opened, ahead=3)
    fed = fed_step("fed", loader, lambda views: trained.append(int(views[0])), CPU)
    with fed.open() as batches_fed:
        steps = Stream(batches_fed)
        next(steps)
        steps.skip(3)
        next(steps)
    assert taken == [0, 1, 2, 3, 4]
    assert trained == [0, 4]


def test_views_that_are_transposed_are_trained_on_as_all_others_are() -> None:
    trained = list[torch.Tensor]()

    @contextlib.contextmanager
    def opened() -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        yield [(torch.rand(2, 1, 4, 3).transpose(-1, -2),) * 2]

    fed = fed_step(
        "fed", Contender(name="any", items=2, open=opened), lambda views: trained.extend(views), CPU
    )
    with fed.open() as steps:
        next(iter(steps))
    assert [view.stride() for view in trained] == [(12, 12, 4, 1)] * 2


def test_the_operations_of_a_step_are_those_of_its_layers() -> None:
    # Twice as long an image has twice the convolutions; and a step is forward, and about twice that backward.
    one, two = (_flops("resnet18", _noise((2, 1, 64, frames), torch.device("cpu"))) for frames in (128, 256))
    assert two == pytest.approx(2 * one, rel=0.15)
