"""Second moments of two activation stores over the same tokens, in one pass, without anything token × token.

Every metric that is invariant to rotations of the tokens (CCA and its kin, linear CKA, Procrustes) is a function of
``XᵀX``, ``YᵀY`` and ``XᵀY``. They are summed over slabs of rows in float64: products of float32 would be off by 1e-6
of the *largest* variance, which is more than the whole variance of the components that canonical correlations divide
by. Dense columns are taken less their stored mean first, and centred exactly at the end.

What is summed, with x_i and y_i the rows and ``k_i = |x_i|²``, ``l_i = |y_i|²``:

=======================  ===============================================================
``aa``, ``bb``, ``ab``   Σ x xᵀ, Σ y yᵀ, Σ x yᵀ
``sum_a``, ``sum_b``     Σ x, Σ y
``kk``, ``ll``, ``kl``   Σ k², Σ l², Σ k l: the diagonals that debiased CKA takes out
``kx``, ``lx``, …        Σ k x, Σ l x, Σ k y, Σ l y: their part of its row sums
=======================  ===============================================================

Rows are cut into groups of whole, consecutive documents; a task sums one group. Sums of groups are added in the order
of the groups, whatever the number of workers. Rows that either store marks as attention sinks are left out.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import scipy.sparse
from distributed import Client
from numpy.typing import NDArray

from pipeline.work.workers import n_slots, progress
from storage import open_activations, read_csr, read_dense
from storage.codec import is_sparse_matrix

Floats = NDArray[np.float64]
Item = TypeVar("Item")
Result = TypeVar("Result")

#: Values of a dense slab, both sides together: 16 MB in float64.
SLAB_VALUES = 2**21
#: Rows of a slab at least, and of a sparse one.
FEWEST_ROWS, SPARSE_ROWS = 256, 65_536


class Moments(NamedTuple):
    """Sums over some rows; see the module. Float64 arrays, of shapes (d_a, d_a), (d_b, d_b), (d_a, d_b), (d,), ()."""

    n: Floats
    aa: Floats
    bb: Floats
    ab: Floats
    sum_a: Floats
    sum_b: Floats
    kk: Floats
    ll: Floats
    kl: Floats
    kx: Floats
    lx: Floats
    ky: Floats
    ly: Floats


class Crossed(NamedTuple):
    """Of these sums, those that depend on which row of B stands beside a row of A."""

    ab: Floats
    kl: Floats
    lx: Floats
    ky: Floats


Sums = TypeVar("Sums", Moments, Crossed)


def weighted_sum(parts: Sequence[Sums], weights: Sequence[float] | None = None) -> Sums:
    """Return the sum of parts, each times its weight, added in their order.

    Examples
    --------
    >>> one = Crossed(*(np.ones(1) for _ in range(4)))
    >>> weighted_sum([one, one], [2.0, 3.0]).kl
    array([5.])
    """
    factors = [1.0] * len(parts) if weights is None else list(weights)
    totals = [np.asarray(factors[0] * field) for field in parts[0]]
    for factor, part in zip(factors[1:], parts[1:], strict=True):
        if factor:
            _add(totals, [factor * field for field in part])
    return type(parts[0])(*totals)


def _add(totals: Iterable[Floats], values: Iterable[Any]) -> None:
    """Add values to arrays in place."""
    for total, value in zip(totals, values, strict=True):
        np.add(total, value, out=total)


@dataclass(frozen=True)
class Columns:
    """Columns of an activation store, as a recipe that travels to workers instead of the values.

    Attributes
    ----------
    path
        The store.
    features
        Which columns, in which order, (d,) int32; a feature may occur several times. All of them if None.
    sparse
        Whether the store keeps csr.
    shift
        What is subtracted from the columns of a dense store: their stored means, (d,) float64.
    """

    path: str
    features: NDArray[np.int32] | None
    sparse: bool
    shift: Floats

    @classmethod
    def of(cls, path: str, features: NDArray[np.int32] | None = None) -> Columns:
        """Return all columns of a store, or some."""
        with open_activations(path) as store:
            means = store["mean"].values.astype(np.float64)
            sparse = store.attrs["layout"] == "csr"
        shift = means if features is None else means[features]
        return cls(path, features, sparse, np.zeros_like(shift) if sparse else shift)

    @property
    def width(self) -> int:
        """The number of columns."""
        return len(self.shift)

    def read(self, rows: NDArray[np.int64]) -> Any:
        """Return some rows (ascending ids, few of them missing in between) less the shift, float64, csr or dense."""
        hull, inside = slice(int(rows[0]), int(rows[-1]) + 1), rows - rows[0]
        block: Any = read_csr(self.path, hull) if self.sparse else read_dense(self.path, hull)
        if len(inside) < block.shape[0]:
            block = block[inside]
        if self.features is not None:
            block = block[:, self.features]
        return block.astype(np.float64) if self.sparse else np.subtract(block, self.shift, dtype=np.float64)


@dataclass(frozen=True)
class TokenRows:
    """The rows that count: all but the sinks. Small, however many rows there are.

    Attributes
    ----------
    total
        Rows of the stores.
    sinks
        Ids of those that are left out, ascending.
    """

    total: int
    sinks: NDArray[np.int64]

    def __len__(self) -> int:
        """Return how many rows count."""
        return self.total - len(self.sinks)

    def ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the ids of the rows that are number `start` to `stop` among those that count.

        Examples
        --------
        >>> TokenRows(8, np.array([0, 3, 4])).ids(1, 4).tolist()
        [2, 5, 6]
        """
        place = np.arange(start, stop)
        return place + np.searchsorted(self.sinks - np.arange(len(self.sinks)), place, side="right")


