"""Representational similarity analysis: whether the two sides agree on which pairs of rows are alike.

Kriegeskorte, Mur, Bandettini: Representational similarity analysis (Frontiers in Systems Neuroscience 2:4, 2008).
Inside a side, rows are compared by cosine; the two similarity matrices are compared by Spearman's correlation of their
upper triangles, with average ranks for ties.

A shuffled pairing permutes rows and columns of one similarity matrix. The multiset of its values does not change, and
neither do the ranks: a shuffled run is one dot product of two rank matrices, one of them read through the permutation.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, NamedTuple

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic.dataclasses import dataclass

from pipeline.compare.base import Metric, Pairing, Rows
from pipeline.compare.rows import paired_rows

#: Cosines are compared to this many decimals, so that equal ones tie in spite of rounding.
DECIMALS = 12
#: More pairs have more than 2³¹ pairs of rows, whose ranks an int32 does not hold.
MAX_PAIRS = 65_536
#: Rows of the similarity matrix that are computed at once.
BLOCK_ROWS = 256


class RankedSimilarities(NamedTuple):
    """The ranked similarities of both sides, ready for any pairing.

    Ranks are doubled and centred, so that average ranks are whole numbers and their mean is 0.

    Attributes
    ----------
    upper_a
        Side A's upper triangle, row after row, int32, shape (n(n-1)/2,).
    square_b
        Side B's whole matrix, int32, shape (n, n), zeros on the diagonal.
    norm
        Product of the Euclidean norms of the two triangles.
    """

    upper_a: NDArray[np.int32]
    square_b: NDArray[np.int32]
    norm: float


@dataclass(frozen=True)
class Rsa(Metric):
    """Spearman's correlation of the two sides' cosine similarities."""

    name: ClassVar[str] = "rsa"

    @property
    def family(self) -> Hashable:
        """A family of its own."""
        return self

    @staticmethod
    def prepare(metrics: Sequence[Rsa], x: Rows, y: Rows) -> RankedSimilarities:  # noqa: ARG004
        """Rank the similarities of both sides."""
        return ranked_similarities(x, y)

    def arrange(self, state: RankedSimilarities, pairing: Pairing) -> float:
        """Return the correlation itself: there is nothing to share."""
        return rank_correlation(state, pairing)

    def score(self, arranged: float) -> float:
        """Return the correlation."""
        return arranged

    def score_drawn(self, x: Rows, y: Rows, pair: Pairing) -> float:
        """Return the correlation over rows that are no copies of each other: those agree by construction."""
        first, second = np.triu_indices(len(pair), 1)
        different = pair[first] != pair[second]
        ranks = [centred_ranks(cosines(side)[different]).astype(np.float64) for side in (x, y)]
        norm = np.prod([np.linalg.norm(side) for side in ranks])
        return float(ranks[0] @ ranks[1] / norm) if norm else float("nan")

    def memory(self, n: int, d_a: int, d_b: int) -> int:
        """See :func:`memory_needed`."""
        return memory_needed(n, d_a, d_b)


def rsa(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's correlation of the two sides' cosine similarities between rows.

    Parameters
    ----------
    x, y
        Paired rows, shapes (n, d_x) and (n, d_y).

    Returns
    -------
    float
        In [-1, 1]; NaN if a row is zero or all similarities of a side are equal.

    Raises
    ------
    InputError
        If the two sides differ in rows, have fewer than 3, or hold NaN or infinity.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(20, 4))
    >>> rsa(x, 3 * x[:, ::-1])
    1.0
    """
    rows_x, rows_y = paired_rows(x, y)
    ranked = ranked_similarities(rows_x, rows_y)
    return rank_correlation(ranked, np.arange(len(rows_x)))


def memory_needed(n: int, d_a: int, d_b: int) -> int:
    """Return how many bytes RSA of `n` pairs needs at most, with its shuffled runs.

    The peak comes while B is ranked: its cosines (float64) and their order (int64), and the ranks of both sides
    (int32), each for n²/2 pairs of rows. A's triangle and B's square of ranks stay, in half of that.

    Examples
    --------
    >>> memory_needed(2000, 576, 384) / 1e6
    86.912
    """
    triangle, blocks, rows = n * n // 2, 2 * 8 * n * min(n, BLOCK_ROWS), 2 * 8 * n * (d_a + d_b)
    return triangle * (8 + 8 + 4 + 4) + blocks + rows


