"""Sections of settings, and functions whose keyword arguments they are.

A section is one class. Its fields are the keys of the experiment file, the keyword arguments of a function
(:func:`keywords`) and the options of a command (:mod:`pipeline.work.options`), with one default, one bound and one
description each.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.settings.registries import FILTERS, YARDSTICKS
from storage.errors import InputError, shorten, shown
from storage.registry import Registry

SITE_PLACEHOLDER = "{site}"
#: Characters of a line of a docstring.
WIDTH = 116

Result = TypeVar("Result")


@dataclass(frozen=True)
class Flag:
    """How a setting is given on the command line, where that does not follow from its name and type.

    Attributes
    ----------
    name
        The option, such as ``--metric``; it is given once for each item of a list.
    metavar
        What stands for its value in the help.
    parse
        Makes the value from a text.
    choices
        Returns what the text may be, for the help.
    """

    name: str | None = None
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    choices: Callable[[], Iterable[str]] | None = None


class Section(BaseModel):
    """A part of the experiment file: unknown keys are errors, values are not coerced across types."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def make(cls, **values: Any) -> Self:
        """Return the section with some of its settings given, and the others by default.

        Raises
        ------
        InputError
            If a value is none of its setting; the message names each.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError("; ".join(line.strip() for line in explain(error, cls))) from error


def known(look_up: Callable[[str], object]) -> AfterValidator:
    """Return the check that there is what a text names; see :mod:`pipeline.settings.registries`."""

    def check(text: str) -> str:
        try:
            look_up(text)
        except InputError as error:
            raise ValueError(str(error)) from error
        return text

    return AfterValidator(check)


def _plain(value: Any) -> Any:
    """Return numbers of NumPy as Python's own; the help, which NumPy would delay, does without importing it."""
    return value.tolist() if hasattr(value, "dtype") else value


#: What is put in front of the checks of a number or of a list of them, so that NumPy's are as good.
Number = BeforeValidator(_plain)


#: A budget: bytes, or a text such as 4GB or auto; and what it is the budget of.
BUDGET = "Total budget of all workers, e.g. 4GB; auto: half of the free memory."
Memory = Annotated[str | int, Number, Flag(metavar="SIZE")]


def keywords(section: type[Section]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Let callers of a function give each setting of a section as a keyword argument.

    The function itself takes the whole section as `settings`, and so may its callers. Signature and docstring, where
    ``settings`` is described, show every setting.

    Parameters
    ----------
    section
        The section.

    Examples
    --------
    >>> class Cut(Section):
    ...     '''How it is cut.'''
    ...     width: int = 3
    >>> @keywords(Cut)
    ... def cut(text: str, settings: Cut) -> str:
    ...     return text[: settings.width]
    >>> cut("abcdef"), cut("abcdef", width=2), cut("abcdef", Cut(width=1))
    ('abc', 'ab', 'a')
    >>> inspect.signature(cut).parameters["width"].default
    3
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Result:
            values = {name: given.pop(name) for name in list(given) if name in section.model_fields}
            bound = signature.bind(*args, **given)
            whole = bound.arguments.get("settings")
            if not isinstance(whole, section | None):
                raise InputError(f"settings is {shown(whole)}, not {section.__name__}; give settings by their names")
            if whole is None or values:
                start = {} if whole is None else {name: getattr(whole, name) for name in whole.model_fields_set}
                bound.arguments["settings"] = section.make(**start | values)
            return function(*bound.args, **bound.kwargs)

        written = inspect.signature(function)
        optional = written.parameters["settings"].replace(default=None)
        signature = written.replace(
            parameters=[optional if name == "settings" else part for name, part in written.parameters.items()]
        )
        call.__signature__ = with_fields(written, section)  # type: ignore[attr-defined]
        call.__doc__ = document(function.__doc__ or "", section)
        return call

    return decorate


def with_fields(signature: inspect.Signature, section: type[Section]) -> inspect.Signature:
    """Return a signature with a keyword for each setting in place of ``settings``."""
    fields = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default_of(field), annotation=field.annotation)
        for name, field in section.model_fields.items()
    ]
    others = [part for part in signature.parameters.values() if part.name != "settings"]
    positional = [part for part in others if part.kind is not inspect.Parameter.KEYWORD_ONLY]
    return signature.replace(parameters=[*positional, *fields, *others[len(positional) :]])


def default_of(field: FieldInfo) -> Any:
    """Return what a setting is if it is not given; :attr:`inspect.Parameter.empty` if it must be."""
    return inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)


def document(docstring: str, section: type[Section]) -> str:
    """Return a numpydoc docstring with an entry for each setting in place of that of ``settings``."""

    def entries(match: re.Match[str]) -> str:
        indent = match[1]
        inner = indent + "    "
        return "".join(
            f"{indent}{name}\n"
            + textwrap.fill(field.description or "", WIDTH, initial_indent=inner, subsequent_indent=inner)
            + "\n"
            for name, field in section.model_fields.items()
        )

    return re.sub(r"^( +)settings\n(?:\1 +.*\n)+", entries, docstring, count=1, flags=re.MULTILINE)


