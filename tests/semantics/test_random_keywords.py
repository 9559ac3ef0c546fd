"""Random lists of words are like the concept in all but its meaning; clumps of words alone do not pass for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import storage
from pipeline.compare.random_keywords import R_APART, SINGLE_APART, random_lists
from pipeline.compare.subsets import compare_subsets
from pipeline.text.top_tokens import CONTEXTS, Dominant, TopTokens, dominant_words


def top(ids: Any) -> TopTokens:
    return TopTokens(np.array(ids), np.full(np.shape(ids), -1), [f"word {i}" for i in range(9)])


def test_the_dominant_word_is_that_of_most_contexts_of_both_sides():
    a, b = (
        top([[0, 1, 1, -1, -1, 5, 5, 5, 5], [3] * 9, [-1] * 9]),
        top([[2, 2, 2, -1, -1, 0, 0, 0, 0], [3] * 9, [-1] * 9]),
    )
    found = dominant_words([a, b], (np.array([0, 1, 2, 0]), np.array([0, 1, 2, 1])))
    assert CONTEXTS == 5
    assert found.word.tolist() == [2, 3, -1, 3]
    assert found.single.tolist() == [False, True, False, False]


@st.composite
def pools(draw):
    """Pairs in clumps of several words, and a concept that consists of some of them."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=40, max_size=80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    word = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    n_words = draw(st.integers(3, 12))
    concept = np.isin(word, np.arange(n_words)) & (rng.random(len(word)) < 0.9)
    dominant = Dominant(word, rng.random(len(word)) < 0.5)
    return dominant, rng.uniform(0.3, 0.5, len(word)), concept


@given(pools(), st.integers(0, 5))
def test_lists_have_the_concepts_pairs_in_clumps_of_its_sizes(pool, seed):
    dominant, r, concept = pool
    places, why = random_lists(np.random.default_rng([seed]), 30, dominant=dominant, r=r, concept=concept)
    if places is None:
        assert why
        return
    sizes = np.sort(np.unique(dominant.word[concept], return_counts=True)[1])
    own = set(dominant.word[concept].tolist())
    for run in places:
        assert len(set(run.tolist())) == concept.sum()
        words, counts = np.unique(dominant.word[run], return_counts=True)
        np.testing.assert_array_equal(np.sort(counts), sizes)
        assert not own & set(words.tolist())
    # by the means of the words that they take pairs of, of which each list takes some
    assert abs(r[places].mean() - r[concept].mean()) < 2 * R_APART
    assert abs(dominant.single[places].mean() - dominant.single[concept].mean()) < 2 * SINGLE_APART
    again, _ = random_lists(np.random.default_rng([seed]), 30, dominant=dominant, r=r, concept=concept)
    np.testing.assert_array_equal(places, again)


def test_without_enough_like_words_there_are_no_lists():
    word = np.repeat(np.arange(30), 2)
    word[:12] = 0
    dominant = Dominant(word, np.zeros(60, bool))
    concept = word == 0
    places, why = random_lists(np.random.default_rng([0]), 10, dominant=dominant, r=np.full(60, 0.4), concept=concept)
    assert places is None
    assert "too few other words" in why
    concept = (word == 8) | (word == 9)
    r = np.where(concept, 0.9, 0.3)
    places, why = random_lists(np.random.default_rng([0]), 10, dominant=dominant, r=r, concept=concept)
    assert places is None
    assert "random lists of words 0 are like the concept in r" in why


@pytest.fixture(scope="module")
def clumps(tmp_path_factory):
    """Pairs of features in clumps of one word each: what writes one word points one way, in both models.

    Where the words point is shared for one half of the words, and unrelated for the other.
    """
    folder, rng = tmp_path_factory.mktemp("clumps"), np.random.default_rng(0)
    word = np.repeat(np.arange(60), 4)
    centre_a = rng.normal(size=(60, 16))
    centre_b = np.where(np.arange(60)[:, None] < 8, centre_a, rng.normal(size=(60, 16)))
    rotation = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    for name, centre in (("a", centre_a), ("b", centre_b @ rotation)):
        decoder = centre[word] + 0.5 * rng.normal(size=(len(word), 16))
        values = sp.csr_array(np.ones((3, len(word)), np.float32))
        storage.write_activations(folder / name, values, decoder=decoder.astype(np.float32))
    return folder, word


def test_arbitrary_words_beat_random_pairs_and_not_random_keywords(clumps, client):
    """Four words whose clumps point anywhere look shared beside random pairs, and like any other four words."""
    folder, word = clumps
    rng = np.random.default_rng(1)
    dominant, r = Dominant(word, np.ones(len(word), bool)), np.full(len(word), 0.4)
    sets = {f"{i}": np.isin(word, 8 + rng.permutation(52)[:4]) for i in range(30)} | {"shared": np.isin(word, range(4))}
    lists = {
        name: random_lists(np.random.default_rng([i]), 99, dominant=dominant, r=r, concept=inside)[0]
        for i, (name, inside) in enumerate(sets.items())
    }
    pairs = {name: (np.flatnonzero(inside), np.flatnonzero(inside)) for name, inside in sets.items()}
    everything = np.arange(len(word)), np.arange(len(word))
    found = compare_subsets(
        pairs, folder / "a", folder / "b", pool=everything, keywords={"random_keywords": lists}, metrics=["rsa"],
        nulls=["random_pairs", "random_keywords"], null_runs=99, client=client,
    ).sel(metric="rsa")  # fmt: skip
    p = {null: found["p"].sel(null=null).values for null in found["null"].values}
    assert np.mean(p["random_pairs"][:-1] <= 0.05) > 0.5
    assert np.mean(p["random_keywords"][:-1] <= 0.05) < 0.2
    assert p["random_keywords"][-1] <= 0.05
