"""Compiled float64 passes over dense blocks: statistics of features, and sums of products of chosen pairs.

Every sum of products runs over the rows of a piece in one order and is then added to the sum so far, for each pair
alone: what a pair gets depends neither on the other pairs nor on its place, and copies of a feature tie exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.jit import cached_njit

Array = NDArray[Any]

#: Rows and columns of the tiles in which a block is turned: a line of the cache is eight float64.
TILE_ROWS, TILE_COLUMNS = 8, 32


@cached_njit
def dense_moments(block: Array, rows: Array, active: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Return means, and sums of squares about them, of some rows of a block (at least one); (feature,) float64 each.

    Counts of values that are not zero, and extremes, are changed in place.
    """
    mean, square = np.zeros(block.shape[1]), np.zeros(block.shape[1])
    for t in range(rows.size):
        row = rows[t]
        for j in range(block.shape[1]):
            value = np.float64(block[row, j])
            mean[j] += value
            active[j] += value != 0.0
            low[j] = min(low[j], value)
            high[j] = max(high[j], value)
    mean /= rows.size
    for t in range(rows.size):
        row = rows[t]
        for j in range(block.shape[1]):
            apart = np.float64(block[row, j]) - mean[j]
            square[j] += apart * apart
    return mean, square


# The order of additions may be changed here, so that several run at once: it is the same for all pairs.
@cached_njit(fastmath={"reassoc", "contract"})
def dot(x: Array, y: Array) -> float:
    """Return the sum of products of two rows of equal length."""
    total = 0.0
    for t in range(x.size):
        total += x[t] * y[t]
    return total


@cached_njit
def add_pairs(sums: Array, x: Array, y: Array, at_x: Array, at_y: Array) -> None:
    """Add the sums of products of chosen pairs, rows of (feature, row) `x` and `y`, over a piece of rows."""
    for i in range(sums.size):
        sums[i] += dot(x[at_x[i]], y[at_y[i]])


@cached_njit
def add_all(sums: Array, x: Array, y: Array) -> None:
    """Add the sums of products of all pairs, (feature of x, feature of y), as :func:`add_pairs` would."""
    for j in range(y.shape[0]):
        for i in range(x.shape[0]):
            sums[i, j] += dot(x[i], y[j])


@cached_njit
def centre_columns(block: Array, rows: Array, columns: Array, mean: Array, out: Array) -> None:
    """Set `out`, (column, row) float64, to some rows and columns of a block, less the means of the columns."""
    for first in range(0, rows.size, TILE_ROWS):
        last = min(first + TILE_ROWS, rows.size)
        for left in range(0, columns.size, TILE_COLUMNS):
            right = min(left + TILE_COLUMNS, columns.size)
            for j in range(left, right):
                for t in range(first, last):
                    out[j, t] = np.float64(block[rows[t], columns[j]]) - mean[j]
