"""The best site of every feature over a grid, against plain loops over the results."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import storage
from pipeline.correlate.best_layer import best_layer
from pipeline.correlate.run import correlate


@pytest.fixture(scope="module")
def grid(client, tmp_path_factory):
    """Two sites of A against three of B; one feature is dead everywhere, two sites of B are equal."""
    folder = tmp_path_factory.mktemp("grid")
    rng = np.random.default_rng(0)

    def side(features):
        return (rng.random((200, features)) * (rng.random((200, features)) < 0.3)).astype("f4")

    stores = {"a1": side(6), "a2": side(5), "b1": side(7), "b2": side(4)}
    stores["a1"][:, 3] = 0
    stores["b1"][:, :3] += stores["a1"][:, :3]
    stores["b2"][:, 1] = stores["a2"][:, 4]
    stores["b3"] = stores["b1"].copy()
    for name, values in stores.items():
        storage.write_activations(folder / f"{name}.zarr", values, layout="csr", overwrite=True)
    paths = {(a, b): folder / f"{a}--{b}.zarr" for a in ("a1", "a2") for b in ("b1", "b2", "b3")}
    for (a, b), path in paths.items():
        correlate(folder / f"{a}.zarr", folder / f"{b}.zarr", top_k=2, out=path, client=client)
    return paths


def test_every_feature_against_plain_loops(grid):
    ds = best_layer(grid)
    assert ds.sizes == {"unit_a": 11, "unit_b": 18}
    for side, other, place in (("a", "b", 0), ("b", "a", 1)):
        for unit in range(ds.sizes[f"unit_{side}"]):
            site, feature = ds[f"site_{side}"].values[unit], int(ds[f"feature_{side}"].values[unit])
            ranked = []
            for sites, path in grid.items():
                cor = xr.open_zarr(path)
                if sites[place] == site and cor[f"best_{other}"].values[feature, 0] >= 0:
                    first = [cor[f"{name}_{other}"].values[feature, 0] for name in ("r", "r_heldout", "best")]
                    ranked.append((-first[0], len(ranked), sites[1 - place], *first))
            ranked.sort()
            found = [ds[name].values[unit] for name in (f"best_site_{other}", f"best_{other}", f"best_r_{side}")]
            if not ranked:
                assert found[:2] == ["", -1]
                assert np.isnan(found[2])
                assert ds[f"runner_up_site_{other}"].values[unit] == ""
                continue
            assert found == [ranked[0][2], ranked[0][5], ranked[0][3]]
            np.testing.assert_equal(ds[f"best_r_heldout_{side}"].values[unit], ranked[0][4])
            assert ds[f"runner_up_site_{other}"].values[unit] == ranked[1][2]
            assert ds[f"runner_up_r_{side}"].values[unit] == ranked[1][3]
    assert ds["best_site_b"].values[3] == ""
    assert list(ds["best_site_b"].values[:3]) == ["b1"] * 3  # b3 is the same: the first site wins
    assert list(ds["runner_up_site_b"].values[:3]) == ["b3"] * 3


def test_written_beside_its_tables_and_left_alone_when_current(grid, tmp_path):
    out = tmp_path / "best_layer.zarr"
    ds = best_layer(grid, out)
    assert ds["best_r_a"].attrs["long_name"] == "Pearson correlation on the rows used for selection"
    table = pd.read_csv(tmp_path / "best_layer_a.csv", keep_default_na=False)
    assert list(table["best_site_b"]) == list(ds["best_site_b"].values)
    assert len(pd.read_csv(tmp_path / "best_layer_b.csv")) == 18
    before = out.stat().st_mtime_ns
    xr.testing.assert_identical(best_layer(grid, out).load(), ds.load())
    assert out.stat().st_mtime_ns == before
    assert best_layer(dict(list(grid.items())[:1]), out, overwrite=True).sizes == {"unit_a": 6, "unit_b": 7}


def test_one_site_has_no_runner_up(grid):
    ds = best_layer({("a1", "b1"): grid["a1", "b1"]})
    assert (ds["runner_up_site_b"].values == "").all()
    assert np.isnan(ds["runner_up_r_a"].values).all()


def test_bad_input_is_named(grid, tmp_path, client):
    with pytest.raises(storage.InputError, match="no correlation results"):
        best_layer({})
    with pytest.raises(storage.MissingInputError):
        best_layer({("a", "b"): tmp_path / "nowhere.zarr"})
    folder = grid["a1", "b1"].parent
    cosine = folder / "cosine.zarr"
    correlate(folder / "a1.zarr", folder / "b2.zarr", measure="cosine", out=cosine, client=client)
    with pytest.raises(storage.InputError, match="different measures"):
        best_layer({("a1", "b1"): grid["a1", "b1"], ("a1", "b2"): cosine})
    with pytest.raises(storage.InputError, match=r"\[5, 6\] features"):
        best_layer({("a1", "b1"): grid["a1", "b1"], ("a1", "b2"): grid["a2", "b2"]})
