"""Settings of the matching, and of a sweep over matchings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveInt

from pipeline.settings.base import Flag, Number, Section, known, registered_section
from pipeline.settings.compare import Count, Metrics, NullRuns
from pipeline.settings.registries import FILTERS, METHODS, takes_max_uses
from storage.errors import InputError, shorten
from storage.rundir import RunDirectory
from storage.yaml_files import parse_yaml

#: Attribute of pairs, and of what is measured on them, if held-out r took part in choosing them.
HELDOUT_NOTE = "heldout_note"


def heldout_note_of(attrs: Mapping[str, Any]) -> dict[str, str]:
    """Return the attribute :data:`HELDOUT_NOTE` of pairs, if they have it.

    >>> heldout_note_of({"method": "greedy", "heldout_note": "…"}), heldout_note_of({"method": "greedy"})
    ({'heldout_note': '…'}, {})
    """
    return {HELDOUT_NOTE: attrs[HELDOUT_NOTE]} if HELDOUT_NOTE in attrs else {}


MatchMethod = Annotated[str, known(METHODS.__getitem__), Flag(metavar="NAME", choices=lambda: METHODS)]

MinimumR = Annotated[float, Number, Field(gt=-1, le=1)]


def parse_filter(text: str) -> dict[str, Any]:
    """Return a filter from how it is written on the command line.

    >>> parse_filter("max_uses:after:n=3"), parse_filter("easy_kind:kinds=[position]")
    ({'name': 'max_uses', 'when': 'after', 'n': 3}, {'name': 'easy_kind', 'kinds': ['position']})
    """
    name, *parts = text.split(":")
    parsed: dict[str, Any] = {"name": name}
    for part in parts:
        key, equals, value = part.partition("=")
        if equals:
            parsed[key] = parse_yaml(value, f"--filter {shorten(text, 200)}")
        else:
            parsed["when"] = part
    return parsed


#: Filters of pairs, with their settings: each one of :data:`pipeline.settings.registries.FILTERS`.
PairFilters = Annotated[
    list[Annotated[Any, registered_section(FILTERS, "{name: min_r, value: 0.2}")]],
    Flag(
        name="--filter",
        metavar="NAME[:before|after][:KEY=VALUE]",
        parse=parse_filter,
        choices=lambda: FILTERS,
    ),
]


class MatchSettings(Section):
    """How pairs are chosen."""

    method: MatchMethod = Field(
        "greedy",
        description="best: each A feature's best B feature, which may serve many (many to one); "
        "best_of_b: the same in the other direction; mutual: features that are each other's "
        "best; unique: only the best pairs of each B feature among those of best; greedy: "
        "one to one, in order of decreasing r; optimal: one to one with the highest total r; "
        "unique_greedy: one to one, the pairs of best whose B feature is used once, then the "
        "remaining features in order of decreasing r.",
    )
    min_correlation: MinimumR = Field(
        0.2,
        description="Minimum r of a pair, inclusive; at least the keep_above of the correlation. Low "
        "values pair unrelated features by chance (docs/ground-truth.md).",
    )
    max_uses: Annotated[PositiveInt, Number] = Field(
        1, description="With the method unique: how many A features may share a B feature; the best ones are kept."
    )
    filters: PairFilters = Field(
        [],
        description="Filters that drop further pairs, before or after the method chooses, in this order: "
        "mappings with the name and the settings of a filter (docs/matching.md).",
    )

    def checked(self) -> MatchSettings:
        """Return the settings, if the method takes the maximum uses that they ask for.

        Raises
        ------
        InputError
            If it does not.
        """
        if self.max_uses > 1 and not takes_max_uses(self.method):
            raise InputError(
                f"max_uses belongs to the method 'unique', not {self.method!r}; to drop features that are used often, "
                "give filters: [{name: max_uses, n: …}]"
            )
        return self

    def by(self, method: str) -> MatchSettings:
        """Return the settings for another method, which need not take the maximum uses."""
        max_uses = self.max_uses if takes_max_uses(method) else 1
        return self.model_copy(update={"method": method, "max_uses": max_uses})

    @property
    def options(self) -> dict[str, Any]:
        """What the method takes besides the candidates."""
        return {"max_uses": self.max_uses} if takes_max_uses(self.method) else {}

    def record(self) -> dict[str, Any]:
        """Return all that the pairs depend on besides the inputs."""
        filters = [item.settings() for item in self.filters]
        return {"method": self.method, "min_correlation": self.min_correlation, "filters": filters} | self.options

    @property
    def needs_non_concept(self) -> bool:
        """Whether a filter reads which features stand for no concept."""
        return any("non_concept" in item.needs for item in self.filters)

    @property
    def needs_contexts(self) -> bool:
        """Whether a filter reads contexts."""
        return any("contexts" in item.needs for item in self.filters)


class RunMatchSettings(MatchSettings):
    """How pairs are chosen in an experiment, and on what they are checked."""

    check_on: str | None = Field(
        None,
        description="Run directory of an experiment with the same models, dictionaries and sites on "
        "other text, on which r of the pairs is computed too.",
    )

    def check_stores(self, sites: tuple[str, str]) -> tuple[Path, Path] | None:
        """Return the stores of two sites on the other text; None if there is none."""
        if self.check_on is None:
            return None
        other = RunDirectory(Path(self.check_on))
        return other.activations("a", sites[0]), other.activations("b", sites[1])


def steps(text: str) -> list[float]:
    """Return the numbers of ``0.1,0.2,0.5`` or of ``0.1:0.5:0.1``, both ends included.

    >>> steps("0.1:0.3:0.1"), steps("1,2,5")
    ([0.1, 0.2, 0.3], [1.0, 2.0, 5.0])
    """
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        first, last, step = (float(part) for part in text.split(":"))
        # rounded, since 0.1 + 2 · 0.1 is not 0.3
        return [round(first + i * step, 10) for i in range(math.floor((last - first) / step + 1e-9) + 1)]
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{text!r} is not a list of numbers ({error}); write 0.1,0.2,0.5 or FIRST:LAST:STEP"
        ) from error


#: Numbers of an axis in ascending order, each once.
_ascending = AfterValidator(lambda values: tuple(sorted(set(values))))


class SweepSettings(Section):
    """At which minimum r and maximum uses features are matched, and by what the matchings are scored."""

    min_correlations: Annotated[
        tuple[MinimumR, ...], _ascending, Flag(name="--min-correlation", metavar="LIST", parse=steps)
    ] = Field(
        tuple(steps("0.1:0.9:0.1")),
        min_length=1,
        description="Minimum r values, each at least the keep_above of the correlation; on the command "
        "line as 0.1,0.2 or FIRST:LAST:STEP. Default: 0.1:0.9:0.1.",
    )
    max_uses: Annotated[tuple[Annotated[PositiveInt, Number], ...], _ascending, Flag(metavar="LIST", parse=steps)] = (
        Field(
            (1,),
            min_length=1,
            description="With the method unique: how many A features may share a B feature. With other "
            "methods: features that are the best partner of more features of the other side are "
            "dropped before matching. As 1,2,5; default: 1.",
        )
    )
    method: MatchMethod = Field("unique", description="As in match.")
    filters: PairFilters = Field([], description="As in match.")
    metrics: Metrics = Field([], description="Metrics, as in compare, that score each matching. They need the stores.")
    null_runs: NullRuns = Field(100, description="Shuffled pairings in the null of each score.")
    seed: Count = Field(0, description="Seed of the shuffled pairings.")

    def points(self) -> Iterator[MatchSettings]:
        """Yield the matchings: for every minimum r, each maximum of uses."""
        for minimum in self.min_correlations:
            for n in self.max_uses:
                settings = MatchSettings(method=self.method, min_correlation=minimum, filters=self.filters)
                if takes_max_uses(self.method):
                    yield settings.model_copy(update={"max_uses": n})
                else:
                    overused = FILTERS["max_uses"](n=n)
                    yield settings.model_copy(update={"filters": [*self.filters, overused]})
