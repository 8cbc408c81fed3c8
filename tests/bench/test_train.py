import contextlib
import itertools
from collections.abc import Iterator

import pytest
import torch

from siamusic_fast.bench.report import named
from siamusic_fast.bench.stages import prepare
from siamusic_fast.bench.timing import Stream, Timing, Workload, waiting_of
from siamusic_fast.bench.train import RESIDENT, WITH_DALI, WITH_TORCH, fed_workload, measure
from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.processes.pool import cores
from siamusic_fast.shards.manifest import ShardSet

CPU = torch.device("cpu")
TINY = Timing(windows=1, seconds=0.1)


def test_the_step_is_measured_with_each_loader_and_with_none(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=4, device=CPU, mel=MelConfig(seconds=0.25))
    found = measure(setup, "image", "resnet18", TINY)
    fed = [WITH_DALI, WITH_TORCH]
    assert [one.name for one in found.measurements] == [RESIDENT, *fed, *map(waiting_of, fed)]
    assert all(one.median > 0 for one in found.measurements[:3])
    assert all(0 <= one.median <= 100 for one in found.measurements[3:])
    assert found.measurements[2].setting == f"{cores()} threads, on the CPU"
    by_hand = named(found.measurements, WITH_DALI).median / named(found.measurements, RESIDENT).median
    assert found.ratios[0].median == by_hand


def test_a_batch_that_is_too_small_to_train_on_is_refused(shard_set: ShardSet) -> None:
    setup = prepare(shard_set, batch_size=1, device=CPU, mel=MelConfig(seconds=0.25))
    with pytest.raises(ConfigError, match="batch_size = 1 must be at least 2"):
        measure(setup, "image", "resnet50", TINY)


def test_waiting_is_the_share_of_time_until_a_batch_is_there() -> None:
    @contextlib.contextmanager
    def opened() -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        yield [(torch.zeros(1), torch.zeros(1))] * 3

    slow = fed_workload("fed", Workload(name="slow", items=1, open=opened), lambda views: None, CPU)
    with slow.open() as batches:
        assert len(list(itertools.islice(batches, 3))) == 3
    assert slow.read_timer is not None
    seconds, waited = slow.read_timer()
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

    loader = Workload(name="any", items=1, open=opened, max_ahead=3)
    fed = fed_workload("fed", loader, lambda views: trained.append(int(views[0])), CPU)
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

    fed = fed_workload(
        "fed", Workload(name="any", items=2, open=opened), lambda views: trained.extend(views), CPU
    )
    with fed.open() as steps:
        next(iter(steps))
    assert [view.stride() for view in trained] == [(12, 12, 4, 1)] * 2
