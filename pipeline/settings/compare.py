"""Settings of the comparison of matched spaces."""

from __future__ import annotations

import importlib
from typing import Annotated

from pydantic import Field, PositiveInt, field_validator

from pipeline.settings.base import Section, known
from pipeline.settings.registries import NULLS


def _parse_metric(text: str) -> object:
    return importlib.import_module("pipeline.compare.metrics").parse_metric(text)  # stages read this module


#: A metric as users write it: a name, or a name with options.
Metric = Annotated[str, known(_parse_metric)]

Null = Annotated[str, known(NULLS.__getitem__)]


class CompareSettings(Section):
    """What the matched spaces are compared by, and against which chance."""

    metrics: list[Metric] = Field(
        ["svcca", "rsa", "svcca_pc1"], min_length=1, description="names, with options where wanted: 'svcca:k=20'"
    )
    nulls: list[Null] = Field(["shuffled"], min_length=1, description="what chance is")
    null_runs: PositiveInt = 1000
    seed: int = 0
    intervals: Annotated[int, Field(ge=0)] = Field(
        0, description="bootstrap runs over pairs, for an interval of each score"
    )

    @field_validator("nulls")
    @classmethod
    def _nulls_of_a_run(cls, nulls: list[Null]) -> list[Null]:
        if outside := [null for null in nulls if NULLS[null].source in ("pool", "control")]:
            raise ValueError(
                f"{', '.join(outside)} needs a larger matching or a control store, which the comparison of whole sites "
                "does not have; use `subspace compare --pool/--control-a/--control-b` on its results"
            )
        return nulls