def explain(error: ValidationError, root: type[Section]) -> Iterator[str]:
    """Yield one line for each wrong key or value, with the nearest valid key where a key is unknown."""
    reasons: dict[tuple[int | str, ...], list[str]] = {}
    values: dict[tuple[int | str, ...], object] = {}
    for item in error.errors():
        place = tuple(part for part in item["loc"] if not _TYPE.fullmatch(str(part)))
        reasons.setdefault(place, []).append(_unknown_key(item, root) or reason(item))
        values[place] = item["input"]
    for place, several in reasons.items():
        # what may be of several types is refused once for each
        alternatives = dict.fromkeys(text.removeprefix("must be ") for text in several[1:])
        message = " or ".join([several[0], *alternatives])
        given = "" if message.startswith(("unknown key", REQUIRED)) else f" (given: {shown(values[place])})"
        yield f"  {'.'.join(shorten(str(part), 80) for part in place)}: {message}{given}" if place else f"  {message}"


#: What pydantic puts into a place to say which of several types it tried.
_TYPE = re.compile(r"str|int|float|bool|(?:list|dict)\[.*|[A-Z]\w+Settings")
REQUIRED = "is required"
#: What a value must be, by the type of pydantic's error.
_REASONS = {
    "string": "must be text",
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "list": "must be a list",
    "model": "must be a section of keys and values",
    "dict": "must be a section of keys and values",
    "missing": REQUIRED,
}


def reason(item: Mapping[str, Any]) -> str:
    """Return what a value must be, from one of the errors of pydantic.

    >>> reason({"type": "int_parsing", "msg": "Input should be a valid integer, unable to parse"})
    'must be a whole number'
    """
    kind = str(item["type"])
    if kind == "union_tag_invalid":
        return f"{item['ctx']['discriminator']} must be one of {item['ctx']['expected_tags']}"
    message = str(item["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    message = re.sub(r"^(Input|List) should ", "must ", message)
    is_of_type = kind == "missing" or kind.endswith(("_type", "_parsing", "_from_float"))
    if kind == "string_type" and isinstance(item["input"], int | float):  # YAML reads no as false
        return "must be text; put it in quotes"
    return _REASONS.get(kind.partition("_")[0], message) if is_of_type else message


def _unknown_key(item: Any, root: type[Section]) -> str:
    """Say which keys there are, or the nearest, if an error is about a key; else nothing."""
    if item["type"] != "extra_forbidden":
        return ""
    valid = list(_fields_at(root, item["loc"][:-1]))
    near = difflib.get_close_matches(shorten(str(item["loc"][-1]), 80), valid, n=1)
    return "unknown key; " + (f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}")


def _fields_at(root: type[Section], location: tuple[Any, ...]) -> Iterator[str]:
    """Yield the valid keys of the section at `location`."""
    section, alternatives = root, dict[str, Any]()
    for part in location:
        field = getattr(section, "model_fields", {}).get(part)
        if field is not None:
            section, alternatives = _section_of(field.annotation), _named_sections(field.annotation)
        else:
            # a section of several kinds, or inside a list of what is registered, where a number and a name follow
            section = alternatives.get(str(part)) or _registered(part)
    for name, field in getattr(section, "model_fields", {}).items():
        yield field.alias or name


def _section_of(annotation: Any) -> Any:
    """Return the section that a field holds; of an optional one, what it is when it is there."""
    return next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)


def _named_sections(annotation: Any) -> dict[str, Any]:
    """Return the sections that a field may hold, by their names."""
    kinds = [get_args(kind)[0] if hasattr(kind, "__metadata__") else kind for kind in get_args(annotation)]
    return {kind.__name__: kind for kind in kinds if hasattr(kind, "model_fields")}


def _registered(part: object) -> Any:
    kinds = (kinds[part] for kinds in (FILTERS, YARDSTICKS) if isinstance(part, str) and part in kinds)
    return next(kinds, Section)


def registered_section(registry: Registry[Any], example: str) -> BeforeValidator:
    """Return what makes the section that a mapping with a ``name`` stands for, one of a registry's.

    What is wrong with the mapping is said at its name and key; `example` is shown where there is none.
    """

    def make(value: Any) -> Any:
        if isinstance(value, Section):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"a {registry.kind} is a mapping with its name, as {example}")  # noqa: TRY004
        name = str(value.get("name"))
        kind = registry[name]
        try:
            return kind.model_validate(dict(value))
        except ValidationError as error:
            errors = [
                InitErrorDetails(
                    type=PydanticCustomError(item["type"], "{message}", {"message": reason(item)}),
                    loc=(name, *item["loc"]),
                    input=item["input"],
                )
                for item in error.errors()
            ]
            raise ValidationError.from_exception_data(registry.kind, errors) from error

    return BeforeValidator(make)
