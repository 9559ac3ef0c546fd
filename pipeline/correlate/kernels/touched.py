"""What the sparse kernels do for the pairs that have products, and how all other pairs follow without being looked at.

At 131,072 features a side that fire in one row of 4,000, 98 of 100 pairs never fire together. Such a pair has
``r = −level_a · level_b`` (:func:`~pipeline.correlate.kernels.reduce.without_products`), which falls as level_b rises,
or rises where level_a is negative. So one order of the B features by level serves every A feature::

    products ──▶ sums, and a mark for each B feature that has one        bits   ..1....1..1.
                                                          │ ascending
                                                          ▼
    r of these ──▶ histogram, less their places in:   the rest, by level:  b 7  b 2  b 9  b 4  …
                   candidates                              bins at their edges │ best first, while they may enter a list

The histogram of the rest comes from the edges of bins in the order, its best partners from either end of it. Every
number is made by the same expression as where all pairs are reduced, so results are the same bit by bit.
"""

# ruff: noqa: PLR0917  (compiled functions take everything by position)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.correlate.kernels.csr import Columns, Rows
from pipeline.correlate.kernels.reduce import (
    BLOCK,
    COPIES,
    SLACK,
    Half,
    Output,
    Scratch,
    bin_of,
    correlate_candidates,
    correlation,
    count,
    fetch_list,
    is_full,
    jaccard,
    push,
    record,
    without_products,
)
from pipeline.correlate.kernels.sparse import AHEAD, BIT, WITHIN, WORD, correlate_held_out, fetch_ahead
from storage.jit import cached_njit

Array = NDArray[Any]


class Order(NamedTuple):
    """The features of one side by ascending level, then id; each (feature,).

    Attributes
    ----------
    feature
        int32.
    level
        float64, ascending: that of ``feature[i]``.
    scale
        float64 by feature, not in this order: 0 where r is not defined.
    """

    feature: Array
    level: Array
    scale: Array


def make_order(level: Array, scale: Array) -> Order:
    """Return the order of features with these levels and scales (:class:`~pipeline.correlate.kernels.reduce.Side`).

    >>> make_order(np.array([0.5, -1.0, 0.5]), np.ones(3)).feature
    array([1, 0, 2], dtype=int32)
    """
    feature = np.argsort(level, kind="stable").astype(np.int32)
    return Order(feature, level[feature], scale)


