"""Features that fire in too few of the rows that select are left out before products, counted and named."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from pipeline.correlate.grid import KnownB
from pipeline.match.run import match
from pipeline.settings.correlate import CorrelateSettings

METHODS = ("resident", "streaming", "dense")
KERNEL = {"resident": "sparse", "streaming": "sparse", "dense": "dense"}
RARE, ENOUGH, DEAD = 3, 4, 5


@pytest.fixture
def case(make_case, values):
    """Two stores; in the first half of 2,000 rows one feature of either side fires 9 times, one 10 times, one never."""
    rng = np.random.default_rng(0)
    sides = [values(rng, 2000, features, 0.1) for features in (30, 20)]
    for side in sides:
        side[:1000, RARE : DEAD + 1] = 0
        side[100:109, RARE], side[100:110, ENOUGH] = 1.5, 2.5
    sides[1][:, 0] = sides[0][:, 0]
    return make_case(*sides)


@pytest.mark.parametrize("method", METHODS)
def test_rare_features_are_left_out(client, case, force, method, caplog):
    caplog.set_level(logging.INFO, "pipeline.correlate")
    force(method, panel=16, slab_rows=256)
    ds = case.correlate(top_k=3, kernel=KERNEL[method], client=client)
    for side, others in (("a", "b"), ("b", "a")):
        assert np.flatnonzero(~ds[f"defined_{side}"].values).tolist() == [RARE, DEAD]
        assert (ds.attrs[f"n_undefined_{side}"], ds.attrs[f"n_rare_{side}"]) == (2, 1)
        assert (ds[f"best_{others}"].values[[RARE, DEAD]] == -1).all()
        assert ds[f"best_{others}"].values[ENOUGH, 0] == ENOUGH
        assert not np.isin(ds[f"best_{side}"].values, [RARE, DEAD]).any()
        # what is left out keeps its statistics
        chosen = getattr(case, "x" if side == "a" else "y")[:1000].astype(np.float64)
        np.testing.assert_allclose(ds[f"mean_{side}"], chosen.mean(0), rtol=1e-9)
        np.testing.assert_allclose(ds[f"std_{side}"], chosen.std(0), rtol=1e-6)
        assert (
            f"1 {side.upper()} features do not vary over the rows used for selection, and 1 fire in fewer than 10 of"
            in (caplog.text)
        )
    assert ds["histogram"].sum() == 28 * 18
    pairs = match(case.folder / "cor.zarr", min_correlation=0.1)
    assert np.flatnonzero(pairs["fate_a"].values == 1).tolist() == [RARE, DEAD]


@pytest.mark.parametrize("method", METHODS)
def test_zero_keeps_all_that_vary(client, case, force, method):
    force(method, panel=16, slab_rows=256)
    ds = case.correlate(top_k=3, min_firing=0, kernel=KERNEL[method], client=client)
    assert np.flatnonzero(~ds["defined_a"].values).tolist() == [DEAD]
    case.check(ds, 3, 0.1)


def test_few_rows_lose_nothing():
    assert [CorrelateSettings().fewest_firing(n) for n in (2, 99, 100, 1999, 2000, 10**6)] == [0, 0, 1, 19, 20, 20]
    assert CorrelateSettings(min_firing=500).fewest_firing(10**5) == 500


def test_another_minimum_does_not_take_over_the_rows_of_b(client, case):
    known = KnownB()
    first = case.correlate("first", top_k=3, min_firing=0, client=client, known_b=known)
    second = case.correlate("second", top_k=3, min_firing=10, client=client, known_b=known)
    assert (first.attrs["n_undefined_b"], second.attrs["n_undefined_b"]) == (1, 2)


def test_another_minimum_is_another_result(client, case):
    case.correlate(top_k=3, min_firing=10, client=client)
    ds = case.correlate(top_k=3, min_firing=9, client=client, overwrite=True)
    assert (ds.attrs["min_firing"], ds.attrs["n_rare_a"]) == (9, 0)
