"""What `inspect` says is what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import storage
from storage.errors import CorruptError, MissingInputError
from storage.inspect import inspect
from storage.listing import size_on_disk
from storage.rundir import RunDirectory


def test_a_sparse_store(tmp_path, rng, make_csr, tokens):
    matrix = make_csr(rng, 100, 50, 0.1).tolil()
    matrix[:, 3] = 0
    matrix[:, 4] = 2.0
    matrix = matrix.tocsr()
    path = tmp_path / "a.zarr"
    attrs = {"model": "toy", "site": "layers.1", "dictionary": "d", "kind": "post"}
    storage.write_activations(
        path, matrix, tokens=tokens(100), decoder=np.ones((50, 6)), attrs=attrs, shard_rows=32, chunk=(16, 20)
    )
    found = inspect(path)
    dead = np.asarray((matrix != 0).sum(axis=0)).ravel() == 0
    files = sum(file.stat().st_size for file in (path / "activation").rglob("*") if file.is_file())
    assert found["kind_of_data"] == "activations"
    assert found["complete"]
    assert (found["tokens"], found["features"], found["shards"], found["chunks_per_shard"]) == (100, 50, 4, 6)
    assert found["chunk"] == [16, 20]
    assert found["dead_features"] == dead.sum() > 0
    assert found["constant_features"] == dead.sum() + 1
    assert found["l0"] == pytest.approx(matrix.count_nonzero() / 100)
    assert found["density"] == pytest.approx(matrix.count_nonzero() / 5000)
    assert found["bytes_per_value"] == pytest.approx(files / matrix.count_nonzero())
    assert found["ratio_to_dense"] == pytest.approx(100 * 50 * 4 / files)
    assert found["decoder"] == [50, 6]
    assert found["bytes"] == size_on_disk(path) > files
    assert attrs.items() <= found.items()
    assert found["content_hash"] == storage.fingerprint(path)
    assert found["created"].startswith("20")
    json.dumps(found)


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_an_unfinished_store_says_which_shards_are_missing(tmp_path, layout):
    writer = storage.ActivationWriter.create(
        tmp_path / "a.zarr", n_tokens=10, n_features=4, shard_rows=3, chunk=(3, 4), layout=layout
    )
    writer.write_shard(2, np.eye(3, 4))
    for path in (tmp_path / "a.zarr", writer.partial):
        found = inspect(path)
        assert not found["complete"]
        assert found["missing_shards"] == [0, 1, 3]
        assert found["dtype"] == "float32"


def test_rows_that_are_sinks_are_counted_and_left_out(tmp_path):
    writer = storage.ActivationWriter.create(tmp_path / "a.zarr", n_tokens=4, n_features=3)
    writer.write_shard(0, np.ones((4, 3)), sink=np.array([True, False, False, False]))
    writer.finalise()
    found = inspect(tmp_path / "a.zarr")
    assert (found["sinks"], found["l0"], found["density"], found["values_not_zero"]) == (1, 3.0, 1.0, 9)


def test_a_store_without_a_value_has_no_bytes_per_value(tmp_path):
    storage.write_activations(tmp_path / "a.zarr", np.zeros((5, 4)))
    found = inspect(tmp_path / "a.zarr")
    assert found["bytes_per_value"] is None
    assert found["dead_features"] == 4


def test_a_result_and_a_corpus(tmp_path):
    manifest = storage.new_manifest("match", {"correlation": "ab"}, {"method": "greedy"})
    storage.write_result(xr.Dataset({"r": ("pair", [0.5, 0.4])}, attrs={"n_pairs": 2}), tmp_path / "p.zarr", manifest)
    found = inspect(tmp_path / "p.zarr")
    assert (found["kind_of_data"], found["complete"], found["settings"]) == ("match", True, {"method": "greedy"})
    assert found["arrays"] == {"r": {"shape": [2], "dtype": "float64", "dimensions": ["pair"]}}
    assert found["attributes"] == {"n_pairs": 2}
    storage.write_corpus(tmp_path / "corpus.zarr", ["one", "€"])
    found = inspect(tmp_path / "corpus.zarr")
    assert (found["kind_of_data"], found["documents"], found["text_bytes"]) == ("corpus", 2, 6)


def test_a_run_says_what_is_missing(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.write_experiment({"name": "toy", "a": {"sites": ["x"]}, "b": {"sites": ["y"]}})
    storage.write_activations(run.activations("a", "x"), np.eye(5))
    found = inspect(run.root)
    assert (found["kind_of_data"], found["name"], found["complete"]) == ("run", "toy", False)
    assert [Path(part["path"]).name for part in found["parts"]] == ["x.zarr"]
    assert str(run.activations("b", "y")) in found["missing"]
    assert str(run.report) in found["missing"]
    assert len(found["missing"]) == 9


def test_nothing_there(tmp_path):
    with pytest.raises(MissingInputError, match="no store, result or run directory"):
        inspect(tmp_path)


class TestDamage:
    """What is damaged is not described as if it were whole."""

    @pytest.fixture
    def run(self, tmp_path):
        run = RunDirectory(tmp_path / "run")
        run.write_experiment({"name": "toy", "a": {"sites": ["x"]}, "b": {"sites": ["y"]}})
        storage.write_activations(run.activations("a", "x"), np.eye(5, 6))
        return run

    def refused(self, run, message):
        for path in (run.root, run.activations("a", "x")):
            with pytest.raises(CorruptError, match=message):
                inspect(path)

    def test_a_store_that_lost_its_metadata(self, run):
        (run.activations("a", "x") / "zarr.json").unlink()
        with pytest.raises(CorruptError, match=r"a/x.zarr has lost its zarr.json"):
            inspect(run.root)

    def test_a_lost_array(self, run):
        shutil.rmtree(run.activations("a", "x") / "mean")
        self.refused(run, r"x.zarr/mean/c/0: the file is missing")

    def test_arrays_that_changed_places(self, run):
        store = run.activations("a", "x")
        (store / "mean").rename(store / "swap")
        (store / "max").rename(store / "mean")
        (store / "swap").rename(store / "max")
        self.refused(run, r"x.zarr/m(ax|ean)/")

    def test_other_attributes(self, run):
        file = run.activations("a", "x") / "zarr.json"
        file.write_text(file.read_text().replace('"layout": "csr"', '"layout": "dense"'))
        self.refused(run, "the attributes are not those that were written")