@intrinsic
def trailing_zeros(typing_context: Any, word: Any) -> Any:  # noqa: ARG001 - the signature is Numba's
    """Return how many bits of a word, which is not 0, are 0 before the first 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@cached_njit
def scatter_marked(sums: Array, bits: Array, columns: Columns, column: int, b: Rows) -> None:
    """Add the products of one column of A with all B features to `sums`, and mark the features that have any."""
    end = columns.start[column + 1]
    for i in range(columns.start[column], end):
        if i + AHEAD < end:
            fetch_ahead(columns, i, end, b)
        value = np.float64(columns.value[i])
        row = columns.row[i]
        for at in range(b.start[row], b.start[row + 1]):
            feature = np.int64(b.feature[at])
            sums[feature] += value * b.value[at]
            bits[feature >> WORD] |= BIT << np.uint64(feature & WITHIN)


@cached_njit
def unmark(bits: Array, touched: Array) -> int:
    """Put the marked features into `touched`, ascending, and clear the marks; return how many there are."""
    n = 0
    for w in range(bits.size):
        word = bits[w]
        if word != 0:
            bits[w] = 0
            while word != 0:
                touched[n] = (w << WORD) + trailing_zeros(word)
                n += 1
                word &= word - BIT
    return n


@cached_njit
def find_nonzero(sums: Array, touched: Array) -> int:
    """Put the features whose sum is not 0 into `touched`, ascending; return how many there are."""
    n = 0
    for first in range(0, sums.size, BLOCK):
        last = min(first + BLOCK, sums.size)
        hits = 0
        for i in range(first, last):
            hits += sums[i] != 0.0
        if hits > 0:
            for i in range(first, last):
                if sums[i] != 0.0:
                    touched[n] = i
                    n += 1
    return n


@cached_njit
def count_rest(level: float, order: Order, histogram: Array) -> bool:
    """Count r without products of an A feature with *all* B features; say whether they are in one bin.

    Along the order r never turns back, whatever rounding does, so the edge of each bin is found by bisection.
    """
    n = order.level.size
    first = 0
    while first < n:
        here = bin_of(without_products(level, order.level[first]), histogram)
        low, high = first, n - 1  # the last one in this bin is between
        while low < high:
            middle = (low + high + 1) // 2
            if bin_of(without_products(level, order.level[middle]), histogram) == here:
                low = middle
            else:
                high = middle - 1
        histogram[0, here] += low + 1 - first
        if first == 0 and low == n - 1:
            return True
        first = low + 1
    return False


@cached_njit
def discount(touched: Array, a: int, half: Half, one_bin: bool, histogram: Array) -> None:
    """Take B features that have products, at least one, out of the counts of :func:`count_rest`."""
    if one_bin:
        histogram[0, bin_of(without_products(half.a.level[a], half.b.level[touched[0]]), histogram)] -= touched.size
        return
    for i in range(touched.size):
        r = without_products(half.a.level[a], half.b.level[touched[i]])
        histogram[i & (COPIES - 1), bin_of(r, histogram)] -= 1


@cached_njit
def approximate_touched(sums: Array, touched: Array, a: int, half: Half, out: Array) -> None:
    """Set `out` to the approximate r of an A feature with some B features, as for a whole block of sums."""
    total_a, scale_a, level_a = half.a.total[a], half.a.scale[a], half.a.level[a]
    for i in range(out.size):
        b = touched[i]
        if sums[b] == 0.0:
            out[i] = without_products(level_a, half.b.level[b])
        elif half.overlap:
            out[i] = jaccard(sums[b], total_a + half.b.total[b])
        else:
            out[i] = (sums[b] - (total_a * half.b.total[b]) * half.inverse_n) * half.b.scale[b] * scale_a


@cached_njit
def raise_bar(r: Array, work: Scratch) -> float:
    """Return what the last r of a list of the best of `r` is at least: -inf if there are fewer than places.

    Values are dealt out to groups, in turn. No fewer than k of them reach the k-th highest of the groups' maxima.
    """
    groups, top = work.groups, work.top
    groups[:], top[:] = -np.inf, -np.inf
    for first in range(0, r.size, groups.size):
        some = r[first : min(first + groups.size, r.size)]
        for i in range(some.size):
            groups[i] = max(groups[i], some[i])
    for i in range(groups.size):
        push(top, groups[i])
    return top[0] - SLACK


@cached_njit
def choose(r: Array, touched: Array, row_bar: float, bar: Array, candidate: Array) -> int:
    """Put the B features whose r reaches the bar of the row, or their own, into `candidate`; return how many do."""
    found = 0
    for i in range(r.size):
        candidate[found] = touched[i]  # without a branch, so that the processor does not wait for every bar
        found += (r[i] >= row_bar) | (r[i] >= bar[touched[i]])
    return found


@cached_njit
def find_touched(sums: Array, touched: Array, a: int, half: Half, order: Order, output: Output, work: Scratch) -> int:
    """Count all r of a row into the histogram, and collect candidates, as if all B features were looked at.

    `touched`, ascending, has all B features whose sum is not 0.
    """
    one_bin = count_rest(half.a.level[a], order, output.histogram)
    r = work.r[: touched.size]
    for first in range(0, touched.size, BLOCK):
        some = touched[first : min(first + BLOCK, touched.size)]
        block = r[first : first + some.size]
        approximate_touched(sums, some, a, half, block)
        count(block, output.histogram)
        discount(some, a, half, one_bin, output.histogram)
    row_bar = raise_bar(r, work)
    found = choose(r, touched, row_bar, output.bar, work.candidate)
    for i in range(found):
        b = work.candidate[i]
        work.r[i] = correlation(sums[b], half, a, b)
        fetch_list(output.column, b)
    return add_rest(a, touched, found, row_bar, half, order, output, work)


@cached_njit
def add_rest(
    a: int, touched: Array, found: int, row_bar: float, half: Half, order: Order, output: Output, work: Scratch
) -> int:
    """Add the B features without products that may be in the list of an A feature, or are kept, to the candidates."""
    level = half.a.level[a]
    with_rest = take_rest(level, order, touched, (output.keep, np.inf, row_bar, work.top.size), work.candidate, found)
    if with_rest > found:
        candidate, r = work.candidate[:with_rest], work.r[:with_rest]
        for i in range(found, with_rest):
            r[i] = correlation(0.0, half, a, candidate[i])
        by_id = np.argsort(candidate)
        candidate[:], r[:] = candidate[by_id], r[by_id]
    return with_rest


@cached_njit
def take_rest(
    level: float, order: Order, left_out: Array, bounds: tuple[float, float, float, int], out: Array, at: int
) -> int:
    """Put the features that have the highest r with a feature of this level, without products, into ``out[at:]``.

    Those in `left_out`, ascending, are passed by. `bounds` are: all features that reach the first are put in; those
    that reach the second are passed by; of the others the best, as many as the last says, ties to the lower id, unless
    they are below the third. More may be put in where many tie. Returns where `out` ends.
    """
    keep, ceiling, bar, limit = bounds
    n, taken, last = order.level.size, 0, np.inf
    first = stop = 0 if level > 0 else n
    while (stop < n) if level > 0 else (first > 0):
        if level > 0:
            first, stop = stop, run_end(order.level, stop)
        elif level < 0:
            first, stop = run_start(order.level, first), first
        else:
            first, stop = 0, n  # all are equal, and in the order of their ids below
        r = without_products(level, order.level[first])
        if r < keep and (r < bar or (taken >= limit and r < last)):
            break
        if r >= ceiling:
            continue
        of_run = 0
        for i in range(first, stop):
            if r < keep and of_run == limit:
                break
            feature = i if level == 0 else order.feature[i]
            if order.scale[feature] == 0.0 or contains(left_out, feature):
                continue
            out[at] = feature
            at, of_run = at + 1, of_run + 1
            if r < keep:
                taken += 1
                last = r if taken <= limit else last
    return at


@cached_njit
def run_end(level: Array, first: int) -> int:
    """Return where the run of equal values that begins at `first` ends."""
    stop = first + 1
    while stop < level.size and level[stop] == level[first]:
        stop += 1
    return stop


@cached_njit
def run_start(level: Array, stop: int) -> int:
    """Return where the run of equal values that ends before `stop` begins."""
    first = stop - 1
    while first > 0 and level[first - 1] == level[stop - 1]:
        first -= 1
    return first


@cached_njit
def contains(ids: Array, wanted: int) -> bool:
    """Return whether an id is among ascending ones."""
    low, high = 0, ids.size
    while low < high:
        middle = (low + high) // 2
        if ids[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low < ids.size and ids[low] == wanted


@cached_njit
def correlate_touched(
    columns: Columns,
    b: Rows,
    start: int,
    first_a: int,
    halves: tuple[Half, Half],
    held_out: bool,
    order: Order,
    output: Output,
    work: Scratch,
) -> int:
    """Do what :func:`~pipeline.correlate.kernels.sparse.correlate_resident` does, by way of the pairs with products.

    `order` is that of the B features in the selecting half. Lists of B features hold pairs that have products, and
    those without that are listed by the A feature or kept: :mod:`pipeline.correlate.rest` adds the others.
    """
    written = 0
    n_panel = output.row.id.shape[0]
    work.held_out[:] = np.nan
    for a in range(start, n_panel):
        if is_full(output, start, a, written):
            return a
        if halves[0].a.scale[a] != 0.0:
            scatter_marked(work.sums, work.bits, columns, a, b)
            touched = work.touched[: unmark(work.bits, work.touched)]
            found = find_touched(work.sums, touched, a, halves[0], order, output, work)
            for i in range(touched.size):
                work.sums[touched[i]] = 0.0
            if held_out:
                correlate_held_out(columns, n_panel + a, a, b, halves[1], found, work)
            written = record(a, first_a, found, written, output, work)
    return n_panel


@cached_njit
def reduce_touched(
    tile: Array,
    held_out_tile: Array,
    start: int,
    first_a: int,
    halves: tuple[Half, Half],
    order: Order,
    output: Output,
    work: Scratch,
) -> int:
    """Do what :func:`~pipeline.correlate.kernels.reduce.reduce_tile` does, by way of the pairs with products."""
    written = 0
    work.held_out[:] = np.nan
    for a in range(start, tile.shape[0]):
        if is_full(output, start, a, written):
            return a
        if halves[0].a.scale[a] != 0.0:
            touched = work.touched[: find_nonzero(tile[a], work.touched)]
            found = find_touched(tile[a], touched, a, halves[0], order, output, work)
            if held_out_tile.shape[0] > 0:
                correlate_candidates(held_out_tile[a], a, halves[1], found, work)
            written = record(a, first_a, found, written, output, work)
    return tile.shape[0]
