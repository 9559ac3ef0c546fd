"""The permuted copy of a store, and the documents in which features fire, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import storage
from pipeline.rematch import permuted
from pipeline.rematch.permuted import documents_of_features, write_permuted
from storage.errors import BudgetError

N = 300


@pytest.fixture(params=["csr", "dense"])
def store(request, tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(N, 7)) * (rng.random((N, 7)) < 0.2)).astype("f4")
    tokens = {"document": np.arange(N) // 23, "char_start": np.arange(N), "char_end": np.arange(N) + 1}
    storage.write_activations(
        tmp_path / "b.zarr", x, tokens=tokens, layout=request.param, shard_rows=64, attrs={"kind": "post"}
    )
    return tmp_path / "b.zarr", x, tokens


def contents(folder):
    # what Zarr writes of times, and inventories with them, is in the metadata
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "zarr.json"
    }


@pytest.mark.parametrize("memory", [1, 10**9])
def test_rows_are_where_the_order_has_them(store, tmp_path, memory):
    path, x, tokens = store
    order = np.random.default_rng(1).permutation(N)
    order[[3, 70, 299]] = -1
    write_permuted(path, order, tmp_path / "copy.zarr", memory=memory)
    copy = storage.open_activations(tmp_path / "copy.zarr")
    np.testing.assert_array_equal(copy["activation"].values, np.where((order >= 0)[:, None], x[order], 0))
    np.testing.assert_array_equal(copy["document"].values, tokens["document"])
    assert (copy.attrs["layout"], copy.attrs["kind"]) == (storage.open_activations(path).attrs["layout"], "post")
    storage.rows.check_same_rows(path, tmp_path / "copy.zarr")


def test_several_passes_write_the_bytes_of_one(store, tmp_path, monkeypatch):
    path, _, _ = store
    passes = []
    gathered = permuted._gathered
    monkeypatch.setattr(permuted, "_gathered", lambda *args: passes.append(1) or gathered(*args))
    order = np.random.default_rng(1).permutation(N)
    made = []
    for name, memory in (("one", 10**9), ("several", 1)):
        write_permuted(path, order, tmp_path / f"{name}.zarr", memory=memory)
        made.append((len(passes), contents(tmp_path / f"{name}.zarr")))
        passes.clear()
    assert [count for count, _ in made] == [1, 5]
    assert made[0][1] == made[1][1]


def test_a_full_disk_is_said_before_anything_is_written(store, tmp_path, monkeypatch):
    monkeypatch.setattr(permuted, "free_space", lambda path: (10, path.parent))
    with pytest.raises(BudgetError, match=r"b\.zarr takes about .* give --out on another disk"):
        write_permuted(store[0], np.arange(N), tmp_path / "copy.zarr", memory=1)
    assert not (tmp_path / "copy.zarr").exists()


def test_documents_of_features_are_those_of_numpy(store):
    path, x, tokens = store
    counted = np.random.default_rng(2).random(N) < 0.5
    expected = [len(np.unique(tokens["document"][counted & (x[:, i] != 0)])) for i in range(x.shape[1])]
    assert documents_of_features(path, counted).tolist() == expected
    assert sp.csr_array(x).nnz < x.size
