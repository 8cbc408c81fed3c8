"""Options are the settings of the config dataclasses, and a name means the same in every command."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from siamusic_fast.cli import COMMANDS, load_command, main
from siamusic_fast.config import FinetuneConfig, MelConfig, PretrainConfig
from siamusic_fast.config.fields import settings_of
from siamusic_fast.errors import DataError
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.pack import PackConfig

CONFIGS = {"pretrain": (PretrainConfig, MelConfig), "finetune": (FinetuneConfig,), "shard": (PackConfig,)}
DIFFERS = {
    "aug": "pre-training augments pairs of views, fine-tuning labelled crops",
    "backend": "probes augment nothing",
    "backbone": "a benchmark trains a smaller one on a CPU",
    "batch_size": "pairs of views in pre-training, crops in fine-tuning",
    "crops": "how the two views of a track are cut, or how many crops of it are heard",
    "data": "pre-training has no run whose shards it could take",
    "epochs": "defaults of the paper",
    "gpus": "the doctor measures one of several that share the cores",
    "lr": "peak of a schedule in pre-training, the head's in fine-tuning",
    "max_distance": "a preset sets it in pre-training",
    "out": "each command has a place of its own for results",
    "protocol": "a study trains each of them as finetune does by default",
    "procs": "packing takes all cores, training a process",
    "quick": "a benchmark measures less, the demo trains less",
    "resume": "finetune is given the run as an argument",
    "sample_rate": "pre-training takes that of the shards",
    "schedule": "a preset sets it in pre-training, the protocol in fine-tuning",
    "seed": "a probe trains nothing",
    "splits": "what an encoder learns from, what is scored, or what of shard sets is heard",
    "target": "a classifier learns it, a probe says it",
    "top": "genres of a track, or similar tracks",
    "warmup_epochs": "a preset sets it in pre-training, the protocol in fine-tuning",
    "weight_decay": "a preset sets it in pre-training",
}


def options() -> Iterator[tuple[str, click.Option]]:
    for name in COMMANDS:
        command = load_command(name)
        for one in command.commands.values() if isinstance(command, click.Group) else [command]:
            for parameter in one.params:
                if isinstance(parameter, click.Option):
                    yield name, parameter


def test_an_option_has_one_type_one_text_and_one_default_in_all_commands() -> None:
    found: dict[str, dict[tuple[str, str | None, tuple[str, ...]], str]] = {}
    for command, option in options():
        key = (option.type.name, option.help, tuple(option.opts))
        found.setdefault(str(option.name), {})[key] = command
    differing = {name: list(forms.values()) for name, forms in found.items() if len(forms) > 1}
    assert differing.keys() == DIFFERS.keys()


@pytest.mark.parametrize("command", CONFIGS)
def test_every_setting_is_an_option_with_its_text_and_default(command: str) -> None:
    found = {option.name: option for of, option in options() if of == command}
    for setting in (setting for config in CONFIGS[command] for setting in settings_of(config)):
        option = found[setting.name]
        assert option.opts == [f"--{setting.name.replace('_', '-')}"]
        assert option.help is not None
        assert option.help.startswith(setting.help)
        assert "[default: " in option.help


@pytest.mark.parametrize("config", [PretrainConfig, MelConfig, FinetuneConfig, PackConfig])
def test_every_setting_says_what_it_is_and_what_none_means(config: type) -> None:
    for setting in settings_of(config):
        assert setting.help.endswith("."), setting.name
        assert setting.section, setting.name
        assert (setting.default is None) <= bool(setting.if_none), setting.name


@pytest.mark.parametrize("command", ["pretrain", "finetune", "evaluate", "probe", "preview", "demo", "bench"])
def test_help_of_a_command_answers_without_loading_torch(command: str) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from siamusic_fast.cli import main; "
        f"CliRunner().invoke(main, ['{command}', '--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("words", [("pertrain",), ("pretrain", "--epoch", "3")])
def test_a_mistyped_command_or_option_is_guessed(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: No such ")
    assert {"pertrain": "'pretrain'", "pretrain": "'--epochs'"}[words[0]] in error
    assert "--help` says how it is used." in hint


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    script = Path(__file__).parents[2] / "scripts" / "configuration.py"
    subprocess.run([sys.executable, script, "--check"], check=True)


@pytest.fixture
def labelled_run(shard_set: ShardSet, tmp_path: Path) -> Path:
    """A run with a classifier, both empty files: what can be told without reading them is right."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"data": str(shard_set.folder)}))
    for name in ("checkpoint.pt", "classifier.pt"):
        (run / name).touch()
    return run


@pytest.mark.parametrize(
    ("command", "module"),
    [("finetune", "training.finetune"), ("evaluate", "evaluation.evaluate"), ("probe", "evaluation.probe")],
)
def test_without_data_the_library_takes_the_shards_of_the_run(
    command: str, module: str, monkeypatch: pytest.MonkeyPatch, labelled_run: Path
) -> None:
    def called(*arguments: object, **_: object) -> None:
        place = arguments.index(labelled_run)
        raise DataError(f"{arguments[place : place + 3]}")

    monkeypatch.setattr(f"siamusic_fast.{module}.{command}", called)
    result = CliRunner().invoke(main, [command, str(labelled_run), "--gpus", "0"])
    assert result.exit_code == 1
    assert result.stderr == f"error: {(labelled_run, None, None)}\n"


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch, labelled_run: Path) -> None:
    def warn(*_: object, **__: object) -> None:
        warnings.warn("the batch is smaller", stacklevel=1)
        raise DataError("no shards")

    monkeypatch.setattr("siamusic_fast.evaluation.probe.probe", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = CliRunner().invoke(main, ["probe", str(labelled_run), "--gpus", "0"])
    assert result.stderr.splitlines() == ["note: the batch is smaller", "error: no shards"]


@pytest.mark.parametrize("command", ["finetune", "evaluate", "probe"])
def test_settings_of_other_commands_come_from_a_file_too(command: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("seed: -1\n")
    result = CliRunner().invoke(main, [command, "run", "--config", str(tmp_path / "settings.yaml")])
    assert result.exit_code == 2
    assert "-1 is not in the range" in result.stderr
    (tmp_path / "settings.yaml").write_text("sead: 1\n")
    result = CliRunner().invoke(main, [command, "run", "--config", str(tmp_path / "settings.yaml")])
    assert result.exit_code == 1
    assert "did you mean seed?" in result.stderr


def test_a_pipe_or_a_huge_file_of_settings_is_refused_at_once(tmp_path: Path) -> None:
    pipe, huge = tmp_path / "pipe.yaml", tmp_path / "huge.yaml"
    os.mkfifo(pipe)
    huge.touch()
    os.truncate(huge, 2**40)
    for file, words in ((pipe, "it is no regular file"), (huge, "such a file has at most 1,048,576")):
        result = CliRunner().invoke(main, ["pretrain", "--config", str(file)])
        assert result.exit_code == 1
        assert words in result.stderr
