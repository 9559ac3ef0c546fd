"""Round trips through the formats of other programs, by those programs' own code, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys

import anndata
import dask.array
import h5py
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import scipy.sparse
import zarr

import storage
from storage import readers
from storage.errors import BudgetError, CorruptError, FormatError, InputError, MissingDependencyError, MissingInputError
from storage.exchange import export_activations, import_activations
from storage.writer import ActivationWriter


@pytest.fixture
def matrix(rng, make_csr):
    return make_csr(rng, 100, 50, 0.1)


def whole(path):
    return storage.read_dense(path)


def store(path, rng, make_csr, tokens, layout, dtype):
    """A store with everything that a store can have: coordinates, sinks, a decoder, attributes, four shards."""
    writer = ActivationWriter.create(
        path,
        n_tokens=100,
        n_features=50,
        tokens=tokens(100),
        decoder=rng.standard_normal((50, 6)),
        attrs={"model": "toy", "kind": "post", "calibration": {"fvu": 0.25}},
        dtype=dtype,
        layout=layout,
        shard_rows=32,
        chunk=(16, 20),
    )
    for i, rows in enumerate((32, 32, 32, 4)):
        writer.write_shard(i, make_csr(rng, rows, 50, 0.1 if layout == "csr" else 0.9), sink=np.arange(rows) == i)
    writer.finalise()
    return path


@pytest.mark.parametrize(
    ("layout", "dtype"), [("csr", "float32"), ("csr", "float16"), ("dense", "float32"), ("dense", "float16")]
)
@pytest.mark.parametrize(("fmt", "name"), [("npz", "x.npz"), ("anndata", "x.h5ad"), ("anndata", "x.zarr")])
def test_a_store_comes_back_with_the_same_content_hash(tmp_path, rng, make_csr, tokens, layout, dtype, fmt, name):
    original = store(tmp_path / "a.zarr", rng, make_csr, tokens, layout, dtype)
    assert export_activations(original, tmp_path / name, fmt)["left_out"] == []
    import_activations(tmp_path / name, tmp_path / "b.zarr", shard_rows=48)
    assert storage.fingerprint(tmp_path / "b.zarr") == storage.fingerprint(original)
    attrs = storage.open_activations(tmp_path / "b.zarr").attrs
    assert (attrs["kind"], attrs["calibration"], attrs["n_sinks"]) == ("post", {"fvu": 0.25}, 4)
    storage.check_same_rows(original, tmp_path / "b.zarr")
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_scipy_reads_what_is_exported(tmp_path, matrix):
    storage.write_activations(tmp_path / "a.zarr", matrix, shard_rows=32, chunk=(16, 20))
    export_activations(tmp_path / "a.zarr", tmp_path / "x.npz", "npz")
    loaded = scipy.sparse.load_npz(tmp_path / "x.npz")
    assert loaded.format == "csr"
    np.testing.assert_array_equal(loaded.toarray(), matrix.toarray())


@pytest.mark.parametrize("name", ["x.h5ad", "x.zarr"])
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_anndata_reads_what_is_exported(tmp_path, rng, make_csr, tokens, name, layout):
    original = store(tmp_path / "a.zarr", rng, make_csr, tokens, layout, "float32")
    export_activations(original, tmp_path / name, "anndata")
    loaded = anndata.read_h5ad(tmp_path / name) if name.endswith("h5ad") else anndata.read_zarr(tmp_path / name)
    assert scipy.sparse.issparse(loaded.X) == (layout == "csr")
    np.testing.assert_array_equal(loaded.to_df().to_numpy(), whole(original))
    ds = storage.open_activations(original)
    np.testing.assert_array_equal(loaded.obs["char_end"], ds["char_end"])
    np.testing.assert_array_equal(loaded.var["n_active"], ds["n_active"])
    np.testing.assert_array_equal(loaded.varm["decoder"], ds["decoder"])


@pytest.mark.parametrize("name", ["x.h5ad", "x.zarr"])
@pytest.mark.parametrize("key", [None, "counts"])
def test_what_anndata_wrote_is_imported(tmp_path, matrix, name, key):
    other = scipy.sparse.csr_matrix(matrix * 2)
    data = anndata.AnnData(X=matrix.toarray(), layers={"counts": other})
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        data.write_h5ad(tmp_path / name) if name.endswith("h5ad") else data.write_zarr(tmp_path / name)
    import_activations(tmp_path / name, tmp_path / "a.zarr", key=key)
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), matrix.toarray() * (2 if key else 1))
    assert storage.is_sparse(tmp_path / "a.zarr")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "?"])
def test_dense_arrays_are_imported_slab_by_slab(tmp_path, rng, monkeypatch, order, suffix, dtype):
    monkeypatch.setattr(readers, "SLAB_BYTES", 7 * 40 * 4)
    x = np.asarray(rng.integers(1, 9, (50, 40)), dtype, order=order)
    file = tmp_path / f"x{suffix}"
    (np.save if suffix == ".npy" else np.savez)(file, x)
    written = import_activations(file, tmp_path / "a.zarr", attrs={"kind": "raw"}, shard_rows=16)
    assert (written["layout"], written["dtype"]) == ("dense", str(np.dtype(dtype if dtype[0] == "f" else "f4")))
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), x.astype("f8"))


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_sparse_npz_of_any_kind(tmp_path, matrix, monkeypatch, kind):
    monkeypatch.setattr(readers, "SLAB_BYTES", 7 * 50 * 4)
    scipy.sparse.save_npz(tmp_path / "x.npz", matrix.asformat(kind))
    assert import_activations(tmp_path / "x.npz", tmp_path / "a.zarr")["layout"] == "csr"
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), matrix.toarray())


def test_a_sparse_matrix_never_becomes_dense(tmp_path, matrix, no_dense):
    scipy.sparse.save_npz(tmp_path / "x.npz", matrix)
    import_activations(tmp_path / "x.npz", tmp_path / "a.zarr")
    export_activations(tmp_path / "a.zarr", tmp_path / "y.npz", "npz")
    export_activations(tmp_path / "a.zarr", tmp_path / "y.h5ad", "anndata")
    import_activations(tmp_path / "y.h5ad", tmp_path / "b.zarr")


def test_npy_holds_the_values_and_says_what_it_leaves_out(tmp_path, rng, make_csr, tokens):
    original = store(tmp_path / "a.zarr", rng, make_csr, tokens, "csr", "float16")
    written = export_activations(original, tmp_path / "x.npy", "npy")
    assert {"attributes", "sinks", "decoder", "char_end"} <= set(written["left_out"])
    x = np.load(tmp_path / "x.npy")
    assert x.dtype == np.float16
    np.testing.assert_array_equal(x, whole(original))


def test_npy_of_another_store_is_not_said_to_be_edited(tmp_path, matrix):
    """Nothing in a .npy says where it comes from: it stays, and the message says why."""
    for name, values in {"a": matrix, "b": 2 * matrix}.items():
        storage.write_activations(tmp_path / f"{name}.zarr", values)
    export_activations(tmp_path / "a.zarr", tmp_path / "x.npy", "npy")
    before = (tmp_path / "x.npy").read_bytes()
    with pytest.raises(InputError, match=r"x\.npy holds other values than .*b\.zarr.* delete it") as caught:
        export_activations(tmp_path / "b.zarr", tmp_path / "x.npy", "npy", overwrite=True)
    assert "edited" not in str(caught.value)
    assert (tmp_path / "x.npy").read_bytes() == before
    export_activations(tmp_path / "a.zarr", tmp_path / "x.npy", "npy", overwrite=True)


def test_a_large_dense_array_is_refused_unless_asked_for(tmp_path, matrix):
    storage.write_activations(tmp_path / "a.zarr", matrix)
    with pytest.raises(BudgetError, match="npz or anndata"):
        export_activations(tmp_path / "a.zarr", tmp_path / "x.npy", "npy", largest_dense=19_999)
    assert not (tmp_path / "x.npy").exists()
    export_activations(tmp_path / "a.zarr", tmp_path / "x.npy", "npy", largest_dense=20_000)


def test_memory_of_an_import_is_a_shard_not_the_file(tmp_path):
    """Peak of Python's and NumPy's allocations; the array on disk is 200 MB."""
    import tracemalloc

    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", dtype="f4", shape=(50_000, 1000))
    x[::7, 3] = 1
    x.flush()
    tracemalloc.start()
    import_activations(tmp_path / "x.npy", tmp_path / "a.zarr", shard_rows=4096)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6


def test_safetensors(tmp_path, rng):
    x = rng.standard_normal((20, 6)).astype("f4")
    safetensors.numpy.save_file({"x": x, "other": x[:3]}, tmp_path / "x.safetensors")
    import_activations(tmp_path / "x.safetensors", tmp_path / "a.zarr", key="x")
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), x)
    with pytest.raises(InputError, match=r"2 arrays \(other, x\); name one with --key"):
        import_activations(tmp_path / "x.safetensors", tmp_path / "b.zarr")
    with pytest.raises(InputError, match="no 'y'; it has other, x"):
        import_activations(tmp_path / "x.safetensors", tmp_path / "b.zarr", key="y")
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    with pytest.raises(FormatError, match="cannot be read"):
        import_activations(tmp_path / "broken.safetensors", tmp_path / "b.zarr")


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_decoder_and_coordinates_from_files(tmp_path, rng, tokens, suffix):
    import pandas as pd

    np.save(tmp_path / "x.npy", rng.standard_normal((20, 6)))
    decoder = rng.standard_normal((6, 3)).astype("f4")
    safetensors.numpy.save_file({"W_dec": decoder, "b_dec": decoder[0]}, tmp_path / "sae.safetensors")
    file, columns = tmp_path / f"tokens{suffix}", tokens(20)
    articles = ["Autism", "Élite", "Autism", "7"]
    columns["group"] = np.array(articles)[columns["document"]]
    if suffix == ".npz":
        np.savez(file, **columns)
    else:
        table = pd.DataFrame(columns)
        table.to_csv(file, index=False) if suffix == ".csv" else table.to_parquet(file)
    import_activations(tmp_path / "x.npy", tmp_path / "a.zarr", decoder=tmp_path / "sae.safetensors", tokens=file)
    ds = storage.open_activations(tmp_path / "a.zarr")
    np.testing.assert_array_equal(ds["decoder"], decoder)
    np.testing.assert_array_equal(ds["char_end"], columns["char_end"])
    numbers = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") // 2 for name in articles]
    np.testing.assert_array_equal(ds["group"], np.array(numbers)[columns["document"]])


def bad_files(folder):
    np.save(folder / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez(folder / "objects.npz", x=np.array([[{}]], dtype=object))
    np.save(folder / "line.npy", np.ones(5))
    np.save(folder / "empty.npy", np.ones((0, 5)))
    np.save(folder / "narrow.npy", np.ones((5, 0)))
    np.save(folder / "long.npy", np.ones((2, 5), np.longdouble))
    np.save(folder / "complex.npy", np.ones((2, 5), complex))
    np.save(folder / "text.npy", np.array([["a"]]))
    nan = np.ones((9, 5))
    nan[7, 3] = np.nan
    np.save(folder / "nan.npy", nan)
    np.savez(folder / "two.npz", x=nan, y=nan)
    np.save(folder / "good.npy", np.ones((9, 5)))
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:-9])
    (folder / "cut.npz").write_bytes((folder / "two.npz").read_bytes()[:-90])
    np.savez(folder / "wide.npz", format=b"csr", shape=[1, 2], indices=[5], indptr=[0, 1], data=[1.0])
    (folder / "x.txt").write_text("1,2")
    (folder / "folder").mkdir()
    zarr.create_group(folder / "other.zarr")
    data = anndata.AnnData(X=scipy.sparse.csc_matrix(np.eye(4)))
    data.write_h5ad(folder / "columns.h5ad")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("objects.npy", InputError, "objects.npy is an array of Python objects, which are never unpickled"),
        ("objects.npz", InputError, "Python objects, which are never unpickled"),
        ("line.npy", InputError, r"shape \(5,\); activations are \(token, feature\), or \(sequence"),
        ("empty.npy", InputError, r"empty.npy holds no values: its shape is \(0, 5\)"),
        ("narrow.npy", InputError, r"narrow.npy holds no values: its shape is \(5, 0\)"),
        ("long.npy", InputError, r"long.npy holds (longdouble|float\d+) values; .* Save them as float32"),
        ("complex.npy", InputError, "complex128 values; activations are real"),
        ("text.npy", InputError, "activations are real"),
        ("nan.npy", InputError, r"nan.npy: Row 7, feature 3 .*is nan, which is not a finite number"),
        ("two.npz", InputError, r"2 arrays \(x, y\); name one with --key"),
        ("cut.npy", FormatError, "is it complete"),
        ("cut.npz", FormatError, "is it complete"),
        ("wide.npz", FormatError, r"column ids outside of 0\.\.1"),
        ("x.txt", InputError, r"none of the formats that can be imported: .*sae-lens .*\.npy"),
        ("folder", InputError, "none of the formats"),
        ("other.zarr", InputError, r"0 arrays \(nothing\); name one"),
        ("columns.h5ad", InputError, r"stored by columns .*tocsr"),
        ("nowhere.npy", MissingInputError, "nothing to import"),
    ],
)
def test_bad_files_are_refused_and_leave_nothing(tmp_path, name, error, message):
    bad_files(tmp_path)
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(error, match=message):
        import_activations(tmp_path / name, tmp_path / "out.zarr")
    assert {file.name for file in tmp_path.iterdir()} == before


def test_what_comes_with_it_must_fit(tmp_path, tokens):
    bad_files(tmp_path)
    good, out = tmp_path / "good.npy", tmp_path / "out.zarr"
    np.save(tmp_path / "decoder.npy", np.ones((4, 3)))
    with pytest.raises(InputError, match=r"has the shape \(4, 3\); it must have a row for each of 5 features"):
        import_activations(good, out, decoder=tmp_path / "decoder.npy")
    np.save(tmp_path / "nan_decoder.npy", np.full((5, 3), np.nan))
    with pytest.raises(
        InputError, match=r"decoder in .*nan_decoder.npy holds float64 values that are not finite numbers"
    ):
        import_activations(good, out, decoder=tmp_path / "nan_decoder.npy")
    np.save(tmp_path / "large_decoder.npy", np.full((5, 3), 1e300))
    with pytest.raises(InputError, match=r"large_decoder.npy holds values that are more than float32 can hold"):
        import_activations(good, out, decoder=tmp_path / "large_decoder.npy")
    np.savez(tmp_path / "sinks.npz", x=np.ones((9, 5)), sink=np.ones(3, bool))
    with pytest.raises(InputError, match=r"sinks.npz marks sinks in \(3,\) rows, but has 9 rows"):
        import_activations(tmp_path / "sinks.npz", out)
    np.savez(tmp_path / "tokens.npz", **tokens(8))
    with pytest.raises(InputError, match=r"has the shape .*; there are 9 activations"):
        import_activations(good, out, tokens=tmp_path / "tokens.npz")
    with pytest.raises(InputError, match="kind of activations is one of"):
        import_activations(good, out, attrs={"kind": "sparse"})
    with pytest.raises(InputError, match="no token ids"):
        import_activations(good, out, drop_tokens=[0])
    with pytest.raises(InputError, match="leave --key out"):
        import_activations(good, out, key="x")
    with pytest.raises(InputError, match=r"read from \.npy, \.npz or \.safetensors"):
        import_activations(good, out, decoder=tmp_path / "x.txt")
    with pytest.raises(InputError, match=r"has the shape \(9, 5\); it holds the document of each row"):
        import_activations(good, out, documents=good)
    (tmp_path / "tokens.txt").write_text("a b")
    with pytest.raises(InputError, match=r"read from \.csv, .* or \.parquet, not .*tokens.txt"):
        import_activations(good, out, tokens=tmp_path / "tokens.txt")
    for name, column in {"position": [1, 2, None, *range(6)], "group": ["x", "x", None, *"xxxxxx"]}.items():
        pd.DataFrame({**tokens(9), "document": 0, name: column}).to_csv(tmp_path / "holes.csv", index=False)
        with pytest.raises(InputError, match=rf"holes.csv has no {name} in row 2"):
            import_activations(good, out, tokens=tmp_path / "holes.csv")
    np.save(tmp_path / "big.npy", np.full((3, 3), 1e6))
    with pytest.raises(InputError, match="more than float16 can hold"):
        import_activations(tmp_path / "big.npy", out, dtype="float16")
    assert not list(tmp_path.glob("out.zarr*"))


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch, matrix):
    storage.write_activations(tmp_path / "a.zarr", matrix)
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'semantic-subspace-matching\[exchange\]'"):
        export_activations(tmp_path / "a.zarr", tmp_path / "x.h5ad", "anndata")
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


def test_the_name_must_fit_the_format(tmp_path, matrix):
    storage.write_activations(tmp_path / "a.zarr", matrix)
    with pytest.raises(InputError, match=r"ends in \.h5ad or \.zarr"):
        export_activations(tmp_path / "a.zarr", tmp_path / "x.npz", "anndata")


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """Activations cached by sae-lens' own runner, from a tiny model; (folder, activations, token ids)."""
    torch = pytest.importorskip("torch")
    from datasets import Dataset
    from sae_lens.cache_activations_runner import CacheActivationsRunner
    from sae_lens.config import CacheActivationsRunnerConfig
    from sae_lens.training.activations_store import ActivationsStore

    folder = tmp_path_factory.mktemp("saelens") / "cached"
    hook, context, width = "blocks.0.hook_resid_post", 8, 6
    torch.manual_seed(0)
    ids = torch.randint(1, 30, (12, context), dtype=torch.int32)
    ids[:, 0] = 0
    acts = torch.randn(12, context, width)
    config = CacheActivationsRunnerConfig(
        dataset_path="none",
        model_name="none",
        model_batch_size=2,
        hook_name=hook,
        d_in=width,
        training_tokens=12 * context,
        context_size=context,
        new_cached_activations_path=str(folder),
        shuffle=False,
        device="cpu",
        buffer_size_gb=4 * 2 * context * width * 4 / 1e9 / 2,
    )
    batches = iter(zip(acts.split(2), ids.split(2), strict=True))

    class Model(ActivationsStore):
        """Hands out given activations in place of a language model's."""

        def __init__(self):
            pass

        def get_raw_llm_batch(self):
            values, tokens = next(batches)
            return values.reshape(-1, width), tokens.reshape(-1)

    from datasets import Array2D, Features, Sequence, Value

    runner = object.__new__(CacheActivationsRunner)  # its __init__ only loads a model, which is not on this machine
    runner.cfg, runner.context_size, runner.activations_store = config, context, Model()
    runner.features = Features(
        {
            hook: Array2D(shape=(context, width), dtype="float32"),
            "token_ids": Sequence(Value(dtype="int32"), length=context),
        }
    )
    written = runner.run()
    assert isinstance(written, Dataset)
    return folder, acts.numpy(), ids.numpy(), hook


