"""Coherence: against a plain computation, against chance, and why embeddings are centred."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from pipeline.semantics.coherence import centred_unit, coherence, coherence_bytes, feature_vectors, mean_cosine
from storage.errors import InputError


@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 100))
def test_mean_cosine_is_that_of_the_matrix(n: int, d: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    expected = cosine_similarity(rows)[np.triu_indices(n, 1)].mean()
    assert mean_cosine(centred_unit(rows, centre=False)) == pytest.approx(expected, abs=1e-9)


def test_centring_takes_away_what_all_words_share() -> None:
    rng = np.random.default_rng(0)
    common = np.full(32, 1.3)  # as in BERT, where unrelated words have a cosine of about 0.6
    words = rng.normal(size=(400, 32)) + common
    words[:20] += 1.5 * rng.normal(size=32)
    raw, centred = centred_unit(words, centre=False), centred_unit(words)
    assert mean_cosine(raw[20:]) > 0.55
    assert abs(mean_cosine(centred[20:])) < 0.02
    gap = [mean_cosine(side[:20]) - mean_cosine(side[20:]) for side in (raw, centred)]
    assert gap[1] > 2 * gap[0]


def test_the_mean_is_over_known_words_only() -> None:
    rows = centred_unit([[1.0, 0.0], [3.0, 0.0], [np.nan, 1.0]])
    np.testing.assert_array_equal(rows[:2], [[-1, 0], [1, 0]])
    assert np.isnan(rows[2]).all()


def test_p_is_uniform_for_random_sets() -> None:
    vectors = centred_unit(np.random.default_rng(1).normal(size=(200, 16)))
    rng = np.random.default_rng(2)
    p = [coherence([vectors], [rng.choice(200, 12, replace=False)], runs=99, seed=i).p for i in range(150)]
    assert 0.35 < np.mean(p) < 0.65
    assert np.mean(np.array(p) <= 0.1) < 0.2


def test_sides_are_not_compared_with_each_other() -> None:
    # the two sides have the same words: any set of pairs would look coherent if they were
    vectors = centred_unit(np.random.default_rng(3).normal(size=(100, 8)))
    result = coherence([vectors, vectors], [range(10), range(10)], runs=99, pool=[range(100), range(100)])
    assert result.score == pytest.approx(mean_cosine(vectors[:10]))
    assert result.p > 0.01


def test_random_sets_are_pairs_where_both_sides_fire_on_the_same_words() -> None:
    """The mean of both sides varies as much as that of one; drawn apart, it would vary by 1/√2 of that."""
    vectors = centred_unit(np.random.default_rng(3).normal(size=(100, 8)))
    one, both = (
        coherence([vectors] * n, [range(10)] * n, runs=400, pool=[np.arange(100)] * n).random.std() for n in (1, 2)
    )
    assert both == pytest.approx(one)


def test_unknown_words_and_small_sets_are_undefined() -> None:
    vectors = feature_vectors([[0], [], [0, 1]], np.array([[1.0, 0.0], [np.nan, np.nan]]))
    assert np.isnan(vectors[1]).all()
    np.testing.assert_array_equal(vectors[2], [1, 0])
    result = coherence([vectors], [[0, 1]], runs=9)
    assert np.isnan(result.score)
    assert np.isnan(result.p)


def test_same_seed_same_runs() -> None:
    vectors = centred_unit(np.random.default_rng(1).normal(size=(50, 4)))
    one, two = (coherence([vectors], [range(5)], runs=20, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.random, two.random)


def test_bad_input() -> None:
    vectors = np.eye(4)
    with pytest.raises(InputError, match="at least one random set"):
        coherence([vectors], [[0, 1]], runs=0)
    with pytest.raises(InputError, match="there are 4 features"):
        coherence([vectors], [[0, 4]])
    with pytest.raises(InputError, match="needs pool="):
        coherence([vectors, vectors], [[0, 1], [0, 1]])


def test_words_become_vectors_of_features_in_the_memory_that_is_stated() -> None:
    embeddings = np.random.default_rng(0).normal(size=(6000, 100)).astype(np.float32)
    features = [[i, i + 1] for i in range(2000)]
    tracemalloc.start()
    try:
        vectors = feature_vectors(features, centred_unit(embeddings))
        peak = tracemalloc.get_traced_memory()[1] + embeddings.nbytes
    finally:
        tracemalloc.stop()
    assert len(vectors) == 2000
    stated = coherence_bytes(6000, 100, 2000)
    assert 0.6 * stated < peak < 1.05 * stated
