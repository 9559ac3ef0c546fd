"""Where a dataset is read from that was opened lazily: its files are what counts, not what was done to it since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from storage.activations import open_activations
from storage.errors import InputError
from storage.results import open_group
from storage.writer import ACTIVATION


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
    """Return whether a variable that was not read yet is all of its array, in order."""
    while not isinstance(data, indexing.LazilyIndexedArray):
        if not hasattr(data, "array"):
            return False
        data = data.array
    whole = (slice(0, length, 1) for length in data.array.shape)
    return all(
        isinstance(part, slice) and slice(*part.indices(length)) == every
        for part, length, every in zip(data.key.tuple, data.array.shape, whole, strict=True)
    )
