import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from siamusic_fast.cli import main
from siamusic_fast.shards.manifest import ShardSet
from tests.training.conftest import save_run


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "run")


def test_options_arrive_where_they_count_and_the_result_says_what_was_kept(
    run: Path, shard_set: ShardSet
) -> None:
    options = ("--protocol", "paper", "--freeze", "--head", "mlp", "--labels", "0.9", "--lr", "0.01")
    small = ("--epochs", "2", "--batch-size", "8", "--data", shard_set.folder, "--gpus", "0")
    result = call("finetune", run, *options, *small)
    assert result.exit_code == 0, result.output
    assert "last: epoch 2, accuracy" in result.stdout
    written = json.loads((run / "finetune" / "config.json").read_text())
    expected = {"protocol": "paper", "freeze": True, "head": "mlp", "labels": 0.9, "lr": 0.01, "epochs": 2}
    assert expected.items() <= written.items()

    scored = call("evaluate", run, "--data", shard_set.folder, "--gpus", "0", "--quiet", "--json")
    assert scored.exit_code == 0, scored.output
    values = json.loads(scored.stdout)
    low, high = values["intervals"]["accuracy"]
    assert 0 <= low <= values["accuracy"] <= high <= 1


def test_the_probe_prints_both_encoders_and_the_gain(run: Path, shard_set: ShardSet) -> None:
    data = ("--data", shard_set.folder, "--gpus", "0")
    result = call("probe", run, *data)
    assert result.exit_code == 0, result.output
    assert "pre-trained, 3 epochs" in result.stdout
    assert "Pre-training added" in result.stdout
    assert result.stdout.splitlines()[-1] == f"Results: {run / 'probe'}"
    values = json.loads((run / "probe" / "results.json").read_text())
    assert values["pretrained"] == values["initial"]
    assert f"{100 * values['gain']:+.1f} points" in result.stdout