def test_what_sae_lens_cached_is_imported(cached, tmp_path):
    folder, acts, _, hook = cached
    import_activations(folder, tmp_path / "a.zarr", attrs={"model": "toy"}, shard_rows=16)
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), acts.reshape(-1, 6))
    attrs = storage.open_activations(tmp_path / "a.zarr").attrs
    assert (attrs["site"], attrs["kind"], attrs["model"]) == (hook, "raw", "toy")


def test_rows_of_special_tokens_are_left_out(cached, tmp_path, monkeypatch):
    folder, acts, ids, _ = cached
    monkeypatch.setattr(readers, "SLAB_BYTES", 3 * 8 * 6 * 4)
    written = import_activations(folder, tmp_path / "a.zarr", drop_tokens=[0, 7])
    kept = ~np.isin(ids, [0, 7])
    assert written["tokens"] == kept.sum() < kept.size - 12
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), acts[kept])


def test_a_first_slab_of_dropped_tokens_only_does_not_decide_the_layout(cached, tmp_path, monkeypatch):
    folder, acts, ids, _ = cached
    monkeypatch.setattr(readers, "SLAB_BYTES", 8 * 6 * 4)
    first = sorted(set(ids[0].tolist()))
    assert import_activations(folder, tmp_path / "a.zarr", drop_tokens=first)["layout"] == "dense"
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), acts[~np.isin(ids, first)])
    with pytest.raises(InputError, match=r"its shape is \(0, 6\); did a filter leave none"):
        import_activations(folder, tmp_path / "b.zarr", drop_tokens=range(40))


