"""Canonical correlation analysis and its variants, and what the literature has published under the name of SVCCA.

* ``cca``: mean canonical correlation (Hotelling, Biometrika 28, 1936), as used on representations by Raghu et al.
* ``svcca``: both sides are first reduced to the principal components that hold most of their variance (Raghu, Gilmer,
  Yosinski, Sohl-Dickstein: SVCCA, arXiv 1706.05806, 2017).
* ``pwcca``: the mean is weighted by how much of a side each canonical direction accounts for (Morcos, Raghu, Bengio:
  Insights on representational similarity, arXiv 1806.05759, 2018, section 3).
* ``svcca_pc1``: ``|Pearson r|`` of the first principal components alone.

All are functions of the product of the two sides' components; see :mod:`pipeline.compare.linear`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.compare.linear import LinearMetric, LinearState, Product, saturation, singular_values
from pipeline.settings.registries import METRICS

#: Share of the variance that the kept components hold, as in the paper.
VARIANCE = 0.99
#: A side that keeps so many times the components of the other is another kind of space; said in the note.
UNEQUAL = 1.25


@METRICS.register
@dataclass(frozen=True)
class Cca(LinearMetric):
    """Mean canonical correlation of all components.

    It is the same for any invertible map of either side, and near 1 for any pairing as soon as there are no more pairs
    than dimensions: show it beside its null only.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(Cca()(x, x @ [[1, 2, 0], [0, 1, 5], [0, 0, 3]]), 6)
    1.0
    """

    name: ClassVar[str] = "cca"

    def score(self, arranged: Product) -> float:
        """Return the mean over as many canonical correlations as the smaller space has dimensions."""
        if arranged.state.empty:
            return float("nan")
        block = self.block(arranged)
        return float(np.minimum(singular_values(block), 1.0).mean())

    def warning(self, state: LinearState) -> str:
        """Say where chance is near 1, and where one space is much larger than the other."""
        k_a, k_b = self.kept(state.a.s), self.kept(state.b.s)
        return "; ".join(filter(None, [saturation(state.n, k_a, k_b), unequal(k_a, k_b)]))

    def block(self, product: Product) -> NDArray[np.float64]:
        """Return the part of a product that belongs to the components that this metric keeps."""
        block = product.c[: self.kept(product.state.a.s), : self.kept(product.state.b.s)]
        return block.astype(np.float64)


@METRICS.register
@dataclass(frozen=True)
class Svcca(Cca):
    """Mean canonical correlation of the first components: those that hold a share of the variance, or a fixed k.

    Attributes
    ----------
    variance
        Share of the summed squared singular values that the kept components reach, in (0, 1].
    k
        Number of components kept of either side, in place of the share.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 5))
    >>> round(Svcca(variance=1.0)(x, 3 * x @ np.linalg.qr(rng.normal(size=(5, 5)))[0]), 6)
    1.0
    >>> Svcca()(x, rng.normal(size=(200, 5))) < 0.3
    True
    """

    name: ClassVar[str] = "svcca"
    variance: Annotated[float, Field(gt=0, le=1)] = VARIANCE
    k: Annotated[int, Field(ge=1)] | None = None

    def kept(self, s: NDArray[np.float64]) -> int:
        """Return how many components are kept of a side with these singular values."""
        return n_components(s, self.variance) if self.k is None else min(self.k, len(s))


@METRICS.register
@dataclass(frozen=True)
class Pwcca(Svcca):
    """Canonical correlations, weighted by what each direction accounts for in the side with fewer components."""

    name: ClassVar[str] = "pwcca"
    variance: Annotated[float, Field(gt=0, le=1)] = 1.0

    def score(self, arranged: Product) -> float:
        """Return the weighted mean; the weights are those of side A where both keep equally many components."""
        if arranged.state.empty:
            return float("nan")
        block, side = self.block(arranged), arranged.state.a
        if block.shape[0] > block.shape[1]:
            block, side = block.T, arranged.state.b
        squares, directions = np.linalg.eigh(block @ block.T)
        # equation of the paper: alpha_i = sum over neurons j of |<h_i, x_j>|, here with h_i = U · directions_i
        weights = np.abs(directions.T @ side.loadings[: len(block)]).sum(axis=1)
        return float(np.sqrt(np.clip(squares, 0.0, 1.0)) @ weights / weights.sum())

    def warning(self, state: LinearState) -> str:
        """Say what CCA says, and that directions of equal correlation have no weights of their own."""
        note = super().warning(state)
        return f"{note}; weights of directions that tie at 1 are arbitrary" if note.startswith("saturated") else note


@METRICS.register
@dataclass(frozen=True)
class SvccaPc1(LinearMetric):
    """``|Pearson r|`` of the scores on either side's first component: published as SVCCA by a slip.

    Where the variance kept so far, as a share of 1, is compared with 0.99 × the total variance, one component is always
    kept. Its null mean is about ``sqrt(2 / (π n))``.

    Examples
    --------
    >>> x = np.array([[0.0, 0.0], [1.0, 0.1], [2.0, -0.1]])
    >>> round(SvccaPc1()(x, -x), 6)
    1.0
    """

    name: ClassVar[str] = "svcca_pc1"

    def kept(self, s: NDArray[np.float64]) -> int:
        """Return 1, or 0 where the side does not vary."""
        return min(1, len(s))

    def score(self, arranged: Product) -> float:
        """Return the size of the product of the first components."""
        return float("nan") if arranged.state.empty else float(min(abs(arranged.c[0, 0]), 1.0))


def n_components(s: NDArray[np.float64], variance: float) -> int:
    """Return the smallest number of components whose squared singular values reach a share of their sum.

    Examples
    --------
    >>> n_components(np.array([3.0, 1.0]), 0.9), n_components(np.array([3.0, 1.0]), 0.91)
    (1, 2)
    """
    if not len(s):
        return 0
    share = np.cumsum(s**2) / np.sum(s**2)
    # the cumulative share may end a rounding error below 1
    return min(int(np.searchsorted(share, variance * (1 - 1e-12))) + 1, len(s))


def unequal(k_a: int, k_b: int) -> str:
    """Return the note that many directions of the larger side are ignored; an empty string if they are not.

    Examples
    --------
    >>> unequal(512, 768)
    'of unequal sides: 512 and 768 components; the mean is over 512, and 256 directions of the larger are ignored'
    >>> unequal(6, 7)
    ''
    """
    small, large = sorted((k_a, k_b))
    if large <= UNEQUAL * small:
        return ""
    return (
        f"of unequal sides: {k_a} and {k_b} components; the mean is over {small}, and {large - small} directions of "
        "the larger are ignored"
    )
