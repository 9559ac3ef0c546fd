"""Singular vector canonical correlation analysis, and what the literature has published under its name.

Raghu, Gilmer, Yosinski, Sohl-Dickstein: SVCCA (arXiv 1706.05806, 2017). Both sides are centred and reduced to the
principal components that hold most of their variance; the score is the mean canonical correlation of the two reduced
spaces. With orthonormal scores ``U`` of the kept components, the canonical correlations are the singular values of
``U_aᵀ U_b`` (Björck and Golub, Mathematics of Computation 27, 1973).

A shuffled pairing permutes the rows of one side. That permutes the rows of its ``U`` and changes nothing else, so a
shuffled run needs no new decomposition, only the product and its singular values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.compare.rows import paired_rows
from storage.errors import InputError

#: Share of the variance that the kept components hold, as in the paper.
VARIANCE = 0.99


class Svcca(NamedTuple):
    """An SVCCA score and how many components of either side it rests on."""

    score: float
    k_a: int
    k_b: int


class Subspaces(NamedTuple):
    """Orthonormal scores of either side's kept components, shapes (n, k_a) and (n, k_b), ready for any pairing."""

    u_a: NDArray[np.floating]
    u_b: NDArray[np.floating]

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of components, k_a and k_b."""
        return self.u_a.shape[1], self.u_b.shape[1]

    @property
    def empty(self) -> bool:
        """Whether a side does not vary at all."""
        return 0 in self.sizes


def svcca(x: ArrayLike, y: ArrayLike, variance: float = VARIANCE) -> Svcca:
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

    Returns
    -------
    Svcca
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
    >>> svcca(x, 3 * x @ rotation, variance=1.0)
    Svcca(score=1.0, k_a=5, k_b=5)
    >>> svcca(x, rng.normal(size=(200, 5))).score < 0.3
    True
    """
    spaces = subspaces(x, y, variance)
    return Svcca(mean_canonical_correlation(spaces, np.arange(len(spaces.u_a))), *spaces.sizes)


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
    spaces = subspaces(x, y)
    return first_component_correlation(spaces, np.arange(len(spaces.u_a)))


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
    if not 0 < variance <= 1:
        raise InputError(f"variance is the share that the kept components hold, in (0, 1], not {variance}")
    rows = np.asarray(x, np.float64)
    u, s, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    # directions that exist by rounding alone would otherwise correlate like real ones
    s = s[s > max(rows.shape) * np.finfo(np.float64).eps * np.abs(rows).max(initial=0.0) * np.sqrt(len(rows))]
    share = np.cumsum(s**2) / np.sum(s**2)
    # the cumulative share may end a rounding error below 1
    k = min(int(np.searchsorted(share, variance * (1 - 1e-12))) + 1, len(s))
    return np.ascontiguousarray(u[:, :k])


def mean_canonical_correlation(spaces: Subspaces, pairing: NDArray[np.int64]) -> float:
    """Return the mean over min(k_a, k_b) canonical correlations under a pairing.

    Parameters
    ----------
    spaces
        Both sides' scores.
    pairing
        Which B row is paired with each A row, shape (n,).

    Returns
    -------
    float
        In [0, 1]; NaN if a side does not vary.

    Examples
    --------
    >>> u = np.array([[0.8], [-0.6], [0.0]])
    >>> round(mean_canonical_correlation(Subspaces(u, -u), np.array([0, 1, 2])), 2)
    1.0
    """
    if spaces.empty:
        return float("nan")
    products = (spaces.u_a.T @ spaces.u_b[pairing]).astype(np.float64)
    smaller = products.T if products.shape[0] > products.shape[1] else products
    # their squares are the eigenvalues of a small symmetric matrix: three times as fast as singular values
    squares = np.linalg.eigvalsh(smaller @ smaller.T)
    return float(np.sqrt(np.clip(squares, 0.0, 1.0)).mean())


def first_component_correlation(spaces: Subspaces, pairing: NDArray[np.int64]) -> float:
    """Return ``|Pearson r|`` of the scores on either side's first component under a pairing.

    Parameters and result are those of :func:`mean_canonical_correlation`.

    Examples
    --------
    >>> u = np.array([[0.8], [-0.6], [0.0]])
    >>> round(first_component_correlation(Subspaces(u, u), np.array([1, 0, 2])), 2)
    0.96
    """
    if spaces.empty:
        return float("nan")
    return float(min(abs(spaces.u_a[:, 0] @ spaces.u_b[pairing, 0]), 1.0))


def saturation(spaces: Subspaces) -> str:
    """Return a warning where chance alone scores near 1, and an empty string elsewhere.

    Examples
    --------
    >>> saturation(Subspaces(np.eye(5)[:, :3], np.eye(5)[:, :2]))
    'saturated: 5 pairs, not more than the 3 + 2 components kept, so that any pairing scores high'
    >>> saturation(Subspaces(np.eye(6)[:, :3], np.eye(6)[:, :2]))
    ''
    """
    n, (k_a, k_b) = len(spaces.u_a), spaces.sizes
    if n > k_a + k_b:
        return ""
    return f"saturated: {n} pairs, not more than the {k_a} + {k_b} components kept, so that any pairing scores high"


def memory_needed(n: int, d_a: int, d_b: int) -> int:
    """Return how many bytes CCA of `n` pairs needs at most.

    Both sides' rows, the same centred, their scores, and a shuffled copy of these, float64.

    Examples
    --------
    >>> memory_needed(2000, 576, 384) / 1e6
    61.44
    """
    return 4 * 8 * n * (d_a + d_b)


def subspaces(x: ArrayLike, y: ArrayLike, variance: float = VARIANCE) -> Subspaces:
    """Reduce both sides to orthonormal scores; see :func:`principal_scores`.

    Parameters
    ----------
    x, y
        Paired rows, shapes (n, d_x) and (n, d_y).
    variance
        Share of the variance that the kept components hold.

    Returns
    -------
    Subspaces

    Raises
    ------
    InputError
        If the two sides differ in rows, have fewer than 3, or hold NaN or infinity.
    """
    rows_x, rows_y = paired_rows(x, y)
    return Subspaces(principal_scores(rows_x, variance), principal_scores(rows_y, variance))


def single_subspaces(x: ArrayLike, y: ArrayLike) -> Subspaces:
    """Return :func:`subspaces` in single precision, for thousands of pairings.

    A product then takes half the time and memory, and moves a score by less than 1e-7.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(9, 2))
    >>> single_subspaces(x, x).u_a.dtype
    dtype('float32')
    """
    return Subspaces(*(side.astype(np.float32) for side in subspaces(x, y)))
