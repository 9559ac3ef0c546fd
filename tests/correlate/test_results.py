"""What a result promises: the same whatever the plan, sane under permutation, honest about what is undefined."""

from __future__ import annotations

import importlib
import logging

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import storage
from pipeline.correlate.run import correlate
from pipeline.work.workers import local_client

SPARSE_METHODS = ("resident", "streaming")


@pytest.fixture
def related(values):
    """Two sides that share half of their features, with copies (ties), dead and constant features."""
    rng = np.random.default_rng(0)
    x = values(rng, 300, 80, 0.1)
    y = values(rng, 300, 70, 0.1)
    y[:, :30] = x[:, rng.permutation(80)[:30]] * (0.5 + rng.random((300, 30)))
    x[:, 40] = x[:, 41] = x[:, 79] = x[:, 3]
    y[:, 60] = y[:, 61] = y[:, 69] = y[:, 2]
    x[:, 50], y[:, 51], x[:, 52] = 0, 0, 2
    return x, y


def assert_identical(one: xr.Dataset, two: xr.Dataset) -> None:
    """Require the same values, bit by bit, and the same pattern of kept pairs."""
    assert set(one.variables) == set(two.variables)
    for name in one.variables:
        np.testing.assert_array_equal(one[name].values, two[name].values)
    for name in ("r", "r_heldout"):
        if name in one:
            kept = [storage.read_csr(ds.encoding["source"], name=name) for ds in (one, two)]
            for part in ("indptr", "indices", "data"):
                np.testing.assert_array_equal(*(getattr(csr, part) for csr in kept))
    assert {**one.attrs, "manifest": None} == {**two.attrs, "manifest": None}


@pytest.mark.parametrize("select", ["half", "all"])
def test_identical_for_all_panels_modes_and_threads(client, make_case, force, related, select):
    case = make_case(*related)
    arguments = {"top_k": 6, "keep_above": 0.05, "select": select}
    reference = case.correlate("reference", client=client, **arguments)
    for method, panel, slab_rows, threads in (
        ("resident", 16, 32, 1),
        ("streaming", 16, 64, 2),
        ("streaming", 27, 100, 3),
        ("resident", 25, 96, 4),
    ):
        force(method, panel=panel, slab_rows=slab_rows)
        with local_client(threads_per_worker=threads) as own:
            result = case.correlate(f"{method}-{panel}", client=own, **arguments)
            own.cluster.close()
        assert_identical(result, reference)


def test_identical_on_worker_processes(client, make_case, force, related):
    case = make_case(*related)
    reference = case.correlate("reference", client=client, top_k=4)
    force("resident", panel=32, slab_rows=64, strip=32)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0")
    with cluster, Client(cluster) as processes:
        assert_identical(case.correlate("processes", client=processes, top_k=4), reference)


def test_the_dense_kernel_agrees_with_the_sparse_one(client, make_case, force, related):
    case = make_case(*related)
    sparse = case.correlate("sparse", client=client, top_k=5, kernel="sparse")
    force("dense", panel=16, slab_rows=64)
    dense = case.correlate("dense", client=client, top_k=5, kernel="dense")
    for name in ("r_b", "r_a", "r_heldout_b", "r_heldout_a"):
        np.testing.assert_allclose(dense[name], sparse[name], atol=1e-12, rtol=0)
    for name in ("n_active_a", "n_active_b", "defined_a", "defined_b"):
        np.testing.assert_array_equal(dense[name], sparse[name])


def test_dense_results_do_not_depend_on_threads(client, make_case, force, related):
    case = make_case(*related)
    force("dense", panel=20, slab_rows=64)
    reference = case.correlate("one", client=client, kernel="dense")
    with local_client(threads_per_worker=1) as own:
        assert_identical(case.correlate("two", client=own, kernel="dense"), reference)
        own.cluster.close()


