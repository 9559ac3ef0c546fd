"""Settings of the matchings with B's rows permuted."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.settings.base import BUDGET, Flag, Memory, Number, Section, known
from pipeline.settings.compare import Count, Metrics
from pipeline.settings.registries import ROW_NULLS
from storage.errors import InputError

#: The null that permutes rows of the same text, whose pairs a result keeps.
VOCABULARY = "token"
#: Shuffled pairings of the pairs of each draw, whose mean is the chance level of its scores.
SHUFFLES = 20


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise InputError(f"nulls are some of {', '.join(ROW_NULLS)}, each once; not {names}")
    return names


RowNulls = Annotated[
    list[Annotated[str, known(ROW_NULLS.__getitem__)]],
    AfterValidator(_each_once),
    Flag(name="--null", metavar="NAME", choices=lambda: ROW_NULLS),
]


Share = Annotated[float, Field(gt=0, lt=1)]


class RematchSettings(Section):
    """Which rows of B change places, how often, and by what the new matchings are scored."""

    nulls: RowNulls = Field(
        ["token", "document"],
        min_length=1,
        description="Which rows change places. token: rows of the same text, so that features still agree on the "
        "vocabulary and on nothing else; document: whole documents of about the same length, positions kept, so that "
        "they agree by chance alone.",
    )
    draws: Annotated[int, Number, Field(ge=1)] = Field(
        20, description="Permutations of each null. Each is correlated and matched anew."
    )
    previous: Annotated[int, Number, Field(ge=0, le=8)] = Field(
        0, description="Of the null token: how many of the segments before a row must have the same text too."
    )
    metrics: Metrics = Field(
        ["svcca", "rsa"], description="As in compare; every matching is scored by them, beside shuffled pairings."
    )
    fractions: Annotated[list[Share], Number, Flag("--fraction", metavar="SHARE")] = Field(
        [0.25, 0.5],
        description="Shares of the documents that are matched too, beside one draw of the first null, to see how the "
        "number of pairs grows with text.",
    )
    seed: Count = Field(0, description="Seed of all draws.")
    memory: Memory = Field("auto", description=BUDGET)

    def record(self) -> dict[str, object]:
        """Return the settings that decide the result."""
        return self.model_dump(exclude={"memory"})
