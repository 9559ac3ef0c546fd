"""Results that are read later: the same values by every kind of index, and damage with the array's name."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr

import storage
from storage.errors import CorruptError, InputError
from storage.guarded import name_errors
from storage.lazy import source_of
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


class TestSourceOf:
    @pytest.fixture
    def opened(self, tmp_path):
        x = np.random.default_rng(0).random((60, 5)) * (np.arange(300).reshape(60, 5) % 3 == 0)
        storage.write_activations(tmp_path / "a.zarr", x, decoder=np.eye(5, 3), shard_rows=20)
        result = xr.Dataset({"r": (("i", "j"), np.arange(6.0).reshape(2, 3)), "n": ("i", [1, 2])})
        storage.write_result(result, tmp_path / "r.zarr", storage.new_manifest("match", {}, {}))
        return storage.open_activations(tmp_path / "a.zarr"), storage.open_result(tmp_path / "r.zarr")

    def test_a_dataset_as_it_was_opened_or_loaded(self, opened, tmp_path):
        store, result = opened
        for same in (store, store.copy(), store[["activation", "mean"]], store.load(), store.assign(mine=1)):
            assert source_of(same) == tmp_path / "a.zarr"
        for same in (result, result.copy(), result.load(), result.isel(i=slice(None)), result.drop_vars("n")):
            assert source_of(same) == tmp_path / "r.zarr"

    def test_what_was_changed_is_named(self, opened):
        store, result = opened
        zeros = result.copy()
        zeros["r"] = xr.zeros_like(zeros["r"])
        parts = result.isel(i=[0]), result.isel(i=[1, 0]), result.isel(j=slice(None, None, -1))
        for changed in (*parts, zeros, result * 1.5):
            changed.encoding["source"] = result.encoding["source"]
            with pytest.raises(InputError, match=r"'[rn]' of this dataset was changed since it was opened"):
                source_of(changed)
        parts = store.isel(token=slice(10)), store.isel(feature=[1, 0, 2, 3, 4])
        for changed in (*parts, store.where(store.activation > 0.5)):
            changed.encoding["source"] = store.encoding["source"]
            with pytest.raises(InputError, match="was changed since it was opened"):
                source_of(changed)
        with pytest.raises(InputError, match="does not know its path"):
            source_of(xr.Dataset())
