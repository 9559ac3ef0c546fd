"""Which rows choose, which are held out, which count in neither."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.correlate.rows import split_rows


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(0, 2**32 - 1))
def test_documents_are_never_cut(documents, seed):
    documents = np.array(documents)
    sink = np.random.default_rng(seed).random(len(documents)) < 0.2
    half = split_rows(documents, sink, "half")
    assert ((half == -1) == sink).all()
    left = set(documents[~sink])
    if len(left) > 1:
        halves = [set(documents[half == h]) for h in (0, 1)]
        assert halves[0] | halves[1] == left
        assert not halves[0] & halves[1]
        assert 0 <= len(halves[0]) - len(halves[1]) <= 1
    elif left:
        assert (np.diff(half[~sink]) >= 0).all()


def test_halves_are_not_the_first_and_the_last_documents():
    half = split_rows(np.arange(1000), np.zeros(1000, bool), "half")
    assert abs(half[:500].mean() - 0.5) < 0.1


def test_all_rows_choose():
    np.testing.assert_array_equal(split_rows(None, np.array([False, True, False]), "all"), [0, -1, 0])


@pytest.mark.parametrize("n", [2, 3, 10, 11])
def test_without_documents_the_first_half_chooses(n):
    half = split_rows(None, np.zeros(n, bool), "half")
    np.testing.assert_array_equal(half, np.arange(n) >= (n + 1) // 2)
