"""The sparse kernel: products of sparse features, scattered into one accumulator.

For an A feature, every row in which it is active adds ``value · row of B`` to an accumulator with one float64 for
each B feature; 32,768 of them are 256 KiB and stay in the second-level cache of one core::

    A by feature                 B by row                        sums (feature_b)
    a: row 17, 2.5  ─────▶  row 17: b 3 0.5, b 9 1.0   ─────▶  sums[3] += 1.25, sums[9] += 2.5
       row 90, 0.1  ─────▶  row 90: b 3 2.0            ─────▶  sums[3] += 0.2

The work is (entries of A) × (active B features a row), whatever the number of pairs. *Resident*: all rows of B are in
memory, and a row of pairs is finished and reduced at once. *Streaming*: rows of B come slab by slab, and a tall tile
of sums for a panel of A features is reduced at the end. Both add in the order of the rows: their sums are bitwise
equal.
"""

# ruff: noqa: PLR0917  (compiled functions take everything by position)

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.correlate.kernels.csr import Columns, Rows
from pipeline.correlate.kernels.prefetch import prefetch
from pipeline.correlate.kernels.reduce import (
    Half,
    Output,
    Scratch,
    correlation,
    find_candidates,
    is_full,
    record,
)
from storage.jit import cached_njit

Array = NDArray[Any]


#: How many rows ahead the place of a row, and its first entries, are fetched; more entries follow by themselves.
PLACE_AHEAD, AHEAD, ENTRIES_FETCHED = 16, 6, 64
#: A bit, and the number of bits that say which word, and which bit of it, is the mark of a feature.
BIT, WORD, WITHIN = np.uint64(1), 6, 63
#: Entries of 4 or 2 bytes that share a cache line.
VALUES_A_LINE, IDS_A_LINE = 16, 32


@cached_njit
def fetch_entries(b: Rows, row: int) -> None:
    """Fetch the first entries of a row of B."""
    first = b.start[row]
    last = min(b.start[row + 1], first + ENTRIES_FETCHED)
    for at in range(first, last, VALUES_A_LINE):
        prefetch(b.value, at)
    for at in range(first, last, IDS_A_LINE):
        prefetch(b.feature, at)


@cached_njit
def fetch_ahead(columns: Columns, i: int, end: int, b: Rows) -> None:
    """Fetch what entry `i` of a column is soon followed by: places of rows of B, then entries of these rows."""
    if i + PLACE_AHEAD < end:
        prefetch(b.start, columns.row[i + PLACE_AHEAD])
    fetch_entries(b, columns.row[i + AHEAD])


@cached_njit
def scatter(sums: Array, columns: Columns, column: int, b: Rows) -> None:
    """Add the products of one column of A with all B features to `sums`."""
    end = columns.start[column + 1]
    for i in range(columns.start[column], end):
        if i + AHEAD < end:
            fetch_ahead(columns, i, end, b)
        value = np.float64(columns.value[i])
        row = columns.row[i]
        for at in range(b.start[row], b.start[row + 1]):
            sums[b.feature[at]] += value * b.value[at]


@cached_njit
def scatter_chosen(sums: Array, columns: Columns, column: int, b: Rows, marks: tuple[Array, Array]) -> None:
    """Add the products of one column of A with marked B features to `sums`; `marks` are bits, and places in `sums`.

    Most entries of B are passed by after a look at a bit, and their values are never read.
    """
    bits, place = marks
    end = columns.start[column + 1]
    for i in range(columns.start[column], end):
        if i + AHEAD < end:
            fetch_ahead(columns, i, end, b)
        value = np.float64(columns.value[i])
        row = columns.row[i]
        for at in range(b.start[row], b.start[row + 1]):
            feature = np.int64(b.feature[at])
            if (bits[feature >> WORD] >> np.uint64(feature & WITHIN)) & BIT:
                sums[place[feature]] += value * b.value[at]


@cached_njit
def mark(chosen: Array, marks: tuple[Array, Array]) -> None:
    """Mark B features, each with its place among them."""
    bits, place = marks
    for i in range(chosen.size):
        feature = np.int64(chosen[i])
        place[feature] = i
        bits[feature >> WORD] |= BIT << np.uint64(feature & WITHIN)


@cached_njit
def clear(chosen: Array, bits: Array) -> None:
    """Take the marks of B features away."""
    for i in range(chosen.size):
        bits[np.int64(chosen[i]) >> WORD] = 0


@cached_njit
def correlate_held_out(columns: Columns, column: int, a: int, b: Rows, half: Half, found: int, work: Scratch) -> None:
    """Set the held-out r of the candidates of feature `a`, whose held-out entries are a column."""
    candidate, sums, marks = work.candidate[:found], work.held_out[:found], (work.bits, work.place)
    sums[:] = 0.0
    mark(candidate, marks)
    scatter_chosen(sums, columns, column, b, marks)
    clear(candidate, work.bits)
    for i in range(found):
        sums[i] = correlation(sums[i], half, a, candidate[i])


@cached_njit
def add_chosen(
    sums: Array, start: Array, chosen: Array, first: int, columns: Columns, b: Rows, marks: tuple[Array, Array]
) -> None:
    """Add the products of chosen pairs: `chosen` are their B features, those of A feature `i` at ``start[i]`` and on.

    `first` is the column of A feature 0, the first one of a half.
    """
    for i in range(start.size - 1):
        pairs = chosen[start[i] : start[i + 1]]
        if pairs.size > 0:
            mark(pairs, marks)
            scatter_chosen(sums[start[i] : start[i + 1]], columns, first + i, b, marks)
            clear(pairs, marks[0])


@cached_njit
def add_products(tile: Array, half: int, columns: Columns, b: Rows) -> None:
    """Streaming: add the products of one slab of rows to a (panel, feature_b) tile."""
    for a in range(tile.shape[0]):
        scatter(tile[a], columns, half * tile.shape[0] + a, b)


@cached_njit
def correlate_resident(
    columns: Columns,
    b: Rows,
    start: int,
    first_a: int,
    halves: tuple[Half, Half],
    held_out: bool,
    output: Output,
    work: Scratch,
) -> int:
    """Correlate the A features of a panel from `start` on, until all are done or there is no room for more.

    Returns the first that is not yet done. `columns` are the panel's, whose first A feature is `first_a`; `held_out`
    says whether there are rows of the second half.
    """
    written = 0
    n_panel = output.row.id.shape[0]
    work.held_out[:] = np.nan
    for a in range(start, n_panel):
        if is_full(output, start, a, written):
            return a
        if halves[0].a.scale[a] != 0.0:
            work.sums[:] = 0.0
            scatter(work.sums, columns, a, b)
            found = find_candidates(work.sums, a, start, halves[0], output, work)
            if held_out:
                correlate_held_out(columns, n_panel + a, a, b, halves[1], found, work)
            written = record(a, first_a, found, written, output, work)
    return n_panel