def test_a_hook_that_is_not_there(cached, tmp_path):
    with pytest.raises(InputError, match=r"no 'x'; it has blocks\.0"):
        import_activations(cached[0], tmp_path / "a.zarr", key="x")


def test_an_import_is_made_once(tmp_path, matrix, caplog):
    caplog.set_level("INFO")
    source, out = tmp_path / "x.npy", tmp_path / "a.zarr"
    np.save(source, matrix.toarray())
    np.save(tmp_path / "W.npy", np.ones((50, 3), "f4"))
    first = import_activations(source, out, decoder=tmp_path / "W.npy")
    written = (out / "zarr.json").stat().st_mtime_ns
    source.rename(tmp_path / "y.npy")  # what a file is called does not matter
    assert import_activations(tmp_path / "y.npy", out, decoder=tmp_path / "W.npy") == first
    assert "a.zarr is up to date" in caplog.text
    assert (out / "zarr.json").stat().st_mtime_ns == written
    manifest = storage.read_manifest(out)
    assert manifest.stage == "import"
    assert set(manifest.inputs) == {"source", "decoder"}
    # other settings of the same files replace it, other files only if asked to
    second = import_activations(tmp_path / "y.npy", out, decoder=tmp_path / "W.npy", dtype="float64")
    assert second["dtype"] == "float64"
    np.save(tmp_path / "W.npy", np.zeros((50, 3), "f4"))
    with pytest.raises(InputError, match="came from other inputs"):
        import_activations(tmp_path / "y.npy", out, decoder=tmp_path / "W.npy")
    import_activations(tmp_path / "y.npy", out, decoder=tmp_path / "W.npy", overwrite=True)


