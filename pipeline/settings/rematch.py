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
        description="Which rows are permuted. token: rows of the same text, so that features share "
        "nothing but the vocabulary; document: whole documents of about the same length, "
        "positions kept, so that features agree only by chance.",
    )
    draws: Annotated[int, Number, Field(ge=1)] = Field(
        20, description="Permutations of each null. Each is correlated and matched again."
    )
    previous: Annotated[int, Number, Field(ge=0, le=8)] = Field(
        0, description="For the null token: number of preceding segments that must have the same text too."
    )
    metrics: Metrics = Field(
        ["svcca", "rsa"], description="Metrics, as in compare, that score every matching against shuffled pairings."
    )
    fractions: Annotated[list[Share], Number, Flag("--fraction", metavar="SHARE")] = Field(
        [0.25, 0.5],
        description="Shares of the documents to match as well, each with one draw of the first null, to "
        "show how the number of pairs grows with the amount of text.",
    )
    seed: Count = Field(0, description="Seed of all draws.")
    memory: Memory = Field("auto", description=BUDGET)

    def record(self) -> dict[str, object]:
        """Return the settings that decide the result."""
        return self.model_dump(exclude={"memory"})
