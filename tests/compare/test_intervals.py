from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import bootstrap, pearsonr, ttest_1samp

from pipeline.compare.base import families
from pipeline.compare.intervals import leave_out_scores, pair_intervals
from pipeline.compare.statistics import bca_interval, jackknife_interval, power_note, runs_needed
from pipeline.settings.compare import parse_metric
from storage.errors import InputError


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


FAMILIES = families(map(parse_metric, ["rsa", "cka", "svcca:k=2"]))


def spaces(n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    return x, x + rng.normal(size=(n, 4))


def test_each_group_of_pairs_is_left_out_once_and_nothing_is_there_twice():
    x, y = spaces(10)
    scores = leave_out_scores(range(5), x, y, FAMILIES, np.array([0, 1, 2, 3, 4, 4, 1, 2, 3, 0]))
    rest = np.delete(np.arange(10), [1, 6])
    assert scores.shape == (3, 5)
    assert scores[:, 1].tolist() == [score for family in FAMILIES for score in family.scores_of(x[rest], y[rest])]


def test_the_jackknife_is_that_of_the_mean():
    """For a mean of equal groups it is Student's interval over the groups' means."""
    groups = np.random.default_rng(0).normal(size=(10, 3))
    left_out = [np.delete(groups, i, axis=0).mean() for i in range(10)]
    expected = ttest_1samp(groups.mean(axis=1), 0).confidence_interval(0.9)
    assert jackknife_interval(groups.mean(), left_out, 0.9)[:2] == pytest.approx(expected, abs=1e-12)


def test_intervals_do_not_depend_on_workers_and_have_as_many_groups_as_pairs_at_most(client):
    here = pair_intervals(*spaces(), FAMILIES, groups=8)
    assert pair_intervals(*spaces(), FAMILIES, groups=8, client=client) == here
    assert [metric for family in FAMILIES for metric in family.metrics] == list(here)
    assert pair_intervals(*spaces(61), FAMILIES, groups=90) == pair_intervals(*spaces(61), FAMILIES, groups=61)


def test_where_there_is_no_interval_the_note_says_why():
    (cca,) = families([parse_metric("cca")])
    x = np.random.default_rng(0).normal(size=(2, 64, 80))
    (saturated,) = pair_intervals(*x, [cca]).values()
    assert np.isnan(saturated.low)
    assert saturated.note == "no interval: the score is the same whichever pairs are left out"
    few = pair_intervals(*spaces(59), FAMILIES)
    assert {interval.note for interval in few.values()} == {"no interval: 59 pairs, at least 60 are needed"}
    assert jackknife_interval(0.5, [0.5, np.nan]).note == "no interval: the score is undefined where pairs are left out"


def test_undefined_draws_are_left_out_and_an_undefined_score_has_no_interval():
    draws = np.r_[np.linspace(0, 1, 101), np.nan]
    assert bca_interval(0.5, draws, [0.5, np.nan, 0.5], 0.9) == bca_interval(0.5, draws[:-1], [0.5, 0.5], 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "undefined" in bca_interval(np.nan, draws, [0.5]).note
        assert "undefined" in bca_interval(0.5, [np.nan], [0.5]).note


@pytest.mark.parametrize(("groups", "level"), [(1, 0.9), (10, 0.0), (10, 1.0)])
def test_settings_out_of_range(groups, level):
    with pytest.raises(InputError, match=f"{groups} and {level}"):
        pair_intervals(*spaces(), FAMILIES, groups=groups, level=level)


@pytest.mark.parametrize("n_tests", [1, 3, 60, 175])
def test_power_note_stands_exactly_where_no_p_can_pass(n_tests):
    enough = runs_needed(n_tests)
    assert n_tests / (enough + 1) <= 0.05 < n_tests / enough
    assert power_note(n_tests, enough) == ""
    assert f"at least {enough}" in power_note(n_tests, enough - 1)