def test_a_folder_is_imported_once(tmp_path, matrix):
    folder = tmp_path / "x.zarr"
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        anndata.AnnData(X=matrix.toarray()).write_zarr(folder)
    first = import_activations(folder, tmp_path / "a.zarr")
    assert import_activations(folder, tmp_path / "a.zarr") == first
    (folder / "extra").write_text("")
    with pytest.raises(InputError, match="came from other inputs"):
        import_activations(folder, tmp_path / "a.zarr")


def test_imports_and_stores_of_data_replace_each_other(tmp_path, matrix):
    np.save(tmp_path / "x.npy", matrix.toarray())
    out = tmp_path / "a.zarr"
    storage.write_activations(out, np.ones((3, 4)))  # as imports of earlier versions are
    with pytest.raises(InputError, match="came from other inputs"):
        import_activations(tmp_path / "x.npy", out)
    assert import_activations(tmp_path / "x.npy", out, overwrite=True)["tokens"] == 100
    storage.write_activations(out, np.ones((3, 4)), overwrite=True)
    assert storage.open_activations(out).sizes["token"] == 3


def test_an_import_after_one_that_died(tmp_path, matrix):
    np.save(tmp_path / "x.npy", matrix.toarray())
    np.save(tmp_path / "y.npy", matrix.toarray() * 2)
    out = tmp_path / "a.zarr"
    dies = "import os, storage.exchange as e; e.ActivationWriter.finalise = lambda _: os._exit(9)"
    for name in ("x.npy", "y.npy"):  # the same files, and others
        call = f"e.import_activations({str(tmp_path / 'x.npy')!r}, {str(out)!r}, shard_rows=32)"
        assert subprocess.run([sys.executable, "-c", f"{dies}; {call}"], check=False).returncode == 9
        assert not out.exists()
        import_activations(tmp_path / name, out, shard_rows=32)
        np.testing.assert_array_equal(whole(out), np.load(tmp_path / name))
        shutil.rmtree(out)


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5ad", "x.zarr"])
def test_an_export_is_made_once(tmp_path, rng, make_csr, tokens, layout, name, caplog):
    caplog.set_level("INFO")
    original = store(tmp_path / "a.zarr", rng, make_csr, tokens, layout, "float32")
    fmt, out = {"x.npy": "npy", "x.npz": "npz"}.get(name, "anndata"), tmp_path / name
    first = export_activations(original, out, fmt)
    inode = out.stat().st_ino
    assert export_activations(original, out, fmt) == first
    assert out.stat().st_ino == inode
    assert f"{name} is up to date" in caplog.text
    other = store(tmp_path / "b.zarr", rng, make_csr, tokens, layout, "float32")
    with pytest.raises(InputError, match="holds other values than" if fmt == "npy" else "with other content"):
        export_activations(other, out, fmt)
    assert out.stat().st_ino == inode


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_file_that_is_cut_while_it_is_read(tmp_path, rng, suffix, order):
    """Mapped into memory, it would end the process (SIGBUS)."""
    x, file = np.asarray(rng.standard_normal((50, 4000)), order=order), tmp_path / f"x{suffix}"
    np.save(file, x) if suffix == ".npy" else safetensors.numpy.save_file({"x": np.ascontiguousarray(x)}, file)
    slabs = readers.open_source(file).slabs(20)
    np.testing.assert_array_equal(next(slabs), x[:20])
    os.truncate(file, 4096)
    with pytest.raises(CorruptError, match=f"x{suffix} ended while it was read"):
        next(slabs)