def test_ties_go_to_the_lowest_id_across_panels(client, make_case, force, related):
    force("resident", panel=16)
    ds = make_case(*related).correlate(top_k=4, client=client)
    np.testing.assert_array_equal(ds["best_b"].values[3, 1:][np.diff(ds["r_b"].values[3]) == 0] > 0, True)
    same = [3, 40, 41, 79]  # copies of one A feature, in panels 0, 2, 2 and 4
    for feature_b in range(70):
        ids, r = ds["best_a"].values[feature_b], ds["r_a"].values[feature_b]
        if ids[0] in same:
            np.testing.assert_array_equal(ids, same)
            assert len(set(r)) == 1
    for feature_a in range(80):
        row = list(ds["best_b"].values[feature_a])
        if row[0] == 2:
            assert row == [2, 60, 61, 69]


@pytest.mark.parametrize("method", SPARSE_METHODS)
def test_permuted_columns_are_recovered_and_permuted_rows_destroy_everything(client, make_case, force, values, method):
    rng = np.random.default_rng(1)
    x = values(rng, 400, 60, 0.1)
    order = rng.permutation(60)
    force(method)
    columns = make_case(x, x[:, order]).correlate(top_k=1, client=client)
    np.testing.assert_array_equal(columns["best_b"].values[order, 0], np.arange(60))
    np.testing.assert_array_equal(columns["best_a"].values[:, 0], order)
    assert (columns["r_b"].values == 1).all()
    assert (columns["r_heldout_b"].values == 1).all()
    rows = make_case(x, x[rng.permutation(400)]).correlate(top_k=1, client=client)
    assert rows["r_b"].values.max() < 0.5
    assert abs(rows["r_heldout_b"].values.mean()) < 0.05


def test_undefined_is_nan_and_never_ranked(client, make_case, values):
    rng = np.random.default_rng(2)
    x, y = values(rng, 200, 20, 0.3), values(rng, 200, 20, 0.3)
    x[:, 4], x[:, 5], y[:, 6] = 0, 3.5, -1
    x[100:, 7] = 0  # never active where it is held out
    x[:100, 8] = 0  # never active where it chooses
    ds = make_case(x, y).correlate(top_k=30, client=client)
    assert ds.attrs["n_undefined_a"] == 3
    assert ds.attrs["n_undefined_b"] == 1
    np.testing.assert_array_equal(np.flatnonzero(~ds["defined_a"].values), [4, 5, 8])
    for dead in (4, 5, 8):
        assert (ds["best_b"].values[dead] == -1).all()
        assert np.isnan(ds["r_b"].values[dead]).all()
        assert not (ds["best_a"].values == dead).any()
    assert not (ds["best_b"].values == 6).any()
    assert np.isfinite(ds["r_b"].values[7, :19]).all()
    assert np.isnan(ds["r_heldout_b"].values[7]).all()
    assert ds["histogram"].values.sum() == 17 * 19
    assert ds["mean_a"].values[5] == 3.5
    assert ds["std_a"].values[5] == 0


@pytest.mark.parametrize("method", SPARSE_METHODS)
def test_nothing_sparse_is_ever_made_dense(client, make_case, force, related, monkeypatch, method):
    case = make_case(*related)
    force(method)

    def refuse(*_arguments):
        raise AssertionError("a csr chunk was decoded to a dense array")

    monkeypatch.setattr(importlib.import_module("storage.codec"), "panel_to_dense", refuse)
    ds = case.correlate(client=client)
    assert storage.read_csr(ds.encoding["source"], name="r").nnz == ds.attrs["n_kept"] > 0
    with pytest.raises(storage.CorruptError, match="decoded to a dense array"):
        ds["r"].load()  # the patch does bite


