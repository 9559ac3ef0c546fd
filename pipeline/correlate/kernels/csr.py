"""Compiled passes over sparse rows: extremes, shifted values and their sums, and the turn from rows to features.

Every sum runs over the rows in their order on disk, for each half of the rows separately. The kernels that multiply
use the same order, so that a feature's product with itself is *bitwise* its sum of squares: the correlation of a
feature with itself, or with a copy of itself, is exactly 1.
"""

# ruff: noqa: PLR0917  (compiled functions take everything by position)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.jit import cached_njit

Array = NDArray[Any]

#: Marks rows that count in neither half.
EXCLUDED = -1
#: Marks features that the kernels leave out: with their sums, and without, since those may overflow.
SUMS_ONLY, NOWHERE = -1, -2


class Rows(NamedTuple):
    """Sparse rows: the entries of row i are ``start[i]:start[i + 1]`` of `feature` and `value`.

    Attributes
    ----------
    start
        (row + 1,) int64.
    feature
        (entry,) uint16 or uint32.
    value
        (entry,) float32 or float64.
    """

    start: Array
    feature: Array
    value: Array


class Columns(NamedTuple):
    """The same entries by half and feature: those of feature f in half h are at ``start[h * n + f]`` and on.

    Attributes
    ----------
    start
        (halves · feature + 1,) int64.
    row
        (entry,) uint32, ascending within a half and feature.
    value
        (entry,) float32 or float64.
    """

    start: Array
    row: Array
    value: Array


def cut(rows: Rows, part: slice) -> Rows:
    """Return some of the rows; the entries are views.

    >>> whole = Rows(np.array([0, 2, 3, 5]), np.arange(5, dtype="u2"), np.arange(5, dtype="f4"))
    >>> cut(whole, slice(1, 3)).start, cut(whole, slice(1, 3)).value
    (array([0, 1, 3]), array([2., 3., 4.], dtype=float32))
    """
    start = rows.start[part.start : part.stop + 1]
    entries = slice(int(start[0]), int(start[-1]))
    return Rows(start - start[0], rows.feature[entries], rows.value[entries])


@cached_njit
def extremes(rows: Rows, half: Array, stored: Array, active: Array, low: Array, high: Array) -> None:
    """Update counts of stored and of non-zero entries, minimum and maximum; each (halves, feature)."""
    for row in range(half.size):
        h = half[row]
        if h < 0:
            continue
        for at in range(rows.start[row], rows.start[row + 1]):
            f = rows.feature[at]
            value = np.float64(rows.value[at])
            stored[h, f] += 1
            active[h, f] += value != 0.0
            low[h, f] = min(low[h, f], value)
            high[h, f] = max(high[h, f], value)


@cached_njit
def shift(rows: Rows, half: Array, pivot: Array, position: Array, total: Array, square: Array) -> int:
    """Subtract pivots, add up values and squares, and move features to their positions: in place, ``rows.start`` too.

    Entries of excluded rows and of features without a position are dropped; the others close up, and the number that
    is left is returned. Pivots are such that ``value - pivot`` is exact in the type of the values.
    """
    to = 0
    begin = rows.start[0]
    for row in range(half.size):
        end = rows.start[row + 1]
        h = half[row]
        rows.start[row] = to
        if h >= 0:
            for at in range(begin, end):
                f = rows.feature[at]
                if position[f] == NOWHERE:
                    continue
                value = np.float64(rows.value[at]) - pivot[h, f]
                total[h, f] += value
                square[h, f] += value * value
                if position[f] >= 0:
                    rows.feature[to] = position[f]
                    rows.value[to] = value
                    to += 1
        begin = end
    rows.start[half.size] = to
    return to


@cached_njit
def by_feature(rows: Rows, half: Array, n_features: int, n_halves: int) -> Columns:
    """Return the same entries by half and feature (a counting sort, so rows stay in order)."""
    start = np.zeros(n_halves * n_features + 1, np.int64)
    for row in range(half.size):
        for at in range(rows.start[row], rows.start[row + 1]):
            start[half[row] * n_features + rows.feature[at] + 1] += 1
    for i in range(start.size - 1):
        start[i + 1] += start[i]
    cursor = start[:-1].copy()
    entry_row = np.empty(start[-1], np.uint32)
    entry_value = np.empty(start[-1], rows.value.dtype)
    for row in range(half.size):
        for at in range(rows.start[row], rows.start[row + 1]):
            i = half[row] * n_features + rows.feature[at]
            entry_row[cursor[i]] = row
            entry_value[cursor[i]] = rows.value[at]
            cursor[i] += 1
    return Columns(start, entry_row, entry_value)
