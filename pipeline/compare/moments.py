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
of the groups, whatever the number of workers. Rows that either store marks as attention sinks are left out, as
are those that the null has no place for (:mod:`pipeline.compare.arrangement`).
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

from pipeline.compare.arrangement import Blocks
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
#: Rows that are read at once at most, and rows between two wanted ones that are read too.
SPAN, WIDEST_GAP = 4096, 256
#: Rows of products that are added at once: some hundred kB for a thousand columns.
ROWS_AT_ONCE = 64


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


def weighted_sum(parts: Sequence[Moments], weights: Sequence[float] | None = None) -> Moments:
    """Return the sum of parts, each times its weight, added in their order.

    Examples
    --------
    >>> one = Moments(*(np.ones(1) for _ in Moments._fields))
    >>> weighted_sum([one, one], [2.0, 3.0]).kl
    array([5.])
    """
    factors = [1.0] * len(parts) if weights is None else list(weights)
    totals = [np.asarray(factors[0] * field) for field in parts[0]]
    for factor, part in zip(factors[1:], parts[1:], strict=True):
        if factor:
            _add(totals, [factor * field for field in part])
    return Moments(*totals)


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
        """Return some rows, in any order, less the shift, float64, csr or dense; what lies together is read at once."""
        order = np.argsort(rows, kind="stable")
        ids = rows[order]
        cuts = np.flatnonzero((np.diff(ids) > WIDEST_GAP) | (np.diff(ids // SPAN) > 0)) + 1
        parts = [self._read_span(part) for part in np.split(ids, cuts)]
        block = scipy.sparse.vstack(parts, format="csr") if self.sparse else np.concatenate(parts)
        return block if (order[:-1] < order[1:]).all() else block[np.argsort(order)]

    def _read_span(self, ids: NDArray[np.int64]) -> Any:
        """Return rows of ascending ids, few of them missing in between."""
        hull, inside = slice(int(ids[0]), int(ids[-1]) + 1), ids - ids[0]
        block: Any = read_csr(self.path, hull) if self.sparse else read_dense(self.path, hull)
        if len(inside) < block.shape[0]:
            block = block[inside]
        if self.features is not None:
            block = block[:, self.features]
        return block.astype(np.float64) if self.sparse else np.subtract(block, self.shift, dtype=np.float64)


@dataclass(frozen=True)
class TokenRows:
    """The rows that count: all but sinks, and those that the null has no place for.

    Attributes
    ----------
    total
        Rows of the stores.
    left_out
        Ids of those that do not, ascending.
    """

    total: int
    left_out: NDArray[np.int64]

    def __len__(self) -> int:
        """Return how many rows count."""
        return self.total - len(self.left_out)

    def ids(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids of rows by their numbers among those that count.

        Examples
        --------
        >>> TokenRows(8, np.array([0, 3, 4])).ids(np.array([1, 2, 3])).tolist()
        [2, 5, 6]
        """
        return number + np.searchsorted(self.left_out - np.arange(len(self.left_out)), number, side="right")


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
        ids = work.rows.ids(np.arange(*slab))
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


@dataclass(frozen=True)
class Whitening:
    """What makes scores of a side's rows: ``(x - mean) @ map`` has orthonormal columns over all rows that count.

    Attributes
    ----------
    mean
        Mean of the columns as they are read, (d,) float64.
    map
        ``V S⁻¹`` of the principal components, (d, r) float64.
    """

    mean: Floats
    map: Floats

    @property
    def rank(self) -> int:
        """The number of components."""
        return self.map.shape[1]

    def scores(self, rows: Any) -> NDArray[np.float32]:
        """Return scores (n, r) in float32: made in float64, they are all of one size and can be rounded."""
        return np.asarray(rows @ self.map - self.mean @ self.map, np.float32)

    def squares(self, rows: Any) -> Floats:
        """Return the squared length of every row less the mean, (n,) float64."""
        return np.asarray(row_squares(rows) - 2 * (rows @ self.mean) + self.mean @ self.mean)


class Crossed(NamedTuple):
    """What rows of A beside rows of B sum to, for each of several blocks of B.

    Attributes
    ----------
    c
        Products of the scores of both sides, (block, r_a, r_b) float32.
    lengths
        Products of the squared lengths of the centred rows, (block,) float64.
    """

    c: NDArray[np.float32]
    lengths: Floats

    @classmethod
    def zeros(cls, blocks: int, r_a: int, r_b: int) -> Crossed:
        """Return sums over no rows."""
        return cls(np.zeros((blocks, r_a, r_b), np.float32), np.zeros(blocks))


@dataclass(frozen=True)
class Crossing:
    """Blocks of both sides, all of which are put beside one another."""

    work: Pass
    whitenings: tuple[Whitening, Whitening]
    blocks: Blocks

    def slabs(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield ids of rows of every block of A and of B, (block, row) each, some at a time."""
        for slab in self.work.slabs(0, self.blocks.length):
            a, b = self.blocks.rows(*slab)
            yield self.work.rows.ids(a), self.work.rows.ids(b)


def cross_blocks(some: range, crossing: Crossing) -> list[Crossed]:
    """Task: sum some blocks of A against all blocks of B.

    Several blocks of A share one reading of B; how many they are changes no result.
    """
    work = crossing.work
    if work.a.sparse and work.b.sparse:
        return [_cross_sparse(block, crossing) for block in some]
    a, b = crossing.whitenings
    totals = [Crossed.zeros(crossing.blocks.number, a.rank, b.rank) for _ in some]
    for ids_a, ids_b in crossing.slabs():
        slabs = (work.a.read(ids_a[block]) for block in some)
        left = [(a.scores(x), a.squares(x)) for x in slabs]
        for block, ids in enumerate(ids_b):
            y = work.b.read(ids)
            scores, squares = b.scores(y), b.squares(y)
            for total, (scores_a, squares_a) in zip(totals, left, strict=True):
                total.c[block] += scores_a.T @ scores
                total.lengths[block] += squares_a @ squares
    return totals


def _cross_sparse(block_a: int, crossing: Crossing) -> Crossed:
    """Sum one block of A against all blocks of B by what fires together: scores would be dense."""
    work, (a, b), blocks = crossing.work, crossing.whitenings, crossing.blocks
    sums, sum_a, sums_b = (
        np.zeros(shape)
        for shape in ((blocks.number, len(a.mean), len(b.mean)), a.mean.shape, (blocks.number, len(b.mean)))
    )
    total = Crossed.zeros(blocks.number, a.rank, b.rank)
    for ids_a, ids_b in crossing.slabs():
        x = work.a.read(ids_a[block_a])
        sum_a += x.sum(axis=0)
        for block, ids in enumerate(ids_b):
            y = work.b.read(ids)
            sums[block] += multiply(x, y)
            sums_b[block] += y.sum(axis=0)
            total.lengths[block] += a.squares(x) @ b.squares(y)
    for block in range(blocks.number):
        centred = sums[block] - np.outer(sum_a, b.mean)
        centred -= np.outer(a.mean, sums_b[block] - blocks.length * b.mean)
        total.c[block] = a.map.T @ centred @ b.map
    return total


def added(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the sum of equally large arrays, some rows at a time so that these stay in the cache.

    Examples
    --------
    >>> added([np.ones((1, 2), np.float32)] * 3).tolist()
    [[3.0, 3.0]]
    """
    total = np.empty_like(parts[0])
    for start in range(0, len(total), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        total[rows] = parts[0][rows]
        for part in parts[1:]:
            total[rows] += part[rows]
    return total


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