def test_sinks_of_either_side_count_on_neither(client, make_case, values):
    rng = np.random.default_rng(3)
    x, y = values(rng, 200, 10, 0.4), values(rng, 200, 12, 0.4)
    kept = np.ones(200, bool)
    kept[[0, 50, 120]] = False
    spoilt = x.copy()
    spoilt[~kept] = 1e6
    sinks = ~kept
    case = make_case(spoilt, y, sink=sinks)
    ds = case.correlate(top_k=3, select="all", client=client)
    assert ds.attrs["n_rows_excluded"] == 3
    case.x, case.y = x[kept], y[kept]
    case.sink = np.zeros(197, bool)
    case.check(ds, 3, 0.1)


def test_result_opens_with_plain_xarray_and_carries_what_it_is(client, make_case, related):
    case = make_case(*related, documents=np.arange(300) // 10)
    out = case.correlate(top_k=2, client=client).encoding["source"]
    ds = xr.open_zarr(out)
    assert ds["r"].dims == ("feature_a", "feature_b")
    assert ds["best_a"].dims == ("feature_b", "rank")
    assert ds.attrs["n_rows_select"] + ds.attrs["n_rows_heldout"] == 300
    assert ds.attrs["row_hash"]
    assert ds.attrs["manifest"]["settings"] == {
        "top_k": 2,
        "keep_above": 0.1,
        "select": "half",
        "split_seed": 0,
        "measure": "pearson",
        "min_firing": 20,
        "kernel": "sparse",
    }
    assert ds["r_heldout_a"].attrs["long_name"] == "Pearson correlation on held-out rows"
    assert ds["r"].attrs["long_name"] == "Pearson correlation on the rows used for selection"
    sparse = storage.read_csr(out, name="r")
    np.testing.assert_array_equal(ds["r"].values, sparse.toarray())


def test_datasets_in_place_of_paths_and_a_temporary_result(client, make_case, related, caplog):
    case = make_case(*related)
    caplog.set_level(logging.INFO, "pipeline.correlate")
    ds = correlate(storage.open_activations(case.a), storage.open_activations(case.b), top_k=1, client=client)
    assert ds["best_b"].shape == (80, 1)
    assert "sparse kernel" in caplog.text
    with pytest.raises(storage.InputError, match="give the path"):
        correlate(xr.Dataset(), case.b, client=client)


def test_documents_are_split_whole(client, make_case, values):
    rng = np.random.default_rng(4)
    documents = np.sort(rng.integers(0, 40, 400))
    case = make_case(values(rng, 400, 6, 0.5), values(rng, 400, 6, 0.5), documents=documents)
    selecting, held_out = case.halves("half")
    assert not set(documents[selecting]) & set(documents[held_out])
    assert set(documents[selecting]) | set(documents[held_out]) == set(documents)
    case.check(case.correlate(client=client, top_k=3), 3, 0.1)


def test_no_client_starts_one_of_threads(make_case, related):
    ds = make_case(*related).correlate(top_k=1)
    assert ds["best_b"].shape == (80, 1)


def test_the_same_for_one_to_eight_workers_and_both_kernels(make_case, values, monkeypatch):
    monkeypatch.setattr(importlib.import_module("pipeline.correlate.moments"), "FEWEST_ROWS", 0)
    rng = np.random.default_rng(5)
    x, y = values(rng, 300, 90, 0.3), values(rng, 300, 70, 0.3)
    y[:, :20] += x[:, :20]
    case, found = make_case(x, y), {}
    for workers in (1, 2, 5, 8):
        with local_client(n_workers=workers, threads_per_worker=1) as several:
            for kernel in ("sparse", "dense"):
                name = f"{kernel}-{workers}"
                found[kernel, workers] = case.correlate(name, top_k=6, kernel=kernel, client=several).load()
    for (kernel, workers), ds in found.items():
        for name in ("best_a", "best_b"):
            np.testing.assert_array_equal(ds[name], found["sparse", 1][name], f"{kernel}, {workers} workers")
        for name in ds.variables:
            np.testing.assert_array_equal(ds[name], found[kernel, 1][name], f"{kernel}, {workers} workers")
