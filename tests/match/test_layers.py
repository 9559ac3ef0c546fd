from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from pipeline.match.layers import layer_consistency, layer_table
from storage.errors import InputError


def pairs(found, n_a=3, n_b=4):
    a, b, r = zip(*found, strict=True) if found else ((), (), ())
    return xr.Dataset(
        {
            "feature_a": ("pair", np.array(a, np.int32)),
            "feature_b": ("pair", np.array(b, np.int32)),
            "r": ("pair", np.array(r, float)),
            "fate_a": ("id_a", np.zeros(n_a, np.int8)),
            "fate_b": ("id_b", np.zeros(n_b, np.int8)),
        }
    )


GRID = {
    ("a1", "b1"): pairs([(0, 2, 0.5), (1, 0, 0.4), (0, 1, 0.6), (0, 0, 0.6)]),
    ("a1", "b2"): pairs([(0, 3, 0.6), (1, 1, 0.9)], n_b=5),
    ("a2", "b1"): pairs([], n_a=2),
    ("a2", "b2"): pairs([(1, 4, 0.3)], n_a=2, n_b=5),
}


def test_each_feature_of_a_and_its_partner_at_each_layer_of_b():
    found = layer_consistency(GRID)
    assert list(zip(found.site.values, found.id.values, strict=True)) == [
        *(("a1", i) for i in range(3)),
        *(("a2", i) for i in range(2)),
    ]
    # of two partners with the same r, the lower id
    assert found.partner.values.tolist() == [[0, 3], [0, 1], [-1, -1], [-1, -1], [-1, 4]]
    np.testing.assert_array_equal(found.r.values, [[0.6, 0.6], [0.4, 0.9], [np.nan] * 2, [np.nan] * 2, [np.nan, 0.3]])
    assert found.best_site.values.tolist() == [0, 1, -1, -1, 1]
    assert found.n_sites.values.tolist() == [2, 2, 0, 0, 1]


def test_the_other_side():
    found = layer_consistency(GRID, "b")
    assert found.sizes == {"feature": 9, "other_site": 2}
    assert found.sel({"other_site": "a1"}).partner.values.tolist() == [0, 0, 0, -1, -1, 1, -1, 0, -1]
    assert found.attrs["side"] == "b"


def test_the_table_adds_up():
    table = layer_table(layer_consistency(GRID)).set_index(["site", "other_site"])
    assert table.loc[("a1", "b1"), "matched"] == 2
    assert table["best_here"].tolist() == [1, 1, 0, 1]
    assert table["share_best_here"].tolist() == [0.5, 0.5, 0.0, 1.0]
    assert table.loc[("a1", "b2"), "mean_r"] == pytest.approx(0.75)
    assert np.isnan(table.loc[("a2", "b1"), "mean_r"])


def test_a_grid_with_a_hole_is_refused():
    with pytest.raises(InputError, match=r"no pairs for .*'a2', 'b1'"):
        layer_consistency({key: value for key, value in GRID.items() if key != ("a2", "b1")})
    with pytest.raises(InputError, match="no pairs of sites"):
        layer_consistency({})
