"""Results that are read later: the same values by every kind of index, and damage with the array's name."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr

import storage
from storage.errors import CorruptError
from storage.lazy import name_errors
from storage.results import open_group


@pytest.fixture
def path(tmp_path):
    ds = xr.Dataset({"r": (("a", "b"), np.arange(60.0).reshape(12, 5)), "name": ("a", np.arange(12).astype(str))})
    storage.write_result(ds, tmp_path / "x.zarr", storage.new_manifest("match", {}, {}))
    return tmp_path / "x.zarr"


def test_every_kind_of_index(path):
    lazy, plain = name_errors(storage.open_result(path), path), storage.open_result(path).load()
    assert not lazy["r"].variable._in_memory
    for index in (
        {"a": 3},
        {"a": slice(2, 9, 3)},
        {"a": [5, 1, 1]},
        {"a": [7, 2], "b": [1, 0]},
        {"b": np.arange(5) > 2},
    ):
        xr.testing.assert_identical(lazy.isel(index), plain.isel(index))
    pointwise = {"a": xr.DataArray([1, 4], dims="p"), "b": xr.DataArray([0, 3], dims="p")}
    xr.testing.assert_identical(lazy.isel(pointwise), plain.isel(pointwise))
    assert lazy["r"].chunk(a=5).sum().compute() == plain["r"].sum()
    xr.testing.assert_identical(pickle.loads(pickle.dumps(lazy)), plain)


def test_damage_is_named(path):
    (chunk,) = (path / "r" / "c").rglob("0/0")
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    lazy = open_group(path)  # `open_result` reads a file that was touched at once
    assert lazy["name"].values[3] == "3"
    with pytest.raises(CorruptError, match=r"x.zarr/r cannot be read .*`subspace verify`"):
        lazy["r"].mean()
