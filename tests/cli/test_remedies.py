"""What a message advises is taken out of the message and done; the mistake must then be gone."""

import ast
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from siamusic_fast.audio.decode import REASONS, REMEDIES
from siamusic_fast.cli import COMMANDS, load_command, main
from siamusic_fast.errors import ConfigError, SiamusicError
from siamusic_fast.pipelines.loaders import TwoViewLoader
from siamusic_fast.shards.manifest import ShardSet
from tests.runs import save_run
from tests.shards.small import pack_small

PACKAGE = Path(__file__).parents[2] / "siamusic_fast"
ROOT = PACKAGE.parent


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(*words: object) -> str:
    """Return the line with which a call is refused."""
    result = call(*words)
    assert result.exit_code in (1, 2), result.output
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def commands_in(message: str) -> list[list[str]]:
    """Return the commands that a message puts in backticks, without the name of the program."""
    found = re.findall(r"`siamusic-fast ([^`]+)`", message)
    return [shlex.split(command) for command in found]


class CalledError(SiamusicError):
    """The library was called: what the command line checks before that was right."""


@pytest.fixture
def only_checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let commands end where the library would begin, in an empty folder."""

    def end(*_: object, **__: object) -> None:
        raise CalledError("the checks are passed")

    monkeypatch.chdir(tmp_path)
    for module in ("pretrain", "finetune", "scores"):
        monkeypatch.setattr(f"siamusic_fast.cli.{module}.launch", end)


def write_music(folder: Path, seconds: float = 6.0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        soundfile.write(folder / f"{name}.wav", rng.uniform(-0.5, 0.5, round(22_050 * seconds)), 22_050)
    return folder


OPTIONS = {
    "crops longer than the tracks": (("--seconds", 100), "--seconds"),
    "GPUs that are not there": (("--gpus", 3), "--gpus"),
    "more processes than tracks": (("--procs", 100), "--procs"),
}


@pytest.mark.parametrize(("mistake", "option"), OPTIONS.values(), ids=OPTIONS)
@pytest.mark.usefixtures("only_checks")
def test_an_option_that_is_advised_is_accepted(
    mistake: tuple[object, ...], option: str, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    command = ("pretrain", "--data", shard_set.folder)
    message = refused(*command, *mistake)
    value = re.findall(rf"{option} ([^\s,).]+(?:\.\d+)?)", message)[0]
    others = [word for word in mistake if mistake[0] != option]
    assert "the checks are passed" in refused(*command, *others, option, value), message


def test_a_batch_size_that_is_advised_is_accepted(shard_set: ShardSet) -> None:
    with pytest.raises(ConfigError) as told:
        TwoViewLoader(shard_set, batch_size=1000, backend="torch")
    [size] = re.findall(r"--batch-size (\d+)", str(told.value))
    with TwoViewLoader(shard_set, batch_size=int(size), backend="torch") as loader:
        assert len(loader) == 1


@pytest.mark.usefixtures("only_checks")
def test_too_few_tracks_for_batch_norm_never_advise_a_batch_of_one(tmp_path: Path) -> None:
    assert call("shard", write_music(tmp_path / "one"), "--out", "set", "--quiet").exit_code == 0
    message = refused("pretrain", "--data", "set", "--gpus", 0, "--procs", 3)
    [procs] = re.findall(r"--procs (\d+)", message)
    assert "the checks are passed" in refused("pretrain", "--data", "set", "--gpus", 0, "--procs", procs)
    for path in list((tmp_path / "one").iterdir())[1:]:
        path.unlink()
    assert call("shard", tmp_path / "one", "--out", "single", "--quiet").exit_code == 0
    message = refused("pretrain", "--data", "single", "--gpus", 0)
    assert "gets a batch of 1" in message
    assert "or less" not in message
    assert "--procs" not in message
    assert "--data" in message


@pytest.mark.usefixtures("only_checks")
@pytest.mark.parametrize("form", ["folder", "name", "other data folder"])
def test_a_folder_of_audio_given_for_shards_is_packed_by_the_command_that_is_advised(
    form: str, tmp_path: Path
) -> None:
    data = {"folder": "my music", "name": "mine", "other data folder": "mine"}[form]
    options = ("--data-dir", tmp_path / "other") if form == "other data folder" else ()
    write_music({"folder": tmp_path, "name": tmp_path / "data"}.get(form, tmp_path / "other") / data)
    [command] = commands_in(refused("pretrain", "--data", data, "--gpus", 0, *options))
    assert call(*command, "--quiet", "--procs", 1).exit_code == 0
    assert "the checks are passed" in refused("pretrain", "--data", data, "--gpus", 0, *options)


def test_a_folder_of_tables_given_for_shards_is_packed_by_the_command_that_is_advised(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "a.parquet").touch()
    assert commands_in(refused("inspect", tmp_path / "hub")) == [["shard", str(tmp_path / "hub")]]


@pytest.mark.parametrize("command", ["inspect", "finetune"])
def test_a_pipe_in_the_place_of_settings_is_not_waited_for(command: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "classifier.pt").touch()
    assert str(tmp_path) in refused(command, tmp_path)


@pytest.mark.usefixtures("only_checks")
def test_names_of_shard_sets_that_are_advised_are_found(shard_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "data" / "shards").mkdir(parents=True)
    (tmp_path / "data" / "shards" / "mine").symlink_to(shard_set.folder)
    for given in ("mien", "quite another"):
        [name] = re.findall(r"(?:did you mean|there are) (\w+)\.", refused("inspect", given))
        assert call("inspect", name).exit_code == 0
    [folder] = re.findall(r"give one of (\S+)\.$", refused("inspect", "data/shards"))
    assert call("inspect", folder).exit_code == 0
    [download] = commands_in(refused("inspect", "fma_small"))
    assert download == ["shard", "fma_small", "--download"]
    assert call("shard", "--help").exit_code == 0


@pytest.fixture
def run(shard_set: ShardSet, tmp_path: Path) -> Path:
    """A run, as it is on disk before it is fine-tuned."""
    folder = save_run(tmp_path / "my runs")
    (folder / "config.json").write_text(json.dumps({"data": str(shard_set.folder), "backbone": "resnet18"}))
    return folder


@pytest.mark.usefixtures("only_checks")
def test_a_run_given_for_shards_names_its_shards(run: Path) -> None:
    for command in ("inspect", "verify", "pretrain --data"):
        [shards] = re.findall(r"made from the shards (\S+): give those", refused(*command.split(), run))
        assert call("inspect", shards).exit_code == 0


@pytest.mark.usefixtures("only_checks")
@pytest.mark.parametrize("command", ["finetune", "evaluate", "probe", "pretrain --resume"])
def test_shards_given_for_a_run_are_pretrained_on(command: str, shard_set: ShardSet) -> None:
    [advised] = commands_in(refused(*command.split(), shard_set.folder))
    assert "the checks are passed" in refused(*advised, "--gpus", 0)


@pytest.mark.usefixtures("only_checks")
@pytest.mark.parametrize("command", ["finetune", "probe"])
def test_a_classifier_given_for_a_run_names_its_run(command: str, run: Path) -> None:
    folder = run.parent / "tenth"
    folder.mkdir()
    (folder / "classifier.pt").touch()
    (folder / "config.json").write_text(json.dumps({"run": str(run)}))
    [origin] = re.findall(r"give (.+), its own run", refused(command, folder))
    assert "the checks are passed" in refused(command, origin)


@pytest.mark.usefixtures("only_checks")
def test_a_run_without_a_classifier_is_fine_tuned(run: Path) -> None:
    [command] = commands_in(refused("evaluate", run))
    assert "the checks are passed" in refused(*command)


@pytest.mark.usefixtures("only_checks")
def test_other_runs_are_named_if_there_are_some(run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "first")
    for given in ("runs/frist", "runs"):
        [name] = re.findall(r"there are (\S+)\.", refused("finetune", given))
        assert "the checks are passed" in refused("finetune", name)


@pytest.mark.usefixtures("only_checks")
def test_a_run_that_never_saved_is_begun_anew(shard_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "config.json").write_text('{"backbone": "resnet18"}')
    [out] = re.findall(r"with --out (\S+) --force", refused("finetune", "early"))
    assert "the checks are passed" in refused("pretrain", "--data", shard_set.folder, "--out", out, "--force")


@pytest.mark.usefixtures("only_checks")
def test_shards_without_classes_are_packed_with_labels(run: Path, tmp_path: Path) -> None:
    music = write_music(tmp_path / "music" / "folk").parent
    (write_music(tmp_path / "more") / "a.wav").rename(music / "d.wav")
    assert call("shard", music, "--out", "bare", "--quiet").exit_code == 0
    message = refused("probe", run, "--data", "bare")
    [advised] = commands_in(message)
    values = {"SOURCE": str(music), "FILE": "folders"}
    repaired = [values.get(word, word) for word in advised]
    assert call(*repaired, "--out", "labelled", "--quiet").exit_code == 0
    assert "--data" in message


@pytest.mark.usefixtures("only_checks")
def test_a_folder_in_use_is_replaced_or_left(run: Path, shard_set: ShardSet) -> None:
    pretrain = ("pretrain", "--data", shard_set.folder, "--out", run)
    message = refused(*pretrain)
    for option in ("--out", "--resume", "--force"):
        assert option in message
    assert "the checks are passed" in refused(*pretrain, "--force")
    assert "the checks are passed" in refused(*pretrain[:3], "--out", f"{run} again")
    (run / "thesis.txt").touch()
    assert "--force" not in refused(*pretrain)


def test_the_options_that_take_files_of_a_reason_take_them(tmp_path: Path) -> None:
    music = write_music(tmp_path / "music")
    rng = np.random.default_rng(1)
    for name, seconds in (("short.wav", 1), ("long.wav", 12), ("damaged.mp3", 9)):
        soundfile.write(music / name, rng.uniform(-0.5, 0.5, 22_050 * seconds), 22_050)
    content = bytearray((music / "damaged.mp3").read_bytes())
    content[len(content) // 2 : len(content) * 3 // 4] = bytes(len(content) // 4)
    (music / "damaged.mp3").write_bytes(content)

    def rejected(out: str, *options: object) -> dict[str, int]:
        words = ("shard", music, "--out", tmp_path / out, "--procs", 1, "--quiet", "--json")
        return dict(json.loads(call(*words, *options).stdout)["rejected"])

    strict = ("--max-hours", 10 / 3600, "--max-damage", 0.01)
    assert rejected("one", *strict) == {"too-short": 1, "too-long": 1, "damaged": 1}
    values = {"too-short": 0.5, "too-long": 1, "damaged": 1}
    advised = [(re.findall(r"--[a-z-]+", REMEDIES[reason])[0], value) for reason, value in values.items()]
    assert rejected("two", *(word for pair in advised for word in pair)) == {}


def test_every_reason_has_a_remedy() -> None:
    assert REMEDIES.keys() == REASONS.keys()


def test_what_was_left_out_is_named_with_its_remedy(fma_corpus: Path, tmp_path: Path) -> None:
    shown = call("shard", fma_corpus, "--out", tmp_path / "out", "--procs", 1).stdout
    for reason in ("missing", "empty", "not-audio", "too-short", "silent", "non-finite"):
        line = next(line for line in shown.splitlines() if f"1 {reason}: " in line)
        assert ".mp3'" in line
        assert REMEDIES[reason] in shown


def raised_messages() -> list[tuple[str, str]]:
    """Return where the package raises an error for users, and the text of its message with {} for values."""
    kinds = ("ConfigError", "DataError", "DeviceError", "SiamusicError")
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[ast.JoinedStr() | ast.Constant() as text]):
                    if name in kinds:
                        found.append((f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(text)))
    return found


def test_every_message_to_a_user_says_what_would_be_right_or_what_to_do() -> None:
    """It states the limit ("must"), or has a second part, behind a colon or a semicolon."""
    messages = raised_messages()
    assert len(messages) > 100
    says_more = re.compile(r"\bmust (be|have|lie|not)\b|[:;] .*\w|\{remedy\}")
    assert [one for one in messages if not says_more.search(one[1])] == []


def test_every_option_in_a_message_exists() -> None:
    """All but two, which are options of sbatch and of `dask worker`."""
    for place, text in raised_messages():
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
            assert option in {*_all_options(), "--requeue", "--nthreads"}, f"{place} advises {option}"


@functools.cache
def _all_options() -> set[str]:
    found: set[str] = set()
    for name in COMMANDS:
        command = load_command(name)
        for one in command.commands.values() if isinstance(command, click.Group) else [command]:
            for parameter in one.params:
                found |= {*parameter.opts, *parameter.secondary_opts}
    return found


EARLY: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "backbone": lambda data: ("pretrain", "--data", data, "--backbone", "resnet19"),
    "recipe": lambda data: ("pretrain", "--data", data, "--aug", "loud"),
    "splits": lambda data: ("pretrain", "--data", data, "--splits", "exam"),
    "length": lambda data: ("pretrain", "--data", data, "--seconds", "100"),
    "batch": lambda data: ("pretrain", "--data", data, "--gpus", "0", "--procs", "50"),
    "data": lambda _: ("pretrain", "--data", "nothing"),
    "init": lambda data: ("pretrain", "--data", data, "--init", "nothing"),
    "init of shards": lambda data: ("pretrain", "--data", data, "--init", data),
    "finetune": lambda data: ("finetune", data),
    "fraction": lambda data: ("finetune", data, "--label-fraction", "2"),
    "evaluate": lambda data: ("evaluate", data),
    "probe": lambda data: ("probe", "nothing"),
    "out": lambda data: ("pretrain", "--data", data, "--out", data),
}


def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    data = pack_small(tmp_path).folder
    calls = [[str(word) for word in (*of(data), "--quiet")] for of in EARLY.values()]
    calls = [
        words + ["--seconds", "0.1"] * (words[0] == "pretrain" and "100" not in words) for words in calls
    ]
    code = (
        "import json, sys\n"
        "from click.testing import CliRunner\n"
        "from siamusic_fast.cli import main\n"
        "from siamusic_fast.processes import environment\n"
        "environment._has_driver = lambda: False\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    result = CliRunner().invoke(main, words)\n"
        "    print(json.dumps([result.exit_code, 'torch' in sys.modules, result.stderr]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)], capture_output=True, text=True, check=True
    )
    for name, line in zip(EARLY, done.stdout.splitlines(), strict=True):
        exit_code, has_torch, message = json.loads(line)
        assert (exit_code, has_torch) == (1, False), f"{name}: {message}"
        assert message.startswith("error: ")