def big_endian(path, kind, x):
    if kind == "npy":
        np.save(path / "x.npy", x)
    elif kind == "npz":
        np.savez(path / "x.npz", x)
    elif kind == "csr.npz":
        csr = scipy.sparse.csr_array(x.astype("f4"))
        parts = {
            "indptr": csr.indptr.astype(">i4"),
            "indices": csr.indices.astype(">i4"),
            "data": csr.data.astype(">f4"),
        }
        np.savez(path / "x.csr.npz", format=b"csr", shape=x.shape, **parts)
    else:
        with h5py.File(path / "x.h5ad", "w") as file:
            file.attrs["encoding-type"] = "anndata"
            file.create_group("obs")
            file.create_dataset("X", data=x).attrs["encoding-type"] = "array"


@pytest.mark.parametrize("dtype", [">f4", ">i4"])
@pytest.mark.parametrize("kind", ["npy", "npz", "csr.npz", "h5ad"])
def test_the_other_byte_order(tmp_path, matrix, kind, dtype):
    x = (matrix.toarray() * 10).astype(dtype)
    big_endian(tmp_path, kind, x)
    written = import_activations(tmp_path / f"x.{kind}", tmp_path / "a.zarr")
    assert written["dtype"] == "float32"
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), x)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e80, None, "is 1e.80, which is more than float32 can hold, and statistics would overflow: rescale"),
        (-1e300, "float64", "is -1e.300, which is more than float32 can hold, and statistics would overflow: rescale"),
        (1e300, "float32", "is more than float32 can hold: keep it as a larger type"),
        (16777217, None, r"is 16777217, which float32 would change to 16777216: keep it as float64 \(--dtype float64"),
        (2**53 + 1, "float64", "float64 would change to 9007199254740992: divide"),
        (2**63 - 1, "float64", "float64 would change to"),
        (70_000, "float16", "is more than float16 can hold: keep it as a larger type"),
    ],
)
def test_values_that_a_store_cannot_keep(tmp_path, value, dtype, message, sparse):
    x = np.zeros((9, 5), type(value) if isinstance(value, float) else np.int64)
    x[7, 3] = value
    file = tmp_path / f"x.np{'z' if sparse else 'y'}"
    scipy.sparse.save_npz(file, scipy.sparse.csr_array(x)) if sparse else np.save(file, x)
    with pytest.raises(InputError, match=f"{file.name}: Row 7, feature 3 .*{message}"):
        import_activations(file, tmp_path / "a.zarr", dtype=dtype)
    assert list(tmp_path.iterdir()) == [file]


