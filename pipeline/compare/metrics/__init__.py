"""The metrics, one module for each kind, and how users write them: by name and options.

Every module here is imported when a metric is first asked for; its classes register themselves.

>>> parse_metric("svcca:k=20")
Svcca(variance=0.99, k=20)
>>> parse_metric("svcka")
Traceback (most recent call last):
storage.errors.InputError: there is no metric 'svcka'; did you mean 'svcca'? There are cca, svcca, pwcca, ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.compare.base import Metric
from pipeline.settings.registries import METRICS
from storage.errors import InputError


def parse_metrics(texts: Sequence[str]) -> dict[str, Metric]:
    """Return metrics by what the user wrote.

    Parameters
    ----------
    texts
        Each a name, or a name with options: ``"svcca"``, ``"svcca:k=20"``, ``"rsa:inside=euclidean,outside=kendall"``.

    Returns
    -------
    dict
        The metrics, in the order given.

    Raises
    ------
    InputError
        If there is none, one is unknown, given twice, or has an option that it does not take.

    Examples
    --------
    >>> list(parse_metrics(["rsa", "svcca:variance=0.9"]))
    ['rsa', 'svcca:variance=0.9']
    """
    metrics = {text: parse_metric(text) for text in texts}
    if not metrics or len(set(metrics.values())) < len(texts):
        raise InputError(f"metrics are some of {', '.join(METRICS)}, each once; not {list(texts)}")
    return metrics


def parse_metric(text: str) -> Metric:
    """Return the metric that ``NAME`` or ``NAME:OPTION=VALUE,OPTION=VALUE`` stands for.

    Parameters
    ----------
    text
        What the user wrote.

    Raises
    ------
    InputError
        If there is no such metric or option, or a value is not one that the option takes; the message lists those.

    Examples
    --------
    >>> parse_metric("svcca:kk=3")
    Traceback (most recent call last):
    storage.errors.InputError: svcca has no option 'kk' (in 'svcca:kk=3'); its options are variance=0.99, k=None
    """
    name, _, options = str(text).partition(":")
    kind = METRICS[name]
    given = dict(_option(text, part) for part in options.split(",")) if options else {}
    for option in given.keys() - defaults(kind).keys():
        raise InputError(f"{name} has no option {option!r} (in {text!r}); {_listed(kind)}")
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{text!r} is no metric: {option}: {message}; {_listed(kind)}") from error


def defaults(kind: type[Metric]) -> dict[str, Any]:
    """Return the options of a metric with their defaults.

    Examples
    --------
    >>> defaults(METRICS["svcca"])
    {'variance': 0.99, 'k': None}
    """
    return {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def settings_of(metric: Metric) -> dict[str, Any]:
    """Return a metric's name and options, as results record them.

    Examples
    --------
    >>> settings_of(parse_metric("svcca:k=20"))
    {'name': 'svcca', 'variance': 0.99, 'k': 20}
    """
    return {"name": metric.name, **{option: getattr(metric, option) for option in defaults(type(metric))}}


def _option(text: str, part: str) -> tuple[str, str]:
    option, equals, value = part.partition("=")
    if not equals or not value:
        raise InputError(f"{text!r} is no metric: write options as NAME:OPTION=VALUE,OPTION=VALUE, not {part!r}")
    return option.strip(), value.strip()


def _listed(kind: type[Metric]) -> str:
    options = ", ".join(f"{option}={value}" for option, value in defaults(kind).items())
    return f"its options are {options}" if options else "it has no options"
