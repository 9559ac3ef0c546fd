"""The kept pairs of a correlation result as flat arrays, in one order that every method relies on.

An *edge* is a pair of features that correlation kept: an A feature, a B feature and their r. Matching needs nothing
else: pairs below the smallest r that may be matched cannot become matches, so the edges are the whole problem and the
feature × feature matrix is never made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from storage import read_csr
from storage.errors import InputError
from storage.jit import cached_njit

#: Rows of the correlation result that are read at a time; with the densest real data about 0.3 GB.
SLAB_ROWS = 8192


@dataclass(frozen=True)
class Edges:
    """Candidate pairs, sorted by (A feature, B feature); no pair twice, no undefined r.

    Attributes
    ----------
    ids_a, ids_b
        Feature ids, int32, shape (edge,).
    r
        Correlation, float64, shape (edge,).
    n_a, n_b
        Number of features of either side, with or without edges.
    """

    ids_a: NDArray[np.int32]
    ids_b: NDArray[np.int32]
    r: NDArray[np.float64]
    n_a: int
    n_b: int

    def __len__(self) -> int:
        return len(self.r)

    def take(self, at: NDArray[np.int64]) -> Edges:
        """Return the edges at the given positions, which must ascend."""
        return Edges(self.ids_a[at], self.ids_b[at], self.r[at], self.n_a, self.n_b)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Positions of the edges from the highest r to the lowest; equal r by A feature, then B feature.

        One stable sort by −r is enough, because the edges already are in the order of their ids.
        """
        return np.argsort(-self.r, kind="stable")


#: What chooses pairs: edges in, positions of the chosen ones out, highest r first; ``max_uses`` where it takes that.
Method = Callable[..., NDArray[np.int64]]


def make_edges(ids_a: ArrayLike, ids_b: ArrayLike, r: ArrayLike, n_a: int, n_b: int) -> Edges:
    """Build :class:`Edges` from arrays (edge,) in any order; undefined pairs (NaN) are left out.

    Raises
    ------
    InputError
        If the arrays differ in length, an id is out of range, or a pair occurs twice.

    Examples
    --------
    >>> edges = make_edges([1, 0, 0], [0, 1, 0], [0.5, 0.9, float("nan")], n_a=2, n_b=2)
    >>> edges.ids_a.tolist(), edges.ids_b.tolist(), edges.r.tolist()
    ([0, 1], [1, 0], [0.9, 0.5])
    """
    a, b, values = np.asarray(ids_a, np.int32), np.asarray(ids_b, np.int32), np.asarray(r, np.float64)
    if not (a.ndim == b.ndim == values.ndim == 1 and len(a) == len(b) == len(values)):
        raise InputError(f"ids_a, ids_b and r must be 1-D and of one length, not {a.shape}, {b.shape}, {values.shape}")
    for name, ids, n in (("ids_a", a, n_a), ("ids_b", b, n_b)):
        if len(ids) and not (ids.min() >= 0 and ids.max() < n):
            raise InputError(
                f"{name} holds ids from {ids.min()} to {ids.max()}, but there are {n} features: 0 to {n - 1}"
            )
    defined = np.flatnonzero(~np.isnan(values))
    by_ids = defined[np.lexsort((b[defined], a[defined]))]
    a, b = a[by_ids], b[by_ids]
    if np.any((a[1:] == a[:-1]) & (b[1:] == b[:-1])):
        raise InputError("a pair of features occurs twice among the edges; give each pair once")
    return Edges(a, b, values[by_ids], n_a, n_b)


def check_minimum(correlation: xr.Dataset, minimum: float) -> None:
    """Raise an InputError if pairs with the minimum r were not kept."""
    kept = float(correlation.attrs["keep_above"])
    if minimum < kept:
        raise InputError(
            f"min_correlation is {minimum}, but only pairs with r ≥ {kept} were kept; correlate again with "
            f"keep_above={minimum} (subspace correlate … --keep-above {minimum}), or raise min_correlation"
        )


