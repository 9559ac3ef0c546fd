"""The sparse kernel on a GPU: one warp adds the products of one A feature, row after row, to its row of the tile.

::

    thread block a: row 17, 2.5   ─────▶   row 17 of B: b 3 0.5, b 9 1.0, …    a thread each   ─────▶   tile[a, 3] += …
         (32 threads)   wait for each other
                    row 90, 0.1   ─────▶   row 90 of B: b 3 2.0, …

No two threads of a block ever add to the same number at once (a feature stands once in a row), and rows come in their
order. So every sum is made by the additions of :mod:`pipeline.correlate.kernels.sparse`, in the same order, each
rounded as there (``__dmul_rn`` and ``__dadd_rn`` are never joined to one operation): its bits are the same. cuSPARSE,
behind ``cupyx.scipy.sparse``, promises no order, so that a feature's product with itself would not be the sum of its
squares; and it asks for room for products of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.correlate.kernels.csr import Columns, Rows
from pipeline.correlate.kernels.device import Device

#: Threads of a block: one warp.
WARP = 32
#: How CUDA calls the types of values and feature ids.
NAMES = {"float32": "float", "float64": "double", "uint16": "unsigned short", "uint32": "unsigned int"}
#: CUDA C++, behind the definitions of VALUE_A, VALUE_B and FEATURE.
SOURCE = """
extern "C" __global__ void scatter(
    double* tile, long long width, long long first, const long long* start_a, const unsigned int* row_a,
    const VALUE_A* value_a, const long long* start_b, const FEATURE* feature_b, const VALUE_B* value_b)
{
    double* sums = tile + blockIdx.x * width;
    const long long end = start_a[first + blockIdx.x + 1];
    for (long long i = start_a[first + blockIdx.x]; i < end; i++) {
        const long long row = row_a[i];
        const double value = value_a[i];
        for (long long at = start_b[row] + threadIdx.x; at < start_b[row + 1]; at += blockDim.x) {
            double* sum = sums + feature_b[at];
            *sum = __dadd_rn(*sum, __dmul_rn(value, value_b[at]));
        }
        __syncthreads();
    }
}
"""

Kernel = Callable[[tuple[int], tuple[int], tuple[Any, ...]], None]


def source_for(value_a: str, value_b: str, feature: str) -> str:
    """Return the source for values and feature ids of some types, by NumPy's names.

    >>> source_for("float32", "float64", "uint16").splitlines()[0]
    'typedef float VALUE_A; typedef double VALUE_B; typedef unsigned short FEATURE;'
    """
    named = (NAMES[value_a], "VALUE_A"), (NAMES[value_b], "VALUE_B"), (NAMES[feature], "FEATURE")
    return " ".join(f"typedef {known} {new};" for known, new in named) + SOURCE


@functools.cache
def compiled(value_a: str, value_b: str, feature: str) -> Kernel:
    """Return the kernel for these types; CuPy compiles it at its first call, and keeps it on disk."""
    import cupy  # noqa: PLC0415 - an extra, and slow to import

    kernel: Kernel = cupy.RawKernel(source_for(value_a, value_b, feature), "scatter")
    return kernel


def add_products(device: Device, tiles: Sequence[Any], columns: Columns, b: Rows) -> None:
    """Add the products of one slab of rows, both sides on the host, to the tile of each half on the device."""
    kernel = compiled(columns.value.dtype.name, b.value.dtype.name, b.feature.dtype.name)
    given = [device.put(array) for array in (*columns, *b)]
    for half, tile in enumerate(tiles):
        n_panel, width = tile.shape
        if tile.size:
            kernel((n_panel,), (WARP,), (tile, np.int64(width), np.int64(half * n_panel), *given))
