"""Every number of a result against NumPy float64, for all three methods and for awkward features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

METHODS = ("resident", "streaming", "dense", "float32")
KERNEL = {"resident": "sparse", "streaming": "sparse", "dense": "dense", "float32": "dense"}


@st.composite
def awkward_features(draw, n):
    """Columns that break naive formulas."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["sparse", "dead", "constant", "once", "far", "negative", "half", "large", "faint"]))
    column = (rng.random(n) < 0.3) * rng.random(n)
    if kind == "dead":
        column[:] = 0
    elif kind == "constant":
        column[:] = rng.choice([-3.25, 7.0])
    elif kind == "once":
        column[:] = 0
        column[rng.integers(n)] = 1
    elif kind == "far":  # mean ≫ std
        column = 10 ** draw(st.floats(0, 4)) + rng.random(n)
    elif kind == "negative":
        column = -column - (1000 if draw(st.booleans()) else 0)
    elif kind == "half":  # never active in the first half
        column[: n // 2] = 0
    elif kind == "large":
        column = column * 1e30
    elif kind == "faint":
        column = column * 1e-30
    return column


@st.composite
def pairs_of_stores(draw):
    n = draw(st.integers(8, 150))
    sides = []
    for _ in "ab":
        columns = draw(st.lists(awkward_features(n), min_size=1, max_size=40))
        sides.append(np.stack(columns, axis=1).astype(np.float32))
    copies = min(draw(st.integers(0, 3)), sides[0].shape[1], sides[1].shape[1])
    sides[1][:, :copies] = sides[0][:, :copies]
    rng = np.random.default_rng(n)
    sink = rng.random(n) < 0.1 if draw(st.booleans()) else np.zeros(n, bool)
    sink[:5], sink[-5:] = False, False
    documents = np.sort(rng.integers(1, 7, n)) if draw(st.booleans()) else None
    if documents is not None:
        documents[0], documents[-1] = 0, 8
    return *sides, sink, documents


@pytest.mark.parametrize("method", METHODS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=12)
@given(stores=pairs_of_stores(), top_k=st.sampled_from([1, 3, 50]), select=st.sampled_from(["half", "all"]))
def test_every_number_matches_numpy(client, make_case, force, method, stores, top_k, select):
    x, y, sink, documents = stores
    force(method, panel=16, slab_rows=32)
    case = make_case(x, y, sink=sink, documents=documents)
    if any(rows.sum() < 2 for rows in case.halves(select)):
        return
    ds = case.correlate(top_k=top_k, keep_above=0.05, select=select, kernel=KERNEL[method], client=client)
    if select == "all":
        assert "r_heldout_b" not in ds
    case.check(ds, top_k, 0.05)


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_as_many_partners_as_may_be_asked_for(client, make_case, values, kernel):
    rng = np.random.default_rng(7)
    case = make_case(values(rng, 200, 300, 0.3), values(rng, 200, 270, 0.3))
    case.check(case.correlate(top_k=256, keep_above=0.1, kernel=kernel, client=client), 256, 0.1)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types_are_exact_too(client, make_case, values, dtype):
    rng = np.random.default_rng(1)
    x, y = values(rng, 300, 70, 0.2).astype(dtype), values(rng, 300, 40, 0.2).astype(dtype)
    y[:, 3] = 4 * x[:, 8]
    case = make_case(x, y, dtype=dtype)
    case.check(case.correlate(top_k=4, keep_above=0.1, kernel="sparse", client=client), 4, 0.1)


@pytest.mark.parametrize("layouts", [("dense", "dense"), ("csr", "dense"), ("dense", "csr")])
def test_dense_and_mixed_stores(client, make_case, force, values, layouts):
    rng = np.random.default_rng(2)
    x, y = values(rng, 200, 50, 0.5) + 100, values(rng, 200, 60, 0.5)
    y[:, :10] += 0.3 * x[:, :10]
    force("dense", panel=16, slab_rows=64)
    case = make_case(x, y, layouts=layouts)
    ds = case.correlate(top_k=5, keep_above=0.1, client=client)
    assert ds.attrs["kernel"] == "dense"
    case.check(ds, 5, 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_feature_and_its_copy_correlate_at_exactly_one(client, make_case, force, values, method):
    rng = np.random.default_rng(3)
    x = values(rng, 500, 64, 0.1)
    x[:, 5] = 1e4 + rng.random(500)
    y = np.concatenate([x, 3 * x, -x], axis=1)[:, : 64 * 3]
    force(method, panel=16, slab_rows=64)
    case = make_case(x, y)
    ds = case.correlate(top_k=3, client=client, kernel=KERNEL[method])
    own = ds["r_b"].values[:, 0]
    assert (own == 1.0).all()
    assert (ds["r_heldout_b"].values[:, 0] == 1.0).all()
    np.testing.assert_array_equal(ds["best_b"].values[:, 0], np.arange(64))
    ones = int(ds["histogram"].values[-1])
    assert ones >= 64
    assert (ds["histogram"].values[0]) >= 64  # -x: exactly -1


def test_a_mean_of_ten_thousand_standard_deviations(client, make_case, values):
    rng = np.random.default_rng(4)
    signal = rng.standard_normal((2000, 6))
    x = (1e4 + signal).astype(np.float32)
    y = (signal + 0.5 * rng.standard_normal((2000, 6))).astype(np.float32)
    case = make_case(x, y)
    case.check(case.correlate(top_k=6, keep_above=0.1, kernel="sparse", client=client), 6, 0.1, tolerance=1e-9)


def test_values_that_float64_cannot_square_are_undefined_not_wrong(client, make_case, values):
    rng = np.random.default_rng(6)
    x = values(rng, 100, 6, 0.5).astype(np.float64)
    x[:, 2] *= 1e-100  # what is too large is refused where the store is written
    ds = make_case(x, x, dtype="float64").correlate(top_k=6, kernel="sparse", client=client)
    np.testing.assert_array_equal(ds["defined_a"].values, [True, True, False, True, True, True])
    assert (ds["r_b"].values[[0, 1, 3, 4, 5], 0] == 1).all()
    assert (ds["best_b"].values[2] == -1).all()
    assert not np.isin(ds["best_b"].values, [2]).any()


def test_mean_far_away_in_one_half_only(client, make_case):
    rng = np.random.default_rng(5)
    x = 1000 + rng.random((400, 4)).astype(np.float32)
    x[:200, 0] = 0  # all zero where it chooses, far away where it is held out
    x[200:, 1] *= 1e-3
    y = rng.random((400, 5)).astype(np.float32)
    case = make_case(x, y)
    case.check(case.correlate(top_k=5, keep_above=0.01, kernel="sparse", client=client), 5, 0.01, tolerance=1e-9)
