"""Options of the commands: those made from the settings, and those that mean the same in every command."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from siamusic_fast.cli import config_file
from siamusic_fast.config import PretrainConfig
from siamusic_fast.config.fields import Between, Setting, settings_of
from siamusic_fast.config.studies import AblateConfig, ReproduceConfig
from siamusic_fast.errors import DeviceError
from siamusic_fast.processes.environment import TIMEOUT
from siamusic_fast.storage.cache import CACHE_VARIABLE, DEFAULT_SIZE, SIZE_VARIABLE, parse_size
from siamusic_fast.storage.remote import is_url

F = TypeVar("F", bound=Callable[..., Any])
DATA = "fma_medium"
_OF_SEVERAL_WORDS = {
    setting.name
    for config in (PretrainConfig, ReproduceConfig, AblateConfig)
    for setting in settings_of(config)
    if setting.kind is tuple
}
_METAVARS: dict[type, str] = {int: "N", float: "X"}


class Choices(click.Choice[str]):
    """One of a few words, for help and completion; it is the configuration that refuses others."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value` as it is."""
        return str(value)


class FolderOrUrl(click.ParamType[Path | str]):
    """A path, or the URL of a folder in object storage, which stays text."""

    name = "PATH|URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """Return the URL as it is, anything else as a path."""
        return value if is_url(value) or isinstance(value, Path) else Path(value)


def together(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    """Return a decorator that adds several options to a command, the first at the top of its help."""
    return lambda command: functools.reduce(lambda inner, add: add(inner), reversed(decorators), command)


def settings(
    config: type, *names: str, filled: bool = False, defaults: Mapping[str, str] | None = None
) -> Callable[[F], F]:
    """Return a decorator that adds an option for each setting of `config`, or for those in `names` alone.

    An option that is not given is None, so that whoever reads it can tell, or the default if they are to be
    `filled`. `defaults` are words for defaults that the command finds in another way than `config` does.
    """
    return together(
        *(
            _option(
                setting,
                (defaults or {}).get(setting.name, setting.default_words),
                setting.default if filled else None,
            )
            for setting in settings_of(config)
            if not names or setting.name in names
        )
    )


def _option(setting: Setting, default_words: str, default: Any) -> Callable[[F], F]:
    name = setting.name.replace("_", "-")
    words = [setting.help]
    if setting.choices:
        words.append(f"[{', '.join(setting.choices)}]")
    if setting.kind is bool:
        words.append(f"[or --no-{name}]")
    return click.option(
        f"--{name}/--no-{name}" if setting.kind is bool else f"--{name}",
        type=_option_type(setting),
        metavar=None if setting.kind is bool else _METAVARS.get(setting.kind, "TEXT"),
        default=default,
        help=f"{' '.join(words)}  [default: {default_words}]",
        panel=setting.section,
    )


def _option_type(setting: Setting) -> Any:
    if setting.choices:
        return Choices(setting.choices)
    if isinstance(setting.rule, Between):
        low, high = setting.rule.min, None if math.isinf(setting.rule.max) else setting.rule.max
        if setting.kind is float:
            return click.FloatRange(low, high)
        return click.IntRange(int(low), None if high is None else int(high))
    return str if setting.kind is tuple else setting.kind


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in `values` that were given, those of several words as a tuple."""
    found = {name: value for name, value in values.items() if value is not None}
    for name in _OF_SEVERAL_WORDS & found.keys():
        found[name] = tuple(found[name].split(","))
    return found


def _number(flag: str, words: str, low: int = 1) -> Callable[[F], F]:
    return click.option(flag, type=click.IntRange(min=low), metavar="N", help=words, panel="Running")


