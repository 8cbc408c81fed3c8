"""Settings described once: the docstring under a field of a config dataclass is all the help there is of it.

The options of the command line, the files that `--config` reads and docs/configuration.md are made from what
`settings_of` returns. A field may be None only if its docstring ends with a sentence "None: ...", which says
what that means.
"""

import ast
import dataclasses
import functools
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from siamusic_fast.errors import ConfigError


@dataclass(frozen=True)
class Section:
    """Title of the group of settings that begins with the field."""

    title: str


@dataclass(frozen=True)
class OneOf:
    """The words that the field may have as a value, or that a tuple may hold."""

    choices: tuple[str, ...]


@dataclass(frozen=True)
class Between:
    """The smallest and the largest value that the field may have."""

    min: float
    max: float = math.inf


@dataclass(frozen=True)
class Positive:
    """The field must be above 0."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a config dataclass, as users see it."""

    name: str
    kind: type
    """Type of a value: str, int, float, bool or, for several words, tuple."""
    default: Any
    help: str
    """The docstring, without the sentence on None."""
    if_none: str
    """What None means; empty if the field cannot be None."""
    section: str
    rule: OneOf | Between | Positive | None
    """What its values must be like."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The words to choose from, if there are any."""
        return self.rule.choices if isinstance(self.rule, OneOf) else ()

    @property
    def default_words(self) -> str:
        """The default as one types it, or what None means."""
        if self.default is None:
            return self.if_none
        if self.kind is bool:
            return "on" if self.default else "off"
        if self.kind is float:
            return f"{self.default:g}"
        return ",".join(self.default) if self.kind is tuple else str(self.default)


@functools.cache
def settings_of(config: Any) -> tuple[Setting, ...]:
    """Return the settings of a config dataclass, those that it inherits last.

    Fields that are dataclasses again are left out: they have settings of their own.
    """
    hints = typing.get_type_hints(config, include_extras=True)
    own = inspect.get_annotations(config)
    docs = dict(_docstrings(config))
    settings, section = [], ""
    for field in sorted(dataclasses.fields(config), key=lambda f: f.name not in own):
        hint, *marks = _annotated(hints[field.name])
        section = next((mark.title for mark in marks if isinstance(mark, Section)), section)
        if dataclasses.is_dataclass(hint):
            continue
        words, _, if_none = docs[field.name].partition(" None: ")
        settings.append(
            Setting(
                name=field.name,
                kind=_value_type(hint),
                default=field.default,
                help=words,
                if_none=if_none.removesuffix("."),
                section=section,
                rule=next((mark for mark in marks if isinstance(mark, OneOf | Between | Positive)), None),
            )
        )
    return tuple(settings)


def check_settings(config: object) -> None:
    """Raise ConfigError if a value in the dataclass `config` breaks the rule of its field."""
    for setting in settings_of(type(config)):  # type: ignore[arg-type]
        value = getattr(config, setting.name)
        if value is not None:
            check_value(setting.name, value, setting.rule)


def check_value(name: str, value: Any, rule: OneOf | Between | Positive | None) -> None:
    """Raise ConfigError if `value`, or one of a tuple of values, breaks the rule of the setting `name`."""
    if isinstance(value, tuple):
        for one in value:
            check_value(name, one, rule)
        return
    match rule:
        case OneOf(choices) if value not in choices:
            raise ConfigError(f"{name} = {value!r} is unknown: choose one of {', '.join(choices)}.")
        case Positive() if not 0 < value < math.inf:
            raise ConfigError(f"{name} = {value:g} must be a number above 0.")
        case Between(min=0, max=math.inf) if not 0 <= value < math.inf:
            raise ConfigError(f"{name} = {value:g} must be a number that is not negative.")
        case Between(min=low, max=high) if not low <= value <= high:
            raise ConfigError(f"{name} = {value:.12g} must lie between {low:g} and {high:.12g}.")


def _annotated(hint: Any) -> tuple[Any, ...]:
    """Return the type in a hint and the marks beside it."""
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)


def _value_type(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        (hint,) = (member for member in typing.get_args(hint) if member is not type(None))
    kind = typing.get_origin(hint) or hint
    assert isinstance(kind, type)
    return kind


def _docstrings(config: type) -> Iterator[tuple[str, str]]:
    """Give the name and the docstring of each field; Python keeps them in the source alone."""
    for base in filter(dataclasses.is_dataclass, reversed(config.__mro__)):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, doc in zip(tree.body, tree.body[1:], strict=False):
            match field, doc:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    yield name, " ".join(text.split())
