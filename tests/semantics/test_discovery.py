"""Clusters of pairs: recovered where they are planted, tested without having been chosen on what is tested."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from pipeline.compare.statistics import p_value
from pipeline.semantics.discovery import cluster_pairs, distinctive_words
from storage.errors import InputError


def rows(seed: int, groups: int = 4, size: int = 30, noise: float = 0.4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(groups), size)
    centres = rng.normal(size=(groups, 12)), rng.normal(size=(groups, 9))
    a, b = (centre[truth] + noise * rng.normal(size=(len(truth), centre.shape[1])) for centre in centres)
    return a, b, truth


@pytest.mark.parametrize("geometry", ["joint", "a", "b"])
def test_planted_clusters_are_found(geometry: str) -> None:
    a, b, truth = rows(0)
    result = cluster_pairs(a, b, 4, geometry)
    assert adjusted_rand_score(truth, result.label) > 0.9
    assert result.testable.sum() == (60 if geometry == "joint" else 120)


def test_scale_and_origin_do_not_matter() -> None:
    a, b, _ = rows(1)
    one, two = cluster_pairs(a, b, 4), cluster_pairs(100 * a + 5, b, 4)
    np.testing.assert_array_equal(one.label, two.label)


def test_clusters_come_by_size_and_the_same_each_time() -> None:
    a, b, _ = rows(2, noise=1.5)
    one, two = cluster_pairs(a, b, 5, seed=3), cluster_pairs(a, b, 5, seed=3)
    np.testing.assert_array_equal(one.label, two.label)
    np.testing.assert_array_equal(one.testable, two.testable)
    assert (np.diff(np.bincount(one.label)) <= 0).all()


def test_testable_pairs_join_by_a_alone() -> None:
    a, b, _ = rows(3)
    first = cluster_pairs(a, b, 4, "joint")
    other = b.copy()
    other[first.testable] = np.random.default_rng(9).permutation(other[first.testable])
    # the B rows of the tested pairs are shuffled: only their mean, which does not change, is known to the clusters
    again = cluster_pairs(a, other, 4, "joint")
    np.testing.assert_array_equal(first.label, again.label)


def correlation_inside(a: np.ndarray, b: np.ndarray, label: np.ndarray, keep: np.ndarray, seed: int) -> float:
    """Return p of a plain similarity of the largest cluster: r of the distances inside, against shuffled pairs."""
    own = np.flatnonzero((label == 0) & keep)
    upper = np.triu_indices(len(own), 1)
    inside = [(rows[own] @ rows[own].T) for rows in (a, b)]
    rng = np.random.default_rng(seed)

    def score(order: np.ndarray) -> float:
        return float(np.corrcoef(inside[0][upper], inside[1][np.ix_(order, order)][upper])[0, 1])

    return p_value(score(np.arange(len(own))), [score(rng.permutation(len(own))) for _ in range(19)])


def test_no_more_false_alarms_than_asked_for() -> None:
    """Unrelated rows of clustered sides: choosing by both rows and testing on the same pairs would alarm too often."""
    p = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(80, 2)), rng.normal(size=(80, 2))
        result = cluster_pairs(a, b, 4, "joint", seed)
        p.append(correlation_inside(a, b, result.label, result.testable, seed))
    # at level 0.1, 60 tests alarm 6 times; 13 or more happen in less than 1 of 200 runs (binomial)
    assert sum(value <= 0.1 for value in p) < 13


def test_bad_input() -> None:
    a, b, _ = rows(0)
    with pytest.raises(InputError, match="give from 2 to 30 clusters"):
        cluster_pairs(a, b, 31)
    with pytest.raises(InputError, match="at least 8 are needed"):
        cluster_pairs(a[:5], b[:5], 2)


def test_rare_words_do_not_name_a_cluster() -> None:
    counts = np.array([[30, 1, 40], [1, 0, 40]])
    z = dict(distinctive_words(counts, ["court", "zyzzyva", "the"])[0])
    assert next(iter(z)) == "court"
    assert z["court"] > 2 * z.get("zyzzyva", 0)
