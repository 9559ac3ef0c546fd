"""Compiled float64 passes over dense blocks: statistics of features, and sums of products of chosen pairs.

Every sum of products runs over the rows of a piece in their order and is then added to the sum so far, for each pair
alone: what a pair gets depends neither on the other pairs nor on its place, and copies of a feature tie exactly.
"""

# ruff: noqa: PLR0917  (compiled functions take everything by position)

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

#: Side of the squares in which a block is turned.
SQUARE = 32


@njit(nogil=True, cache=True)
def dense_moments(
    block: Array, half: Array, wanted: int, n: int, active: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """Return means, and sums of squares about them, of the `n` rows of a block that are of one half.

    Parameters
    ----------
    block
        (row, feature), any float type.
    half, wanted
        The half of each row, and the one to take.
    n
        How many rows that are.
    active, low, high
        (feature,) counts of values that are not zero, and extremes; changed in place.

    Returns
    -------
    tuple
        (feature,) float64 each.
    """
    mean, square = np.zeros(block.shape[1]), np.zeros(block.shape[1])
    for t in range(block.shape[0]):
        if half[t] == wanted:
            for j in range(block.shape[1]):
                value = np.float64(block[t, j])
                mean[j] += value
                active[j] += value != 0.0
                low[j] = min(low[j], value)
                high[j] = max(high[j], value)
    mean /= n
    for t in range(block.shape[0]):
        if half[t] == wanted:
            for j in range(block.shape[1]):
                apart = np.float64(block[t, j]) - mean[j]
                square[j] += apart * apart
    return mean, square


@njit(nogil=True, cache=True)
def add_pairs(sums: Array, x: Array, y: Array, at_x: Array, at_y: Array) -> None:
    """Add the sums of products of chosen pairs over a piece of rows.

    Parameters
    ----------
    sums
        (pair,) float64, changed in place.
    x, y
        (feature, row) float64, centred.
    at_x, at_y
        (pair,) rows of `x` and `y` that make the pair.
    """
    for i in range(sums.size):
        one, other = x[at_x[i]], y[at_y[i]]
        total = 0.0
        for t in range(one.size):
            total += one[t] * other[t]
        sums[i] += total


@njit(nogil=True, cache=True)
def add_all(sums: Array, x: Array, y: Array) -> None:
    """Add the sums of products of some features with all features of a block, over a piece of rows.

    Parameters
    ----------
    sums
        (some, feature) float64, changed in place.
    x
        (some, row) float64, centred.
    y
        (row, feature) float64, centred.
    """
    total = np.empty(y.shape[1])
    for i in range(x.shape[0]):
        total[:] = 0.0
        for t in range(y.shape[0]):
            value = x[i, t]
            for j in range(y.shape[1]):
                total[j] += value * y[t, j]
        sums[i] += total


@njit(nogil=True, cache=True)
def centred_columns(block: Array, rows: Array, mean: Array) -> Array:
    """Return (feature, row) float64: some rows of a block, less the means; in squares that stay in the cache."""
    out = np.empty((block.shape[1], rows.size))
    for first in range(0, rows.size, SQUARE):
        last = min(first + SQUARE, rows.size)
        for left in range(0, block.shape[1], SQUARE):
            right = min(left + SQUARE, block.shape[1])
            for t in range(first, last):
                for j in range(left, right):
                    out[j, t] = np.float64(block[rows[t], j]) - mean[j]
    return out
