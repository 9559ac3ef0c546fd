"""Centred kernel alignment of linear kernels, biased and debiased.

* ``cka``: ``‖XᵀY‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F)`` of centred rows (Kornblith, Norouzi, Lee, Hinton: Similarity of neural
  network representations revisited, arXiv 1905.00414, 2019, equation 2 and section 3). With few pairs it is high for
  independent rows: its expectation there grows with d / n.
* ``cka_debiased``: the same with the unbiased estimator of HSIC (Song, Smola, Gretton, Bedo, Borgwardt, Journal of
  Machine Learning Research 13, 2012, equation 5), which leaves a row's kernel with itself out. Independent rows have
  0 on average, so that it may be negative.

Under a pairing, ``‖XᵀPY‖_F²`` comes from the product that all linear metrics share. What the unbiased estimator takes
off needs only the squared lengths of the centred rows: the rows of a centred kernel sum to 0, so without its diagonal
they sum to minus it.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from pipeline.compare.linear import Components, LinearMetric, LinearState, Product
from pipeline.settings.registries import METRICS

#: The unbiased estimator divides by n - 3.
MIN_DEBIASED = 4


@METRICS.register
@dataclass(frozen=True)
class Cka(LinearMetric):
    """Linear centred kernel alignment, biased.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> round(Cka()(x, 5 * x[:, ::-1] + 1), 6)
    1.0
    """

    name: ClassVar[str] = "cka"

    def score(self, arranged: Product) -> float:
        """Return the squared Frobenius norm of the cross-product, over those of both sides."""
        a, b = arranged.state
        if arranged.state.empty:
            return float("nan")
        return float(np.vdot(arranged.cross, arranged.cross) / np.sqrt(np.sum(a.s**4) * np.sum(b.s**4)))

    def warning(self, state: LinearState) -> str:
        """Say where independent rows would score high: the bias is near √(k_a k_b) / n with k effective dimensions."""
        if state.empty:
            return ""
        bias = float(np.sqrt(np.prod([effective_dimensions(side) for side in state])) / state.n)
        if bias < 0.1:
            return ""
        return (
            f"biased: {state.n} pairs for spaces of this many dimensions, so that independent rows score about "
            f"{min(bias, 1.0):.2f}; see cka_debiased"
        )


@METRICS.register
@dataclass(frozen=True)
class CkaDebiased(LinearMetric):
    """Linear centred kernel alignment by the unbiased estimator of HSIC.

    At most about 1, and about 0 for independent rows.

    Examples
    --------
    >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 40))
    >>> round(Cka()(x, y), 1), round(abs(CkaDebiased()(x, y)), 1)
    (0.4, 0.0)
    """

    name: ClassVar[str] = "cka_debiased"

    def score(self, arranged: Product) -> float:
        """Return the unbiased HSIC of both sides over the geometric mean of theirs; NaN where one is not positive."""
        a, b = arranged.state
        n = arranged.state.n
        if arranged.state.empty or n < MIN_DEBIASED:
            return float("nan")
        traces, lengths = [float(np.sum(side.s**2)) for side in (a, b)], arranged.lengths
        both = unbiased_hsic(n, float(np.vdot(arranged.cross, arranged.cross)), lengths.ab, traces[0] * traces[1])
        own = [
            unbiased_hsic(n, float(np.sum(side.s**4)), diagonals, trace**2)
            for side, diagonals, trace in zip((a, b), (lengths.aa, lengths.bb), traces, strict=True)
        ]
        return both / float(np.sqrt(own[0] * own[1])) if min(own) > 0 else float("nan")


def unbiased_hsic(n: int, product: float, diagonals: float, traces: float) -> float:
    """Return the unbiased HSIC of two linear kernels K = XXᵀ and L = YYᵀ of n centred rows, up to no factor.

    Parameters
    ----------
    n
        The number of rows.
    product
        ``tr(KL)``, which is ``‖XᵀY‖_F²``.
    diagonals
        The sum of the products of the diagonals of K and L, which are squared lengths of rows.
    traces
        ``tr(K) tr(L)``.

    Examples
    --------
    >>> squares = [4.0, 1.0, 1.0, 1.0, 1.0]
    >>> round(unbiased_hsic(5, product=8.0**2, diagonals=sum(k**2 for k in squares), traces=sum(squares) ** 2), 4)
    3.6
    """
    return (product - diagonals + traces / ((n - 1) * (n - 2)) - 2.0 * diagonals / (n - 2)) / (n * (n - 3))


def effective_dimensions(side: Components) -> float:
    """Return the participation ratio of a side's variance over its components: d if all directions vary equally.

    Examples
    --------
    >>> from pipeline.compare.linear import decompose
    >>> round(effective_dimensions(decompose(np.vstack([np.eye(4), -np.eye(4)]))), 6)
    4.0
    """
    return float(np.sum(side.s**2) ** 2 / np.sum(side.s**4))
