"""From sums of products to results: correlation, histogram, top-k both ways, kept pairs; one row of pairs at a time.

The row of one A feature is reduced while its sums of products with every B feature are still in the cache::

    sums (feature_b) ──▶ approximate r, all of them ──▶ histogram
                                     │ r ≥ bar of this B feature, or of this A feature (less SLACK)
                                     ▼
                             candidates (few) ──▶ exact r, and r on held-out rows ──▶ top-k of a, top-k of b, kept pairs

A pair whose sum of products is 0, most of them where features fire rarely, has ``r = −level_a · level_b``: this one
expression, whatever reduces the pair (:func:`without_products`; :mod:`pipeline.correlate.kernels.touched`).

The approximation, ``covariance · 1/σ_a · 1/σ_b``, needs no division and runs in vector registers; it is within a few
units in the last place of the exact formula, ``covariance / sqrt(σ_a² · σ_b²)``, which gives exactly 1 for a feature
and its copy. A bar is the lowest r that could still enter a list, so no pair that belongs in a result is passed over.
Ties go to the lower id.
"""

# ruff: noqa: PLR0917  (compiled functions take everything by position)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.correlate.kernels.prefetch import prefetch
from storage.jit import cached_njit

Array = NDArray[Any]

#: By how much an approximate r may miss the exact one: more than the difference ever is, a few 1e-16.
SLACK = 1e-12
#: Values that are worked on at a time: their r stay in the first-level cache.
BLOCK = 128
#: Groups of r, for each place of a list, whose maxima say what is too low for the list.
GROUPS = 4
#: The histogram is kept in so many copies (a power of two), so that equal values in a row do not wait for each other.
COPIES = 4


class Side(NamedTuple):
    """What the kernels know of the features of one side in one half of the rows; each (feature,) float64.

    Attributes
    ----------
    total
        Sum of the values, less their pivot.
    variance
        n times the variance.
    scale
        1 / sqrt(variance), or 0 where r is not defined.
    level
        Mean of the shifted values ÷ standard deviation; 0 where the measure subtracts no mean.
    """

    total: Array
    variance: Array
    scale: Array
    level: Array


def make_side(total: Array, variance: Array, scale: Array, inverse_n: float) -> Side:
    """Return a side from its first three arrays and 1 / number of rows, 0 where no mean is subtracted.

    >>> make_side(np.array([6.0]), np.array([4.0]), np.array([0.5]), 0.25).level
    array([1.5])
    """
    total, variance, scale = (np.ascontiguousarray(array) for array in (total, variance, scale))
    return Side(total, variance, scale, (total * scale) * np.sqrt(inverse_n))


class Half(NamedTuple):
    """All that makes r of sums of products in one half of the rows.

    Attributes
    ----------
    inverse_n
        1 / number of rows.
    a, b
        The features of both sides.
    snap
        |r| that is nearer to 1 than this is 1: the rounding error of a kernel that sums squares in another order
        than products (dense ones); 0 where both orders are the same.
    overlap
        Whether sums of products count the rows where both features fire, totals those where one does, and the value
        is Jaccard's index in place of r.
    """

    inverse_n: float
    a: Side
    b: Side
    snap: float
    overlap: bool = False


class Best(NamedTuple):
    """For each feature its k best partners, best first; empty places have id -1 and r -inf. Each (feature, k)."""

    id: Array
    r: Array
    held_out: Array


def empty_best(n_features: int, top_k: int) -> Best:
    """Return lists without partners: ids -1, r -inf, held-out r NaN; each (feature, k)."""
    shape = (n_features, top_k)
    return Best(np.full(shape, -1, np.int32), np.full(shape, -np.inf), np.full(shape, np.nan))


class Kept(NamedTuple):
    """Kept pairs in the order of their rows: how many each row has, and their column, r and held-out r."""

    length: Array
    feature: Array
    r: Array
    held_out: Array


class Output(NamedTuple):
    """Where the results of a panel go.

    Attributes
    ----------
    row, column
        Best partners of the panel's A features, and of all B features within the panel.
    bar
        (feature_b,) float64: approximate r below this is of no interest to this B feature. Shared by the panels that
        run in a process: each raises it to the last r of a full list, which stays true whatever becomes of the panel.
    keep
        Pairs with at least this r are kept.
    kept
        The pairs kept so far.
    histogram
        (COPIES, bins + 1) int64 over [-1, 1]; the last bin holds what rounding put beyond 1.
    matrix
        (rows, feature_b) float32: r of the rows done since the last flush; no rows where it is not asked for.
    """

    row: Best
    column: Best
    bar: Array
    keep: float
    kept: Kept
    histogram: Array
    matrix: Array


