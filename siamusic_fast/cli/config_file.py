"""`--config FILE`: a command's options from a file in YAML, under the names that the command line has."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import rich_click as click

from siamusic_fast.errors import ConfigError
from siamusic_fast.files import SETTINGS_LIMIT, read_regular

_SECTIONS = ("mel",)
"""Options that config.json keeps together."""
FILE = "siamusic_fast.cli.config_file"
"""Key of the path of the file in `meta` of the context."""
_FOR_INFORMATION = ("processes", "run")
"""Names in config.json that no option sets."""


def read_into_defaults(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Make the values in the file `path` the defaults of the command's options.

    JSON is YAML as well: the config.json of a run can be given. Raises ConfigError for a file that is no
    mapping, and for a name that is no option, with the nearest that is.
    """
    if path is None:
        return
    context.meta[FILE] = path
    options = {
        option.opts[0].removeprefix("--").replace("-", "_"): option.name
        for option in context.command.params
        if isinstance(option, click.Option) and option is not parameter
    }
    defaults = {}
    for key, value in _flat(_mapping(path)):
        name = options.get(key.replace("-", "_"))
        if name is None and key not in _FOR_INFORMATION:
            near = difflib.get_close_matches(key, options, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{path} sets {key!r}, which is no option: did you mean {near}?")
        if name is not None and value is not None:
            # As one would type it, so that it is read and checked as on the command line.
            defaults[name] = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    context.default_map = defaults


def _mapping(path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        values = yaml.safe_load(read_regular(path, SETTINGS_LIMIT).decode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a file of settings.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {error}.") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings: write one `name: value` per line, such as epochs: 100.")
    return values or {}


def _flat(values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key in _SECTIONS and isinstance(value, dict):
            yield from _flat(value)
        else:
            yield str(key), value


option = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=read_into_defaults,
    help="Read options from a YAML file, or from the config.json of a run; the command line comes first.",
    panel="Settings",
)
