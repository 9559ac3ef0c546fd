"""Reducing only the pairs that have products gives the bytes of reducing all, and what dense float64 gives."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import storage
from pipeline.correlate.kernels.reduce import COPIES, without_products
from pipeline.correlate.kernels.touched import count_rest, make_order, take_rest
from pipeline.correlate.plan import Resources, StoreSize, make_plan
from pipeline.settings.correlate import CorrelateSettings
from tests.correlate.test_measures import ORACLES

MEASURES = ("pearson", "cosine", "spearman", "phi", "jaccard")


@pytest.fixture
def reduce_all(monkeypatch):
    """Choose whether all pairs are reduced, or those with products alone."""
    plan = importlib.import_module("pipeline.correlate.plan")

    def choose(every):
        monkeypatch.setattr(plan, "touched_is_faster", lambda *_: not every)

    return choose


@st.composite
def sparse_sides(draw):
    """Two sides in which few pairs fire together; levels of either sign, ties, copies, dead and constant features."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(20, 200))
    sides = []
    for _ in "ab":
        features = draw(st.integers(1, 60))
        density = rng.choice([0.01, 0.03, 0.1, 0.6, 1.0], features, p=[0.3, 0.3, 0.2, 0.1, 0.1])
        steps = rng.choice([2, 3, 1000], features)
        values = np.ceil(rng.random((n, features)) * steps) * rng.choice([0.25, 1.0, 3.0], features)
        values *= (rng.random((n, features)) < density) * rng.choice([-1, 1], features, p=[0.3, 0.7])
        values[:, rng.random(features) < 0.1] = 0
        values[: n // 2, rng.random(features) < 0.1] = 0
        copied = rng.integers(0, features, features // 3)
        values[:, rng.integers(0, features, features // 3)] = values[:, copied]
        sides.append(values.astype(np.float32))
    shared = min(draw(st.integers(0, 5)), sides[0].shape[1], sides[1].shape[1])
    sides[1][:, :shared] = sides[0][:, :shared]
    for side in sides:
        side[n // 4], side[-1] = 0, 0  # no feature fires in every row, which phi and Jaccard may refuse
    return sides


def assert_same_bytes(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        if name in ("r", "r_heldout"):
            first, second = (storage.read_csr(ds.encoding["source"], name=name) for ds in (one, other))
            for part in ("indptr", "indices", "data"):
                assert getattr(first, part).tobytes() == getattr(second, part).tobytes(), (name, part)
        else:
            assert one[name].values.tobytes() == other[name].values.tobytes(), name


@pytest.mark.parametrize("method", ["resident", "streaming"])
@pytest.mark.parametrize("measure", MEASURES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=8)
@given(
    sides=sparse_sides(),
    top_k=st.sampled_from([1, 3, 20, 80]),
    keep_above=st.sampled_from([0.02, 0.1, 0.9]),
    select=st.sampled_from(["half", "all"]),
)
def test_same_bytes_as_all_pairs(
    client, make_case, force, reduce_all, measure, method, sides, top_k, keep_above, select
):
    case = make_case(*sides, **({} if measure == "pearson" else {"oracle": ORACLES[measure]}))
    force(method, panel=16, slab_rows=32)
    given = {"top_k": top_k, "keep_above": keep_above, "select": select, "measure": measure, "min_firing": 0}
    results = []
    for every in (False, True):
        reduce_all(every)
        results.append(case.correlate(f"all-{every}", kernel="sparse", client=client, **given))
    assert_same_bytes(*results)
    case.check_r(results[0], top_k, keep_above)


@st.composite
def levels(draw):
    """Levels of features with ties, zeros, either sign, and neighbours one rounding apart."""
    some = draw(st.lists(st.floats(-3, 3, width=16), min_size=1, max_size=40))
    values = np.array([draw(st.sampled_from(some)) for _ in range(draw(st.integers(1, 60)))])
    return np.where(np.random.default_rng(len(values)).random(len(values)) < 0.3, np.nextafter(values, 9), values)


@given(levels(), st.floats(-2, 2, width=16), st.integers(1, 9), st.floats(0.01, 0.9), st.randoms(use_true_random=False))
def test_the_best_of_the_rest_are_those_of_a_full_sort(level, of_a, limit, keep, random):
    n = len(level)
    scale = np.array([float(random.random() < 0.9) for _ in range(n)])
    left_out = np.array([i for i in range(n) if random.random() < 0.3], np.int32)
    r = np.array([without_products(of_a, other) for other in level])
    usable = [i for i in range(n) if scale[i] and i not in left_out]
    by_rank = sorted(usable, key=lambda i: (-r[i], i))
    below = [i for i in by_rank if r[i] < keep]
    for bounds, wanted, may in (
        ((keep, np.inf, -0.5, limit), {i for i in usable if r[i] >= keep}, usable),
        ((np.inf, keep, -0.5, limit), set(), below),
    ):
        wanted |= {i for i in below[:limit] if r[i] >= -0.5}
        out = np.full(n, -1, np.int32)
        taken = out[: take_rest(of_a, make_order(level, scale), left_out, bounds, out, 0)].tolist()
        assert len(set(taken)) == len(taken)
        assert wanted <= set(taken) <= set(may)


@given(levels(), st.floats(-2, 2, width=16))
def test_bins_of_the_rest_are_those_of_every_pair(level, of_a):
    histogram = np.zeros((COPIES, 2001), np.int64)
    one_bin = count_rest(of_a, make_order(level, np.ones(len(level))), histogram)
    bins = [int((without_products(of_a, other) + 1.0) * 1000.0) for other in level]
    np.testing.assert_array_equal(histogram[0], np.bincount(bins, minlength=2001))
    assert one_bin == (len(set(bins)) == 1)


def test_lists_of_b_features_are_completed_in_rounds(client, make_case, force, reduce_all, monkeypatch):
    """A B feature below zero meets many A features, whose r are poor; those that it never meets are better."""
    rest = importlib.import_module("pipeline.correlate.rest")
    rng = np.random.default_rng(0)
    n, met, others = 400, 60, 40
    y = np.zeros((n, 2))
    y[: n // 2 - 20, 0] = -1 - 0.01 * rng.random(n // 2 - 20)
    y[rng.integers(0, n // 2, 3), 1] = 1
    x = np.zeros((n, met + others))
    for i in range(met):
        x[rng.integers(0, n // 2 - 20, 6), i] = 1 + rng.random(6)  # fires where y is lowest: r below 0
    for i in range(met, met + others):
        x[n // 2 - 20 + rng.integers(0, 20, 2), i] = 1 + rng.random(2)
    asked = []
    look_up = rest._enter
    monkeypatch.setattr(rest, "_enter", lambda *given: asked.append(len(given[2].a)) or look_up(*given))
    case = make_case(x, y)
    force("resident", panel=16, slab_rows=64)
    results = []
    for every in (False, True):
        reduce_all(every)
        results.append(
            case.correlate(f"all-{every}", top_k=8, keep_above=0.9, min_firing=0, kernel="sparse", client=client)
        )
    assert_same_bytes(*results)
    assert len(asked) > 1, "the A features of the highest levels are asked for first, and meet it"
    assert (results[0]["best_a"].values[0] >= met).all()
    assert (results[0]["r_a"].values[0] > 0).all()


def test_the_plan_chooses_the_route():
    def touched(features=32_768, active=32, **given):
        size = StoreSize(True, 4, np.full(features, 300_000 * active // features))
        return make_plan(size, size, 300_000, CorrelateSettings(**given), Resources(10**11, threads=2)).touched

    assert touched()
    assert touched(features=1_048_576, active=256)
    assert not touched(full="float32")
    assert not touched(features=2048, active=256), "most pairs fire together"
    assert not touched(active=1, min_firing=0, top_k=256), "features meet fewer than they list"
    assert not touched(kernel="dense")
