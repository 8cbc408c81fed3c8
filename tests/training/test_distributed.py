import functools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from siamusic_fast.errors import ConfigError, DataError, DeviceError
from siamusic_fast.training.distributed import Job, device_for, launch

STEPS, BATCH, FEATURES = 5, 8, 4


def batches() -> Tensor:
    """Inputs and targets of every step, [STEPS, BATCH, FEATURES + 1]."""
    return torch.randn(STEPS, BATCH, FEATURES + 1, generator=torch.Generator().manual_seed(0))


def train(*, job: Job) -> list[Mapping[str, Tensor]]:
    """Fit a line to this rank's share of each batch and return all ranks' weights."""
    torch.manual_seed(job.rank)  # what the ranks start from differs until they are joined
    line = nn.Linear(FEATURES, 1)
    model = job.wrap(line)
    optimizer = torch.optim.SGD(line.parameters(), lr=0.1)
    share = BATCH // job.world_size
    for batch in batches():
        mine = batch[job.rank * share : (job.rank + 1) * share]
        loss = (model(mine[:, :-1]) - mine[:, -1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert job.once(lambda: job.rank) == 0
    torch.testing.assert_close(job.mean(torch.tensor(float(job.rank))).item(), (job.world_size - 1) / 2)
    return job.gather({name: value.clone() for name, value in line.state_dict().items()})


def fail_on_the_second(*, job: Job) -> None:
    if job.rank == 1:
        raise DataError(f"rank {job.rank}: the shard is gone, pack it again")
    job.gather(None)


def test_two_processes_learn_what_one_learns_from_the_joined_batch() -> None:
    [alone] = launch(train, gpus=0)
    first, second = launch(train, gpus=0, workers=2)
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6)


def test_a_mistake_found_by_any_process_ends_the_job_as_the_same_error() -> None:
    with pytest.raises(DataError, match=r"^rank 1: the shard is gone, pack it again$"):
        launch(fail_on_the_second, gpus=0, workers=2)


def test_gpus_that_are_not_there_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="--gpus 2 asks for a GPU and none is visible; use --gpus 0"):
        launch(train, gpus=2)
    assert device_for(None) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="--gpus 3 asks for more than the 2 visible"):
        launch(train, gpus=3)
    with pytest.raises(ConfigError, match="--gpus 2: this command uses one"):
        device_for(2)
    with pytest.raises(ConfigError, match="--workers 3 does not fit --gpus 2"):
        launch(functools.partial(train), gpus=2, workers=3)
