"""Settings of the comparison of matched spaces and of activations, and how metrics are written: by name and options.

>>> parse_metric("svcca:k=20")
Svcca(variance=0.99, k=20)
>>> parse_metric("svcka")
Traceback (most recent call last):
storage.errors.InputError: there is no metric 'svcka'; did you mean 'svcca'? There are cca, svcca, pwcca, ...
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveInt, ValidationError, model_validator

from pipeline.settings.base import Flag, Memory, Number, Section, known, reason
from pipeline.settings.registries import METRICS, NULLS
from storage.errors import InputError


def parse_metrics(texts: Sequence[str]) -> dict[str, Any]:
    """Return metrics by what the user wrote, in the order given; see :func:`parse_metric`.

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


def parse_metric(text: str) -> Any:
    """Return the :class:`pipeline.compare.base.Metric` that ``NAME`` or ``NAME:OPTION=VALUE,OPTION=VALUE`` stands for.

    Parameters
    ----------
    text
        What the user wrote: ``"svcca"``, ``"svcca:k=20"``, ``"rsa:inside=euclidean,outside=kendall"``.

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
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    listed = ", ".join(f"{option}={value}" for option, value in fields.items())
    hint = f"its options are {listed}" if fields else "it has no options"
    for option in given.keys() - fields.keys():
        raise InputError(f"{name} has no option {option!r} (in {text!r}); {hint}")
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        raise InputError(f"{text!r} is not a metric: {option} {reason(first)}; {hint}") from error


def _option(text: str, part: str) -> tuple[str, str]:
    option, equals, value = part.partition("=")
    if not equals or not value:
        raise InputError(f"{text!r} is not a metric: write options as NAME:OPTION=VALUE,OPTION=VALUE, not {part!r}")
    return option.strip(), value.strip()


def _each_metric_once(texts: list[str]) -> list[str]:
    if texts:
        parse_metrics(texts)
    return texts


def _each_null_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise InputError(f"nulls are some of {', '.join(NULLS)}, each once; not {names}")
    return names


def linear_metrics() -> list[str]:
    """Return the names of the metrics that are made from second moments, and so can compare activations.

    >>> linear_metrics()[:3]
    ['cca', 'svcca', 'pwcca']
    """
    return [name for name, kind in METRICS.items() if kind.of_moments]


def _linear(texts: list[str]) -> list[str]:
    for text, metric in parse_metrics(texts).items():
        if not metric.of_moments:
            raise InputError(
                f"{text} compares every two rows, and that is tokens × tokens: on activations use one of "
                f"{', '.join(linear_metrics())}; `compare` has it for decoder rows"
            )
    return texts


#: A metric as users write it: a name, or a name with options.
Metric = Annotated[str, known(parse_metric)]
OPTIONS = "NAME[:KEY=VALUE,…]"
Metrics = Annotated[
    list[Metric], AfterValidator(_each_metric_once), Flag(name="--metric", metavar=OPTIONS, choices=lambda: METRICS)
]
LinearMetrics = Annotated[
    list[Metric], AfterValidator(_linear), Flag(name="--metric", metavar=OPTIONS, choices=linear_metrics)
]
Null = Annotated[str, known(NULLS.__getitem__)]
Nulls = Annotated[
    list[Null], AfterValidator(_each_null_once), Flag(name="--null", metavar="NAME", choices=lambda: NULLS)
]
NullRuns = Annotated[PositiveInt, Number]
#: A number that may be 0, as that of bootstrap runs, or a seed.
Count = Annotated[int, Number, Field(ge=0)]

#: The runs of a null that end it.
StopAfter = Annotated[Count, Flag(metavar="RUNS")]
STOP_AFTER = (
    "Stop a null early once this many of its runs score at least as high as the real pairing: p is then not small, and "
    "is reported with its number of runs. Effects use the first 100 runs. 0: make all runs."
)


class Scored(Section):
    """What every comparison is by."""

    metrics: list[str]

    def parsed(self) -> dict[str, Any]:
        """Return the metrics, by what the user wrote."""
        return parse_metrics(self.metrics)

    def record(self) -> dict[str, Any]:
        """Return the settings as results keep them: each metric with its name and options."""
        named = {text: {"name": metric.name} | dataclasses.asdict(metric) for text, metric in self.parsed().items()}
        record = self.model_dump(exclude={"memory"}) | {"metrics": named}
        # results that were made before nulls could end early stay current
        return {name: value for name, value in record.items() if name != "stop_after" or value}


def _not_one(groups: int) -> int:
    if groups == 1:
        raise InputError("intervals need at least 2 groups of pairs, and 20 for good ones; not 1")
    return groups


class CompareSettings(Scored):
    """What the matched spaces are compared by, and against which chance."""

    metrics: Metrics = Field(
        ["svcca", "rsa", "svcca_pc1"],
        min_length=1,
        description="Names, optionally with options: svcca:k=20 (docs/compare.md).",
    )
    nulls: Nulls = Field(
        ["shuffled"],
        min_length=1,
        description="Null models. shuffled: the same rows, paired at random; shuffled_words: the same, "
        "with all pairs of one word paired with all of another; random_features: as many "
        "live features of each side; random_pairs: as many pairs of a larger matching; "
        "random_dictionary: as many rows of a control instead of a side's own.",
    )
    null_runs: NullRuns = Field(1000, description="Runs of each null.")
    stop_after: StopAfter = Field(0, description=STOP_AFTER)
    seed: Count = Field(0, description="Seed of all runs.")
    intervals: Annotated[Count, AfterValidator(_not_one), Flag(metavar="GROUPS")] = Field(
        0, description="Groups of pairs for a jackknife 95 % interval of each score; 20 are enough. 0: no intervals."
    )
    memory: Memory = Field("auto", description="Budget of one worker, e.g. 4GB; auto: half of the free memory.")

    def record(self) -> dict[str, Any]:
        """Return the settings as results keep them; intervals of the first releases had groups by rank."""
        return super().record() | ({"interval_groups": "random"} if self.intervals else {})

    def of_sites(self) -> CompareSettings:
        """Return the settings, if the comparison of whole sites has what their nulls draw from.

        Raises
        ------
        InputError
            If a null draws from a larger matching or a control store.
        """
        if outside := [null for null in self.nulls if NULLS[null].source in ("pool", "control", "keywords")]:
            raise InputError(
                f"{', '.join(outside)} needs a larger matching or a control store, which the comparison of whole sites "
                "does not have; use `subspace compare --pool/--control-a/--control-b` on its results"
            )
        return self


class ActivationsSettings(Scored):
    """What activations over the same tokens are compared by."""

    metrics: LinearMetrics = Field(
        ["svcca", "cka", "procrustes"],
        min_length=1,
        description="Linear metrics, optionally with options, as in compare.",
    )
    null_runs: Count = Field(
        1000, description="Block permutations of the null. 0: no null; a score alone means little."
    )
    stop_after: StopAfter = Field(0, description=STOP_AFTER)
    blocks: Annotated[int, Number, Field(ge=8)] = Field(
        16, description="Maximum number of blocks of documents that the null permutes; memory grows with its square."
    )
    intervals: Count = Field(
        0, description="Bootstrap draws over groups of documents, for an interval of each score; 0: no intervals."
    )
    level: Annotated[float, Number, Field(gt=0, lt=1)] = Field(0.95, description="Nominal coverage of the intervals.")
    groups: Annotated[int, Number, Field(ge=2)] = Field(
        32, description="Groups of documents, which the bootstrap draws as wholes."
    )
    seed: Count = Field(0, description="Seed of the permutations and bootstrap draws.")
    memory: Memory = Field("auto", description="Budget of this process, e.g. 4GB; auto: half of the free memory.")

    @model_validator(mode="after")
    def _enough_orders(self) -> ActivationsSettings:
        orders = math.factorial(min(self.blocks, 20))
        if self.null_runs >= orders:
            raise InputError(f"{self.blocks} blocks have {orders} orders, not {self.null_runs}: give more blocks")
        return self
