"""Compiled loops of representational similarity analysis: ranks, products under a pairing, Kendall's discordances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storage.jit import cached_njit


def centred_ranks(values: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return twice the average ranks of fewer than 2³¹ values, less their mean: whole numbers with mean 0, int32.

    All 0, which no correlation can be computed from, if a value is NaN or all are equal.

    Examples
    --------
    >>> centred_ranks(np.array([0.3, 0.1, 0.3, 0.7])).tolist()
    [0, -3, 0, 3]
    """
    if np.isnan(values).any():
        return np.zeros(len(values), np.int32)
    return _average_ranks(values, np.argsort(values))


@cached_njit
def _average_ranks(values: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.int32]:
    n = len(values)
    ranks = np.empty(n, np.int32)
    start = 0
    while start < n:
        stop = start + 1
        while stop < n and values[order[stop]] == values[order[start]]:
            stop += 1
        # places start … stop - 1 share the rank (start + stop + 1) / 2, and the mean of all ranks is (n + 1) / 2
        for place in range(start, stop):
            ranks[order[place]] = start + stop - n
        start = stop
    return ranks


@cached_njit
def square_sum(values: NDArray[np.number]) -> float:
    """Return the sum of squares of int32 or float32 values, in float64 and without a copy."""
    total = 0.0
    for value in values:
        total += float(value) * float(value)
    return total


@cached_njit
def square_matrix(upper: NDArray[np.number], n: int) -> NDArray[np.number]:
    """Return the symmetric matrix with this upper triangle and zeros on the diagonal."""
    square = np.zeros((n, n), upper.dtype)
    at = 0
    for i in range(n):
        for j in range(i + 1, n):
            square[i, j] = upper[at]
            square[j, i] = upper[at]
            at += 1
    return square


@cached_njit(fastmath={"reassoc", "contract"})
def paired_product(upper_a: NDArray[np.number], square_b: NDArray[np.number], pairing: NDArray[np.int32]) -> float:
    """Sum ``A[i, j] · B[p(i), p(j)]`` over i < j.

    A row of B is copied in order before it is read through the pairing: it then comes from the nearest cache. Rows are
    summed on their own before they are added up, so that rounding stays near 1e-13 of the result.
    """
    n = len(pairing)
    row_b = np.empty(n, square_b.dtype)
    total, start = 0.0, 0
    for i in range(n - 1):
        row_b[:] = square_b[pairing[i]]
        row_a, partners = upper_a[start : start + n - 1 - i], pairing[i + 1 :]
        partial = 0.0
        for j in range(n - 1 - i):
            partial += float(row_a[j]) * float(row_b[partners[j]])
        total += partial
        start += n - 1 - i
    return total


@cached_njit
def paired_upper(square_b: NDArray[np.int32], pairing: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return ``B[p(i), p(j)]`` for i < j: the upper triangle of B under a pairing."""
    n = len(pairing)
    upper = np.empty(n * (n - 1) // 2, square_b.dtype)
    at = 0
    for i in range(n):
        row_b = square_b[pairing[i]]
        for j in range(i + 1, n):
            upper[at] = row_b[pairing[j]]
            at += 1
    return upper


@cached_njit
def tied_pairs(ordered: NDArray[np.int32]) -> int:
    """Return how many pairs of equal values an ordered array has."""
    total, run = 0, 1
    for i in range(1, len(ordered) + 1):
        if i < len(ordered) and ordered[i] == ordered[i - 1]:
            run += 1
        else:
            total += run * (run - 1) // 2
            run = 1
    return total


@cached_njit
def discordances(ordered_a: NDArray[np.int32], b: NDArray[np.int32]) -> tuple[int, int]:
    """Return the numbers of discordant pairs, and of pairs that tie in both, by Knight's algorithm.

    Knight, Journal of the American Statistical Association 61 (1966). `b` is in the order of `ordered_a`, and is
    sorted in place: a merge sort that counts how many smaller values each one passes, after values that tie in a were
    put in order.
    """
    joint, start, n = 0, 0, len(b)
    while start < n:
        stop = start + 1
        while stop < n and ordered_a[stop] == ordered_a[start]:
            stop += 1
        if stop - start > 1:
            b[start:stop].sort()
            joint += tied_pairs(b[start:stop])
        start = stop
    return _sort_and_count(b), joint


@cached_njit
def _sort_and_count(values: NDArray[np.int32]) -> int:
    n = len(values)
    source, target = values, np.empty_like(values)
    passed, width = 0, 1
    while width < n:
        for start in range(0, n, 2 * width):
            passed += _merge(source, target, start, min(start + width, n), min(start + 2 * width, n))
        source, target = target, source
        width *= 2
    return passed


@cached_njit
def _merge(source: NDArray[np.int32], target: NDArray[np.int32], start: int, middle: int, stop: int) -> int:
    left, right, passed = start, middle, 0
    for at in range(start, stop):
        if left < middle and (right >= stop or source[left] <= source[right]):
            target[at] = source[left]
            left += 1
        else:
            target[at] = source[right]
            right += 1
            passed += middle - left
    return passed
