"""Variables that are read later, and whose damage is then named: Zarr says what is wrong, but not where.

>>> import tempfile, zarr
>>> folder = tempfile.mkdtemp()
>>> _ = xr.Dataset({"r": ("pair", [0.5, 0.25])}).to_zarr(folder, zarr_format=3, consolidated=False)
>>> ds = name_errors(xr.open_zarr(folder, consolidated=False, chunks=None), folder)
>>> ds.r.values
array([0.5 , 0.25])
>>> _ = Path(folder, "r", "c", "0").write_bytes(b"none")
>>> name_errors(xr.open_zarr(folder, consolidated=False, chunks=None), folder).r.values  # doctest: +ELLIPSIS
Traceback (most recent call last):
storage.errors.CorruptError: /.../r cannot be read (...); `subspace verify` lists what is damaged
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from storage.damage import reading

REMEDY = "`subspace verify` lists what is damaged"


class _GuardedArray(BackendArray):
    """An array that is read when it is used, with errors that name it."""

    def __init__(self, array: Any, place: str) -> None:
        self.array = array
        self.place = place
        self.shape = array.shape
        self.dtype = array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        with reading(self.place, REMEDY):
            return indexing.apply_indexer(self.array, key).get_duck_array()


def name_errors(ds: xr.Dataset, path: str | Path) -> xr.Dataset:
    """Have whatever Zarr raises as variables are read arrive as a CorruptError that names the array.

    The dataset is as :func:`xarray.open_zarr` opened it at `path`, without Dask; it is changed in place and returned.
    """
    for name, variable in ds.variables.items():
        if not variable._in_memory:
            guarded: Any = _GuardedArray(variable._data, f"{path}/{name}")
            lazy: Any = indexing.LazilyIndexedArray(guarded)
            guarded_copy: Any = indexing.CopyOnWriteArray(lazy)
            variable._data = guarded_copy
    return ds