def read_edges(path: str | Path, correlation: xr.Dataset, minimum: float) -> Edges:
    """Read the kept pairs with r ≥ `minimum` from a correlation result, a slab of A features at a time.

    Memory is 16 bytes an edge, and one slab of :data:`SLAB_ROWS` A features.
    """
    n_a, n_b = correlation.sizes["feature_a"], correlation.sizes["feature_b"]
    parts = [_at_least(slab, minimum, first) for first, slab in _slabs(path, "r", n_a)]
    ids_a, ids_b, r = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Edges(ids_a, ids_b, r, n_a, n_b)


def lookup(
    path: str | Path, name: str, ids_a: NDArray[np.int32], ids_b: NDArray[np.int32], n_a: int
) -> NDArray[np.float64]:
    """Return the values of pairs, in any order, in a sparse array of a correlation result such as ``r_heldout``.

    A pair that is not stored has the fill value, 0; float64, shape (pair,).
    """
    values = np.zeros(len(ids_a))
    for first, slab in _slabs(path, name, n_a):
        here = np.flatnonzero((ids_a >= first) & (ids_a < first + slab.shape[0]))
        values[here] = _values_at(slab, ids_a[here] - first, ids_b[here])
    return values


def ranks(edges: Edges, side: str, chosen: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the places of edges in the lists of one of their two features, best first from 0; int32, (chosen,).

    Of `side` ``"a"``: the place of the B feature in the A feature's list; of ``"b"``: the other way round. `chosen` are
    positions of edges.

    Examples
    --------
    >>> edges = make_edges([0, 0, 1], [0, 1, 1], [0.5, 0.9, 0.7], n_a=2, n_b=2)
    >>> ranks(edges, "a", np.arange(3)).tolist(), ranks(edges, "b", np.array([2, 0])).tolist()
    ([1, 0, 0], [1, 0])
    """
    ids, n = (edges.ids_a, edges.n_a) if side == "a" else (edges.ids_b, edges.n_b)
    if np.bincount(ids[chosen], minlength=1).max() > 1:
        return _count_up(edges.order, ids, n)[chosen]
    # of features that are used once, what stands before the pair is counted, without a sort of all edges
    at = np.full(n, -1)
    at[ids[chosen]] = chosen
    rivals = np.flatnonzero(at[ids] >= 0)
    own = at[ids[rivals]]
    r, own_r = edges.r[rivals], edges.r[own]
    ahead = (r > own_r) | ((r == own_r) & (rivals < own))
    return np.bincount(ids[rivals[ahead]], minlength=n)[ids[chosen]].astype(np.int32)


def _slabs(path: str | Path, name: str, n_rows: int) -> Iterator[tuple[int, sparse.csr_array]]:
    """Yield ``(first row, rows)`` of a stored sparse array, with column ids in ascending order."""
    for first in range(0, max(n_rows, 1), SLAB_ROWS):
        slab = read_csr(path, rows=slice(first, min(first + SLAB_ROWS, n_rows)), name=name)
        slab.sort_indices()
        yield first, slab


def _at_least(
    slab: sparse.csr_array, minimum: float, first: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    kept = np.flatnonzero(slab.data >= minimum)  # NaN compares false: an undefined r is never a candidate
    ids_a = first + np.searchsorted(slab.indptr, kept, side="right") - 1
    return ids_a.astype(np.int32), slab.indices[kept].astype(np.int32), slab.data[kept].astype(np.float64)


def _values_at(slab: sparse.csr_array, rows: NDArray[np.int32], columns: NDArray[np.int32]) -> NDArray[np.float64]:
    width = slab.shape[1]
    stored = np.repeat(np.arange(slab.shape[0], dtype=np.int64), np.diff(slab.indptr)) * width + slab.indices
    wanted = rows.astype(np.int64) * width + columns
    if not len(stored):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(stored, wanted), len(stored) - 1)
    return np.where(stored[place] == wanted, slab.data[place], 0.0)


@cached_njit
def _count_up(order: NDArray[np.int64], ids: NDArray[np.int32], n: int) -> NDArray[np.int32]:
    seen = np.zeros(n, np.int32)
    place = np.empty(len(order), np.int32)
    for edge in order:
        place[edge] = seen[ids[edge]]
        seen[ids[edge]] += 1
    return place