def ranked_similarities(x: NDArray[np.float64], y: NDArray[np.float64]) -> RankedSimilarities:
    """Rank the cosine similarities within either side.

    Parameters
    ----------
    x, y
        Paired rows, shapes (n, d_x) and (n, d_y).

    Returns
    -------
    RankedSimilarities
        With norm 0 where a side cannot be ranked.
    """
    upper_a, upper_b = centred_ranks(cosines(x)), centred_ranks(cosines(y))
    norm = float(np.sqrt(_square_sum(upper_a)) * np.sqrt(_square_sum(upper_b)))
    return RankedSimilarities(upper_a, _square(upper_b, len(y)), norm)


def rank_correlation(ranked: RankedSimilarities, pairing: NDArray[np.int64]) -> float:
    """Return Spearman's correlation of the similarities under a pairing.

    Parameters
    ----------
    ranked
        The ranked similarities.
    pairing
        Which B row is paired with each A row, shape (n,).

    Returns
    -------
    float
        NaN where a side cannot be ranked.

    Examples
    --------
    >>> rows = np.array([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0], [-1.0, 0.2]])
    >>> ranked = ranked_similarities(rows, rows)
    >>> rank_correlation(ranked, np.array([0, 1, 2, 3])), round(rank_correlation(ranked, np.array([0, 2, 1, 3])), 4)
    (1.0, 0.2571)
    """
    if not ranked.norm:
        return float("nan")
    product = _paired_product(ranked.upper_a, ranked.square_b, pairing.astype(np.int32)) / ranked.norm
    return float(np.clip(product, -1.0, 1.0))


def cosines(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine between every two rows: the upper triangle, row after row.

    Parameters
    ----------
    x
        Rows, shape (n, d).

    Returns
    -------
    ndarray of float64, shape (n(n-1)/2,)
        NaN where a row is zero. Rounded to :data:`DECIMALS`.

    Examples
    --------
    >>> cosines(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])).tolist()
    [0.0, 1.0, 0.0]
    """
    n = len(x)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.divide(x, lengths, out=np.full_like(x, np.nan), where=lengths > 0)
    upper, filled = np.empty(n * (n - 1) // 2), 0
    for start in range(0, n - 1, BLOCK_ROWS):
        block = np.round(unit[start : start + BLOCK_ROWS] @ unit[start:].T, DECIMALS)
        for i, row in enumerate(block[: n - 1 - start]):
            upper[filled : filled + n - 1 - start - i] = row[i + 1 :]
            filled += n - 1 - start - i
    return upper


def centred_ranks(values: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return twice the average ranks of `values`, less their mean.

    Parameters
    ----------
    values
        Shape (m,) with m < 2³¹.

    Returns
    -------
    ndarray of int32, shape (m,)
        All 0, which no correlation can be computed from, if a value is NaN or all are equal.

    Examples
    --------
    >>> centred_ranks(np.array([0.3, 0.1, 0.3, 0.7])).tolist()
    [0, -3, 0, 3]
    """
    if np.isnan(values).any():
        return np.zeros(len(values), np.int32)
    return _average_ranks(values, np.argsort(values))


@numba.njit(nogil=True, cache=True)
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


@numba.njit(nogil=True, cache=True)
def _square_sum(ranks: NDArray[np.int32]) -> float:
    total = 0.0
    for rank in ranks:
        total += float(rank) * float(rank)
    return total


@numba.njit(nogil=True, cache=True)
def _square(upper: NDArray[np.int32], n: int) -> NDArray[np.int32]:
    """Return the symmetric matrix with this upper triangle and zeros on the diagonal."""
    square = np.zeros((n, n), np.int32)
    at = 0
    for i in range(n):
        for j in range(i + 1, n):
            square[i, j] = upper[at]
            square[j, i] = upper[at]
            at += 1
    return square


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _paired_product(upper_a: NDArray[np.int32], square_b: NDArray[np.int32], pairing: NDArray[np.int32]) -> float:
    """Sum ``A[i, j] · B[p(i), p(j)]`` over i < j.

    A row of B is copied in order before it is read through the pairing: it then comes from the nearest cache. Rows are
    summed on their own before they are added up, so that rounding stays near 1e-13 of the result.
    """
    n = len(pairing)
    row_b = np.empty(n, np.int32)
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
