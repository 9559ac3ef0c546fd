from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from pipeline.compare.arrays import compare_rows
from pipeline.compare.base import Family
from pipeline.compare.metrics.rsa import Rsa, SampledRsa, memory_needed
from pipeline.compare.rsa_kernels import centred_ranks
from pipeline.compare.similarities import upper_triangle
from storage.errors import BudgetError


def by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    return spearmanr(1 - pdist(x, "cosine"), 1 - pdist(y, "cosine")).statistic


@given(st.integers(0, 10_000), st.integers(3, 60), st.integers(2, 9), st.integers(2, 9))
def test_rsa_equals_scipy(seed, n, d_a, d_b):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d_a))
    y = x @ rng.normal(size=(d_a, d_b)) + rng.normal(size=(n, d_b))
    assert Rsa()(x, y) == pytest.approx(by_scipy(x, y), abs=1e-6)


@given(st.integers(0, 10_000))
def test_ties_have_average_ranks(seed):
    values = np.random.default_rng(seed).integers(0, 6, 40) / 4
    np.testing.assert_array_equal(centred_ranks(values), 2 * rankdata(values) - 41)


def test_features_that_are_used_many_times_tie_in_spite_of_rounding():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12, 5))
    used = rng.integers(0, 12, 300)  # as many-to-one pairs do
    found = upper_triangle(x[used], "cosine")
    assert len(np.unique(found)) <= 12 * 11 // 2 + 1
    exact = [np.round((u := side / np.linalg.norm(side, axis=1, keepdims=True)) @ u.T, 9) for side in (x, y[:, ::-1])]
    upper = np.triu_indices(300, 1)
    expected = spearmanr(*(matrix[np.ix_(used, used)][upper] for matrix in exact)).statistic
    assert Rsa()(x[used], y[used]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("block", [1, 3, 7, 256])
def test_cosines_are_the_upper_triangle_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(importlib.import_module("pipeline.compare.similarities"), "BLOCK_ROWS", block)
    x = np.random.default_rng(0).normal(size=(23, 4))
    np.testing.assert_allclose(upper_triangle(x, "cosine"), 1 - pdist(x, "cosine"), atol=1e-12)
    np.testing.assert_allclose(upper_triangle(x, "pearson"), 1 - pdist(x, "correlation"), atol=1e-12)
    longest = np.linalg.norm(x - x.mean(axis=0), axis=1).max()
    np.testing.assert_allclose(upper_triangle(x, "euclidean"), -pdist(x) / longest, atol=1e-11)


INSIDE = {"cosine": "cosine", "pearson": "correlation", "euclidean": "euclidean"}
OUTSIDE = {"spearman": spearmanr, "pearson": pearsonr, "kendall": kendalltau}


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("copies", [0, 7])
def test_every_form_equals_scipy_under_any_pairing(inside, outside, copies):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5))
    y = x @ rng.normal(size=(5, 7)) + rng.normal(size=(40, 7))
    if copies:
        x[:copies], y[:copies] = x[copies : 2 * copies], y[20 : 20 + copies]
    metric = Rsa(inside, outside)
    family = Family((metric,))
    state = family.compact(family.prepare(x, y))
    exact = [np.round(pdist(side, INSIDE[inside]), 11) for side in (x, y)]
    assert Rsa(inside, outside)(x, y) == pytest.approx(OUTSIDE[outside](*exact).statistic, abs=1e-6)
    for pairing in (np.arange(40), rng.permutation(40), rng.permutation(40)):
        shuffled = np.round(pdist(y[pairing], INSIDE[inside]), 11)
        expected = OUTSIDE[outside](exact[0], shuffled).statistic
        assert family.scores(state, pairing) == pytest.approx([expected], abs=1e-6)
    assert metric.warning(state) == (
        f"inflated by copies: {copies} rows of A and {copies} of B repeat an earlier one, "
        "and copies tie or agree by construction"
        if copies
        else ""
    )


