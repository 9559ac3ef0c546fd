"""Commands whose options are the settings of a section; see :mod:`pipeline.settings.base`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from pipeline.settings.base import Flag, Section, default_of
from pipeline.work.script import in_place_of, option

Result = TypeVar("Result")


def options(
    section: type[Section], *, changes: bool = False
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    r"""Give a command an option for each setting of a section, in place of its parameter ``settings``.

    Parameters
    ----------
    section
        The section. How a setting is written is told by a :class:`~pipeline.settings.base.Flag` beside its type.
    changes
        Let the command have a mapping of those settings alone that were given. No option has a default then.

    Examples
    --------
    >>> from typer.testing import CliRunner
    >>> class Cut(Section):
    ...     '''How it is cut.'''
    ...     width: int = 3
    >>> app = typer.Typer()
    >>> @app.command()
    ... @options(Cut)
    ... def cut(text: str, settings: Cut) -> None:
    ...     print(text[: settings.width])
    >>> CliRunner().invoke(app, ["abcdef", "--width", "2"]).output
    'ab\n'
    """

    def make(**values: Any) -> Any:
        given = {
            name: _parsed(section.model_fields[name], value) for name, value in values.items() if value is not None
        }
        return given if changes else section.make(**given)

    made = [_option(name, field, changes=changes) for name, field in section.model_fields.items()]
    return in_place_of("settings", make, made)


def _option(name: str, field: FieldInfo, *, changes: bool) -> inspect.Parameter:
    flag = _flag(field)
    plain = str if flag.parse and get_origin(field.annotation) is not list else _plain(field.annotation)
    default = None if changes else default_of(field)
    bounds = {} if flag.parse else _bounds(field, plain)
    if default is None:
        plain = plain | None
    elif (flag.parse or get_origin(plain) is list) and not isinstance(default, list):
        default = None  # what is parsed, or given several times, and the default is not as it is given
        plain = plain | None
    help_ = field.description or ""
    if flag.choices is not None:
        help_ = f"{', '.join(flag.choices())}. {help_}".strip()
    if get_origin(field.annotation) is list:
        help_ = f"{help_} Repeatable."
    declared = [flag.name] if flag.name else []
    shown = default not in (None, [])
    declaration = typer.Option(*declared, help=help_, metavar=flag.metavar, show_default=shown, **bounds)
    return option(name, Annotated[plain, declaration], default)


def _flag(field: FieldInfo) -> Flag:
    return next((part for part in field.metadata if isinstance(part, Flag)), Flag())


def _parsed(field: FieldInfo, value: Any) -> Any:
    parse = _flag(field).parse
    if parse is None:
        return value
    return [parse(text) for text in value] if isinstance(value, list) else parse(value)


def _bounds(field: FieldInfo, plain: Any) -> dict[str, Any]:
    """Return the least and the greatest value of a number, where these are allowed themselves."""
    if plain not in (int, float):
        return {}
    bounds: dict[str, Any] = {}
    for constraint in field.metadata:
        if (least := getattr(constraint, "ge", None)) is not None:
            bounds["min"] = least
        if plain is int and (below := getattr(constraint, "gt", None)) is not None:
            bounds["min"] = below + 1
        if (most := getattr(constraint, "le", None)) is not None and "min" in bounds:
            bounds["max"] = most
    return bounds


def _plain(annotation: Any) -> Any:
    """Return the type as a command line knows it: checks left out, and text where a value may have several types."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(inner[0])
    if origin in (Union, types.UnionType):
        kinds = [_plain(kind) for kind in inner if kind is not types.NoneType]
        # one or several are given as several
        return next((kind for kind in kinds if len(kinds) == 1 or get_origin(kind) is list), str)
    if origin is dict:
        return list[str]  # KEY=VALUE, each
    if origin is list:
        item = _plain(inner[0])
        return list[str if get_origin(item) is Literal else item]  # type: ignore[misc] # typer knows no list of choices
    return annotation if origin is Literal or annotation in (int, float, str, bool) else str
