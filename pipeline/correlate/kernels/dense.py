"""The dense kernel: sums of products of centred values by blocked matrix products, in the Python array API.

The functions take the array namespace `xp` (NumPy, or PyTorch and CuPy through ``array_api_compat``) and arrays of
that namespace, and use nothing beyond the standard. Values are centred by their float64 mean before they are
multiplied, so that nothing is lost where a mean is far from zero, and products are summed in float64.

Blocks have a fixed size and fixed places, so that the same feature meets the same matrix product whatever the panel.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

#: Rows and A features of one matrix product.
ROWS, FEATURES = 1024, 256


def centre(xp: ModuleType, values: Any, mean: Any) -> Any:
    """Return ``values - mean`` in float64.

    Parameters
    ----------
    xp
        Array namespace.
    values
        (row, feature), any float type.
    mean
        (feature,) float64.
    """
    return xp.astype(values, xp.float64) - mean


def add_products(xp: ModuleType, tile: Any, a: Any, b: Any) -> None:
    """Add ``aᵀ · b`` to `tile` in place.

    Parameters
    ----------
    xp
        Array namespace.
    tile
        (feature_a, feature_b) float64; may be a view.
    a
        (row, feature_a) float64, centred.
    b
        (row, feature_b) float64, centred.

    Examples
    --------
    >>> import numpy as np
    >>> tile = np.zeros((1, 2))
    >>> add_products(np, tile, np.array([[1.0], [2.0]]), np.array([[3.0, 0.0], [4.0, 1.0]]))
    >>> tile
    array([[11.,  2.]])
    """
    for first in range(0, tile.shape[0], FEATURES):
        block = slice(first, min(first + FEATURES, tile.shape[0]))
        tile[block, :] += xp.matmul(xp.matrix_transpose(a[:, block]), b)


def add_centred_products(xp: ModuleType, tile: Any, a: Any, b: Any, means: tuple[Any, Any]) -> None:
    """Centre both sides, a few rows at a time, and add their products to `tile` in place.

    Parameters
    ----------
    xp
        Array namespace.
    tile
        (feature_a, feature_b) float64; may be a view.
    a, b
        (row, feature_a) and (row, feature_b), any float type.
    means
        (feature_a,) and (feature_b,) float64.
    """
    for first in range(0, a.shape[0], ROWS):
        rows = slice(first, min(first + ROWS, a.shape[0]))
        add_products(xp, tile, centre(xp, a[rows, :], means[0]), centre(xp, b[rows, :], means[1]))
