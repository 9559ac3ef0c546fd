"""Settings of the matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.settings.base import Section, known
from pipeline.settings.registries import FILTERS, METHODS, takes_max_uses
from storage.errors import InputError

MatchMethod = Annotated[str, known(METHODS.__getitem__)]


def _filter(value: Any) -> Any:
    """Return the filter that a mapping stands for; what is wrong with it is said at its name and key."""
    if not isinstance(value, Mapping):
        return value
    name = str(value.get("name"))
    try:
        return FILTERS[name].model_validate(dict(value))
    except InputError as error:
        raise ValueError(str(error)) from error
    except ValidationError as error:
        found = [
            InitErrorDetails(
                type=PydanticCustomError(item["type"], "{message}", {"message": item["msg"]}),
                loc=(name, *item["loc"]),
                input=item["input"],
            )
            for item in error.errors()
        ]
        raise ValidationError.from_exception_data("filter", found) from error


#: A filter of pairs, with its settings: one of :data:`pipeline.settings.registries.FILTERS`.
PairFilter = Annotated[Any, BeforeValidator(_filter)]


class MatchSettings(Section):
    """How pairs are chosen."""

    method: MatchMethod = "greedy"
    min_correlation: Annotated[float, Field(gt=-1, le=1)] = 0.1
    max_uses: PositiveInt = Field(1, description="method unique: how many features of A may share one of B")
    filters: list[PairFilter] = Field([], description="what else is dropped, in this order")

    @model_validator(mode="after")
    def _uses_belong_to_unique(self) -> MatchSettings:
        if self.max_uses > 1 and not takes_max_uses(self.method):
            raise ValueError(
                f"max_uses belongs to the method 'unique', not {self.method!r}; to drop features that are used often, "
                "give filters: [{name: max_uses, n: …}]"
            )
        return self

    @property
    def needs_non_concept(self) -> bool:
        """Whether a filter reads which features stand for no concept."""
        return any("non_concept" in each.needs for each in self.filters)

    @property
    def needs_contexts(self) -> bool:
        """Whether a filter reads contexts."""
        return any("contexts" in each.needs for each in self.filters)
