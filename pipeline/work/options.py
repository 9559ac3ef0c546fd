"""Commands whose options are the settings of a section; see :mod:`pipeline.settings.base`."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from pipeline.settings.base import Flag, Section, default_of

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

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def command(*args: Any, **values: Any) -> Result:
            chosen = {name: values.pop(name) for name in section.model_fields}
            chosen = {
                name: _parsed(section.model_fields[name], value) for name, value in chosen.items() if value is not None
            }
            return function(*args, **values, settings=chosen if changes else section.make(**chosen))

        hints = get_type_hints(function, include_extras=True)
        own = [one.replace(annotation=hints[name]) for name, one in inspect.signature(function).parameters.items()]
        at = [one.name for one in own].index("settings")
        named = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own[at + 1 :]]
        made = [_option(name, field, changes=changes) for name, field in section.model_fields.items()]
        parameters = [*own[:at], *made, *named]
        command.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
        return command

    return decorate


def _option(name: str, field: FieldInfo, *, changes: bool) -> inspect.Parameter:
    flag = _flag(field)
    plain = str if flag.parse and get_origin(field.annotation) is not list else _plain(field.annotation)
    default = None if changes else default_of(field)
    bounds = {} if flag.parse else _bounds(field, plain)
    if default is None:
        plain = plain | None
    elif flag.parse and not isinstance(default, list):
        default = None  # a text is parsed, and the default is no text
        plain = plain | None
    help_ = field.description or ""
    if flag.choices is not None:
        help_ = f"{', '.join(flag.choices())}. {help_}".strip()
    declared = [flag.name] if flag.name else []
    shown = default not in (None, [])
    option = typer.Option(*declared, help=help_, metavar=flag.metavar, show_default=shown, **bounds)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[plain, option])


def _flag(field: FieldInfo) -> Flag:
    return next((one for one in field.metadata if isinstance(one, Flag)), Flag())


def _parsed(field: FieldInfo, value: Any) -> Any:
    parse = _flag(field).parse
    if parse is None:
        return value
    return [parse(text) for text in value] if isinstance(value, list) else parse(value)


def _bounds(field: FieldInfo, plain: Any) -> dict[str, Any]:
    """Return the least and the greatest value of a number, where these are allowed themselves."""
    if plain not in (int, float):
        return {}
    found: dict[str, Any] = {}
    for one in field.metadata:
        if (least := getattr(one, "ge", None)) is not None:
            found["min"] = least
        if plain is int and (below := getattr(one, "gt", None)) is not None:
            found["min"] = below + 1
        if (most := getattr(one, "le", None)) is not None and "min" in found:
            found["max"] = most
    return found


def _plain(annotation: Any) -> Any:
    """Return the type as a command line knows it: checks left out, and text where a value may have several types."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(inner[0])
    if origin in (Union, types.UnionType):
        some = [_plain(one) for one in inner if one is not types.NoneType]
        return some[0] if len(some) == 1 else str
    if origin is list:
        item = _plain(inner[0])
        return list[item]  # type: ignore[valid-type]
    return annotation if origin is Literal or annotation in (int, float, str, bool) else str
