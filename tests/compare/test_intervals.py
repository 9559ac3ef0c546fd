from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import bootstrap, pearsonr

from pipeline.compare.intervals import bootstrap_interval, draw_scores, leave_out_scores
from pipeline.compare.statistics import bca_interval, power_note, runs_needed
from storage.errors import InputError


def correlation(x, y, _):
    return float(np.corrcoef(x[:, 0], y[:, 0])[0, 1])


def distinct(x, y, pair):
    return float(len(np.unique(pair)))


def related(seed, n=60, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1))
    return x, x + noise * rng.normal(size=(n, 1))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bca_equals_scipy_on_the_same_draws(level):
    x, y = related(0, n=40)
    found = bootstrap(
        (x[:, 0], y[:, 0]), lambda a, b: pearsonr(a, b).statistic, paired=True, vectorized=False, n_resamples=400,
        confidence_level=level, rng=np.random.default_rng(1),
    )  # fmt: skip
    left_out = [pearsonr(np.delete(x[:, 0], i), np.delete(y[:, 0], i)).statistic for i in range(40)]
    own = bca_interval(pearsonr(x[:, 0], y[:, 0]).statistic, found.bootstrap_distribution, left_out, level)
    assert own.low == pytest.approx(found.confidence_interval.low, abs=1e-12)
    assert own.high == pytest.approx(found.confidence_interval.high, abs=1e-12)


def test_the_interval_over_pairs_agrees_with_scipy_within_the_draws():
    x, y = related(3, n=100)
    own = bootstrap_interval(x, y, {"r": correlation}, runs=4000)["r"]
    theirs = bootstrap(
        (x[:, 0], y[:, 0]), lambda a, b: pearsonr(a, b).statistic, paired=True, vectorized=False, n_resamples=4000,
        rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert own.low == pytest.approx(theirs.low, abs=0.02)
    assert own.high == pytest.approx(theirs.high, abs=0.02)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth = np.sqrt(0.5)
    intervals = [
        bootstrap_interval(*related(seed, 80), {"r": correlation}, runs=200, level=0.8)["r"] for seed in range(200)
    ]
    covered = np.mean([one.low <= truth <= one.high for one in intervals])
    assert abs(covered - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 200)


def test_pairs_are_drawn_with_replacement_and_copies_are_told():
    x, y = related(0, n=500)
    drawn = draw_scores(range(50), x, y, {"distinct": distinct}, seed=0)
    assert abs(drawn.mean() / 500 - (1 - np.exp(-1))) < 0.01
    assert leave_out_scores(x, y, {"distinct": distinct}).tolist() == [[475.0] * 20]


def test_draws_do_not_depend_on_workers_or_blocks(client):
    x, y = related(0)
    here = bootstrap_interval(x, y, {"r": correlation, "n": distinct}, runs=33, seed=4)
    assert bootstrap_interval(x, y, {"r": correlation, "n": distinct}, runs=33, seed=4, client=client) == here
    assert bootstrap_interval(x, y, {"r": correlation}, runs=33, seed=5)["r"] != here["r"]


def test_where_copies_inflate_the_score_there_is_no_interval():
    x, y = related(0)
    found = bootstrap_interval(x, y, {"n": lambda x, y, pair: -distinct(x, y, pair)}, runs=50)["n"]
    assert np.isnan([found.low, found.high]).all()
    assert "100 % of the resampled scores lie above" in found.note


def test_undefined_draws_are_left_out_and_an_undefined_score_has_no_interval():
    draws = np.r_[np.linspace(0, 1, 101), np.nan]
    assert bca_interval(0.5, draws, [0.5, np.nan, 0.5], 0.9) == bca_interval(0.5, draws[:-1], [0.5, 0.5], 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "undefined" in bca_interval(np.nan, draws, [0.5]).note
        assert "undefined" in bca_interval(0.5, [np.nan], [0.5]).note


@pytest.mark.parametrize(("runs", "level"), [(0, 0.9), (10, 0.0), (10, 1.0)])
def test_settings_out_of_range(runs, level):
    with pytest.raises(InputError, match=f"{runs} and {level}"):
        bootstrap_interval(*related(0), {"r": correlation}, runs=runs, level=level)


@pytest.mark.parametrize("n_tests", [1, 3, 60, 175])
def test_power_note_stands_exactly_where_no_p_can_pass(n_tests):
    enough = runs_needed(n_tests)
    assert n_tests / (enough + 1) <= 0.05 < n_tests / enough
    assert power_note(n_tests, enough) == ""
    assert f"at least {enough}" in power_note(n_tests, enough - 1)
