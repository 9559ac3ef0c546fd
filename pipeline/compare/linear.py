"""What all linear metrics start from: the principal components of both sides, and one product for each pairing.

With the centred rows of either side as ``X = U S Vᵀ`` (thin singular value decomposition), every linear metric of a
pairing P is a function of ``C = U_aᵀ P U_b`` and of what does not depend on the pairing:

* canonical correlations are the singular values of C, or of its leading block (Björck and Golub, Mathematics of
  Computation 27, 1973);
* ``XᵀPY`` is ``S_a C S_b`` but for a rotation of either side, so that its Frobenius norm (CKA) and its nuclear norm
  (Procrustes) are those of ``S_a C S_b``.

A shuffled pairing permutes the rows of one U and changes nothing else: no new decomposition, one product for all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.base import Metric, Pairing, Rows

#: Rows of a larger condition number are not decomposed by their cross-product: scores would be off by more than 1e-8.
LARGEST_CONDITION = 1e4


class Components(NamedTuple):
    """One side's principal components, the largest first.

    Attributes
    ----------
    u
        Orthonormal scores, shape (n, k); columns have mean 0 and length 1.
    s
        Singular values of all components that are more than rounding, shape (r,) with r ≥ k.
    loadings
        ``S Vᵀ`` of the kept components, shape (k, d): the centred rows are ``u @ loadings`` where k = r.
    squares
        Squared length of every centred row, shape (n,); of no rows where only sums over them are known.
    """

    u: NDArray[np.floating]
    s: NDArray[np.float64]
    loadings: NDArray[np.float64]
    squares: NDArray[np.float64]


class LinearState(NamedTuple):
    """Both sides' components, ready for any pairing."""

    a: Components
    b: Components

    @property
    def n(self) -> int:
        """The number of pairs."""
        return len(self.a.u)

    @property
    def empty(self) -> bool:
        """Whether a side does not vary at all."""
        return 0 in (len(self.a.s), len(self.b.s))


class Lengths(NamedTuple):
    """Sums over the pairs of products of squared lengths of the centred rows: A's with itself, B's, A's with B's."""

    aa: float
    bb: float
    ab: float


@dataclass(frozen=True)
class Product:
    """``C = U_aᵀ P U_b`` of one pairing, shape (k_a, k_b), with the state and the lengths of the rows that it pairs.

    C is float64, or float32 where thousands of pairings are scored: a rounding that moves no score by 1e-6.
    """

    state: LinearState
    c: NDArray[np.floating]
    lengths: Lengths

    @cached_property
    def cross(self) -> NDArray[np.float64]:
        """``S_a C S_b``, float64: the cross-product ``XᵀPY`` of the centred rows, but for a rotation of either side."""
        k_a, k_b = self.c.shape
        scaled = self.c * self.state.b.s[:k_b]
        scaled *= self.state.a.s[:k_a, None]
        return scaled


@dataclass(frozen=True)
class LinearMetric(Metric):
    """A metric that is a function of the principal components and of one product for each pairing."""

    of_moments: ClassVar[bool] = True

    @property
    def family(self) -> Hashable:
        """All linear metrics are one family."""
        return "linear"

    def kept(self, s: NDArray[np.float64]) -> int:
        """Return how many components of a side with singular values `s` the metric looks at."""
        return len(s)

    @staticmethod
    def prepare(metrics: Sequence[LinearMetric], x: Rows, y: Rows) -> LinearState:
        """Decompose both sides; as many components are kept as the metric needs that needs most."""
        return LinearState(*(_components(metrics, side) for side in (x, y)))

    @staticmethod
    def compact(state: LinearState) -> LinearState:
        """Return the scores in float32: a product then takes half the time and memory."""
        return LinearState(*(side._replace(u=side.u.astype(np.float32)) for side in state))

    def arrange(self, state: LinearState, pairing: Pairing) -> Product:
        """Return the product of a pairing."""
        k, ell = state.a.squares, state.b.squares
        lengths = Lengths(float(k @ k), float(ell @ ell), float(k @ ell[pairing]))
        return Product(state, state.a.u.T @ state.b.u[pairing], lengths)


def _components(metrics: Sequence[LinearMetric], rows: Rows) -> Components:
    side = decompose(rows)
    k = max(metric.kept(side.s) for metric in metrics)
    return side._replace(u=np.ascontiguousarray(side.u[:, :k]), loadings=side.loadings[:k])


def decompose(rows: Rows) -> Components:
    """Return all principal components of rows (n, d) that are more than rounding, float64; none if rows do not vary.

    Examples
    --------
    >>> side = decompose(np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 0.1], [0.0, -0.1]]))
    >>> side.s.round(3).tolist(), side.squares.round(2).tolist()
    ([4.243, 0.141], [9.0, 9.0, 0.01, 0.01])
    """
    centred = rows - rows.mean(axis=0)
    u, s, vt = _tall_svd(centred) or np.linalg.svd(centred, full_matrices=False)
    # directions that exist by rounding alone would otherwise correlate like real ones
    noise = max(rows.shape) * np.finfo(np.float64).eps * np.abs(rows).max(initial=0.0) * np.sqrt(len(rows))
    r = int(np.count_nonzero(s > noise))
    return Components(u[:, :r], s[:r], s[:r, None] * vt[:r], np.einsum("ij,ij->i", centred, centred))


def _tall_svd(centred: Rows) -> tuple[Rows, Rows, Rows] | None:
    """Return the thin decomposition ``U, S, Vᵀ`` of tall rows from ``XᵀX = V S² Vᵀ``, in less than half the time.

    None for other rows, and where squaring would cost digits that count: U is orthonormal to the square of the
    condition number times 1e-16.
    """
    n, d = centred.shape
    if n <= d:
        return None
    values, vectors = np.linalg.eigh(centred.T @ centred)
    if not values[0] > values[-1] / LARGEST_CONDITION**2:
        return None
    s, v = np.sqrt(values[::-1]), vectors[:, ::-1]
    return centred @ (v / s), s, v.T


def singular_values(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the singular values of a matrix, smallest first, to about 1e-8 of the largest.

    Their squares are the eigenvalues of a small symmetric matrix: three times as fast as a decomposition.

    Examples
    --------
    >>> singular_values(np.array([[3.0, 0.0, 0.0], [0.0, 0.0, -4.0]])).tolist()
    [3.0, 4.0]
    """
    smaller = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    return np.sqrt(np.maximum(np.linalg.eigvalsh(smaller @ smaller.T), 0.0))


def saturation(n: int, k_a: int, k_b: int) -> str:
    """Return a warning where chance alone scores near 1, and an empty string elsewhere.

    Two spaces of k_a and k_b dimensions among n - 1 meet in at least k_a + k_b - (n - 1), where the canonical
    correlation is exactly 1; chance is high far beyond that.

    Examples
    --------
    >>> saturation(5, 3, 2)
    'saturated: 5 pairs, not more than the 3 + 2 components kept, so that any pairing scores high'
    >>> saturation(6, 3, 2)
    ''
    """
    if n > k_a + k_b:
        return ""
    return f"saturated: {n} pairs, not more than the {k_a} + {k_b} components kept, so that any pairing scores high"