@dataclass(frozen=True)
class Pass:
    """One reading of both stores: small, travels with every task."""

    a: Columns
    b: Columns
    rows: TokenRows

    @property
    def step(self) -> int:
        """Rows of a slab; depends on the widths only, so that sums are the same on any machine."""
        dense = sum(side.width for side in (self.a, self.b) if not side.sparse)
        return max(FEWEST_ROWS, SLAB_VALUES // dense) if dense else SPARSE_ROWS

    def slabs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the slabs of a range of counted rows."""
        for first in range(start, stop, self.step):
            yield first, min(first + self.step, stop)


def sum_group(bounds: tuple[int, int], work: Pass) -> Moments:
    """Task: read a group of rows of both stores once and return its sums.

    Memory: twice the sums, a slab of both sides as stored and in float64, and one product.
    """
    d_a, d_b = work.a.width, work.b.width
    total = Moments(*(np.zeros(shape) for shape in _shapes(d_a, d_b)))
    for slab in work.slabs(*bounds):
        ids = work.rows.ids(*slab)
        x, y = work.a.read(ids), work.b.read(ids)
        k, ell = row_squares(x), row_squares(y)
        _add((total.n, total.sum_a, total.sum_b), (len(ids), x.sum(axis=0), y.sum(axis=0)))
        _add(total[6:], (k @ k, ell @ ell, k @ ell, k @ x, ell @ x, k @ y, ell @ y))
        # one product in memory at a time
        for sums, left, right in ((total.aa, x, x), (total.bb, y, y), (total.ab, x, y)):
            _add([sums], [multiply(left, right)])
    return total


def _shapes(d_a: int, d_b: int) -> list[tuple[int, ...]]:
    a, b = (d_a,), (d_b,)
    return [(), (d_a, d_a), (d_b, d_b), (d_a, d_b), a, b, (), (), (), a, a, b, b]


def cross_block(block: int, work: Pass, length: int, n_blocks: int, offset: int) -> Crossed:
    """Task: sum one block of A rows against every block of B rows; a leading dimension counts the latter.

    A's block g is rows g·length … of those that count, B's block h begins at `offset` + h·length, around the end.
    """
    d_a, d_b = work.a.width, work.b.width
    shapes = ((d_a, d_b), (), (d_a,), (d_b,))
    total = Crossed(*(np.zeros((n_blocks, *shape)) for shape in shapes))
    for start, stop in work.slabs(block * length, (block + 1) * length):
        x = work.a.read(work.rows.ids(start, stop))
        k = row_squares(x)
        for other in range(n_blocks):
            first = offset + other * length + start - block * length
            part = cross(x, k, _around(work, first, stop - start))
            _add([sums[other : other + 1] for sums in total], part)
    return total


def cross_rest(start: int, work: Pass, offset: int) -> Crossed:
    """Return the sums of A's rows from `start` to the end against B's rows `offset` further on, around the end."""
    x = work.a.read(work.rows.ids(start, len(work.rows)))
    return cross(x, row_squares(x), _around(work, start + offset, x.shape[0]))


def cross(x: Any, k: Floats, y: Any) -> Crossed:
    """Return the sums over rows of x and rows of y that are side by side; `k` are the squares of x's rows."""
    ell = row_squares(y)
    return Crossed(multiply(x, y), np.asarray(k @ ell), ell @ x, k @ y)


def _around(work: Pass, start: int, count: int) -> Any:
    """Return `count` of B's rows that count, from number `start` on; after the last comes the first."""
    n = len(work.rows)
    start %= n
    if start + count <= n:
        return work.b.read(work.rows.ids(start, start + count))
    parts = [work.b.read(work.rows.ids(start, n)), work.b.read(work.rows.ids(0, start + count - n))]
    return scipy.sparse.vstack(parts, format="csr") if work.b.sparse else np.concatenate(parts)


def multiply(x: Any, y: Any) -> Floats:
    """Return xᵀ y as a dense array; either may be sparse."""
    product: Any = x.T @ y
    return np.asarray(product.toarray() if is_sparse_matrix(product) else product)


def row_squares(x: Any) -> Floats:
    """Return the squared length of every row."""
    if is_sparse_matrix(x):
        return np.asarray(x.multiply(x).sum(axis=1)).ravel()
    return np.einsum("ij,ij->i", x, x)


def cut_groups(documents: NDArray[np.integer] | None, n: int, groups: int) -> list[tuple[int, int]]:
    """Return first row and end of consecutive groups of about equal size, cut at borders of documents.

    `documents` has the document of each of the n rows, or is None. There are fewer groups than wanted where there are
    fewer documents, and groups of equally many rows where there is at most one.

    Examples
    --------
    >>> cut_groups(np.repeat([4, 5, 6, 7], [3, 1, 3, 3]), 10, 2)
    [(0, 4), (4, 10)]
    >>> cut_groups(None, 10, 3)
    [(0, 3), (3, 6), (6, 10)]
    """
    wanted = [n * i // groups for i in range(1, groups)]
    borders = np.array([], np.int64) if documents is None else np.flatnonzero(np.diff(documents)) + 1
    if len(borders):
        after = np.minimum(np.searchsorted(borders, wanted), len(borders) - 1)
        before = np.maximum(after - 1, 0)
        nearer = np.abs(borders[before] - wanted) <= np.abs(borders[after] - wanted)
        wanted = np.where(nearer, borders[before], borders[after]).tolist()
    edges = [0, *sorted({cut for cut in wanted if 0 < cut < n}), n]
    return list(itertools.pairwise(edges))


def ordered_results(
    client: Client, function: Callable[..., Result], items: Iterable[Item], args: Sequence[Any], *, name: str,
    label: str, total: int,
) -> Iterator[Result]:  # fmt: skip
    """Run ``function(item, *args)`` for every item and yield the results in order.

    Unlike :func:`pipeline.work.workers.run_tasks` it starts no task while an earlier result is waited for, beyond one
    more than there are threads: so many results, each as large as all sums, are in memory at most. Items are made as
    they are needed.
    """
    waiting, pending = iter(items), deque[Any]()
    shared = client.scatter(list(args), broadcast=False, hash=False) if args else []
    try:
        with progress(label, total) as advance:
            for number in range(total + n_slots(client)):
                if (item := next(waiting, None)) is not None:
                    key = (f"{name}-{id(pending):x}", number)
                    pending.append(client.submit(function, item, *shared, key=key, retries=2, pure=False))
                if number >= n_slots(client) and pending:
                    yield pending.popleft().result()
                    advance(1)
    finally:
        if pending:
            client.cancel(list(pending), force=True)
