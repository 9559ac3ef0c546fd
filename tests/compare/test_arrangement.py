"""Blocks of the null for activations: whole documents of like length, positions kept; lengths of correlation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter

from pipeline.compare.arrangement import correlation_length, dealt_documents, shifted_blocks


@given(
    lengths=st.lists(st.integers(1, 40), min_size=8, max_size=200),
    blocks=st.integers(8, 20),
    region_rows=st.integers(1, 3000),
)
def test_whole_documents_change_places_and_rows_keep_theirs(lengths, blocks, region_rows):
    lengths = np.array(lengths)
    dealt = dealt_documents(lengths, blocks, region_rows)
    starts = np.cumsum(lengths) - lengths
    assert 8 <= dealt.number <= blocks
    np.testing.assert_array_equal(dealt.starts_a, dealt.starts_b)
    documents = np.searchsorted(starts, dealt.starts_a)
    # each part is the beginning of a document, and no document is dealt twice
    np.testing.assert_array_equal(starts[documents], dealt.starts_a)
    assert len(np.unique(documents)) == documents.size
    np.testing.assert_array_equal(lengths[documents].min(axis=1), dealt.lengths)
    a, b = dealt.rows(0, dealt.length)
    np.testing.assert_array_equal(a, b)
    place = a - starts[np.searchsorted(starts, a, side="right") - 1]
    assert (place == place[0]).all(), "a row stands beside rows of the same position"
    assert len(np.unique(a)) == a.size == dealt.number * dealt.length


@given(
    sizes=st.lists(st.integers(1, 4), min_size=8, max_size=60),
    blocks=st.integers(8, 16),
    seed=st.integers(0, 10**6),
)
def test_groups_of_documents_stay_together(sizes, blocks, seed):
    """In a block, the documents of a group follow one another, and no group is in two blocks."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(rng.permutation(len(sizes)), sizes)
    lengths = rng.integers(1, 30, len(groups))
    dealt = dealt_documents(lengths, blocks, 10**6, groups)
    starts = np.cumsum(lengths) - lengths
    documents = np.searchsorted(starts, dealt.starts_a)
    np.testing.assert_array_equal(starts[documents], dealt.starts_a)
    assert len(np.unique(documents)) == documents.size
    of_group = groups[documents]
    for group in np.unique(of_group):
        assert len(np.unique(np.nonzero(of_group == group)[1])) == 1
    first = np.array([np.flatnonzero(groups == group)[0] for group in of_group.ravel()]).reshape(of_group.shape)
    place = documents - first
    assert (place == place[:, :1]).all(), "the same place in its group in every block"
    np.testing.assert_array_equal(lengths[documents].min(axis=1), dealt.lengths)


@given(n=st.integers(16, 500), blocks=st.integers(8, 16))
def test_shifted_blocks_are_every_row_once_and_far_apart(n, blocks):
    cut = shifted_blocks(n, blocks)
    length = n // blocks
    a, b = cut.rows(0, cut.length)
    np.testing.assert_array_equal(a.ravel(), np.arange(blocks * length))
    np.testing.assert_array_equal(b.ravel(), np.roll(np.arange(blocks * length), -(length // 2)))
    parts = [cut.rows(first, min(first + 7, cut.length)) for first in range(0, cut.length, 7)]
    for side, whole in enumerate((a, b)):
        np.testing.assert_array_equal(np.concatenate([part[side] for part in parts], axis=1), whole)


def test_documents_of_equal_length_lose_no_row_but_of_those_that_are_over():
    dealt = dealt_documents(np.full(100, 30), 16, 10**6)
    assert (dealt.number, dealt.length) == (16, 6 * 30)  # 16 blocks of 6 documents, and 4 are over
    assert dealt_documents(np.full(7, 30), 16, 10**6) is None


def test_a_few_short_documents_do_not_cut_the_long_ones():
    dealt = dealt_documents(np.array([500] * 10 + [2, 3, 4]), 16, 10**6)
    assert (dealt.number, dealt.length) == (10, 500)


def autoregressive(keep, n, d, seed):
    noise = np.random.default_rng(seed).normal(size=(n, d))
    return lfilter([1.0], [1.0, -keep], noise, axis=0)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9, 0.95])
def test_the_correlation_length_is_that_of_autoregressive_series(keep):
    """Of two such series the products' autocorrelation is keep^2k: its sum over all lags is known."""
    found = [
        correlation_length(autoregressive(keep, 40_000, 4, seed), autoregressive(keep, 40_000, 6, 100 + seed))
        for seed in range(5)
    ]
    assert np.median(found) == pytest.approx((1 + keep**2) / (1 - keep**2), rel=0.15, abs=0.05)


def test_a_side_without_memory_makes_products_independent():
    assert correlation_length(autoregressive(0.95, 20_000, 3, 0), autoregressive(0.0, 20_000, 3, 1)) < 1.3


def test_constant_columns_have_a_length_too():
    assert correlation_length(np.ones((500, 3)), autoregressive(0.5, 500, 2, 0)) == 1.0
