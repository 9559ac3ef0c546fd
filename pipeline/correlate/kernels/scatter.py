"""The sparse kernel on a GPU: one warp adds the products of one A feature, row after row, to its row of the tile.

::

    thread block a: row 17, 2.5   ─────▶   row 17 of B: b 3 0.5, b 9 1.0, …    a thread each   ─────▶   tile[a, 3] += …
         (32 threads)   wait for each other
                    row 90, 0.1   ─────▶   row 90 of B: b 3 2.0, …

No two threads of a block ever add to the same number at once (a feature stands once in a row), and rows come in their
order. So every sum has the order of additions of :mod:`pipeline.correlate.kernels.sparse`, and its bits: a product of
two float32 values is exact in float64, whether or not the GPU joins it with the addition. cuSPARSE promises no order,
and sums of a feature with itself would not be those of its squares; it also needs room for products of its own.
"""

# ruff: noqa: PLR0917  (compiled functions take everything by position)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import libdevice

from pipeline.correlate.kernels.csr import Columns, Rows
from pipeline.correlate.kernels.device import Device

#: Threads of a block: one warp.
WARP = 32


@cuda.jit
def scatter(
    tile: Any, first: int, start_a: Any, row_a: Any, value_a: Any, start_b: Any, feature_b: Any, value_b: Any
) -> None:
    """Add the products of one A feature, that of this thread block, with all B features to its row of the tile."""
    a = cuda.blockIdx.x
    for i in range(start_a[first + a], start_a[first + a + 1]):
        row, value = row_a[i], np.float64(value_a[i])
        for at in range(start_b[row] + cuda.threadIdx.x, start_b[row + 1], WARP):
            tile[a, feature_b[at]] += libdevice.dmul_rn(value, np.float64(value_b[at]))
        cuda.syncthreads()


def add_products(device: Device, tiles: Sequence[Any], columns: Columns, b: Rows) -> None:
    """Add the products of one slab of rows to the tiles of all halves.

    Parameters
    ----------
    device
        The GPU.
    tiles
        For each half (panel, feature_b) float64 on the device.
    columns, b
        The slab of either side, on the host.
    """
    given = [device.put(array) for array in (*columns, *b)]
    for half, tile in enumerate(tiles):
        if tile.size:
            scatter[tile.shape[0], WARP](tile, half * tile.shape[0], *given)
