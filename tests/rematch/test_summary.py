"""What is said of the draws holds where there is nothing to be found, and shares are defined only where they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.compare.statistics import Range, expected_range
from pipeline.rematch.nulls import Units
from pipeline.rematch.run import COUNTS, summarise
from pipeline.rematch.summary import feature_tests, pooled_p, share_beyond, strata_of
from pipeline.settings.registries import ROW_NULLS


def test_the_range_is_students():
    draws = np.random.default_rng(0).normal(size=7)
    found = expected_range(draws)
    low, high = stats.t.interval(0.95, 6, loc=draws.mean(), scale=draws.std(ddof=1) * np.sqrt(1 + 1 / 7))
    assert found == pytest.approx((draws.mean(), low, high))
    assert expected_range(np.array([np.nan, 2.0])) == pytest.approx((2.0, np.nan, np.nan), nan_ok=True)
    assert np.isnan(expected_range(np.array([np.nan])).mean)


@pytest.mark.parametrize("rows_of_a_word", [3, 50])
def test_the_range_covers_real_data_that_are_nothing_but_their_tokens(rows_of_a_word):
    """Of 150 experiments; 95 % are meant, and chance is allowed four standard errors.

    Of three rows there are two draws; a range that takes them for independent misses a third of the real values.
    """
    null, outside, too_narrow = ROW_NULLS["token"], 0, 0
    word = np.arange(400) // rows_of_a_word
    units = Units(np.arange(399), word[:399])
    for seed in range(150):
        rng = np.random.default_rng(seed)
        a, b = (rng.normal(size=399) + word[:399] / rows_of_a_word for _ in "ab")
        real = np.corrcoef(a, b)[0, 1]
        draws = np.array([np.corrcoef(a, b[null.order(units, seed, draw)])[0, 1] for draw in range(6)])
        low, high = expected_range(draws, units.overlap)[1:]
        outside += not low <= real <= high
        low, high = expected_range(draws)[1:]
        too_narrow += not low <= real <= high
    most = 150 * 0.05 + 4 * np.sqrt(150 * 0.05 * 0.95)
    assert outside <= most
    assert (too_narrow > most) == (rows_of_a_word == 3)


@pytest.mark.parametrize(
    ("real", "chance"), [(0.1, Range(0.05, -0.1, 0.1)), (-0.2, Range(0.0, 0.0, 0.0)), (np.nan, Range(0.0, 0.0, 0.0))]
)
def test_a_share_of_what_is_not_clearly_there_is_undefined(real, chance):
    assert np.isnan(share_beyond(real, Range(0.0, -0.1, 0.1), chance)).all()


def test_without_documents_chance_is_zero():
    real, draws = [100.0, 0.4, np.nan], [[80.0, 0.3, np.nan], [80.0, 0.3, np.nan]]
    found = summarise({"token": np.array([real, *draws])}, {"token": np.array([])}, {"token": 0.0})
    np.testing.assert_allclose(found["beyond"][1][0], [0.2, 0.25, np.nan])
    assert len(COUNTS) == 3


def test_a_score_within_the_reach_of_shuffled_pairings_has_no_share():
    values = np.array([[10.0, 0.4, 0.4, 0.05], [10.0, 0.4, 0.4, 0.01], [10.0, 0.4, 0.4, 0.01]])
    for reach, defined in ((0.06, False), (0.04, True)):
        beyond = summarise({"token": values}, {"token": np.array([reach])}, {"token": 0.0})["beyond"][1][0, 3]
        assert np.isfinite(beyond) == defined


def test_rare_features_are_held_against_rare_ones():
    """Rare features reach a high r by luck: against all features, they would hide what frequent ones share."""
    rng = np.random.default_rng(0)
    spread = np.repeat([0.01, 0.3], 500)
    n_active = np.repeat([5000, 12], 500)
    real, draws = np.abs(rng.normal(0, spread)), np.abs(rng.normal(0, spread, (20, 1000)))
    real[:50] = 0.1  # frequent features that share something
    strata = strata_of(n_active, n_active // 4)
    tests = feature_tests(real, draws, strata)
    assert (tests["q"][:50] < 0.05).all()
    assert (tests["q"][50:] < 0.05).sum() <= 5
    assert stats.kstest(tests["p"][50:], "uniform").pvalue > 0.01
    together = pooled_p(real, draws, np.zeros(1000, int))
    assert (together[:50] > 0.2).all()