class Scratch(NamedTuple):
    """Working memory of one panel.

    Attributes
    ----------
    sums
        (feature_b,) float64 sums of products of one A feature.
    candidate
        (feature_b,) int32.
    r, held_out
        (feature_b,) float64 of the candidates.
    block
        (BLOCK,) float64 approximate r.
    top
        (k,) float64 the best approximate r of this row, ascending.
    bits
        (feature_b / 64, rounded up) uint64, all 0 between two rows: marks of B features.
    place
        (feature_b,) int32: where a marked B feature is among the candidates.
    touched
        (feature_b,) int32: B features with products.
    groups
        (GROUPS · k,) float64: maxima of groups of r.
    """

    sums: Array
    candidate: Array
    r: Array
    held_out: Array
    block: Array
    top: Array
    bits: Array
    place: Array
    touched: Array
    groups: Array


def scratch(n_features_b: int, top_k: int) -> Scratch:
    """Allocate the working memory of one panel."""
    return Scratch(
        np.zeros(n_features_b),
        np.empty(n_features_b, np.int32),
        np.empty(n_features_b),
        np.empty(n_features_b),
        np.empty(BLOCK),
        np.empty(top_k),
        np.zeros(-(-n_features_b // 64), np.uint64),
        np.empty(n_features_b, np.int32),
        np.empty(n_features_b, np.int32),
        np.empty(GROUPS * top_k),
    )


@cached_njit
def jaccard(both: float, each: float) -> float:
    """Return rows where both fire ÷ rows where either does, from counts; `each` is the sum of both features' rows."""
    counted = np.rint(both)
    return counted / (each - counted)


@cached_njit
def without_products(level_a: float, level_b: float) -> float:
    """Return r of two features whose sum of products is 0; for all measures, and the same for all that ask.

    >>> without_products(0.5, 0.25), without_products(-2.0, 1.0), without_products(0.0, -1.0)
    (-0.125, 1.0, 0.0)
    """
    return min(max(0.0 - level_a * level_b, -1.0), 1.0)


@cached_njit
def correlation(product: float, half: Half, a: int, b: int) -> float:
    """Return r of features `a` and `b` from their sum of products; NaN if it is not defined."""
    if half.a.scale[a] == 0.0 or half.b.scale[b] == 0.0:
        return np.nan
    if product == 0.0:
        return without_products(half.a.level[a], half.b.level[b])
    if half.overlap:
        return jaccard(product, half.a.total[a] + half.b.total[b])
    covariance = product - (half.a.total[a] * half.b.total[b]) * half.inverse_n
    r = covariance / np.sqrt(half.a.variance[a] * half.b.variance[b])
    if abs(r) > 1.0 - half.snap:
        return np.copysign(1.0, r)
    return r


@cached_njit
def correlate_pairs(products: Array, half: Half, a: Array, b: Array, out: Array) -> None:
    """Set `out` to r of chosen pairs, (pair,) each, from their sums of products."""
    for i in range(products.size):
        out[i] = correlation(products[i], half, a[i], b[i])


@cached_njit
def approximate(sums: Array, b: tuple[Array, Array, Array], a: tuple[float, float, float, float], out: Array) -> None:
    """Set `out` to the approximate r of a block of sums.

    `b` is total, scale and level of the B features; `a` the same of the A feature, and 1 / n.
    """
    total, scale, level = b
    for i in range(out.size):
        r = (sums[i] - (a[0] * total[i]) * a[3]) * scale[i] * a[1]
        out[i] = without_products(a[2], level[i]) if sums[i] == 0.0 else r


@cached_njit
def overlaps(sums: Array, total: Array, total_a: float, out: Array) -> None:
    """Set `out` to Jaccard's index of a block of sums."""
    for i in range(out.size):
        out[i] = jaccard(sums[i], total_a + total[i])


@cached_njit
def any_above(block: Array, bar: Array, row_bar: float) -> bool:
    """Return whether a value reaches its own bar or that of the row."""
    hits = 0
    for i in range(block.size):
        hits += (block[i] >= bar[i]) | (block[i] >= row_bar)
    return hits > 0


@cached_njit
def bin_of(r: float, histogram: Array) -> int:
    """Return the bin that a value belongs to."""
    return int((r + 1.0) * ((histogram.shape[1] - 1) / 2.0))


@cached_njit
def count(block: Array, histogram: Array) -> None:
    """Add a block of values to the histogram; they are in [-1, 1] but for rounding."""
    for i in range(block.size):
        histogram[i & (COPIES - 1), bin_of(block[i], histogram)] += 1


@cached_njit
def push(top: Array, value: float) -> float:
    """Put a value among the ascending best ones if it is better than the worst; return the new worst."""
    if value > top[0]:
        i = 0
        while i + 1 < top.size and top[i + 1] < value:
            top[i] = top[i + 1]
            i += 1
        top[i] = value
    return top[0]


@cached_njit
def fetch_list(best: Best, feature: int) -> None:
    """Fetch the end of a feature's list, where most partners enter; it will be needed soon."""
    place = feature * best.id.shape[1] + best.id.shape[1] - 1
    prefetch(best.id, place)
    prefetch(best.r, place)
    prefetch(best.held_out, place)


@cached_njit
def is_full(output: Output, start: int, a: int, written: int) -> bool:
    """Return whether row `a` has no room: among the kept pairs, or in the matrix, if there is one."""
    rows, columns = output.matrix.shape
    return output.kept.feature.size - written < columns or (rows > 0 and a - start >= rows)


@cached_njit
def find_candidates(sums: Array, a: int, start: int, half: Half, output: Output, work: Scratch) -> int:
    """Count all r of a row into the histogram; collect the B features that may enter a list, and their exact r."""
    found = 0
    row_bar = -np.inf
    work.top[:] = -np.inf
    feature_a = (half.a.total[a], half.a.scale[a], half.a.level[a], half.inverse_n)
    for first in range(0, sums.size, BLOCK):
        last = min(first + BLOCK, sums.size)
        block = work.block[: last - first]
        if half.overlap:
            overlaps(sums[first:last], half.b.total[first:last], half.a.total[a], block)
        else:
            b = (half.b.total[first:last], half.b.scale[first:last], half.b.level[first:last])
            approximate(sums[first:last], b, feature_a, block)
        count(block, output.histogram)
        if output.matrix.shape[0] > 0:
            output.matrix[a - start, first:last] = block
        if any_above(block, output.bar[first:last], row_bar):
            for i in range(block.size):
                if block[i] >= output.bar[first + i] or block[i] >= row_bar:
                    work.candidate[found] = first + i
                    work.r[found] = correlation(sums[first + i], half, a, first + i)
                    fetch_list(output.column, first + i)
                    found += 1
                    row_bar = push(work.top, work.r[found - 1]) - SLACK
    return found


@cached_njit
def correlate_candidates(sums: Array, a: int, half: Half, found: int, work: Scratch) -> None:
    """Set the held-out r of the candidates from the sums over the held-out rows."""
    for i in range(found):
        b = work.candidate[i]
        work.held_out[i] = correlation(sums[b], half, a, b)


@cached_njit
def precedes(r: float, partner: int, other_r: float, other: int) -> bool:
    """Return whether a partner comes before another in a list: by a greater r, then by a lower id."""
    return r > other_r or (r == other_r and partner < other)


@cached_njit
def insert(best: Best, feature: int, partner: int, r: float, held_out: float) -> None:
    """Put a partner in a feature's list, if it comes before the last one there."""
    f, i = feature, best.id.shape[1] - 1  # no views of rows: counting references takes longer than the rest
    if not precedes(r, partner, best.r[f, i], best.id[f, i]):
        return
    while i > 0 and precedes(r, partner, best.r[f, i - 1], best.id[f, i - 1]):
        best.id[f, i] = best.id[f, i - 1]
        best.r[f, i] = best.r[f, i - 1]
        best.held_out[f, i] = best.held_out[f, i - 1]
        i -= 1
    best.id[f, i], best.r[f, i], best.held_out[f, i] = partner, r, held_out


@cached_njit
def record(a: int, first_a: int, found: int, written: int, output: Output, work: Scratch) -> int:
    """Enter the candidates of a row in all lists; return how many pairs have been kept since the last flush."""
    last = output.column.r.shape[1] - 1
    before = written
    for i in range(found):
        b, r, held_out = work.candidate[i], work.r[i], work.held_out[i]
        insert(output.row, a, b, r, held_out)
        insert(output.column, b, first_a + a, r, held_out)
        output.bar[b] = max(output.bar[b], min(output.keep, output.column.r[b, last]) - SLACK)
        if r >= output.keep:
            output.kept.feature[written] = b
            output.kept.r[written] = r
            output.kept.held_out[written] = held_out
            written += 1
    output.kept.length[a] = written - before
    return written


@cached_njit
def reduce_tile(
    tile: Array,
    held_out_tile: Array,
    start: int,
    first_a: int,
    halves: tuple[Half, Half],
    output: Output,
    work: Scratch,
) -> int:
    """Reduce the rows of finished tiles from row `start` on, until all are done or there is no room for more.

    Returns the first that is not yet reduced. Tiles are (panel, feature_b) float64 sums of products, whose row 0 is A
    feature `first_a`; that of the held-out rows is empty where there are none.
    """
    written = 0
    work.held_out[:] = np.nan
    for a in range(start, tile.shape[0]):
        if is_full(output, start, a, written):
            return a
        if halves[0].a.scale[a] != 0.0:
            found = find_candidates(tile[a], a, start, halves[0], output, work)
            if held_out_tile.shape[0] > 0:
                correlate_candidates(held_out_tile[a], a, halves[1], found, work)
            written = record(a, first_a, found, written, output, work)
    return tile.shape[0]


@cached_njit
def merge(best: Best, feature: Array, start: Array, partner: Array, r: Array, held_out: Array) -> None:
    """Merge the lists of a panel, those of ``feature[i]`` at ``start[i]:start[i + 1]``, into the lists of all."""
    for i in range(feature.size):
        for at in range(start[i], start[i + 1]):
            insert(best, feature[i], partner[at], r[at], held_out[at])
