"""The dense kernel: sums of products by blocked float32 matrix products into float64 tiles, in the Python array API.

The functions take the array namespace `xp` (NumPy, or PyTorch and CuPy through ``array_api_compat``) and arrays of
that namespace, and use nothing beyond the standard; with NumPy, two passes over memory are compiled loops, and
products go to memory that is there.

Values are scaled by a power of two, and centred where most are not 0, before they become float32: nothing is lost
where a mean is far from zero, and nothing overflows. A float32 product sums at most one slab of rows; slabs are added
in float64. What remains is rounding inside a slab, which takes turns up and down: an error of r of about 1e-8, at most
:data:`ERROR` below :data:`NEAR_ONE`. Whatever that could change (an order, a threshold), and every r in a list or among
the kept pairs that is nearer to 1, is computed again in float64: see :mod:`pipeline.correlate.rescore`.

Two kinds of features would break this, and are multiplied in float64 from the start: those of few rows, where it costs
nothing, and those that repeat a value with many digits, since the same rounding again and again adds up.

Blocks have a fixed size and fixed places, so that the same feature meets the same matrix product whatever the panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np

from storage.jit import cached_njit

#: A features of one matrix product.
FEATURES = 512
#: Bound on the error of r that float32 products leave (measured on awkward data: half of it), and up to which |r|.
ERROR, NEAR_ONE = 1e-6, 0.9
#: Below so many rows, products are float64 throughout.
FEWEST_ROWS = 16_384
#: Share of rows that may repeat a value of many digits.
MOST_REPEATS = 1e-3


def standardise(xp: ModuleType, values: Any, rows: Any, scaling: tuple[Any, Any], out: Any) -> None:
    """Set `out`, (chosen, feature) float32, to ``value · scale − offset`` of some rows of a block.

    Where `scale` is a power of two and a value lies within a factor of two of the mean, nothing is rounded (Sterbenz
    1974): features whose mean is far beyond their standard deviation keep all their digits. `scaling` is scale and
    offset, (feature,) each, of the same type as `values`.

    Examples
    --------
    >>> import numpy as np
    >>> out = np.empty((1, 2), "f4")
    >>> scaling = np.array([0.5, 1.0]), np.array([2.0, 7.0])
    >>> standardise(np, np.array([[0.0, 0.0], [5.0, 7.0]]), np.array([1]), scaling, out)
    >>> out
    array([[0.5, 0. ]], dtype=float32)
    """
    if array_api_compat.is_numpy_namespace(xp):
        _standardise(values, rows, *scaling, out)
    else:
        out[:, :] = xp.astype(xp.take(values, rows, axis=0) * scaling[0] - scaling[1], xp.float32)


@cached_njit
def _standardise(values: Any, rows: Any, scale: Any, offset: Any, out: Any) -> None:
    """Do in one pass over memory what takes NumPy four."""
    for t in range(rows.size):
        row = rows[t]
        for j in range(values.shape[1]):
            out[t, j] = values[row, j] * scale[j] - offset[j]


def add_products(xp: ModuleType, tile: Any, a: Any, b: Any, double: Sequence[bool] | None = None) -> None:
    """Add ``aᵀ · b``, both (row, feature) float32, to a float64 `tile` in place; it may be a view.

    `double`: for each block of :data:`FEATURES` A features, whether products and sums are float64; none by default.

    Examples
    --------
    >>> import numpy as np
    >>> tile = np.zeros((1, 2))
    >>> add_products(np, tile, np.array([[1.0], [2.0]], "f4"), np.array([[3.0, 0.0], [4.0, 1.0]], "f4"))
    >>> tile
    array([[11.,  2.]])
    """
    on_host = array_api_compat.is_numpy_namespace(xp)
    wide_b = xp.astype(b, xp.float64) if double and any(double) else b
    room = np.empty((min(FEATURES, tile.shape[0]), b.shape[1]), np.float32) if on_host else None
    for i, first in enumerate(range(0, tile.shape[0], FEATURES)):
        block = slice(first, min(first + FEATURES, tile.shape[0]))
        if double and double[i]:
            product = xp.matmul(xp.matrix_transpose(xp.astype(a[:, block], xp.float64)), wide_b)
        elif room is not None:  # fresh memory for every product costs a page fault for every 4 KB
            product = np.matmul(a[:, block].T, b, out=room[: block.stop - block.start])
        else:
            product = xp.matmul(xp.matrix_transpose(a[:, block]), b)
        if on_host:
            _add(tile[block, :], product)
        else:
            tile[block, :] += product


@cached_njit
def _add(tile: Any, product: Any) -> None:
    """Add in place; NumPy takes 2.5 times as long for two types."""
    for i in range(tile.shape[0]):
        for j in range(tile.shape[1]):
            tile[i, j] += product[i, j]
