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
    summary = inspect(path)
    dead = np.asarray((matrix != 0).sum(axis=0)).ravel() == 0
    files = sum(file.stat().st_size for file in (path / "activation").rglob("*") if file.is_file())
    assert summary["kind_of_data"] == "activations"
    assert summary["complete"]
    assert (summary["tokens"], summary["features"], summary["shards"], summary["chunks_per_shard"]) == (100, 50, 4, 6)
    assert summary["chunk"] == [16, 20]
    assert summary["dead_features"] == dead.sum() > 0
    assert summary["constant_features"] == dead.sum() + 1
    assert summary["l0"] == pytest.approx(matrix.count_nonzero() / 100)
    assert summary["density"] == pytest.approx(matrix.count_nonzero() / 5000)
    assert summary["bytes_per_value"] == pytest.approx(files / matrix.count_nonzero())
    assert summary["ratio_to_dense"] == pytest.approx(100 * 50 * 4 / files)
    assert summary["decoder"] == [50, 6]
    assert summary["bytes"] == size_on_disk(path) > files
    assert attrs.items() <= summary.items()
    assert summary["content_hash"] == storage.fingerprint(path)
    assert summary["created"].startswith("20")
    json.dumps(summary)


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_an_unfinished_store_says_which_shards_are_missing(tmp_path, layout):
    writer = storage.ActivationWriter.create(
        tmp_path / "a.zarr", n_tokens=10, n_features=4, shard_rows=3, chunk=(3, 4), layout=layout
    )
    writer.write_shard(2, np.eye(3, 4))
    for path in (tmp_path / "a.zarr", writer.partial):
        summary = inspect(path)
        assert not summary["complete"]
        assert summary["missing_shards"] == [0, 1, 3]
        assert summary["dtype"] == "float32"


def test_rows_that_are_sinks_are_counted_and_left_out(tmp_path):
    writer = storage.ActivationWriter.create(tmp_path / "a.zarr", n_tokens=4, n_features=3)
    writer.write_shard(0, np.ones((4, 3)), sink=np.array([True, False, False, False]))
    writer.finalise()
    summary = inspect(tmp_path / "a.zarr")
    assert (summary["sinks"], summary["l0"], summary["density"], summary["values_not_zero"]) == (1, 3.0, 1.0, 9)


def test_a_store_without_a_value_has_no_bytes_per_value(tmp_path):
    storage.write_activations(tmp_path / "a.zarr", np.zeros((5, 4)))
    summary = inspect(tmp_path / "a.zarr")
    assert summary["bytes_per_value"] is None
    assert summary["dead_features"] == 4


def test_stale_statistics_of_an_edited_store_are_said_to_be_so(tmp_path, caplog):
    """Density and dead features come from statistics that an edit with xarray leaves as they were."""
    storage.write_activations(tmp_path / "a.zarr", np.eye(9, 30))
    inspect(tmp_path / "a.zarr")
    assert not caplog.records
    ds = xr.open_zarr(tmp_path / "a.zarr").load()
    ds.to_zarr(tmp_path / "copy.zarr", zarr_format=3, consolidated=False)
    storage.fingerprint(tmp_path / "copy.zarr")
    assert not [record for record in caplog.records if record.levelname == "WARNING"], "its statistics hold"
    ds["activation"][:] = 1.0
    ds.to_zarr(tmp_path / "edited.zarr", zarr_format=3, consolidated=False)
    assert inspect(tmp_path / "edited.zarr")["dead_features"] == 21
    assert f"{tmp_path / 'edited.zarr'} was saved by another program" in caplog.text
    storage.fingerprint(tmp_path / "edited.zarr")
    assert f"{tmp_path / 'edited.zarr'}: mean, std, n_active, max are not those of its values" in caplog.text


def test_a_result_and_a_corpus(tmp_path):
    manifest = storage.new_manifest("match", {"correlation": "ab"}, {"method": "greedy"})
    storage.write_result(xr.Dataset({"r": ("pair", [0.5, 0.4])}, attrs={"n_pairs": 2}), tmp_path / "p.zarr", manifest)
    summary = inspect(tmp_path / "p.zarr")
    assert (summary["kind_of_data"], summary["complete"], summary["settings"]) == ("match", True, {"method": "greedy"})
    assert summary["arrays"] == {"r": {"shape": [2], "dtype": "float64", "dimensions": ["pair"]}}
    assert summary["attributes"] == {"n_pairs": 2}
    storage.write_corpus(tmp_path / "corpus.zarr", ["one", "€"])
    summary = inspect(tmp_path / "corpus.zarr")
    assert (summary["kind_of_data"], summary["documents"], summary["text_bytes"]) == ("corpus", 2, 6)


def test_a_run_says_what_is_missing(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.write_experiment({"name": "toy", "a": {"sites": ["x"]}, "b": {"sites": ["y"]}})
    storage.write_activations(run.activations("a", "x"), np.eye(5))
    summary = inspect(run.root)
    assert (summary["kind_of_data"], summary["name"], summary["complete"]) == ("run", "toy", False)
    assert [Path(part["path"]).name for part in summary["parts"]] == ["x.zarr"]
    assert str(run.activations("b", "y")) in summary["missing"]
    assert str(run.report) in summary["missing"]
    assert len(summary["missing"]) == 9


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
