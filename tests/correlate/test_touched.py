"""Reducing only the pairs that have products gives the bytes of reducing all, and what dense float64 gives."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import storage
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
