from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import rankdata, spearmanr

from pipeline.compare.rsa import centred_ranks, cosines, memory_needed, rank_correlation, ranked_similarities, rsa


def by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    return spearmanr(1 - pdist(x, "cosine"), 1 - pdist(y, "cosine")).statistic


@given(st.integers(0, 10_000), st.integers(3, 60), st.integers(2, 9), st.integers(2, 9))
def test_rsa_equals_scipy(seed, n, d_a, d_b):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d_a))
    y = x @ rng.normal(size=(d_a, d_b)) + rng.normal(size=(n, d_b))
    assert rsa(x, y) == pytest.approx(by_scipy(x, y), abs=1e-6)


@given(st.integers(0, 10_000))
def test_ties_have_average_ranks(seed):
    values = np.random.default_rng(seed).integers(0, 6, 40) / 4
    np.testing.assert_array_equal(centred_ranks(values), 2 * rankdata(values) - 41)


def test_features_that_are_used_many_times_tie_in_spite_of_rounding():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12, 5))
    used = rng.integers(0, 12, 300)  # as many-to-one pairs do
    found = cosines(x[used])
    assert len(np.unique(found)) <= 12 * 11 // 2 + 1
    exact = [np.round((u := side / np.linalg.norm(side, axis=1, keepdims=True)) @ u.T, 9) for side in (x, y[:, ::-1])]
    upper = np.triu_indices(300, 1)
    expected = spearmanr(*(matrix[np.ix_(used, used)][upper] for matrix in exact)).statistic
    assert rsa(x[used], y[used]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("block", [1, 3, 7, 256])
def test_cosines_are_the_upper_triangle_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(importlib.import_module("pipeline.compare.rsa"), "BLOCK_ROWS", block)
    x = np.random.default_rng(0).normal(size=(23, 4))
    np.testing.assert_allclose(cosines(x), 1 - pdist(x, "cosine"), atol=1e-12)


@given(st.integers(0, 10_000))
def test_a_shuffled_pairing_equals_rsa_of_shuffled_rows(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 6))
    pairing = rng.permutation(30)
    assert rank_correlation(ranked_similarities(x, y), pairing) == pytest.approx(by_scipy(x, y[pairing]), abs=1e-9)


def test_a_space_equals_itself_rotated():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert rsa(x, x) == 1
    assert rsa(x, 2 * x @ rotation) == pytest.approx(1, abs=1e-9)
    assert rsa(x, -x) == 1


def test_what_cannot_be_ranked_is_nan():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 4))
    assert np.isnan(rsa(np.where(np.arange(10)[:, None] == 4, 0, x), x))
    assert np.isnan(rsa(np.ones((10, 3)), x))


def test_memory_is_bounded_by_the_stated_number():
    import tracemalloc

    x, y = np.random.default_rng(0).normal(size=(2, 1500, 16))
    ranked_similarities(x[:9], y[:9])  # compiled before it is measured
    tracemalloc.start()
    ranked = ranked_similarities(x, y)
    rank_correlation(ranked, np.arange(1500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= memory_needed(1500, 16, 16)
