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
storage.errors.CorruptError: /.../r cannot be read (...); `subspace verify` says what of it is damaged
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from storage.damage import reading
from storage.errors import InputError

REMEDY = "`subspace verify` says what of it is damaged"


class _Named(BackendArray):
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
            named: Any = _Named(variable._data, f"{path}/{name}")
            lazy: Any = indexing.LazilyIndexedArray(named)
            guarded: Any = indexing.CopyOnWriteArray(lazy)
            variable._data = guarded
    return ds


def source_of(data: xr.Dataset | str | Path) -> Path:
    """Return where a store or result is that is read from its files, not from the dataset.

    Parameters
    ----------
    data
        A path, or a dataset as it was opened.

    Raises
    ------
    InputError
        If the dataset does not know its path, or was changed since it was opened: that would be ignored.

    Examples
    --------
    >>> import storage, tempfile
    >>> path = tempfile.mkdtemp() + "/pairs.zarr"
    >>> manifest = storage.new_manifest("match", {}, {})
    >>> storage.write_result(xr.Dataset({"r": ("pair", [0.5, 0.25])}), path, manifest)
    >>> source_of(storage.open_result(path)).name
    'pairs.zarr'
    >>> source_of(storage.open_result(path).isel(pair=[1, 0]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    storage.errors.InputError: 'r' of this dataset was changed since it was opened from ...
    """
    if not isinstance(data, xr.Dataset):
        return Path(data)
    source = data.encoding.get("source")
    if source is None:
        raise InputError("This dataset does not know its path on disk: give the path instead")
    changed = next(_changed(data, Path(source)), None)
    if changed is not None:
        raise InputError(
            f"{changed!r} of this dataset was changed since it was opened from {source}, which is what is read: give "
            "the path to use it as it is there, or write a result of your own and give that"
        )
    return Path(source)


def _changed(ds: xr.Dataset, source: Path) -> Iterator[str]:
    """Yield the names of the variables that are no longer what the files hold."""
    from storage.activations import open_activations  # noqa: PLC0415 - they open through this module
    from storage.results import open_group  # noqa: PLC0415
    from storage.writer import ACTIVATION  # noqa: PLC0415

    fresh = open_activations(source) if ACTIVATION in ds else open_group(source)
    for name, variable in fresh.variables.items():
        if name not in ds.variables:
            continue
        given = ds.variables[name]
        if given.chunks is not None:
            same = variable.chunks is not None and given.data.name == variable.data.name
        elif given._in_memory:
            same = given.dims == variable.dims and _equal(given.values, variable.values)
        else:
            same = given.dims == variable.dims and _is_whole(given._data)
        if not same:
            yield str(name)


def _equal(x: Any, y: Any) -> bool:
    return bool(np.array_equal(x, y, equal_nan=x.dtype.kind == "f" == y.dtype.kind))


def _is_whole(data: Any) -> bool:
    """Say whether a variable that was not read yet is all of its array, in order."""
    while not isinstance(data, indexing.LazilyIndexedArray):
        if not hasattr(data, "array"):
            return False
        data = data.array
    whole = (slice(0, length, 1) for length in data.array.shape)
    return all(
        isinstance(part, slice) and slice(*part.indices(length)) == every
        for part, length, every in zip(data.key.tuple, data.array.shape, whole, strict=True)
    )