def _as_device(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    from siamusic_fast.processes.launch import device_for

    try:
        return device_for({None: None, "cpu": 0, "cuda": 1}[value])
    except DeviceError:
        raise DeviceError(f"--device {value} asks for a GPU and none is visible: use --device cpu.") from None


def _data(default: str) -> Callable[[F], F]:
    return click.option(
        "--data",
        help=f"Shard set: its folder, its name, or a URL such as s3://bucket/mine.  [default: {default}]",
        panel="Data",
    )


aug = settings(PretrainConfig, "aug", filled=True)
data = _data(DATA)
data_of_run = _data("the one that RUN was made from")
made_data = _data("clips made for it")
splits = click.option(
    "--splits", help="Splits of the shard sets to read, such as test.  [default: all]", panel="Data"
)
data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Folder in which names such as fma_small are looked up.",
    panel="Data",
)


def _to_environment(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Set the variable that the library reads, for this call and the processes that it starts."""
    if value is None:
        return
    assert isinstance(parameter, click.Option)
    assert parameter.name is not None
    name = {"cache": CACHE_VARIABLE, "cache_size": SIZE_VARIABLE}[parameter.name]
    if name == SIZE_VARIABLE:
        parse_size(value)
    context.meta[parameter.name] = value
    before = os.environ.get(name)
    os.environ[name] = value
    context.call_on_close(
        lambda: os.environ.pop(name) if before is None else os.environ.update({name: before})
    )


cache = together(
    click.option(
        "--cache",
        metavar="FOLDER",
        expose_value=False,
        callback=_to_environment,
        help=f"Folder in which shards are kept that come from a URL.  [default: ${CACHE_VARIABLE}, or "
        "~/.cache/siamusic-fast]",
        panel="Data",
    ),
    click.option(
        "--cache-size",
        metavar="SIZE",
        expose_value=False,
        callback=_to_environment,
        help=f"How much of them is kept; the least recently used go.  [default: ${SIZE_VARIABLE}, or "
        f"{DEFAULT_SIZE}]",
        panel="Data",
    ),
)
gpus = _number(
    "--gpus", "Number of GPUs to use, with one process each; 0: the CPU.  [default: 1 if there is one]", 0
)
procs = _number("--procs", "Number of processes on the CPU.  [default: 1]")
timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=TIMEOUT,
    help=f"How long processes wait for another before all end with an error.  [default: {TIMEOUT:g}]",
    panel="Running",
)
packing_procs = _number("--procs", "Number of processes on the CPU.  [default: one per core]")
scheduler = click.option(
    "--scheduler",
    metavar="ADDRESS|local|slurm",
    help="Work on a Dask cluster: the address of its scheduler, such as tcp://node1:8786; local for one in "
    "this process; or slurm for jobs of SLURM, as dask-jobqueue's settings say. Its workers must see the "
    f"same files; their own ${CACHE_VARIABLE} says where they keep shards of a URL.  [default: processes of "
    "this machine]",
    panel="Running",
)
loader_threads = _number("--loader-threads", "CPU threads that make batches.  [default: all cores]")
device = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    callback=_as_device,
    help="Device that computes.  [default: cuda if there is a GPU, else cpu]",
    panel="Running",
)
quiet = click.option("--quiet", "-q", is_flag=True, help="Show no progress, only the result.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
force = click.option("--force", is_flag=True, help="Replace what an earlier call wrote to --out.")


def out(default: str) -> Callable[[F], F]:
    """Return the option that says where the results go; `default` is where they go without it."""
    return click.option(
        "--out", "-o", type=click.Path(path_type=Path), help=f"Where the results go.  [default: {default}]"
    )


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every command is told that trains or scores."""

    data: str | None
    data_dir: Path
    gpus: int | None
    procs: int | None
    timeout: float
    out: Path | None
    force: bool
    quiet: bool
    as_json: bool


def common(
    *own: Callable[[Any], Any], default_out: str, data: Callable[[Any], Any] = data_of_run
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds --config, the options that a command gets as `common`, and its `own`."""

    def told_together(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**values: Any) -> None:
            told = {field.name: values.pop(field.name) for field in dataclasses.fields(CommonOptions)}
            function(common=CommonOptions(**told), **values)

        return command

    first = (data, data_dir, cache, config_file.option)
    last = (gpus, procs, timeout, out(default_out), force, quiet, as_json)
    return together(*first, *own, *last, told_together)
