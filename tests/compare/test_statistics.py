from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest, false_discovery_control, kstest

from pipeline.compare.statistics import (
    EFFECT_RUNS,
    benjamini_hochberg,
    calibrated,
    effect_size,
    ended_after,
    holm,
    max_p,
    p_value,
)

P_VALUES = arrays(float, st.integers(1, 20), elements=st.floats(0, 1) | st.sampled_from([0.01, 0.5]))


def test_trap_8_p_is_never_0():
    assert p_value(1.0, np.zeros(1000)) == 1 / 1001
    assert p_value(0.0, np.ones(1000)) == 1.0


def test_rounding_makes_no_significance():
    assert p_value(1.0, np.full(99, 1.0 - 1e-7)) == 1.0


def test_an_undefined_score_has_an_undefined_p():
    assert np.isnan(p_value(np.nan, [0.1]))
    assert np.isnan(effect_size(0.5, np.full(9, 0.1)))


def test_trap_8_p_is_uniform_under_the_null():
    rng = np.random.default_rng(0)
    p = [p_value(scores[0], scores[1:]) for scores in rng.normal(size=(500, 100))]
    assert kstest(p, "uniform").pvalue > 0.05


def sequential_p(scores, stop_after):
    """p of the first score against the others in their order, of which those after the null's end are not known."""
    null = scores[1:].copy()
    if runs := ended_after(scores[0], null, stop_after):
        null[runs:] = np.nan
    return p_value(scores[0], null)


@pytest.mark.parametrize("stop_after", [1, 5, 20])
def test_p_of_a_null_that_ends_early_is_reached_as_often_as_it_says(stop_after):
    """Also where p is that of the fixed first runs, of the runs until the end, and of all runs."""
    rng = np.random.default_rng(stop_after)
    p = np.array([sequential_p(scores, stop_after) for scores in rng.normal(size=(10_000, 401))])
    assert len(np.unique(p)) > 100
    for level in [*np.unique(p)[[0, 1, 2, 5, 20, -50, -20, -2]].tolist(), 0.01, 0.05, 0.1]:
        reached = int(np.sum(p <= level))
        assert binomtest(reached, len(p), level, alternative="greater").pvalue > 0.001, level
        # levels between two values of p are reached a little less often
        assert reached / len(p) > level - 1 / EFFECT_RUNS - 4 * np.sqrt(level / len(p)), level


def test_ties_make_p_of_a_null_that_ends_early_larger():
    scores = np.random.default_rng(0).integers(0, 6, size=(4_000, 301)).astype(float)
    p = np.array([sequential_p(one, 10) for one in scores])
    for level in (0.01, 0.05, 0.2, 0.5):
        assert np.mean(p <= level) <= level


def test_a_null_ends_with_the_last_exceedance_that_it_needs():
    null = np.zeros(500)
    null[[3, 149, 299]] = 1.0
    assert [ended_after(1.0, null, stop) for stop in (0, 1, 2, 3, 4)] == [None, EFFECT_RUNS, 150, 300, None]
    assert ended_after(1.0, null[: EFFECT_RUNS - 1], 1) is None, "effects need as many"


@given(P_VALUES)
def test_benjamini_hochberg_equals_scipy(p):
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p), rtol=1e-12)


@given(P_VALUES)
def test_holm_rejects_what_stepping_down_rejects(p):
    adjusted = holm(p)
    for level in (0.05, 0.3):
        rejected = np.zeros(len(p), bool)
        for step, i in enumerate(np.argsort(p)):
            if p[i] * (len(p) - step) > level:
                break
            rejected[i] = True
        np.testing.assert_array_equal(adjusted <= level, rejected)


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_undefined_tests_do_not_count(correct):
    p = np.array([[0.01, np.nan], [0.02, 0.5]])
    adjusted = correct(p)
    assert np.isnan(adjusted[0, 1])
    np.testing.assert_array_equal(adjusted[~np.isnan(p)], correct(p[~np.isnan(p)]))
    assert correct([]).shape == (0,)


def test_holm_keeps_the_chance_of_any_false_rejection():
    p = np.random.default_rng(0).uniform(size=(2000, 20))
    any_rejected = np.mean([(holm(row) < 0.1).any() for row in p])
    assert any_rejected <= 0.1 + 3 * np.sqrt(0.09 / 2000)


def test_where_chance_gets_as_high_as_anything_can_there_is_nothing_above_it():
    null = np.array([np.ones(99), np.linspace(0, 0.5, 99)])
    assert np.isnan(calibrated(1.0, np.ones(99)))
    heights = calibrated([1.0, 1.0], null)
    assert np.isnan(heights[0])
    assert heights[1] == 1
    np.testing.assert_array_equal(max_p(np.array([1.0, 1.0]), null), [np.nan, 0.01])
    np.testing.assert_array_equal(max_p(np.array([np.nan]), null[:1] * np.nan), [np.nan])


def test_the_best_of_dependent_tests_is_not_significant_more_often_than_it_says():
    """Ten tests that have a half of their variance in common: p of the best alone is small far too often."""
    rng = np.random.default_rng(0)
    draws = 0.1 * (rng.normal(size=(400, 1, 40)) + rng.normal(size=(400, 10, 40)))
    best = [max_p(one[:, 0], one[:, 1:]).min() for one in draws]
    assert kstest(np.array(best) - rng.random(400) / 40, "uniform").pvalue > 0.05
    alone = [min(p_value(scores[0], scores[1:]) for scores in one) for one in draws]
    assert np.mean(np.array(alone) <= 0.05) > 0.2
