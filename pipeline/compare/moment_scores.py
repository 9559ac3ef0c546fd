"""Scores of activations, from their second moments alone.

With the centred columns of either side as ``X = U S Vᵀ``, S and V are those of the eigendecomposition
``XᵀX = V S² Vᵀ``, and ``U_aᵀ U_b = S_a⁻¹ V_aᵀ (XᵀY) V_b S_b⁻¹``: all that the linear metrics look at
(:mod:`pipeline.compare.linear`), without U, which has a row for every token.

Squaring costs digits: components whose standard deviation is below about 1e-7 of the largest are rounding, and are
left out. Debiased CKA needs the diagonals of the token × token matrices too; their part is in the moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.linear import Components, Lengths, LinearMetric, LinearState, Product
from pipeline.compare.moments import Moments, Whitening

Floats = NDArray[np.float64]


class Decomposed(NamedTuple):
    """What moments say of either side alone: components without scores of rows, and what turns rows into scores."""

    state: LinearState
    whitenings: tuple[Whitening, Whitening]


def decompose_moments(moments: Moments) -> Decomposed:
    """Return the principal components of both sides."""
    n = int(moments.n)
    a, whitening_a = _components(moments.aa, moments.sum_a, n)
    b, whitening_b = _components(moments.bb, moments.sum_b, n)
    return Decomposed(LinearState(a, b), (whitening_a, whitening_b))


def _components(gram: Floats, total: Floats, n: int) -> tuple[Components, Whitening]:
    values, vectors = np.linalg.eigh(gram - np.outer(total, total / n))
    values, vectors = values[::-1], vectors[:, ::-1]
    # what centring takes away is rounded too
    noise = len(gram) * np.finfo(np.float64).eps * max(float(values[0]), float(np.diag(gram).max()))
    r = int(np.count_nonzero(values > noise))
    s, vectors = np.sqrt(values[:r]), vectors[:, :r]
    scores = np.empty((n, 0))
    return Components(scores, s, s[:, None] * vectors.T, np.empty(0)), Whitening(total / n, vectors / s)


def score_moments(
    moments: Moments, metrics: Sequence[LinearMetric], decomposed: Decomposed | None = None
) -> list[float]:
    """Return every metric of some moments; `decomposed` is what :func:`decompose_moments` made of them, if known."""
    state, (a, b) = decomposed or decompose_moments(moments)
    centred = moments.ab - np.outer(moments.sum_a, b.mean)
    arranged = Product(state, a.map.T @ centred @ b.map, centred_lengths(moments))
    return [metric.score(arranged) for metric in metrics]


def centred_lengths(moments: Moments) -> Lengths:
    """Return the sums of products of the centred rows' squared lengths, ``|x - μ|² = k - 2 x·μ + |μ|²``."""
    m = moments
    mean_a, mean_b = m.sum_a / m.n, m.sum_b / m.n
    a, b = (mean_a, float(np.trace(m.aa))), (mean_b, float(np.trace(m.bb)))
    n = float(m.n)
    return Lengths(
        _lengths(n, a, a, (float(m.kk), m.kx, m.kx, m.aa)),
        _lengths(n, b, b, (float(m.ll), m.ly, m.ly, m.bb)),
        _lengths(n, a, b, (float(m.kl), m.lx, m.ky, m.ab)),
    )


def _lengths(
    n: float, a: tuple[Floats, float], b: tuple[Floats, float], sums: tuple[float, Floats, Floats, Floats]
) -> float:
    """Return Σ |x - μ|² |y - ν|² from the mean and Σ |x|² of either side, and Σ k l, Σ l x, Σ k y, Σ x yᵀ."""
    (mean_a, trace_a), (mean_b, trace_b), (kl, lx, ky, cross) = a, b, sums
    square_a, square_b = float(mean_a @ mean_a), float(mean_b @ mean_b)
    linear = 2 * float(mean_b @ ky + mean_a @ lx)
    return (
        kl - linear + 4 * float(mean_a @ cross @ mean_b)
        + square_b * trace_a + square_a * trace_b - 3 * n * square_a * square_b
    )  # fmt: skip
