"""Statistics of every feature, from one shard at a time.

Each shard gives count, mean and summed squared deviations, in float64 and in two passes; shards are merged in order
by the rule of Chan, Golub and LeVeque (1979), so that nothing is lost where a mean is far from zero.

>>> import scipy.sparse
>>> moments = FeatureMoments(2)
>>> moments.add(np.array([[1.0, 0.0], [3.0, 0.0]]))
>>> moments.add(scipy.sparse.csr_array([[5.0, 0.0]]))
>>> moments.mean, moments.maximum, moments.n_active
(array([3., 0.]), array([5., 0.]), array([3, 0]))
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.codec import is_sparse_matrix
from storage.shards import iter_slices

# Rows of a dense array that are widened to float64 at a time.
BLOCK_ROWS = 1024


class FeatureMoments:
    """Running mean, deviations, maximum and count of active rows of every feature.

    Attributes
    ----------
    n
        Rows seen.
    mean
        (feature,) float64.
    squares
        (feature,) float64, the summed squared deviations from the mean.
    n_active
        (feature,) int64, rows in which the feature is not zero.
    maximum
        (feature,) float64; NaN before any row.
    """

    def __init__(self, n_features: int) -> None:
        self.n = 0
        self.mean = np.zeros(n_features)
        self.squares = np.zeros(n_features)
        self.n_active = np.zeros(n_features, np.int64)
        self.maximum = np.full(n_features, np.nan)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of every feature, divided by n (not n − 1); NaN before any row."""
        return np.sqrt(self.squares / self.n) if self.n else np.full_like(self.mean, np.nan)

    def add(self, rows: Any) -> None:
        """Take in a SciPy CSR array or a dense array of shape (any, feature)."""
        n = rows.shape[0]
        if n == 0:
            return
        part = _sparse_parts(rows.tocsr()) if is_sparse_matrix(rows) else _dense_parts(rows)
        mean, squares, active, maximum = part
        total = self.n + n
        delta = mean - self.mean
        self.mean = self.mean + delta * (n / total)
        self.squares = self.squares + squares + delta**2 * (self.n * n / total)
        self.n_active = self.n_active + active
        self.maximum = np.fmax(self.maximum, maximum)
        self.n = total


Parts = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


def _sparse_parts(csr: Any) -> Parts:
    """Return mean, squared deviations, active rows and maximum of the columns of a sparse array."""
    n, features = csr.shape
    ids, values = csr.indices, csr.data.astype(np.float64)
    stored = np.bincount(ids, minlength=features)
    # A constant must get exactly zero deviation: count from a value of the column itself, or from the implicit zero
    origin = np.zeros(features)
    origin[ids] = values
    origin[stored < n] = 0.0
    mean = origin + np.bincount(ids, values - origin[ids], features) / n
    squares = np.bincount(ids, (values - mean[ids]) ** 2, features) + (n - stored) * mean**2
    active = np.bincount(ids, values != 0, features).astype(np.int64)
    maximum = np.where(stored < n, 0.0, -np.inf)
    np.maximum.at(maximum, ids, values)
    return mean, squares, active, maximum


def _dense_parts(dense: NDArray[Any]) -> Parts:
    """Return mean, squared deviations, active rows and maximum of the columns of a dense array."""
    origin = dense[0].astype(np.float64)
    blocks = list(iter_slices(len(dense), BLOCK_ROWS))
    mean = origin + sum((dense[block] - origin).sum(axis=0) for block in blocks) / len(dense)
    squares = sum(((dense[block] - mean) ** 2).sum(axis=0) for block in blocks)
    return mean, squares, np.count_nonzero(dense, axis=0), dense.max(axis=0).astype(np.float64)
