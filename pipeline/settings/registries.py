"""What can be added from outside, one registry a kind; see ``docs/extending.md``. Importing this imports none of it.

The types of what is registered are those of the stages, which import this module.
"""

from __future__ import annotations

import inspect
from typing import Any

from storage.registry import IMPORTERS, Registry

__all__ = [
    "DICTIONARIES",
    "FILTERS",
    "IMPORTERS",
    "METHODS",
    "METRICS",
    "NULLS",
    "ROW_NULLS",
    "YARDSTICKS",
    "takes_max_uses",
]

#: Subclasses of :class:`pipeline.compare.base.Metric`.
METRICS: Registry[Any] = Registry("metric", "subspace.metrics", "pipeline.compare.metrics")
#: Instances of :class:`pipeline.compare.nulls.Null`.
NULLS: Registry[Any] = Registry("null", "subspace.nulls", "pipeline.compare.nulls")
#: Instances of :class:`pipeline.rematch.nulls.RowNull`.
ROW_NULLS: Registry[Any] = Registry("null of rows", "subspace.row_nulls", "pipeline.rematch.nulls")
#: Subclasses of :class:`pipeline.match.filters.Filter`.
FILTERS: Registry[Any] = Registry("filter", "subspace.filters", "pipeline.match.filters")
#: Functions, :class:`pipeline.match.edges.Method`.
METHODS: Registry[Any] = Registry("matching method", "subspace.methods", "pipeline.match.methods")
#: Instances of :class:`pipeline.harvest.dictionary.Format`.
DICTIONARIES: Registry[Any] = Registry("dictionary format", "subspace.dictionaries", "pipeline.harvest.formats")
#: Subclasses of :class:`pipeline.yardsticks.base.Yardstick`.
YARDSTICKS: Registry[Any] = Registry("yardstick", "subspace.yardsticks", "pipeline.yardsticks.kinds")


def takes_max_uses(method: str) -> bool:
    """Say whether a matching method can be told how often a B feature may be used.

    >>> takes_max_uses("unique"), takes_max_uses("greedy")
    (True, False)
    """
    return "max_uses" in inspect.signature(METHODS[method]).parameters
