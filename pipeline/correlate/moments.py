"""Counts, extremes and sums of every feature, for each half of the rows; what Pearson's r needs besides products.

r is computed from plain float64 sums, ``cov = Σxy − Σx·Σy/n``. That loses digits only where a mean is much greater
than its standard deviation, and a feature with so much as one zero among n rows has mean/std ≤ √n. What remains are
features that are active in *every* row. From these a pivot, their smallest magnitude, is subtracted first: r does not
change, entries stay entries, and where all values lie within a factor of two of each other the subtraction is exact
in the stored type (Sterbenz 1974). Elsewhere mean/std ≤ √(8n) again, and no pivot is needed.

A feature with one value in all rows of a half has no correlation there: it is not *defined*. Nor is one that fires in
too few of the rows that select (*rare*), in either half: it is left out before any product is computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.correlate.kernels.csr import NOWHERE, SUMS_ONLY, Rows, extremes, shift
from pipeline.correlate.kernels.dense import FEWEST_ROWS, MOST_REPEATS
from pipeline.correlate.kernels.exact import dense_moments
from pipeline.correlate.kernels.reduce import Side, make_side

Floats = NDArray[np.float64]

#: Beyond these the product of two variances would not be a normal float64; float32 lies well within.
SMALLEST_RANGE, LARGEST_VALUE = 1e-70, 1e70
#: Bits of a float32 that are 0 where the square of the number is exact.
LOW_BITS = 0xFFF
Slab = tuple[Rows, NDArray[np.int8]]


@dataclass
class Moments:
    """Statistics of the features of one side, or of a panel of them.

    Attributes
    ----------
    n
        (halves,) int64, rows of each half.
    stored, active
        (halves, feature) int64, entries on disk and entries that are not zero.
    low, high
        (halves, feature) float64, over all rows of the half, zeros included.
    pivot
        (halves, feature) float64, subtracted from every stored value.
    total, square
        (halves, feature) float64, sums of the shifted values and of their squares.
    repeats
        (halves, feature) float64, share of rows that repeat a value of many digits; estimated for dense features only.
    fewest
        () int64, in how many of the rows that select a feature must fire.
    """

    n: NDArray[np.int64]
    stored: NDArray[np.int64]
    active: NDArray[np.int64]
    low: Floats
    high: Floats
    pivot: Floats
    total: Floats
    square: Floats
    repeats: Floats
    fewest: NDArray[np.int64]

    @classmethod
    def empty(cls, n: NDArray[np.int64], n_features: int, *, fewest: int = 0, with_zero: bool = False) -> Self:
        """Return the statistics of no rows, to be filled.

        With `with_zero`, zero counts among the values of every feature: extremes include it, pivots are 0, and every
        feature that is not all zero is defined, as measures need it that subtract no mean.
        """
        shape = (len(n), n_features)
        zeros = np.zeros(shape)
        counts = np.zeros(shape, np.int64)
        lowest = 0.0 if with_zero else np.inf
        low, high = np.full(shape, lowest), np.full(shape, -lowest)
        pivot, total, square, repeats = (zeros.copy() for _ in range(4))
        return cls(n, counts, counts.copy(), low, high, pivot, total, square, repeats, np.array(fewest))

    @property
    def variance(self) -> Floats:
        """Variance times n, by the formula and in the order of operations of the kernels; (halves, feature)."""
        return self.square - (self.total * self.total) * (1.0 / self.n)[:, None]

    @property
    def varies(self) -> NDArray[np.bool_]:
        """Whether the feature has more than one value; (halves, feature).

        Known before the sums are. Variances that could overflow or vanish in float64 count as undefined, so that the
        kernels meet finite numbers only.
        """
        size = np.maximum(np.abs(self.low), np.abs(self.high))
        return (self.high - self.low > SMALLEST_RANGE) & (size < LARGEST_VALUE)

    @property
    def rare(self) -> NDArray[np.bool_]:
        """Whether the feature varies over the rows that select, but fires in too few of them; (feature,)."""
        return self.varies[0] & (self.active[0] < self.fewest)

    @property
    def defined(self) -> NDArray[np.bool_]:
        """Whether r is defined: the feature varies, and is not rare; (halves, feature)."""
        return self.varies & ~self.rare

    @property
    def mean(self) -> Floats:
        """Mean of each feature; (halves, feature)."""
        return self.pivot + self.total / self.n[:, None]

    @property
    def std(self) -> Floats:
        """Standard deviation of each feature (divided by n), 0 where it does not vary; (halves, feature)."""
        return np.where(self.varies, np.sqrt(np.maximum(self.variance, 0) / self.n[:, None]), 0.0)

    def side(self, half: int, features: NDArray[np.integer] | slice = slice(None)) -> Side:
        """Return what the kernels need of some features in one half."""
        variance = self.variance[half, features]
        # Features without r where it is chosen were left out, and have no sums in the other half
        usable = self.defined[half, features] & (variance > 0)
        scale = np.zeros_like(variance)
        scale[usable] = 1.0 / np.sqrt(variance[usable])
        return make_side(self.total[half, features], variance, scale, 1.0 / float(self.n[half]))

    def positions(self) -> NDArray[np.int32]:
        """Return (feature,): a running number where r is defined in the selecting half, or nowhere."""
        return self._placed(np.cumsum(self.defined[0]) - 1)

    def places(self) -> NDArray[np.int32]:
        """Return (feature,): each feature's own number where r is defined in the selecting half, or nowhere."""
        return self._placed(np.arange(self.low.shape[1]))

    def _placed(self, numbers: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the numbers of features that have r; of the others, the rare ones alone have sums."""
        left_out = np.where(self.rare, SUMS_ONLY, NOWHERE)
        return np.where(self.defined[0], numbers, left_out).astype(np.int32)

    def without_sums(self) -> Self:
        """Return the same extremes and pivots with sums of zero."""
        return replace(self, total=np.zeros_like(self.total), square=np.zeros_like(self.square))

    def of(self, features: slice) -> Self:
        """Return the same of some features."""
        names = (field.name for field in fields(self) if field.name not in {"n", "fewest"})
        return replace(self, **{name: getattr(self, name)[:, features] for name in names})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, to be stored; ``Moments(**arrays)`` is the way back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def join(parts: Iterable[Moments]) -> Moments:
    """Return the statistics of several panels of features as one."""
    listed = list(parts)
    joined: dict[str, Any] = {
        field.name: np.concatenate([getattr(part, field.name) for part in listed], axis=1)
        for field in fields(Moments)
        if field.name not in {"n", "fewest"}
    }
    return Moments(n=listed[0].n, fewest=listed[0].fewest, **joined)


def add_extremes(moments: Moments, slab: Slab) -> None:
    """Take in the counts and extremes of a slab of rows; the first of two passes."""
    rows, half = slab
    extremes(rows, half, moments.stored, moments.active, moments.low, moments.high)


def finish_extremes(moments: Moments) -> None:
    """Count the zeros that are not stored, and choose the pivots."""
    implicit = moments.stored < moments.n[:, None]
    moments.low = np.where(implicit, np.minimum(moments.low, 0.0), moments.low)
    moments.high = np.where(implicit, np.maximum(moments.high, 0.0), moments.high)
    moments.pivot = choose_pivot(moments.low, moments.high)


def choose_pivot(low: Floats, high: Floats) -> Floats:
    """Return what to subtract from features with these extremes: exactly representable differences only.

    >>> choose_pivot(np.array([0.0, 10.0, 1.0, -8.0]), np.array([5.0, 11.0, 5.0, -7.0]))
    array([ 0., 10.,  0., -7.])
    """
    positive = (low > 0) & (high <= 2 * low)
    negative = (high < 0) & (low >= 2 * high)
    return np.where(positive, low, np.where(negative, high, 0.0))


def shift_and_add(moments: Moments, slab: Slab, positions: NDArray[np.int32]) -> Rows:
    """Subtract the pivots, move features to their positions and take in the sums; the second pass.

    The slab is changed in place; what is returned is cut to the entries that are left.
    """
    rows, half = slab
    left = shift(rows, half, moments.pivot, positions, moments.total, moments.square)
    return Rows(rows.start, rows.feature[:left], rows.value[:left])


def add_dense(
    moments: Moments, columns: slice, block: NDArray[Any], half: NDArray[np.int8], before: NDArray[np.int64]
) -> None:
    """Take in a (row, feature) block; its own means and squares are merged with those so far (Chan et al. 1979).

    The means become the pivots, totals stay 0, and what is subtracted in float64 needs not be exact in the stored type.
    `before`, (halves,), is how many rows of these features were taken in before.
    """
    for h in range(len(moments.n)):
        rows, at = np.flatnonzero(half == h), (h, columns)
        if len(rows):
            mean, square = dense_moments(block, rows, moments.active[at], moments.low[at], moments.high[at])
            apart, weight = mean - moments.pivot[at], len(rows) / (before[h] + len(rows))
            moments.square[at] += square + apart * apart * (weight * before[h])
            moments.pivot[at] += apart * weight
            moments.stored[at] += len(rows)


def working_type(value_bytes: int) -> type[np.float32 | np.float64]:
    """Return the type in which dense values are centred: float64 where they are stored so."""
    return np.float64 if value_bytes > np.dtype(np.float32).itemsize else np.float32


def repeated(block: NDArray[Any]) -> NDArray[np.float64]:
    """Return (feature,): how many rows of a block repeat the value of the row before, if that has many digits.

    Values of bfloat16 and float16 models have few.

    >>> repeated(np.array([[0.0, 0.5, 0.1], [0.0, 0.5, 0.1], [0.0, 0.5, 0.1], [0.0, 0.5, 0.2]]))
    array([0., 0., 2.])
    """
    same = block[1:] == block[:-1]  # rarely any, where values have many digits
    many_digits = (block[1:][same].astype(np.float32).view(np.int32) & LOW_BITS) != 0
    return np.bincount(np.nonzero(same)[1][many_digits], minlength=block.shape[1]).astype(np.float64)


def in_double(moments: Moments, block: int) -> NDArray[np.bool_]:
    """Return which blocks of so many features must be multiplied in float64; (block,).

    See :mod:`pipeline.correlate.kernels.dense`.
    """
    few = bool((moments.n < FEWEST_ROWS / len(moments.n)).any())
    rough: NDArray[np.bool_] = np.any(moments.repeats > MOST_REPEATS, axis=0) | few
    return np.logical_or.reduceat(rough, np.arange(0, rough.size, block))
