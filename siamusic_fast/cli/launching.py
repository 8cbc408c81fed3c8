"""Calling the library in the processes that a command asks for, and naming the command to call after it."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click import Argument, get_current_context
from click.core import ParameterSource

from siamusic_fast.cli.config_file import FILE
from siamusic_fast.cli.console import command_line, note, output, progress, stopping
from siamusic_fast.cli.options import CommonOptions
from siamusic_fast.processes.cluster import Cluster, open_cluster
from siamusic_fast.processes.failures import OF_SCORES, Remedy
from siamusic_fast.shards.manifest import ShardSet, find_shards

_CARRIED = ("data", "data_dir", "cache", "cache_size", "backend", "gpus", "procs")
"""Options that the next command needs as well."""


def launch(
    function: Callable[..., Any],
    *arguments: Any,
    common: CommonOptions,
    if_stopped: Callable[[], tuple[str, ...]] = lambda: ("Stopped.",),
    remedy: Remedy = OF_SCORES,
    max_restarts: int = 0,
    **options: Any,
) -> Any:
    """Call `function` in every process and return its result in the first one; the others end here.

    A call that is stopped ends the command, with the words of `if_stopped`. `remedy` is what the error
    recommends if processes fail.
    """
    from siamusic_fast.processes import launch as processes
    from siamusic_fast.processes.environment import is_leader

    options = {"force": common.force, "progress": progress(common.quiet), **options}
    with stopping(lambda: if_stopped() if is_leader() else ()):
        result = processes.launch(
            functools.partial(function, *arguments, **options),
            gpus=common.gpus,
            procs=common.procs,
            timeout=common.timeout,
            max_restarts=max_restarts,
            remedy=remedy,
        )
    if not is_leader():
        get_current_context().exit()
    return result


@contextmanager
def cluster_of(scheduler: str | None, procs: int | None, quiet: bool) -> Iterator[Cluster | None]:
    """Connect to the cluster that --scheduler names, if it names one, and say where to watch it."""
    if scheduler is None:
        yield None
        return
    with open_cluster(scheduler, procs) as cluster:
        if not quiet:
            note(f"dashboard: {cluster.dashboard}")
        yield cluster


def shards_of(common: CommonOptions) -> ShardSet | None:
    """Return the shard set that --data names; None: the library takes the one that the run was made from."""
    return find_shards(common.data, common.data_dir) if common.data else None


def show_result(
    values: Mapping[str, Any], render: Callable[[], None], folder: Path, common: CommonOptions
) -> None:
    """Print a result as one line of JSON, as its folder alone, or as `render` does it."""
    if common.as_json:
        output.print_json(json.dumps(values), indent=None, ensure_ascii=True)
    elif common.quiet:
        output.print(str(folder), markup=False)
    else:
        render()


def this_command(*more: str) -> str:
    """Return this command as it was typed, with the words `more` at its end and without --force."""
    context = get_current_context()
    words: list[object] = ["siamusic-fast", context.info_name]
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name == "force":
            continue
        value = context.params.get(name, context.meta.get(FILE if name == "config" else name))
        option = parameter.opts[0]
        if isinstance(parameter, Argument):
            words += value if isinstance(value, tuple) else (value,)
        elif isinstance(value, bool):
            words.append(option if value else parameter.secondary_opts[0])
        else:
            words += [option, value]
    words += [word for word in more if word not in words]
    return command_line(*words)


def next_command(command: str, run: object) -> str:
    """Return `command` for `run`, with those options given to this command that the next one needs too."""
    context = get_current_context()
    words: list[object] = ["siamusic-fast", command, run]
    for name in _CARRIED:
        if context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP):
            words += [f"--{name.replace('_', '-')}", context.params.get(name, context.meta.get(name))]
    return command_line(*words)