def test_integers_that_a_store_keeps(tmp_path):
    x = np.array([[16777217, 2**53, -(2**62)], [1, 2, 3]])
    np.save(tmp_path / "x.npy", x)
    import_activations(tmp_path / "x.npy", tmp_path / "a.zarr", dtype="float64")
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), x)


def test_masked_values_are_not_unmasked(tmp_path):
    x = np.ma.array(np.ones((4, 3)), mask=np.eye(4, 3))
    for data in (x, iter([x]), dask.array.from_array(x, chunks=(2, 3))):
        with pytest.raises(InputError, match=r"values are masked; say what they are first: array.filled"):
            storage.write_activations(tmp_path / "a.zarr", data)
    writer = ActivationWriter.create(tmp_path / "a.zarr", n_tokens=4, n_features=3)
    with pytest.raises(InputError, match="3 values are masked"):
        writer.write_shard(0, x)
    writer.write_shard(0, x.filled(0))


@pytest.mark.parametrize(
    "place", ["obs/precious/thesis.txt", "layers/umap.npy", "X/c/0/notes", "uns/mine/zarr.json.bak"]
)
def test_what_somebody_put_into_an_export_stays(tmp_path, rng, place):
    for name in ("a", "b"):
        storage.write_activations(tmp_path / f"{name}.zarr", rng.random((9, 5)), decoder=np.eye(5, 3))
    out = tmp_path / "x.zarr"
    export_activations(tmp_path / "a.zarr", out, "anndata")
    export_activations(tmp_path / "b.zarr", out, "anndata", overwrite=True)
    (out / place).parent.mkdir(parents=True, exist_ok=True)
    (out / place).write_text("thesis")
    with pytest.raises(InputError, match=r"x\.zarr is there and was not written by this command, or was edited since"):
        export_activations(tmp_path / "a.zarr", out, "anndata", overwrite=True)
    assert (out / place).read_text() == "thesis"


def test_a_full_disk_is_found_before_hdf5_finds_it(tmp_path, rng, monkeypatch):
    """HDF5 prints tracebacks when a disk is full, and ends the process by a segmentation fault."""
    storage.write_activations(tmp_path / "a.zarr", rng.random((9, 5)))
    monkeypatch.setattr("storage.exchange.free_space", lambda path: (10_000, path))
    with pytest.raises(OSError, match="No space left on device"):
        export_activations(tmp_path / "a.zarr", tmp_path / "x.h5ad", "anndata")
    monkeypatch.undo()
    monkeypatch.setattr("storage.exchange.resource.getrlimit", lambda _: (10_000, -1))
    with pytest.raises(OSError, match="File too large"):
        export_activations(tmp_path / "a.zarr", tmp_path / "x.h5ad", "anndata")
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]
