"""Matching inside sets, against a plain search over the full matrix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.match.within import match_within
from storage.errors import InputError, MissingInputError


def brute_force(r: np.ndarray, ids_a: list[int], ids_b: list[int], minimum: float) -> list[tuple[int, int]]:
    """Return the greedy one-to-one pairs of a block of the matrix, best first, ties by ids."""
    candidates = sorted((-r[a, b], a, b) for a in ids_a for b in ids_b if r[a, b] >= minimum)
    pairs: list[tuple[int, int]] = []
    for _, a, b in candidates:
        if a not in {own for own, _ in pairs} and b not in {own for _, own in pairs}:
            pairs.append((a, b))
    return pairs


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_greedy_inside_sets(correlation: Callable[..., Path], data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1000))
    r = np.random.default_rng(seed).choice([0.0, 0.2, 0.4, 0.4, 0.9], size=(9, 11))
    sets = {
        name: (
            data.draw(st.lists(st.integers(0, 8), unique=True)),
            data.draw(st.lists(st.integers(0, 10), unique=True)),
        )
        for name in ("one", "two")
    }
    path = correlation(r)
    found = match_within(path, sets, min_correlation=0.2)
    for name, own in sets.items():
        pairs = list(zip(found[name].feature_a.values.tolist(), found[name].feature_b.values.tolist(), strict=True))
        assert pairs == brute_force(r, *own, 0.2)
        np.testing.assert_array_equal(found[name].r.values, [r[pair] for pair in pairs])


def test_r_heldout_belongs_to_its_pair(correlation: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    r, heldout = rng.uniform(0.1, 1, (8, 7)), rng.uniform(-1, 1, (8, 7))
    (pairs,) = match_within(correlation(r, r_heldout=heldout), {"x": (range(8), range(7))}).values()
    expected = heldout[pairs.feature_a.values, pairs.feature_b.values]
    np.testing.assert_array_equal(pairs.r_heldout.values, expected)


def test_many_to_one(correlation: Callable[..., Path]) -> None:
    path = correlation(np.array([[0.9, 0.2], [0.8, 0.3], [0.5, 0.6]]))
    sets = {"x": ([0, 1, 2], [0, 1])}
    assert match_within(path, sets, "best")["x"].feature_b.values.tolist() == [0, 0, 1]
    assert match_within(path, sets, "greedy")["x"].feature_a.values.tolist() == [0, 2]


def test_empty_sets_have_no_pairs(correlation: Callable[..., Path]) -> None:
    found = match_within(correlation(np.full((3, 3), 0.5)), {"none": ([], [0, 1])})
    assert found["none"].sizes["pair"] == 0


def test_bad_input(correlation: Callable[..., Path], tmp_path: Path) -> None:
    path = correlation(np.full((3, 3), 0.5))
    with pytest.raises(InputError, match="no matching method 'optima'; did you mean 'optimal'"):
        match_within(path, {}, "optima")
    with pytest.raises(InputError, match="only pairs with r ≥"):
        match_within(path, {}, min_correlation=0.05)
    with pytest.raises(InputError, match="there are 3 features"):
        match_within(path, {"x": ([3], [0])})
    with pytest.raises(MissingInputError):
        match_within(tmp_path / "no.zarr", {})