@pytest.mark.parametrize(("outside", "method"), [("spearman", "rho-a"), ("pearson", "corr"), ("kendall", "tau-b")])
def test_rsa_equals_rsatoolbox(outside, method):
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare

    rng = np.random.default_rng(1)
    x = rng.normal(size=(25, 5))
    y = x @ rng.normal(size=(5, 7)) + rng.normal(size=(25, 7))
    rdms = [calc_rdm(Dataset(side), method="correlation") for side in (x, y)]
    assert Rsa("pearson", outside)(x, y) == pytest.approx(compare(*rdms, method=method).item(), abs=1e-6)


@given(st.integers(0, 10_000), st.integers(3, 30))
def test_kendall_with_many_ties_equals_scipy(seed, n):
    a, b = np.random.default_rng(seed).integers(0, 4, size=(2, n)) / 2
    found = importlib.import_module("pipeline.compare.metrics.rsa").correlate_lists("kendall", a, b)
    assert found == pytest.approx(kendalltau(a, b).statistic, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("outside", OUTSIDE)
def test_a_sample_is_within_its_standard_error(monkeypatch, outside):
    module = importlib.import_module("pipeline.compare.metrics.rsa")
    monkeypatch.setattr(module, "GROUP_ROWS", 12)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 5))
    y = x @ rng.normal(size=(5, 7)) + rng.normal(size=(500, 7))
    metric = SampledRsa("cosine", outside)
    family = Family((metric,))
    state = family.prepare(x, y)
    score, error = metric.arrange(state, np.arange(500))
    exact = Rsa("cosine", outside)(x, y)
    assert 0 < error < 0.05
    assert abs(score - exact) < 4 * error
    assert metric.warning(state) == (
        f"sampled: 2,706 of 124,750 pairs of rows, those within random groups of 12; standard error {error:.1g}"
    )
    pairing = rng.permutation(500)
    assert family.scores(state, pairing)[0] == pytest.approx(family.scores_of(x, y[pairing])[0], abs=1e-12)
    groups = np.concatenate([pdist(side, "cosine")[None] for side in x[state.groups]]).ravel()
    theirs = np.concatenate([pdist(side, "cosine")[None] for side in y[pairing[state.groups]]]).ravel()
    assert family.scores(state, pairing)[0] == pytest.approx(OUTSIDE[outside](groups, theirs).statistic, abs=1e-9)


def test_rsa_beyond_memory_is_sampled_and_says_so(client):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 4))
    scores = compare_rows(x, x + rng.normal(size=x.shape), metrics=["rsa"], null_runs=3, client=client, memory="8MB")
    assert scores.note.item().startswith("sampled: ")
    assert "standard error" in scores.note.item()
    exact = compare_rows(x, x + rng.normal(size=x.shape), metrics=["rsa"], null_runs=3, client=client)
    assert exact.note.item() == ""
    assert float(scores.score[0]) == pytest.approx(float(exact.score[0]), abs=0.1)
    with pytest.raises(BudgetError, match=r"900 pairs need .* \(rsa .*\), allowed are 97"):
        compare_rows(x, x, metrics=["rsa"], memory="100kB")
    assert isinstance(Rsa().within(10**15, 70_000, 512, 768), SampledRsa), "ranks of an int32"


def test_a_space_equals_itself_rotated():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert Rsa()(x, x) == 1
    assert Rsa()(x, 2 * x @ rotation) == pytest.approx(1, abs=1e-9)
    assert Rsa()(x, -x) == 1


def test_what_cannot_be_ranked_is_nan():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 4))
    assert np.isnan(Rsa()(np.where(np.arange(10)[:, None] == 4, 0, x), x))
    assert np.isnan(Rsa()(np.ones((10, 3)), x))


def test_memory_is_bounded_by_the_stated_number():
    import tracemalloc

    x, y = np.random.default_rng(0).normal(size=(2, 1500, 16))
    family = Family((Rsa(),))
    family.scores_of(x[:9], y[:9])  # compiled before it is measured
    tracemalloc.start()
    family.scores(family.prepare(x, y), np.arange(1500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= memory_needed(1500, 16, 16)
