"""Matching inside sets of features: only pairs with both features in their side's set compete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pipeline.match.edges import Edges, Method, check_minimum, lookup, read_edges
from pipeline.settings.match import MatchSettings
from pipeline.settings.registries import METHODS
from storage import open_result
from storage.errors import InputError

_DEFAULTS = MatchSettings()


def match_within(
    cor: str | Path,
    sets: Mapping[str, tuple[ArrayLike, ArrayLike]],
    method: str = "greedy",
    min_correlation: float = _DEFAULTS.min_correlation,
) -> dict[str, xr.Dataset]:
    """Pair features within sets, each set on its own; the kept pairs are read once for all.

    Exact, like :func:`pipeline.match`: r of kept pairs is that of the correlation result, and pairs below the minimum
    may not be matched. A set is the ids of A's and of B's features that may be paired.

    Returns
    -------
    dict of xarray.Dataset
        By name, over ``pair`` from the highest r down: ``feature_a``, ``feature_b`` int32; ``r``, ``r_heldout``
        float64, the latter NaN where all rows chose.

    Raises
    ------
    InputError
        If the method is unknown, the minimum is below what was kept, or an id is no feature.
    MissingInputError
        If there is no correlation result.
    """
    choose = METHODS[method]
    with open_result(cor, "correlate") as correlation:
        check_minimum(correlation, min_correlation)
        edges = read_edges(cor, correlation, min_correlation)
        chosen = {name: _pair(edges, *ids, choose) for name, ids in sets.items()}
        heldout = np.full(len(edges), np.nan)
        if "r_heldout" in correlation:  # of every pair that any set chose, in one pass
            at = np.unique(np.concatenate([np.zeros(0, np.int64), *chosen.values()]))
            heldout[at] = lookup(cor, "r_heldout", edges.ids_a[at], edges.ids_b[at], edges.n_a)
    return {name: _dataset(edges, np.sort(at), heldout) for name, at in chosen.items()}


def _pair(edges: Edges, ids_a: ArrayLike, ids_b: ArrayLike, choose: Method) -> NDArray[np.int64]:
    """Return the positions of the edges that are chosen within one set."""
    inside = _mask(ids_a, edges.n_a)[edges.ids_a] & _mask(ids_b, edges.n_b)[edges.ids_b]
    at = np.flatnonzero(inside)
    return at[choose(edges.take(at))]


def _mask(ids: ArrayLike, n: int) -> NDArray[np.bool_]:
    numbers = np.asarray(ids, np.int64)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < n:
        raise InputError(f"a set holds ids from {numbers.min()} to {numbers.max()}, but there are {n} features")
    mask = np.zeros(n, bool)
    mask[numbers] = True
    return mask


def _dataset(edges: Edges, at: NDArray[np.int64], heldout: NDArray[np.float64]) -> xr.Dataset:
    """Return the pairs at the given positions, which must ascend, from the highest r down."""
    order = at[edges.take(at).order]
    columns: dict[str, NDArray[Any]] = {
        "feature_a": edges.ids_a,
        "feature_b": edges.ids_b,
        "r": edges.r,
        "r_heldout": heldout,
    }
    return xr.Dataset({name: ("pair", values[order]) for name, values in columns.items()})
