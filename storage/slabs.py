"""Activations in whatever form they come, cut into slabs of the rows of one shard.

>>> [slab.shape for slab in reslab([np.ones((3, 2)), np.ones((4, 2))], 5)]
[(5, 2), (2, 2)]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import dask.array
import numpy as np
import scipy.sparse
import xarray as xr
from numpy.typing import NDArray

from storage.codec import canonical, is_sparse_matrix
from storage.errors import InputError
from storage.shards import iter_slices

SAMPLED_ROWS = 1024


def iter_slabs(data: Any, rows: int) -> Iterator[Any]:
    """Yield `data` in two-dimensional NumPy or SciPy slabs of any number of rows."""
    if isinstance(data, xr.DataArray):
        data = data.data
    if isinstance(data, dask.array.Array):
        if np.isnan(data.shape).any():
            raise InputError("The Dask array has chunks of unknown size; call compute_chunk_sizes() on it first")
        return (data[part].compute() for part in iter_slices(data.shape[0], rows))
    if is_sparse_matrix(data):
        csr = scipy.sparse.csr_array(data)
        return (csr[part] for part in iter_slices(csr.shape[0], rows))
    if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
        return iter([plain_array(data)])
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise InputError(
            f"Activations come as a NumPy array, a SciPy sparse matrix, a Dask array, or an iterable of those, "
            f"not {type(data).__name__}"
        )
    return iter(data)


def plain_array(data: Any) -> NDArray[Any]:
    """Return data as a NumPy array; values behind a mask would come to light, so there must be none.

    Raises
    ------
    InputError
        If values are masked.

    Examples
    --------
    >>> plain_array(np.ma.array([1, 2], mask=[False, False]))
    array([1, 2])
    """
    if np.ma.is_masked(data):
        raise InputError(
            f"{np.count_nonzero(np.ma.getmask(data))} values are masked; say what they are first: array.filled(0)"
        )
    return np.asarray(data)


def reslab(slabs: Iterable[Any], rows: int) -> Iterator[Any]:
    """Yield the same rows in slabs of exactly `rows` rows; the last may have fewer."""
    parts: list[Any] = []
    lacking, width = rows, None
    for slab in slabs:
        rest = _check_slab(slab, width)
        width = rest.shape[1]
        while rest.shape[0]:
            parts.append(rest[:lacking])
            rest = rest[lacking:]
            lacking -= parts[-1].shape[0]
            if not lacking:
                yield _stack(parts)
                parts, lacking = [], rows
    if parts:
        yield _stack(parts)


def _check_slab(slab: Any, width: int | None) -> Any:
    slab = scipy.sparse.csr_array(slab) if is_sparse_matrix(slab) else plain_array(slab)
    if slab.ndim != 2 or (width is not None and slab.shape[1] != width):
        raise InputError(f"Every slab must be (any, {width or 'feature'}); one has the shape {slab.shape}")
    return slab


def _stack(slabs: list[Any]) -> Any:
    if len(slabs) == 1:
        return slabs[0]
    if any(is_sparse_matrix(slab) for slab in slabs):
        return scipy.sparse.vstack([canonical(slab) for slab in slabs], format="csr")
    return np.concatenate(slabs)


def share_not_zero(slab: Any) -> float:
    """Return the share of values of a dense slab that are not zero, from a sample of its rows."""
    sample = slab[:: max(1, len(slab) // SAMPLED_ROWS)]
    return float(np.count_nonzero(sample) / max(1, sample.size))
