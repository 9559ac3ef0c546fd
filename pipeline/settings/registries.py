"""What can be added from outside, one registry a kind; see ``docs/extending.md``. Importing this imports none of it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from storage.registry import IMPORTERS, Registry

if TYPE_CHECKING:
    from pipeline.compare.base import Metric
    from pipeline.compare.nulls import Null
    from pipeline.harvest.dictionary import Format
    from pipeline.match.edges import Method
    from pipeline.match.filters import Filter

__all__ = ["DICTIONARIES", "FILTERS", "IMPORTERS", "METHODS", "METRICS", "NULLS", "takes_max_uses"]

METRICS: Registry[type[Metric]] = Registry("metric", "subspace.metrics", "pipeline.compare.metrics")
NULLS: Registry[Null] = Registry("null", "subspace.nulls", "pipeline.compare.nulls")
FILTERS: Registry[type[Filter]] = Registry("filter", "subspace.filters", "pipeline.match.filters")
METHODS: Registry[Method] = Registry("matching method", "subspace.methods", "pipeline.match.methods")
DICTIONARIES: Registry[Format] = Registry("dictionary format", "subspace.dictionaries", "pipeline.harvest.formats")


def takes_max_uses(method: str) -> bool:
    """Say whether a matching method can be told how often a B feature may be used.

    >>> takes_max_uses("unique"), takes_max_uses("greedy")
    (True, False)
    """
    return "max_uses" in inspect.signature(METHODS[method]).parameters
