"""The methods: what each does with two views, in one process and in two."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from siamusic_fast.config import METHODS, PROJECTION_DIMS, PretrainConfig
from siamusic_fast.models import networks
from siamusic_fast.models.losses import byol_loss, nt_xent_loss, simsiam_loss, vicreg_loss
from siamusic_fast.models.methods import BYOL, Method, method_of
from siamusic_fast.processes.launch import launch
from siamusic_fast.processes.world import World
from tests.training.networks import TinyEncoder

CONFIG = PretrainConfig(projection_dim=16, temperature=0.5)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "encoder", TinyEncoder)


def views(rows: slice = slice(None)) -> Tensor:
    """Return two views of 8 crops, [2, 8, 1, 16, 22]."""
    return torch.randn(2, 8, 1, 16, 22, generator=torch.Generator().manual_seed(0))[:, rows]


def network(method: str) -> Method:
    torch.manual_seed(0)
    model = method_of(dataclasses.replace(CONFIG, method=method))
    for name, part in model.named_children():
        part.train("encoder" not in name)  # its dropout would draw for each process
    return model


EXPECTED: dict[str, Callable[[Method, Tensor, Tensor], Tensor]] = {
    "simsiam": lambda model, z1, z2: simsiam_loss(model.predictor(z1), model.predictor(z2), z1, z2),
    "simclr": lambda model, z1, z2: nt_xent_loss(z1, z2, 0.5),
    "vicreg": lambda model, z1, z2: vicreg_loss(z1, z2),
    # Before the first step the target is the network itself.
    "byol": lambda model, z1, z2: byol_loss(model.predictor(z1), model.predictor(z2), z1, z2),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_its_loss_of_the_outputs_of_each_view_by_itself(method: str) -> None:
    model = network(method)
    view1, view2 = views()
    output = model(view1, view2)
    features = model.encoder(view1)
    z1, z2 = model.projector(features), model.projector(model.encoder(view2))
    torch.testing.assert_close(output.features, features)
    torch.testing.assert_close(output.projections, z1)
    torch.testing.assert_close(output.loss, EXPECTED[method](model, z1, z2))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_all_that_an_optimizer_gets(method: str) -> None:
    model = network(method)
    model(*views()).loss.backward()
    trained = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert trained == [name for name, _ in model.named_parameters() if not name.startswith("target_")]


@pytest.mark.parametrize("method", METHODS)
def test_the_width_is_that_of_the_methods_paper_unless_told_otherwise(method: str) -> None:
    config = PretrainConfig(method=method)
    assert config.width == PROJECTION_DIMS[method]
    assert dataclasses.replace(config, projection_dim=16).width == 16
    view1, view2 = views()
    assert network(method)(view1, view2).projections.shape == (8, 16)


def test_byols_target_follows_as_its_schedule_says() -> None:
    model = network("byol")
    assert isinstance(model, BYOL)
    before = copy.deepcopy(model.target_projector.state_dict())
    with torch.no_grad():
        for weight in model.projector.parameters():
            weight.add_(1)
    # The momentum is 0.996 at the start, half way to 1 at half of the run, and 1 at its end.
    moved = 0.0
    for done, share in ((0.0, 0.004), (0.5, 0.002), (1.0, 0.0)):
        model.after_step(done)
        moved += (1 - moved) * share
        for name, weight in model.target_projector.named_parameters():
            torch.testing.assert_close(weight, before[name] + moved, rtol=0, atol=1e-6)


def train(method: str, world: World) -> list[dict[str, Tensor]]:
    """Take three steps on this rank's rows of each batch and return the weights of every rank."""
    model = network(method).double()
    wrapped = world.wrap(model, sync_batchnorm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    share = 8 // world.world_size
    rows = slice(world.rank * share, (world.rank + 1) * share)
    for step in range(3):
        wrapped(*views(rows).double()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(step / 3)
    return world.gather({name: value.clone() for name, value in model.state_dict().items()})


def train_all(*, world: World) -> dict[str, list[dict[str, Tensor]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "encoder", TinyEncoder)
        return {method: train(method, world) for method in METHODS}


def test_two_processes_learn_what_one_learns_from_the_joined_batch() -> None:
    together, alone = launch(train_all, gpus=0, procs=2), train_all(world=World())
    for method in METHODS:
        for name, expected in alone[method][0].items():
            found = together[method][0][name]
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=f"{method}: {name}")
