"""Activation stores: written in any form and order, read back by us, by xarray, and by a fresh interpreter."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import textwrap

import dask.array
import numpy as np
import pytest
import scipy.sparse
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import storage
from storage.errors import FormatError, InputError, MissingInputError, RowMismatchError
from storage.files import partial_path, temporary_path
from storage.sparse_array import read_layout

SMALL = {"shard_rows": 32, "chunk": (16, 20)}


def siblings(path):
    return sorted(other.name for other in path.parent.iterdir())


def test_everything_written_is_read_back(tmp_path, rng, make_csr, tokens):
    path = tmp_path / "a.zarr"
    matrix, decoder = make_csr(rng, 100, 50, 0.1), rng.standard_normal((50, 8)).astype("f4")
    attrs = {"model": "toy", "model_revision": None, "site": "layers.3", "kind": "post"}
    storage.write_activations(path, matrix, tokens=tokens(100), decoder=decoder, attrs=attrs, **SMALL)
    ds = storage.open_activations(path)
    assert ds.activation.dims == ("token", "feature")
    np.testing.assert_array_equal(ds.activation.values, matrix.toarray())
    np.testing.assert_array_equal(ds.decoder.values, decoder)
    for name, values in tokens(100).items():
        np.testing.assert_array_equal(ds.coords[name].values, values)
    assert not ds.sink.values.any()
    assert ds.attrs.items() >= attrs.items()
    assert ds.attrs["schema_version"] == 1
    assert ds.encoding["source"] == str(path)
    assert {name: str(ds[name].dtype) for name in ("document", "char_end", "mean", "n_active", "decoder", "sink")} == {
        "document": "int32",
        "char_end": "int64",
        "mean": "float64",
        "n_active": "int64",
        "decoder": "float32",
        "sink": "bool",
    }
    assert siblings(path) == ["a.zarr"]


def test_opening_is_lazy_in_chunks_of_shards(tmp_path, rng, make_csr, monkeypatch):
    path = tmp_path / "a.zarr"
    storage.write_activations(path, make_csr(rng, 100, 50, 0.1), **SMALL)
    monkeypatch.setattr(storage.codec, "panel_to_dense", None)
    ds = storage.open_activations(path)
    assert ds.activation.chunksizes == {"token": (32, 32, 32, 4), "feature": (50,)}
    assert ds.chunksizes.keys() == {"token", "feature"}
    monkeypatch.setattr(storage.activations, "LARGEST_DASK_CHUNK", 32 * 40 * 4)
    assert storage.open_activations(path).activation.chunksizes["feature"] == (20, 20, 10)


FRESH = """
    import sys
    import numpy as np
    import xarray as xr
    ds = xr.open_zarr("a.zarr")
    np.testing.assert_array_equal(ds.activation.values, np.load("dense.npy"))
    assert ds.activation.dims == ("token", "feature")
    assert set(ds.coords) == {"document", "position", "char_start", "char_end", "token_id", "group"}
    assert ds.chunksizes["feature"] == (20, 20, 10)
    part = ds.isel(token=slice(10, 60, 7), feature=[3, 49]).activation.values
    np.testing.assert_array_equal(part, np.load("dense.npy")[10:60:7][:, [3, 49]])
    print(sorted(name for name in sys.modules if name.split(".")[0] in ("pipeline", "jobs")))
