"""``full``: the whole matrix, beside the reduced results."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import xarray as xr

import storage

METHODS = {"resident": "sparse", "streaming": "sparse", "dense": "dense", "float32": "dense"}


@pytest.fixture
def case(make_case, values):
    """Stores of 100 × 70 features, some of which do not vary."""
    rng = np.random.default_rng(0)
    x, y = values(rng, 300, 100, 0.2), values(rng, 300, 70, 0.3)
    y[:, :20] += x[:, 50:70]
    x[:, [0, 33]], y[:, 69] = 0, 1
    return make_case(x, y)


@pytest.mark.parametrize("method", METHODS)
def test_every_r_is_that_of_numpy(case, client, force, monkeypatch, method):
    for module in ("panel", "run"):  # several chunks of rows a panel
        monkeypatch.setattr(importlib.import_module(f"pipeline.correlate.{module}"), "MATRIX_ROWS", 8)
    force(method, panel=32, slab_rows=64)
    ds = case.correlate(client=client, kernel=METHODS[method], full="float32")
    matrix = xr.open_zarr(ds.encoding["source"])["r_all"]
    assert matrix.dims == ("feature_a", "feature_b")
    np.testing.assert_allclose(matrix.values, case.truth("half")[0], atol=1e-6, rtol=0)
    assert np.isnan(matrix.values[[0, 33]]).all()
    assert ds.attrs["manifest"]["settings"]["full"] == "float32"
    case.check(ds, 16, 0.1)


def test_float16_and_nothing_unless_asked_for(case, client):
    ds = case.correlate(client=client, full="float16")
    assert ds["r_all"].dtype == np.float16
    np.testing.assert_allclose(ds["r_all"].values, case.truth("half")[0], atol=5e-4, rtol=0)
    assert "r_all" not in case.correlate("without", client=client)


def test_a_full_disk_is_said_before_anything_is_computed(case, client, monkeypatch):
    run = importlib.import_module("pipeline.correlate.run")
    usage = run.shutil.disk_usage(case.folder)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(storage.BudgetError, match=r"whole matrix takes up to .* leave out full"):
        case.correlate(client=client, full="float32")
    with pytest.raises(storage.InputError, match=r"full: .* 'float32' or 'float16'"):
        case.correlate(client=client, full="float8")
    assert not storage.partial_path(case.folder / "cor.zarr").exists()
