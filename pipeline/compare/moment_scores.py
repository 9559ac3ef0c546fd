"""Scores of activations, from their second moments alone.

With the centred columns of either side as ``X = U S Vᵀ``, S and V are those of the eigendecomposition
``XᵀX = V S² Vᵀ``, and ``U_aᵀ U_b = S_a⁻¹ V_aᵀ (XᵀY) V_b S_b⁻¹``: all that the linear metrics look at
(:mod:`pipeline.compare.linear`), without U, which has a row for every token.

Squaring costs digits: components whose standard deviation is below about 1e-7 of the largest are rounding, and are
left out. Debiased CKA needs the diagonals of the token × token matrices too; their part is in the moments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.base import Metric
from pipeline.compare.linear import Components, LinearMetric, LinearState, Product
from pipeline.compare.moments import Crossed, Moments

Floats = NDArray[np.float64]


def decompose_moments(moments: Moments) -> tuple[LinearState, tuple[Floats, Floats]]:
    """Return the principal components of both sides, without their scores, and the maps to their product.

    Parameters
    ----------
    moments
        Of all rows.

    Returns
    -------
    tuple
        The state, and ``V_a S_a⁻¹`` and ``V_b S_b⁻¹``, shapes (d, r).
    """
    n = int(moments.n)
    a, map_a = _components(moments.aa, moments.sum_a, n)
    b, map_b = _components(moments.bb, moments.sum_b, n)
    return LinearState(a, b), (map_a, map_b)


def _components(gram: Floats, total: Floats, n: int) -> tuple[Components, Floats]:
    values, vectors = np.linalg.eigh(gram - np.outer(total, total / n))
    values, vectors = values[::-1], vectors[:, ::-1]
    # what centring takes away is rounded too
    noise = len(gram) * np.finfo(np.float64).eps * max(float(values[0]), float(np.diag(gram).max()))
    r = int(np.count_nonzero(values > noise))
    s, vectors = np.sqrt(values[:r]), vectors[:, :r]
    nothing = np.empty((n, 0))
    return Components(u=nothing, s=s, loadings=s[:, None] * vectors.T, squares=nothing[:, :0].sum(axis=1)), vectors / s


def product(moments: Moments, state: LinearState, maps: tuple[Floats, Floats]) -> Product:
    """Return what linear metrics are computed from."""
    centred = moments.ab - np.outer(moments.sum_a, moments.sum_b / float(moments.n))
    return Product(state, np.empty(0, np.int64), maps[0].T @ centred @ maps[1])


def score_moments(
    moments: Moments,
    metrics: Sequence[Metric],
    decomposed: tuple[LinearState, tuple[Floats, Floats]] | None = None,
) -> list[float]:
    """Return every metric of some moments.

    Parameters
    ----------
    moments
        Of all rows.
    metrics
        Linear ones; see :func:`is_supported`.
    decomposed
        What :func:`decompose_moments` made of the same rows, whatever stood beside what; made here if absent.
    """
    state, maps = decomposed or decompose_moments(moments)
    arranged = product(moments, state, maps)
    return [debiased_cka(moments) if _is_debiased(metric) else metric.score(arranged) for metric in metrics]


def is_supported(metric: Metric) -> bool:
    """Say whether a metric is a function of second moments."""
    return isinstance(metric, LinearMetric)


def with_crossed(moments: Moments, crossed: Crossed) -> Moments:
    """Return the moments had the rows of B stood beside other rows of A."""
    return moments._replace(**crossed._asdict())


def debiased_cka(moments: Moments) -> float:
    """Return linear CKA made from unbiased estimates of the Hilbert-Schmidt independence criterion.

    Song et al., Feature selection via dependence maximization (JMLR 13, 2012), equation 5, put into CKA as by Nguyen,
    Raghu, Kornblith (arXiv 2010.15327, 2020). Biased CKA of n independent rows is about d/n above 0; this one is 0 on
    average. It takes rows for independent, which tokens of a document are not.

    Parameters
    ----------
    moments
        Of at least four rows.

    Returns
    -------
    float
        At most 1, and below 0 by chance; NaN if a side does not vary, or there are fewer than four rows.
    """
    m = moments
    if m.n < 4:
        return float("nan")
    ab = _hsic(m, m.ab, m.kl, (m.sum_a, m.sum_b), (m.lx, m.ky), (np.trace(m.aa), np.trace(m.bb)))
    aa = _hsic(m, m.aa, m.kk, (m.sum_a, m.sum_a), (m.kx, m.kx), (np.trace(m.aa), np.trace(m.aa)))
    bb = _hsic(m, m.bb, m.ll, (m.sum_b, m.sum_b), (m.ly, m.ly), (np.trace(m.bb), np.trace(m.bb)))
    return ab / float(np.sqrt(aa * bb)) if aa > 0 and bb > 0 else float("nan")


def _hsic(
    m: Moments,
    cross: Floats,
    diagonal: Floats,
    sums: tuple[Floats, Floats],
    weighted: tuple[Floats, Floats],
    traces: tuple[float, float],
) -> float:
    """Return n(n-3) times the unbiased criterion of linear kernels K and L, whose diagonals are taken out.

    ``tr(KL) + 1ᵀK1 · 1ᵀL1 / ((n-1)(n-2)) - 2/(n-2) · 1ᵀKL1``. With K = XXᵀ, ``(K1)_i = x_i·Σx``.
    """
    n = float(m.n)
    trace = float(np.sum(cross * cross)) - float(diagonal)
    total = (sums[0] @ sums[0] - traces[0]) * (sums[1] @ sums[1] - traces[1])
    rows = sums[0] @ cross @ sums[1] - sums[0] @ weighted[0] - sums[1] @ weighted[1] + diagonal
    return float(trace + total / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows)
