import pytest
import torch

from siamusic_fast.bench.loader import measure
from siamusic_fast.bench.report import Measurement, machine
from siamusic_fast.config import MelConfig
from siamusic_fast.errors import ConfigError
from siamusic_fast.pipelines.backends import two_view_loader
from siamusic_fast.shards.manifest import ShardSet


def test_the_median_and_spread_of_windows_are_those_worked_by_hand() -> None:
    found = Measurement(name="loader", unit="pairs/s", windows=(90.0, 130.0, 100.0))
    assert found.median == 100
    assert found.spread == pytest.approx(0.2)
    assert found.as_json()["windows"] == [90.0, 130.0, 100.0]


def test_the_loader_is_measured_in_as_many_windows_as_asked_for(shard_set: ShardSet) -> None:
    found = measure(
        shard_set,
        recipe="none",
        mel=MelConfig(),
        batch_size=4,
        device=torch.device("cpu"),
        windows=2,
        seconds=0.1,
    )
    assert len(found.windows) == 2
    assert min(found.windows) > 0


@pytest.mark.parametrize(("windows", "seconds"), [(0, 1.0), (1, 0.0)])
def test_nothing_is_measured_in_no_time(shard_set: ShardSet, windows: int, seconds: float) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        measure(
            shard_set,
            recipe="none",
            mel=MelConfig(),
            batch_size=4,
            device=torch.device("cpu"),
            windows=windows,
            seconds=seconds,
        )


def test_a_report_names_the_versions_that_the_figures_depend_on() -> None:
    found = machine()
    assert found["torch"] == torch.__version__
    assert found["cores"] >= 1


def test_both_backends_are_measured_and_named(shard_set: ShardSet) -> None:
    for backend in ("dali", "torch"):
        found = measure(
            shard_set,
            recipe="none",
            backend=backend,
            mel=MelConfig(),
            batch_size=4,
            device=torch.device("cpu"),
            threads=1,
            windows=1,
            seconds=0.1,
        )
        assert found.name == f"{backend} loader, recipe none"
        assert found.median > 0


def test_an_unknown_backend_is_refused_with_those_there_are(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError, match="'jax' is unknown: choose one of dali, torch"):
        two_view_loader("jax", shard_set, recipe="none")
