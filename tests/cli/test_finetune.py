import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from siamusic_fast import config as settings
from siamusic_fast.cli import main
from siamusic_fast.config import PretrainConfig
from siamusic_fast.evaluation.intervals import Difference
from siamusic_fast.models.run_files import save_json
from siamusic_fast.processes import launch as distributed
from siamusic_fast.processes.failures import WorkerError
from siamusic_fast.processes.signals import StopSignals
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.training import finetune as training
from tests.runs import MEL, save_classifier, save_run


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "run")


def test_options_arrive_where_they_count_and_the_result_says_what_was_kept(
    run: Path, shard_set: ShardSet
) -> None:
    options = ("--protocol", "paper", "--freeze", "--head", "mlp", "--label-fraction", "0.9", "--lr", "0.01")
    small = ("--epochs", "2", "--batch-size", "8", "--data", shard_set.folder, "--gpus", "0")
    result = call("finetune", run, *options, *small)
    assert result.exit_code == 0, result.output
    assert "kept        epoch 2, the last" in result.stdout
    written = json.loads((run / "finetune" / "config.json").read_text())
    expected = {
        "protocol": "paper",
        "freeze": True,
        "head": "mlp",
        "label_fraction": 0.9,
        "lr": 0.01,
        "epochs": 2,
    }
    assert expected.items() <= written.items()

    scored = call("evaluate", run, "--data", shard_set.folder, "--gpus", "0", "--quiet", "--json")
    assert scored.exit_code == 0, scored.output
    values = json.loads(scored.stdout)
    low, high = values["intervals"]["accuracy"]
    assert 0 <= low <= values["accuracy"] <= high <= 1


def test_a_classifier_of_tags_is_shown_drawn_and_reported(tagged: ShardSet, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    save_json(
        run / "config.json",
        {**settings.dump(PretrainConfig(mel=MEL, backbone="resnet18")), "data": str(tagged.folder)},
    )
    (run / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "loss": -0.5}\n')
    tags = list(tagged.tags)
    save_classifier(run / "finetune", target="tags", classes=tags)
    scored = call("evaluate", run, "--data", tagged.folder, "--gpus", "0")
    assert scored.exit_code == 0, scored.output
    values = json.loads((run / "finetune" / "evaluate" / "results.json").read_text())
    lines = [line.split() for line in scored.stdout.splitlines()]
    assert ["macro", "average", "5", f"{values['roc_auc']:.3f}", f"{values['pr_auc']:.3f}"] in lines
    assert {line[0] for line in lines if line and line[0] in tags} == set(tags)
    assert (run / "finetune" / "evaluate" / "tags.png").stat().st_size > 10_000

    page = call("report", run, "--quiet")
    assert page.exit_code == 0, page.output
    html = (run / "report.html").read_text()
    assert f"<dt>Test ROC-AUC</dt><dd>{values['roc_auc']:.3f}</dd>" in html
    for one in values["tags"]:
        assert f'<bdi>{one["name"]}</bdi></th><td class="number">{one["tracks"]}</td>' in html

    heard = call(
        "predict", run, tagged.folder, "--splits", "test", "--threshold", "0.4", "--json", "--device", "cpu"
    )
    assert heard.exit_code == 0, heard.output
    for line in heard.stdout.splitlines():
        said = json.loads(line)["tags"]
        assert all(value >= 0.4 for value in said.values())
        assert said.keys() <= set(tags)
    exported = call("export", run, "--classifier")
    assert exported.exit_code == 0, exported.output
    card = (run / "export" / "classifier.pt.md").read_text()
    assert f"macro ROC-AUC {values['roc_auc']:.3f} (" in card
    assert '"target": "tags"' in card


def test_scores_on_tracks_that_pretraining_heard_come_with_a_line_that_says_so(
    run: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    heard = save_run(tmp_path / "heard", splits=("training", "validation", "test"))
    data = ("--data", shard_set.folder, "--gpus", "0")
    small = ("--epochs", "1", "--batch-size", "8", "--freeze", "--quiet")
    for folder, lines in ((heard, 1), (run, 0)):
        out = tmp_path / str(lines)
        assert call("finetune", folder, *data, *small, "--out", out).exit_code == 0
        for result in (call("evaluate", out, *data), call("probe", folder, *data)):
            assert result.exit_code == 0, result.output
            assert result.stderr.count("pre-trained on the splits training, validation, test") == lines


def test_the_probe_prints_each_measure_and_the_strongest_baseline(run: Path, shard_set: ShardSet) -> None:
    result = call("probe", run, "--data", shard_set.folder, "--gpus", "0", "--retrieval-crops", "3")
    assert result.exit_code == 0, result.output
    assert "pre-trained, 3 epochs" in result.stdout
    assert result.stdout.splitlines()[-1].split() == ["results", str(run / "probe")]
    values = json.loads((run / "probe" / "results.json").read_text())
    assert values["probes"]["pretrained"] == values["probes"]["initial"]
    assert [one["name"] for one in values["measures"]] == ["knn", "linear", "same_track", "same_artist"]
    said = " ".join(result.stdout.split())
    for one in values["measures"]:
        words = f"against {one['strongest']}, the strongest baseline: {Difference(**one['difference']).words}"
        assert f"{one['title']} {words}" in said
        assert f"{one['values']['MFCCs']:.1%}" in said
    number = values["measures"][0]["groups"]
    assert f"95%, of {number} group" in said
    assert "(kNN, linear" in said
    assert (run / "probe" / "probes.png").stat().st_size > 10_000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_says_what_stopped_the_training(
    run: Path, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def be_stopped(*_: object, **__: object) -> None:
        with StopSignals() as signals, signals.at_once():
            os.kill(os.getpid(), number)

    monkeypatch.setattr(training, "finetune", be_stopped)
    data = ("--data", shard_set.folder, "--gpus", "0", "--out", tmp_path)
    result = call("finetune", run, *data)
    assert (result.exit_code, result.stderr.split()[0]) == (code, "Stopped.")


def test_a_stopped_fine_tuning_names_the_command_that_goes_on_with_it(
    run: Path, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "finetune", be_stopped)
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 3\n")
    typed = f"{run} --data {shard_set.folder} --config {file} --freeze --lr 0.01 --gpus 0 --out {tmp_path}/ft"
    said = call("finetune", *typed.split(), "--force").stderr
    assert set(said.split()) >= {*typed.split(), "--resume"}
    assert "--force" not in said


@pytest.mark.parametrize("command", ["finetune", "evaluate", "probe"])
def test_a_mistake_of_ours_in_a_worker_is_one_red_line_and_its_traceback(
    run: Path, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise WorkerError("rank 1 failed:\nTraceback (most recent call last):\nZeroDivisionError")

    monkeypatch.setattr(distributed, "launch", fail)
    result = call(command, run, "--data", shard_set.folder, "--gpus", "0", "--force")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines == ["error: a process failed, and with it the job.", *lines[1:]]
    assert lines[1] == "rank 1 failed:"


@pytest.mark.parametrize("command", ["evaluate", "probe"])
def test_results_in_the_way_are_replaced_by_force_alone(
    command: str, run: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text("{}")
    small = ("--epochs", "1", "--batch-size", "8", "--freeze", "--force", "--quiet")
    data = ("--data", shard_set.folder, "--gpus", "0")
    assert call("finetune", run, *data, *small).exit_code == 0
    refused = call(command, run, *data, "--out", tmp_path)
    assert refused.exit_code == 1
    assert "is not empty" in refused.stderr
    result = call(command, run, *data, "--out", tmp_path, "--force")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "results.json").read_text())
