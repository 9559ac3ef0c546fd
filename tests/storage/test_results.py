"""Results and manifests: whole or not there, current or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import xarray as xr
import zarr

import storage
from storage.errors import FormatError, InputError, MissingInputError


@pytest.fixture
def manifest():
    return storage.new_manifest("match", {"correlation": "ab"}, {"method": "greedy", "min_correlation": 0.1})


@pytest.fixture
def result():
    return xr.Dataset(
        {
            "r": ("pair", np.array([0.9, np.nan, -0.0])),
            "feature_a": ("pair", np.array([3, 1, 2], "int32")),
            "best": (("feature", "rank"), np.full((4, 2), -1)),
            "note": ("metric", ["saturated: n ≤ k", ""]),
            "defined": ("feature", np.array([True, False, True, True])),
        },
        coords={"metric": ["svcca", "rsa"]},
        attrs={"n": np.int64(3), "sites": ["layers.3", "layers.4"], "mean_r": 0.5},
    )


def test_round_trip(tmp_path, result, manifest):
    storage.write_result(result, tmp_path / "m.zarr", manifest)
    back = storage.open_result(tmp_path / "m.zarr", stage="match")
    xr.testing.assert_equal(back.load(), result)
    assert {name: back[name].dtype for name in ("r", "feature_a", "defined")} == {
        "r": np.dtype("f8"),
        "feature_a": np.dtype("i4"),
        "defined": np.dtype(bool),
    }
    assert back.attrs["n"] == 3
    assert back.attrs["sites"] == ["layers.3", "layers.4"]
    assert back.encoding["source"] == str(tmp_path / "m.zarr")
    assert storage.read_manifest(tmp_path / "m.zarr") == manifest
    assert storage.fingerprint(tmp_path / "m.zarr") == manifest.fingerprint
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "m.zarr").load(), result)


def test_dask_data_and_foreign_encodings_do_not_matter(tmp_path, result, manifest):
    storage.write_result(result, tmp_path / "m.zarr", manifest)
    again = xr.open_zarr(tmp_path / "m.zarr").isel(pair=slice(0, 2))
    storage.write_result(again, tmp_path / "n.zarr", manifest)
    xr.testing.assert_equal(storage.open_result(tmp_path / "n.zarr").load(), result.isel(pair=slice(0, 2)))


def test_opening_is_lazy(tmp_path, result, manifest):
    storage.write_result(result, tmp_path / "m.zarr", manifest)
    back = storage.open_result(tmp_path / "m.zarr")
    assert not back.r._in_memory


def test_every_chunk_has_a_checksum(tmp_path, result, manifest):
    storage.write_result(result, tmp_path / "m.zarr", manifest)
    file = tmp_path / "m.zarr/r/c/0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):  # the file was touched, so it is read when it is opened
        storage.open_result(tmp_path / "m.zarr").load()
    with pytest.raises(ValueError, match="checksum"):
        xr.open_zarr(tmp_path / "m.zarr").load()


def test_a_result_is_replaced_only_when_the_new_one_is_complete(tmp_path, result, manifest):
    path = tmp_path / "m.zarr"
    storage.write_result(result, path, manifest)
    broken = result.assign(late=("feature", np.array([object()] * 4)))
    with pytest.raises((TypeError, ValueError)):
        storage.write_result(broken, path, manifest)
    assert [p.name for p in tmp_path.iterdir()] == ["m.zarr"]
    xr.testing.assert_equal(storage.open_result(path).load(), result)
    storage.write_result(result.isel(pair=[0]), path, manifest)
    assert storage.open_result(path).sizes["pair"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m.zarr"]


def test_only_finished_results_of_the_stage_open(tmp_path, result, manifest):
    path = tmp_path / "m.zarr"
    with pytest.raises(MissingInputError, match="no store or result"):
        storage.open_result(path)
    with storage.claim(path, manifest) as target:
        target.begin()
    with pytest.raises(MissingInputError, match="not finished"):
        storage.open_result(path)
    assert not storage.is_current(path, manifest)
    storage.write_result(result, path, manifest)
    with pytest.raises(FormatError, match=r"written by the stage 'match', not 'compare'"):
        storage.open_result(path, stage="compare")
    with pytest.raises(FormatError, match="unfinished"):
        storage.open_result(storage.partial_path(path))


@pytest.mark.parametrize("path", [".", "/"])
def test_a_folder_without_a_name_is_no_result(path):
    with pytest.raises(MissingInputError, match=r"is a folder without a zarr\.json"):
        storage.open_result(path)


def test_piecewise_with_a_sparse_array(tmp_path, rng, make_csr, manifest):
    path, matrix = tmp_path / "cor.zarr", make_csr(rng, 20, 30, 0.1, dtype="float64")
    matrix.data[0] = np.nan
    with storage.claim(path, manifest) as target:
        folder = target.begin()
        dims = ("feature_a", "feature_b")
        storage.create_sparse_array(folder, "r", matrix.shape, "float64", dims=dims, shard_rows=8, chunk=(8, 16))
        storage.write_sparse_shard(folder, "r", 0, matrix[:8])
    with storage.claim(path, manifest) as target:
        assert target.begin() == folder  # a second run goes on
        for i in storage.missing_shards(folder, "r"):
            storage.write_sparse_shard(folder, "r", i, matrix[i * 8 : i * 8 + 8])
        small = xr.Dataset({"best_b": (("feature_a", "rank"), np.zeros((20, 2), "int32"))}, attrs={"n_rows": 7})
        for _ in range(2):  # a run that died after this does it again
            storage.add_variables(small, folder)
        target.finish()

    back = storage.open_result(path, stage="match")
    np.testing.assert_array_equal(back.r.values, matrix.toarray())
    assert back.attrs["n_rows"] == 7
    np.testing.assert_array_equal(storage.read_csr(path, name="r").data, matrix.data)
    assert storage.is_current(path, manifest)
    assert [p.name for p in tmp_path.iterdir()] == ["cor.zarr"]


def test_beginning_with_other_settings_starts_over(tmp_path, manifest):
    for wanted, keeps in ((manifest, False), (manifest, True), (storage.new_manifest("match", manifest.inputs, {}), 0)):
        with storage.claim(tmp_path / "m.zarr", wanted) as target:
            folder = target.begin()
            assert (folder / "mark/zarr.json").exists() == keeps
            zarr.open_group(str(folder), mode="a").require_group("mark")


def test_finishing_needs_work_and_a_manifest(tmp_path, manifest):
    with storage.claim(tmp_path / "m.zarr", manifest) as target:
        with pytest.raises(MissingInputError, match="no unfinished work"):
            target.finish()
        xr.Dataset({"x": ("y", [1.0])}).to_zarr(tmp_path / "m.zarr.partial", consolidated=False, zarr_format=3)
        with pytest.raises(FormatError, match="no manifest"):
            target.finish()
    assert not (tmp_path / "m.zarr").exists()


class TestManifest:
    def test_fingerprint_follows_stage_inputs_and_settings_only(self, manifest):
        same = storage.Manifest(manifest.stage, dict(manifest.inputs), dict(manifest.settings), {"numpy": "0"}, "then")
        assert same.fingerprint == manifest.fingerprint
        for other in (
            storage.new_manifest("compare", manifest.inputs, manifest.settings),
            storage.new_manifest("match", {"correlation": "ac"}, manifest.settings),
            storage.new_manifest("match", manifest.inputs, {**manifest.settings, "method": "best"}),
        ):
            assert other.fingerprint != manifest.fingerprint

    def test_order_of_keys_and_kinds_of_sequences_do_not_matter(self):
        one = storage.new_manifest("x", {"a": "1", "b": "2"}, {"p": Path("/t"), "k": (1, 2), "n": np.int64(4)})
        two = storage.new_manifest("x", {"b": "2", "a": "1"}, {"n": 4, "k": [1, 2], "p": "/t"})
        assert one.fingerprint == two.fingerprint

    def test_attributes_round_trip(self, manifest):
        assert storage.Manifest.from_attrs(manifest.to_attrs()) == manifest
        assert manifest.versions["zarr"]
        for attrs in ({}, {"manifest": {"stage": "x"}}, {"manifest": 3}):
            with pytest.raises(FormatError):
                storage.Manifest.from_attrs(attrs)

    def test_a_result_of_another_format_is_not_current(self, tmp_path, result, manifest, monkeypatch):
        storage.write_result(result, tmp_path / "m.zarr", manifest)
        monkeypatch.setattr("storage.manifest.FORMAT_VERSION", 2)
        newer = storage.new_manifest(manifest.stage, manifest.inputs, manifest.settings)
        assert not storage.is_current(tmp_path / "m.zarr", newer)
        storage.write_result(result, tmp_path / "m.zarr", newer)
        assert storage.is_current(tmp_path / "m.zarr", newer)

    def test_settings_must_be_json(self):
        with pytest.raises(InputError, match="JSON"):
            storage.new_manifest("x", {}, {"f": print})

    def test_reading_where_there_is_none(self, tmp_path, manifest):
        assert storage.read_manifest(tmp_path / "none") is None
        assert not storage.is_current(tmp_path / "none", manifest)
        xr.Dataset({"x": ("y", [1.0])}).to_zarr(tmp_path / "x.zarr", consolidated=False, zarr_format=3)
        assert storage.read_manifest(tmp_path / "x.zarr") is None
        with pytest.raises(FormatError, match="not written by this package"):
            storage.fingerprint(tmp_path / "x.zarr")
        with pytest.raises(MissingInputError):
            storage.fingerprint(tmp_path / "none")


def test_empty_sparse_result(tmp_path, manifest):
    with storage.claim(tmp_path / "c.zarr", manifest) as target:
        folder = target.begin()
        storage.create_sparse_array(folder, "r", (3, 4), "f8", dims=("feature_a", "feature_b"), shard_rows=3)
        storage.write_sparse_shard(folder, "r", 0, scipy.sparse.csr_array((3, 4)))
        target.finish()
    assert storage.read_csr(tmp_path / "c.zarr", name="r").nnz == 0
    np.testing.assert_array_equal(storage.open_result(tmp_path / "c.zarr").r.values, np.zeros((3, 4)))
