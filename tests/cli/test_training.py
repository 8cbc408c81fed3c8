import csv
import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from siamusic_fast.cli import main
from siamusic_fast.shards.manifest import ShardSet, write_manifest
from siamusic_fast.shards.tables import read_tracks

SMALL = ("--gpus", "0", "--epochs", "2", "--batch-size", "6", "--quiet", "--json")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def answer(*arguments: object) -> dict[str, object]:
    """Return the one line of JSON that a command prints on standard output."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    [line] = result.stdout.splitlines()
    values: dict[str, object] = json.loads(line)
    return values


@pytest.fixture(scope="module")
def run(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained and fine-tuned run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = ("--data", shard_set.folder)
    options = ("--backbone", "resnet18", "--seconds", "0.5", "--out", folder)
    assert answer("pretrain", *data, *options, *SMALL)["run"] == str(folder)
    assert answer("finetune", folder, *data, *SMALL)["folder"] == str(folder / "finetune")
    return folder


def test_the_run_holds_weights_logs_and_pictures(run: Path) -> None:
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    expected = {"config.json", "checkpoint.pt", "metrics.jsonl", "plots/loss.png", "plots/collapse.png"}
    expected |= {"finetune/classifier.pt", "finetune/config.json", "finetune/metrics.jsonl"}
    assert expected | {"finetune/plots/curves.png"} <= files
    assert (run / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_classifier_kept_is_that_of_the_best_validation_epoch(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "finetune" / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
    kept = torch.load(run / "finetune" / "classifier.pt", weights_only=True)
    assert (kept["epoch"], kept["validation_loss"]) == (best["epoch"], best["validation_loss"])


@pytest.mark.parametrize(
    ("damaged", "command"),
    [
        (("checkpoint.pt",), ("finetune", "RUN", "--out", "OUT")),
        (("checkpoint.pt",), ("probe", "RUN", "--out", "OUT")),
        (
            ("checkpoint.pt",),
            ("pretrain", "--init", "RUN", "--backbone", "resnet18", "--batch-size", "6", "--out", "OUT"),
        ),
        (("best.pt",), ("finetune", "RUN", "--checkpoint", "best", "--out", "OUT")),
        (("finetune/classifier.pt",), ("evaluate", "RUN", "--out", "OUT")),
        (("checkpoint.pt",), ("pretrain", "--resume", "RUN", "--epochs", "3")),
        (
            ("finetune/finetune-checkpoint.pt", "finetune/finetune-checkpoint-previous.pt"),
            ("finetune", "RUN", "--resume", "--epochs", "3", "--batch-size", "6"),
        ),
    ],
)
@pytest.mark.parametrize("cut", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_damaged_weights_are_one_error_in_every_command_that_loads_them(
    run: Path,
    shard_set: ShardSet,
    tmp_path: Path,
    damaged: tuple[str, ...],
    command: tuple[str, ...],
    cut: bool,
) -> None:
    contents = {run / name: (run / name).read_bytes() for name in damaged}
    for path, content in contents.items():
        middle = len(content) // 2
        changed = bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(content[:middle] + (b"" if cut else changed))
    data = () if "--resume" in command and command[0] == "pretrain" else ("--data", shard_set.folder)
    words = [{"RUN": run, "OUT": tmp_path / "out"}.get(word, word) for word in command]
    try:
        result = call(*words, *data, "--gpus", "0", "--quiet")
    finally:
        for path, content in contents.items():
            path.write_bytes(content)
    assert isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(f"error: {run / damaged[0]} is damaged")


def test_every_labelled_test_track_is_scored_once(run: Path, shard_set: ShardSet) -> None:
    scores = answer("evaluate", run, "--data", shard_set.folder, "--gpus", "0", "--json", "--quiet")
    with (run / "finetune" / "evaluate" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    test = {
        track.key: track.genre
        for track in read_tracks(shard_set.folder)
        if track.split == "test" and track.genre
    }
    assert sorted(row["key"] for row in rows) == sorted(test)
    assert all(row["truth"] == test[row["key"]] for row in rows)
    right = sum(row["truth"] == row["prediction"] for row in rows)
    assert scores["accuracy"] == pytest.approx(right / len(test))
    assert scores["tracks"] == len(test)
    assert (run / "finetune" / "evaluate" / "confusion.png").is_file()
    written = json.loads((run / "finetune" / "evaluate" / "results.json").read_text())
    assert written["confusion"] == scores["confusion"]


def test_a_frozen_encoder_keeps_its_weights_and_statistics(
    run: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    answer("finetune", run, "--data", shard_set.folder, "--freeze", "--out", tmp_path / "frozen", *SMALL)
    before = torch.load(run / "checkpoint.pt", weights_only=True)["encoder"]
    after = torch.load(tmp_path / "frozen" / "classifier.pt", weights_only=True)["model"]
    for name, value in before.items():
        assert torch.equal(after[f"encoder.{name}"], value), name


def test_the_table_shows_chance_and_every_class(run: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    result = call(
        "evaluate", run / "finetune", "--data", shard_set.folder, "--gpus", "0", "--out", tmp_path / "x"
    )
    assert result.exit_code == 0, result.output
    assert "chance" in result.stdout
    assert all(name in result.stdout for name in (*shard_set.classes, "macro average"))
    assert result.stdout.splitlines()[-1] == f"results   {tmp_path / 'x'}"


MISTAKES = {
    "an unknown backbone": (("pretrain", "--backbone", "vgg"), "'vgg' is unknown: choose one of resnet18"),
    "an unknown recipe": (
        ("pretrain", "--aug", "loud"),
        "'loud' is unknown: there are image, audio, both, none",
    ),
    "an unknown backend": (("pretrain", "--backend", "jax"), "'jax' is unknown: choose one of dali, torch"),
    "a GPU that is not there": (
        ("pretrain", "--gpus", "1"),
        "none is visible: use 0 for the CPU (on the command line --gpus 0)",
    ),
    "no such run to resume": (("pretrain", "--resume", "nowhere"), "no run 'nowhere': give the folder"),
    "no such run to fine-tune": (
        ("finetune", "nowhere", "--gpus", "0"),
        "no run 'nowhere': give the folder",
    ),
    "no such run to evaluate": (("evaluate", "nowhere", "--gpus", "0"), "no run 'nowhere'"),
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_with_the_remedy(
    arguments: tuple[str, ...],
    words: str,
    shard_set: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    result = call(*arguments, "--data", shard_set.folder, "--quiet")
    assert result.exit_code == 1
    [line] = result.output.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_nothing_that_is_there_is_overwritten(run: Path, shard_set: ShardSet) -> None:
    for command in (("pretrain", "--out", run, "--seconds", "0.5"), ("finetune", run)):
        result = call(*command, "--data", shard_set.folder, *SMALL)
        assert result.exit_code == 1
        assert "already exists and is not empty: use another out" in result.output
        assert "(on the command line --out, --resume, or --force)" in result.output


def test_settings_beside_resume_are_refused_by_name(run: Path) -> None:
    result = call("pretrain", "--resume", run, "--lr", "0.1", "--aug", "none")
    assert result.exit_code == 2
    assert "leave out --lr, --aug" in result.output


def test_what_is_next_is_a_command_to_paste(run: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    out = tmp_path / "with a space"
    data = ("--data", shard_set.folder, "--gpus", "0")
    result = call("finetune", run, *data, "--freeze", "--epochs", "1", "--batch-size", "6", "--out", out)
    [line] = [line for line in result.stdout.splitlines() if line.startswith("next")]
    words = shlex.split(line)[1:]
    assert words == ["siamusic-fast", "evaluate", str(out), *map(str, data)]
    assert "trained     1 epoch in" in result.stdout
    assert call(*words[1:], "--quiet").exit_code == 0


def test_shards_of_other_classes_are_refused(run: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for path in shard_set.folder.iterdir():
        (folder / path.name).hardlink_to(path)
    (folder / "manifest.json").unlink()
    write_manifest(dataclasses.replace(shard_set, folder=folder, classes=("Jazz", "Pop", "Rock")))
    result = call("evaluate", run, "--data", folder, "--gpus", "0")
    assert result.exit_code == 1
    assert "the classifier has the classes Electronic, Folk, Rock and" in result.output


def test_pretraining_sees_the_splits_that_it_is_given(shard_set: ShardSet, tmp_path: Path) -> None:
    options = ("--backbone", "resnet18", "--seconds", "0.5", "--epochs", "1", "--batch-size", "9")
    data = ("--data", shard_set.folder, "--gpus", "0", "--json", "--quiet")
    # 24 tracks for training, 6 for validation, 6 for test: 2, 3 and 4 batches of 9.
    for words, steps in (((), 2), (("--splits", "training,validation"), 3), (("--all-splits",), 4)):
        found = answer("pretrain", *data, *options, *words, "--out", tmp_path / f"{steps}")
        assert found["steps"] == steps
    result = call("pretrain", *data, *options, "--splits", "exam")
    assert result.exit_code == 1
    assert "'exam'" in result.stderr
