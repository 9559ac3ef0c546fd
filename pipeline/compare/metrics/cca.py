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

from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.compare.base import of_rows
from pipeline.compare.linear import LinearMetric, LinearState, Product, decompose, saturation, singular_values
from pipeline.compare.rows import paired_rows
from pipeline.registries import METRICS
from storage.errors import InputError

#: Share of the variance that the kept components hold, as in the paper.
VARIANCE = 0.99
#: A side that keeps so many times the components of the other is another kind of space; said in the note.
UNEQUAL = 1.25


class SvccaScore(NamedTuple):
    """An SVCCA score and how many components of either side it rests on."""

    score: float
    k_a: int
    k_b: int


@METRICS.register
@dataclass(frozen=True)
class Cca(LinearMetric):
    """Mean canonical correlation of all components."""

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
        return product.c[: self.kept(product.state.a.s), : self.kept(product.state.b.s)]


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
    """``|Pearson r|`` of the scores on either side's first component: published as SVCCA by a slip."""

    name: ClassVar[str] = "svcca_pc1"

    def kept(self, s: NDArray[np.float64]) -> int:
        """Return 1, or 0 where the side does not vary."""
        return min(1, len(s))

    def score(self, arranged: Product) -> float:
        """Return the size of the product of the first components."""
        return float("nan") if arranged.state.empty else float(min(abs(arranged.c[0, 0]), 1.0))


def svcca(x: ArrayLike, y: ArrayLike, variance: float = VARIANCE, k: int | None = None) -> SvccaScore:
    """Return the mean canonical correlation of the components that hold `variance` of either side.

    Independent rows do not score 0. Two spaces of k_a and k_b dimensions among n - 1 meet in at least
    k_a + k_b - (n - 1), where the canonical correlation is exactly 1, and chance is high far beyond that: show the
    score beside its null only.

    Parameters
    ----------
    x, y
        Paired rows, shapes (n, d_x) and (n, d_y).
    variance
        Share of the summed squared singular values that the kept components reach, in (0, 1].
    k
        Number of components kept of either side, in place of `variance`.

    Returns
    -------
    SvccaScore
        The score in [0, 1] and the numbers of components; NaN if one side does not vary.

    Raises
    ------
    InputError
        If the two sides differ in rows, have fewer than 3, or hold NaN or infinity.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 5))
    >>> rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    >>> score, k_a, k_b = svcca(x, 3 * x @ rotation, variance=1.0)
    >>> round(score, 6), k_a, k_b
    (1.0, 5, 5)
    >>> svcca(x, rng.normal(size=(200, 5))).score < 0.3
    True
    """
    rows_x, rows_y = paired_rows(x, y)
    _check_variance(variance)
    metric = Svcca(variance=variance, k=k)
    state = metric.prepare([metric], rows_x, rows_y)
    score = metric.score(metric.arrange(state, np.arange(state.n)))
    return SvccaScore(score, metric.kept(state.a.s), metric.kept(state.b.s))


def cca(x: ArrayLike, y: ArrayLike) -> float:
    """Return the mean canonical correlation of two sides, without any reduction.

    It is the same for any invertible map of either side, and near 1 for any pairing as soon as there are no more pairs
    than dimensions: show it beside its null only.

    Parameters
    ----------
    x, y
        Paired rows, shapes (n, d_x) and (n, d_y).

    Returns
    -------
    float
        In [0, 1]; NaN if one side does not vary.

    Raises
    ------
    InputError
        If the two sides differ in rows, have fewer than 3, or hold NaN or infinity.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(cca(x, x @ [[1, 2, 0], [0, 1, 5], [0, 0, 3]]), 6)
    1.0
    """
    return of_rows(Cca(), *paired_rows(x, y))


def pwcca(x: ArrayLike, y: ArrayLike, variance: float = 1.0, k: int | None = None) -> float:
    """Return the canonical correlations' mean, weighted by what each direction accounts for.

    The weights are those of the side that keeps fewer components, A's where they keep equally many; the measure is
    not symmetric there.

    Parameters
    ----------
    x, y, variance, k
        As in :func:`svcca`; all components are kept by default.

    Returns
    -------
    float
        In [0, 1]; NaN if one side does not vary.

    Raises
    ------
    InputError
        If the two sides differ in rows, have fewer than 3, or hold NaN or infinity.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(pwcca(x, x[:, ::-1]), 6)
    1.0
    """
    _check_variance(variance)
    return of_rows(Pwcca(variance=variance, k=k), *paired_rows(x, y))


def svcca_pc1(x: ArrayLike, y: ArrayLike) -> float:
    """Return ``|Pearson r|`` of the scores on the first principal component of either side.

    This is what some published "SVCCA" figures are: where the variance kept so far, as a share of 1, is compared with
    0.99 × the total variance, one component is always kept. Its null mean is about ``sqrt(2 / (π n))``.

    Parameters
    ----------
    x, y
        Paired rows, shapes (n, d_x) and (n, d_y).

    Returns
    -------
    float
        In [0, 1]; NaN if one side does not vary.

    Raises
    ------
    InputError
        If the two sides differ in rows, have fewer than 3, or hold NaN or infinity.

    Examples
    --------
    >>> x = np.array([[0.0, 0.0], [1.0, 0.1], [2.0, -0.1]])
    >>> round(svcca_pc1(x, -x), 6)
    1.0
    """
    return of_rows(SvccaPc1(), *paired_rows(x, y))


def principal_scores(x: ArrayLike, variance: float = VARIANCE) -> NDArray[np.float64]:
    """Return orthonormal scores of the fewest principal components that hold `variance` of the rows' variance.

    Parameters
    ----------
    x
        Rows, shape (n, d).
    variance
        Share of the summed squared singular values, in (0, 1].

    Returns
    -------
    ndarray of float64, shape (n, k)
        Columns have mean 0 and length 1, the largest component first; k = 0 if the rows do not vary.

    Raises
    ------
    InputError
        If `variance` is not in (0, 1].

    Examples
    --------
    >>> principal_scores(np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 0.1], [0.0, -0.1]])).shape
    (4, 1)
    """
    _check_variance(variance)
    side = decompose(np.asarray(x, np.float64))
    return np.ascontiguousarray(side.u[:, : n_components(side.s, variance)], np.float64)


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
    """Say that the larger side has many directions that count for nothing; an empty string where it has not.

    Examples
    --------
    >>> unequal(512, 768)
    'of unequal sides: 512 and 768 components; the mean is over 512, and 256 directions of the larger count for nothing'
    >>> unequal(6, 7)
    ''
    """
    small, large = sorted((k_a, k_b))
    if large <= UNEQUAL * small:
        return ""
    return (
        f"of unequal sides: {k_a} and {k_b} components; the mean is over {small}, and {large - small} directions of "
        "the larger count for nothing"
    )


def _check_variance(variance: float) -> None:
    if not 0 < variance <= 1:
        raise InputError(f"variance is the share that the kept components hold, in (0, 1], not {variance}")