"""


def test_plain_xarray_in_a_fresh_interpreter_finds_the_codec(tmp_path, rng, make_csr, tokens):
    matrix = make_csr(rng, 100, 50, 0.1)
    storage.write_activations(tmp_path / "a.zarr", matrix, tokens=tokens(100), **SMALL)
    np.save(tmp_path / "dense.npy", matrix.toarray())
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(FRESH)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_xarray_writes_the_codec_too(tmp_path, rng, make_csr, tokens):
    matrix = make_csr(rng, 100, 50, 0.1)
    storage.write_activations(tmp_path / "a.zarr", matrix, tokens=tokens(100), **SMALL)
    ds = storage.open_activations(tmp_path / "a.zarr")
    ds.to_zarr(tmp_path / "b.zarr", consolidated=False)
    assert (storage.read_csr(tmp_path / "b.zarr") != matrix).nnz == 0
    for back in (xr.open_zarr(tmp_path / "b.zarr", consolidated=False), storage.open_activations(tmp_path / "b.zarr")):
        xr.testing.assert_equal(ds.load(), back.load())


def test_a_copy_by_xarray_may_have_shards_without_file(tmp_path, tokens):
    matrix = scipy.sparse.csr_array(([1.0], ([70], [3])), shape=(100, 50))
    storage.write_activations(tmp_path / "a.zarr", matrix, **SMALL)
    storage.open_activations(tmp_path / "a.zarr").to_zarr(tmp_path / "b.zarr", consolidated=False)
    assert storage.missing_shards(tmp_path / "b.zarr", "activation") == [0, 1, 3]
    assert (storage.read_csr(tmp_path / "b.zarr") != matrix).nnz == 0


def saved_after_arithmetic(path, out, *, with_encoding=False):
    ds = xr.open_zarr(path, consolidated=False).load()
    encoding = ds["activation"].encoding
    ds["activation"] = ds["activation"] * 2
    if with_encoding:
        ds["activation"].encoding = encoding
    ds.to_zarr(out, mode="w", zarr_format=3, consolidated=False)


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_a_store_that_lost_its_encoding_is_refused_with_the_way_to_keep_it(tmp_path, rng, make_csr, layout):
    """Arithmetic of xarray drops the encoding; the values are all there, so nothing is to be deleted."""
    matrix = make_csr(rng, 100, 50, 0.1)
    storage.write_activations(tmp_path / "a.zarr", matrix, layout=layout, **SMALL)
    lost = tmp_path / "lost.zarr"
    saved_after_arithmetic(tmp_path / "a.zarr", lost)
    for read in (
        storage.open_activations,
        storage.is_sparse,
        storage.fingerprint,
        storage.inspect.inspect,
        lambda path: storage.exchange.export_activations(path, tmp_path / "x.npz", "npz"),
    ):
        with pytest.raises(FormatError, match="saved without the encoding of its chunks") as caught:
            read(lost)
        assert str(lost) in str(caught.value)
        assert ".encoding" in str(caught.value)
        assert "delete" not in str(caught.value)
    saved_after_arithmetic(tmp_path / "a.zarr", tmp_path / "b.zarr", with_encoding=True)
    np.testing.assert_array_equal(storage.read_dense(tmp_path / "b.zarr"), 2 * matrix.toarray())
    assert storage.is_sparse(tmp_path / "b.zarr") is (layout == "csr")


def as_dask(dense):
    return dask.array.from_array(dense, chunks=(13, 17))


def as_sparse_dask(dense):
    blocks = dask.array.from_array(dense, chunks=(13, dense.shape[1]))
    return blocks.map_blocks(scipy.sparse.csr_array, meta=scipy.sparse.csr_array((0, 0), dtype=dense.dtype))


def as_slabs(dense):
    sizes = [0, 1, 40, 3, 33, 32]
    bounds = np.minimum(np.cumsum([0, *sizes, len(dense)]), len(dense))
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        yield scipy.sparse.csr_array(dense[start:stop]) if i % 2 else dense[start:stop]


@pytest.mark.parametrize(
    "form",
    [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.coo_array, as_dask, as_sparse_dask, as_slabs, xr.DataArray],
)
@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("rows", [5, 32, 100, 128])
def test_all_forms_of_data_give_the_same_store(tmp_path, rng, make_csr, form, layout, rows):
    dense = make_csr(rng, rows, 50, 0.2).toarray()
    storage.write_activations(tmp_path / "a.zarr", form(dense), layout=layout, **SMALL)
    storage.write_activations(tmp_path / "b.zarr", dense, layout=layout, **SMALL)
    assert storage.is_sparse(tmp_path / "a.zarr") == (layout == "csr")
    np.testing.assert_array_equal(storage.read_dense(tmp_path / "a.zarr", slice(1, 70)), dense[1:70])
    assert storage.fingerprint(tmp_path / "a.zarr") == storage.fingerprint(tmp_path / "b.zarr")


def test_layout_follows_the_density(tmp_path, rng, make_csr):
    for density, sparse in [(0.02, True), (0.2, True), (0.3, False), (1, False)]:
        storage.write_activations(tmp_path / "a.zarr", make_csr(rng, 100, 50, density).toarray(), overwrite=True)
        assert storage.is_sparse(tmp_path / "a.zarr") == sparse
    with pytest.raises(FormatError, match="not a sharded csr array"):
        storage.read_csr(tmp_path / "a.zarr")


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_types(tmp_path, rng, make_csr, layout, dtype):
    dense = make_csr(rng, 70, 50, 0.2, dtype="float64").toarray()
    storage.write_activations(tmp_path / "a.zarr", dense, layout=layout, dtype=dtype, **SMALL)
    ds = storage.open_activations(tmp_path / "a.zarr")
    assert ds.activation.dtype == dtype
    np.testing.assert_array_equal(ds.activation.values, dense.astype(dtype))
    read = storage.read_dense(tmp_path / "a.zarr", slice(None), slice(4, 30))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, dense.astype(dtype)[:, 4:30])


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_shards_of_zeros_are_not_missing(tmp_path, layout):
    writer = storage.ActivationWriter.create(tmp_path / "a.zarr", n_tokens=40, n_features=5, layout=layout, **SMALL)
    for i in range(2):
        assert writer.missing() == list(range(i, 2))
        writer.write_shard(i, np.zeros((32, 5) if i == 0 else (8, 5)))
    writer.finalise()
    assert storage.open_activations(tmp_path / "a.zarr")["n_active"].values.tolist() == [0] * 5


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64"])
def test_integers_are_kept_as_floats(tmp_path, dtype):
    dense = np.eye(40, 9, dtype=dtype) * (1 if dtype == "bool" else 100)
    for layout in ("csr", "dense"):
        storage.write_activations(tmp_path / "a.zarr", dense, layout=layout, dtype="float16", **SMALL, overwrite=True)
        np.testing.assert_array_equal(storage.open_activations(tmp_path / "a.zarr").activation.values, dense)
    too_large = np.zeros((40, 9), "int64")
    too_large[3, 5] = np.iinfo("int64").min
    with pytest.raises(InputError, match=r"Row 3, feature 5 .* more than float16"):
        storage.write_activations(tmp_path / "a.zarr", too_large, dtype="float16", overwrite=True)


def test_half_precision_input(tmp_path, rng, make_csr):
    dense = make_csr(rng, 70, 50, 0.2).toarray().astype("float16")
    for layout in ("csr", "dense"):
        slabs = iter([dense[:9], dense[9:]])
        storage.write_activations(tmp_path / "a.zarr", slabs, layout=layout, **SMALL, overwrite=True)
        np.testing.assert_array_equal(storage.open_activations(tmp_path / "a.zarr").activation.values, dense)


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_statistics_leave_sinks_out_and_match_numpy(tmp_path, rng, layout):
    dense = (rng.standard_normal((100, 50)) * (rng.random((100, 50)) < 0.3)).astype("f4")
    dense[:, 1], dense[:, 2], dense[:, 3] = 0, 0.1, -1 - rng.random(100)
    dense[:, 4] = 50_000 + rng.standard_normal(100) * 0.01
    sink = rng.random(100) < 0.1
    dense[sink] = 1e6
    writer = storage.ActivationWriter.create(tmp_path / "a.zarr", n_tokens=100, n_features=50, layout=layout, **SMALL)
    for i in range(writer.n_shards):
        rows = writer.shard_slice(i)
        writer.write_shard(i, dense[rows], sink[rows])
    writer.finalise()
    ds = storage.open_activations(tmp_path / "a.zarr")
    kept = dense[~sink].astype("f8")
    np.testing.assert_array_equal(ds.sink.values, sink)
    assert ds.attrs["n_sinks"] == sink.sum()
    np.testing.assert_allclose(ds["mean"].values, kept.mean(axis=0), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(ds["std"].values, kept.std(axis=0), rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(ds["n_active"].values, (kept != 0).sum(axis=0))
    np.testing.assert_array_equal(ds["max"].values, kept.max(axis=0))
    assert ds["std"].values[1] == ds["std"].values[2] == 0


def test_resume_writes_only_what_is_missing(tmp_path, rng, make_csr):
    path, matrix = tmp_path / "a.zarr", make_csr(rng, 100, 50, 0.1)
    manifest = storage.new_manifest("harvest", {"corpus": "c1"}, {"site": "layers.3"})
    shape = {"n_tokens": 100, "n_features": 50, "manifest": manifest, **SMALL}
    writer = storage.ActivationWriter.create(path, **shape)
    for i in (0, 2):
        writer.write_shard(i, matrix[writer.shard_slice(i)])
    stamps = {i: (writer.partial / f"activation/c/{i}/0").stat().st_mtime_ns for i in (0, 2)}
    with pytest.raises(MissingInputError, match="not finished"):
        storage.open_activations(path)
    with pytest.raises(FormatError, match="unfinished"):
        storage.open_activations(partial_path(path))

    again = storage.ActivationWriter.create(path, **shape)
    assert again.missing() == [1, 3]
    with pytest.raises(InputError, match="2 shards are missing: 1, 3"):
        again.finalise()
    for i in again.missing():
        storage.ActivationWriter.open(path).write_shard(i, matrix[writer.shard_slice(i)])
    assert stamps == {i: (writer.partial / f"activation/c/{i}/0").stat().st_mtime_ns for i in (0, 2)}
    again.finalise()
    assert (storage.read_csr(path) != matrix).nnz == 0
    assert storage.is_current(path, manifest)
    assert storage.read_manifest(path) == manifest


@pytest.mark.parametrize("change", ["manifest", "no manifest", "shape", "type", "shards"])
def test_other_unfinished_work_is_replaced(tmp_path, rng, make_csr, change):
    manifest = storage.new_manifest("harvest", {}, {"site": "layers.3"})
    arguments = {"n_tokens": 100, "n_features": 50, "manifest": manifest, "dtype": "float32", **SMALL}
    writer = storage.ActivationWriter.create(tmp_path / "a.zarr", **arguments)
    writer.write_shard(0, make_csr(rng, 32, 50, 0.1))
    del writer
    arguments |= {
        "manifest": {"manifest": storage.new_manifest("harvest", {}, {"site": "layers.4"})},
        "no manifest": {"manifest": None},
        "shape": {"n_tokens": 101},
        "type": {"dtype": "float64"},
        "shards": {"shard_rows": 16},
    }[change]
    writer = storage.ActivationWriter.create(tmp_path / "a.zarr", **arguments, overwrite=change == "no manifest")
    assert writer.missing() == list(range(writer.n_shards))


def test_work_whose_beginning_was_cut_short_is_replaced(tmp_path):
    manifest = storage.new_manifest("harvest", {}, {})
    zarr.create_group(temporary_path(tmp_path / "a.zarr", "new"))
    with pytest.raises(MissingInputError, match="begin one"):
        storage.ActivationWriter.open(tmp_path / "a.zarr")
    arguments = {"n_tokens": 100, "n_features": 50, "manifest": manifest, **SMALL}
    assert storage.ActivationWriter.create(tmp_path / "a.zarr", **arguments).missing() == [0, 1, 2, 3]
    assert siblings(tmp_path / "a.zarr") == ["a.zarr.partial"]


def test_finishing_replaces_an_old_store(tmp_path, rng, make_csr):
    path = tmp_path / "a.zarr"
    storage.write_activations(path, make_csr(rng, 100, 50, 0.1), **SMALL)
    new = make_csr(rng, 40, 60, 0.1)
    storage.write_activations(path, new, **SMALL, overwrite=True)
    assert (storage.read_csr(path) != new).nnz == 0
    assert siblings(path) == ["a.zarr"]


def test_the_writer_can_be_pickled(tmp_path):
    writer = storage.ActivationWriter.create(tmp_path / "a.zarr", n_tokens=100, n_features=50, **SMALL)
    assert pickle.loads(pickle.dumps(writer)) == writer == storage.ActivationWriter.open(tmp_path / "a.zarr")
    writer.discard()
    assert siblings(tmp_path / "a.zarr") == []


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, "float32", "is nan, which is not a finite number"),
        (-np.inf, "float64", "is -inf, which is not a finite number"),
        (65_520.0, "float16", r"is 65520.0, which is more than float16 can hold"),
        (-1e39, "float32", r"is -1e\+39, which is more than float32 can hold"),
    ],
)
def test_values_that_cannot_be_kept_are_named(tmp_path, rng, make_csr, layout, value, dtype, message):
    writer = storage.ActivationWriter.create(
        tmp_path / "a.zarr", n_tokens=100, n_features=50, dtype=dtype, layout=layout, **SMALL
    )
    dense = make_csr(rng, 32, 50, 0.1).toarray().astype("f8")
    dense[5, 7] = value
    for data in (dense, scipy.sparse.csr_array(dense)):
        with pytest.raises(InputError, match="Row 37, feature 7 .*" + message):
            writer.write_shard(1, data)
    assert writer.missing() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("i", "data", "sink", "message"),
    [
        (0, np.zeros((31, 50)), None, r"need real numbers of shape \(32, 50\)"),
        (3, np.zeros((32, 50)), None, r"need real numbers of shape \(4, 50\)"),
        (0, np.zeros((32, 50), complex), None, "not complex128"),
        (0, np.zeros((32, 50)), np.zeros(31, bool), "sink must be 32 booleans"),
        (0, np.zeros((32, 50)), np.zeros(32), "sink must be 32 booleans"),
        (4, np.zeros((32, 50)), None, "shards 0 to 3"),
        (-1, np.zeros((32, 50)), None, "shards 0 to 3"),
    ],
)
def test_wrong_shards_are_refused(tmp_path, i, data, sink, message):
    writer = storage.ActivationWriter.create(tmp_path / "a.zarr", n_tokens=100, n_features=50, **SMALL)
    with pytest.raises(InputError, match=message):
        writer.write_shard(i, data, sink)
    assert writer.missing() == [0, 1, 2, 3]


def bad_arguments(tokens):
    good = tokens(100)
    return {
        "have 100 rows": {"tokens": tokens(99)},
        "missing: .'char_end'.": {"tokens": {key: good[key] for key in good if key != "char_end"}},
        "unknown: .'word'.": {"tokens": {**good, "word": good["document"]}},
        "one-dimensional integers": {"tokens": {**good, "position": good["position"] / 2}},
        "outside of int32": {"tokens": {**good, "token_id": good["token_id"] + 2**31}},
        r"tokens\['group'\] is -1 in row 0; it must not be negative": {"tokens": {**good, "group": good["group"] - 1}},
        r"tokens\['group'\] is None in row 1": {"tokens": {**good, "group": ["x", None] * 50}},
        "Document 0 is of two groups, in rows 1 and 2": {"tokens": {**good, "group": np.arange(100) // 2}},
        "Document 0 is of two groups, in rows 97 and 98": {
            "tokens": {**good, "document": np.arange(100)[::-1] // 3, "group": np.arange(100) // 98}
        },
        r"shape \(50, d_model\)": {"decoder": np.zeros((49, 8))},
        "decoder has values that are not finite": {"decoder": np.full((50, 8), np.nan)},
        "must be JSON values": {"attrs": {"model": print}},
        "kind of activations": {"attrs": {"kind": "posst"}},
        "float16, float32 or float64": {"dtype": "int8"},
        "'csr' or 'dense'": {"layout": "coo"},
    }


def test_wrong_arguments_are_refused_and_leave_nothing(tmp_path, tokens):
    for message, arguments in bad_arguments(tokens).items():
        with pytest.raises(InputError, match=message):
            storage.write_activations(tmp_path / "a.zarr", np.eye(100, 50), **arguments, **SMALL)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 5)), "no rows"),
        (iter([]), "no rows"),
        (np.zeros((5, 0)), "holds nothing"),
        (np.zeros(5), r"shape \(5,\)"),
        (iter([np.zeros((40, 5)), np.zeros((40, 6))]), r"must be \(any, 5\)"),
        ("activations.npy", "not str"),
        (7, "not int"),
        (iter([np.zeros((40, 5)), np.full((1, 5), np.nan)]), "Row 40, feature 0"),
    ],
)
def test_wrong_data_are_refused_and_leave_the_old_store(tmp_path, data, message):
    storage.write_activations(tmp_path / "a.zarr", np.eye(3))
    with pytest.raises(InputError, match=message):
        storage.write_activations(tmp_path / "a.zarr", data, **SMALL, overwrite=True)
    assert siblings(tmp_path / "a.zarr") == ["a.zarr"]
    np.testing.assert_array_equal(storage.open_activations(tmp_path / "a.zarr").activation.values, np.eye(3))


def test_opening_what_is_no_store_says_so(tmp_path):
    with pytest.raises(MissingInputError, match="no store or result"):
        storage.open_activations(tmp_path / "a.zarr")
    with pytest.raises(MissingInputError):
        storage.is_sparse(tmp_path / "a.zarr")
    storage.write_result(xr.Dataset({"x": ("y", [1])}), tmp_path / "r.zarr", storage.new_manifest("match", {}, {}))
    with pytest.raises(FormatError, match="not an activation store"):
        storage.open_activations(tmp_path / "r.zarr")
    storage.write_activations(tmp_path / "a.zarr", np.eye(3))
    zarr.open_group(tmp_path / "a.zarr", mode="r+").attrs["schema_version"] = 2
    zarr.consolidate_metadata(tmp_path / "a.zarr")
    with pytest.raises(FormatError, match="version 2; this release reads version 1"):
        storage.open_activations(tmp_path / "a.zarr")


def test_content_hash_follows_the_content_only(tmp_path, rng, make_csr, tokens):
    matrix = make_csr(rng, 100, 50, 0.1)

    def content_hash(data=matrix, **changes):
        storage.write_activations(tmp_path / "a.zarr", data, **({**SMALL, **changes}), overwrite=True)
        return storage.fingerprint(tmp_path / "a.zarr")

    base = content_hash()
    assert content_hash(shard_rows=16, chunk=(8, 50)) == base
    assert content_hash(attrs={"model": "other"}) == base
    other = matrix.copy()
    other.data[17] += 1
    moved = scipy.sparse.csr_array(matrix.toarray()[:, ::-1])
    hashes = [
        base,
        content_hash(other),
        content_hash(moved),
        content_hash(tokens=tokens(100)),
        content_hash(dtype="f8"),
    ]
    hashes += [content_hash(decoder=np.ones((50, 2))), content_hash(decoder=np.zeros((50, 2)))]
    assert len(set(hashes)) == len(hashes)


def test_shards_are_iterated_one_by_one(tmp_path, rng, make_csr):
    matrix = make_csr(rng, 100, 50, 0.1)
    for layout in ("csr", "dense"):
        storage.write_activations(tmp_path / "a.zarr", matrix, layout=layout, **SMALL, overwrite=True)
        parts = list(storage.iter_shards(tmp_path / "a.zarr", slice(3, 30)))
        assert [rows.stop - rows.start for rows, _ in parts] == [32, 32, 32, 4]
        whole = np.concatenate([part.toarray() if layout == "csr" else part for _, part in parts])
        np.testing.assert_array_equal(whole, matrix.toarray()[:, 3:30])


def test_sparse_stores_are_written_without_anything_dense(tmp_path, rng, make_csr, no_dense, tokens):
    matrix = make_csr(rng, 100, 50, 0.1)
    storage.write_activations(tmp_path / "a.zarr", matrix, tokens=tokens(100), **SMALL)
    assert (storage.read_csr(tmp_path / "a.zarr") != matrix).nnz == 0


class TestSameRows:
    @pytest.fixture
    def write(self, tmp_path, tokens):
        def make(name, n=30, change=None, with_tokens=True):
            columns = tokens(n)
            if change:
                columns[change[0]][change[1]] += 1
            path = tmp_path / name
            storage.write_activations(path, np.eye(n, 4), tokens=columns if with_tokens else None, overwrite=True)
            return path

        return make

    def test_same_rows_pass_whatever_the_token_ids(self, write, caplog):
        storage.check_same_rows(write("a"), write("b", change=("token_id", 4)))
        assert not caplog.records

    def test_the_first_difference_is_named(self, write):
        message = (
            r"from row 17 on: .*a has document 2, characters 9 to 12, .*b has document 2, characters 9 to 13.*"
            "Harvest both from the same rows"
        )
        with pytest.raises(RowMismatchError, match=message):
            storage.check_same_rows(write("a"), write("b", change=("char_end", 17)))

    def test_lengths_differ(self, write):
        with pytest.raises(RowMismatchError, match=r"a has 30 rows and .*b has 29.*transpose"):
            storage.check_same_rows(write("a"), write("b", n=29))

    def test_without_coordinates_only_the_length_is_checked(self, write, caplog):
        storage.check_same_rows(write("a"), write("b", with_tokens=False))
        assert "is assumed to be the same token" in caplog.text
        with pytest.raises(RowMismatchError, match="30 rows"):
            storage.check_same_rows(write("a"), write("b", n=29, with_tokens=False))

    def test_a_permuted_copy_with_the_old_hash_is_noticed(self, write, tmp_path):
        path = write("a")
        ds = storage.open_activations(path).load()
        ds.isel(token=np.arange(30)[::-1]).to_zarr(tmp_path / "b", consolidated=False)
        with pytest.raises(RowMismatchError, match="from row 0"):
            storage.check_same_rows(path, tmp_path / "b")

    @pytest.mark.timeout(60)
    def test_a_pipe_in_the_place_of_a_chunk_is_not_waited_for(self, write):
        path = write("a")
        (path / "char_start" / "c" / "0").unlink()
        os.mkfifo(path / "char_start" / "c" / "0")
        for stores in ((path, write("b")), (write("b"), path)):
            with pytest.raises(InputError, match="char_start/c/0: a pipe"):
                storage.check_same_rows(*stores)

    def test_a_missing_store(self, write, tmp_path):
        with pytest.raises(MissingInputError):
            storage.check_same_rows(write("a"), tmp_path / "none")


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 20))
def test_slabs_are_recut_without_losing_a_row(sizes, rows):
    whole = np.arange(sum(sizes) * 2.0).reshape(-1, 2)
    slabs = np.split(whole, np.cumsum(sizes)[:-1])
    cut = list(storage.slabs.reslab(slabs, rows))
    assert all(len(slab) == rows for slab in cut[:-1])
    np.testing.assert_array_equal(np.concatenate([np.zeros((0, 2)), *cut]), whole)


def test_layout_of_the_files(tmp_path, rng, make_csr):
    storage.write_activations(tmp_path / "a.zarr", make_csr(rng, 100, 50, 0.1), **SMALL)
    layout = read_layout(tmp_path / "a.zarr", "activation")
    assert (layout.shard_rows, layout.chunk, layout.grid) == (32, (16, 20), (2, 3))
    assert layout.compression == ("zstd", "crc32c")
    files = [p.relative_to(tmp_path / "a.zarr/activation/c").as_posix() for p in layout.folder.glob("c/*/*")]
    assert sorted(files) == ["0/0", "1/0", "2/0", "3/0"]
