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

from pipeline.compare.linear import Components, LinearMetric, LinearState, Product
from pipeline.compare.moments import Crossed, Moments

Floats = NDArray[np.float64]


def decompose_moments(moments: Moments) -> tuple[LinearState, tuple[Floats, Floats]]:
    """Return the principal components of both sides, without scores; and ``V_a S_a⁻¹`` and ``V_b S_b⁻¹``, (d, r)."""
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
    metrics: Sequence[LinearMetric],
    decomposed: tuple[LinearState, tuple[Floats, Floats]] | None = None,
) -> list[float]:
    """Return every metric of some moments.

    `decomposed` is what :func:`decompose_moments` made of the same rows, whatever stood beside what.
    """
    state, maps = decomposed or decompose_moments(moments)
    arranged = product(moments, state, maps)
    return [metric.score_moments(moments, arranged) for metric in metrics]


def with_crossed(moments: Moments, crossed: Crossed) -> Moments:
    """Return the moments had the rows of B stood beside other rows of A."""
    return moments._replace(**crossed._asdict())


def debiased_cka(moments: Moments) -> float:
    """Return linear CKA made from unbiased estimates of the Hilbert-Schmidt independence criterion.

    Song et al., Feature selection via dependence maximization (JMLR 13, 2012), equation 5, put into CKA as by Nguyen,
    Raghu, Kornblith (arXiv 2010.15327, 2020). Biased CKA of n independent rows is about d/n above 0; this one is 0 on
    average. It takes rows for independent, which tokens of a document are not.

    At most 1, and below 0 by chance; NaN if a side does not vary, or there are fewer than four rows.
    """
    m = moments
    if m.n < 4:
        return float("nan")
    a, b = (m.sum_a, float(np.trace(m.aa))), (m.sum_b, float(np.trace(m.bb)))
    n = float(m.n)
    ab = _hsic(n, a, b, _Kernels(m.ab, m.kl, m.lx, m.ky))
    aa = _hsic(n, a, a, _Kernels(m.aa, m.kk, m.kx, m.kx))
    bb = _hsic(n, b, b, _Kernels(m.bb, m.ll, m.ly, m.ly))
    return ab / float(np.sqrt(aa * bb)) if aa > 0 and bb > 0 else float("nan")


class _Kernels(NamedTuple):
    """What two kernels K = XXᵀ and L = YYᵀ share: XᵀY, Σ k l of their diagonals, Σ l x, and Σ k y."""

    cross: Floats
    diagonals: Floats
    lx: Floats
    ky: Floats


def _hsic(n: float, a: tuple[Floats, float], b: tuple[Floats, float], both: _Kernels) -> float:
    """Return n(n-3) times the unbiased criterion of two linear kernels, from the sum and the trace of either side.

    ``tr(KL) + 1ᵀK1 · 1ᵀL1 / ((n-1)(n-2)) - 2/(n-2) · 1ᵀKL1``, with the diagonals taken out: ``(K1)_i = x_i·Σx - k_i``.
    """
    (sum_a, trace_a), (sum_b, trace_b) = a, b
    trace = float(np.sum(both.cross * both.cross)) - float(both.diagonals)
    total = float(sum_a @ sum_a - trace_a) * float(sum_b @ sum_b - trace_b)
    rows = float(sum_a @ both.cross @ sum_b - sum_a @ both.lx - sum_b @ both.ky + both.diagonals)
    return trace + total / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows
