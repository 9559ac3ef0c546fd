from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.match.edges import lookup, make_edges, ranks, read_edges
from pipeline.match.methods.greedy import greedy
from storage import open_result
from storage.errors import InputError

NAN = np.nan


def test_undefined_pairs_are_no_candidates():
    edges = make_edges([0, 1, 2], [0, 0, 0], [NAN, 0.5, NAN], n_a=3, n_b=1)
    assert edges.ids_a.tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0], [0.5, 0.5], 2, 2), "one length"),
        (([0, 2], [0, 0], [0.5, 0.5], 2, 2), "ids_a holds ids from 0 to 2"),
        (([0, 0], [0, -1], [0.5, 0.5], 2, 2), "ids_b holds ids from -1"),
        (([0, 0], [1, 1], [0.5, 0.6], 2, 2), "occurs twice"),
    ],
)
def test_wrong_edges_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        make_edges(*arguments)


@given(st.integers(0, 2**32 - 1))
def test_order_and_ranks_are_those_of_a_full_sort(seed):
    rng = np.random.default_rng(seed)
    n_a, n_b = rng.integers(1, 9, 2)
    r = rng.integers(1, 4, (n_a, n_b)) / 4  # few values: most of them tie
    a, b = np.nonzero(rng.random((n_a, n_b)) < 0.6)
    shuffle = rng.permutation(len(a))
    edges = make_edges(a[shuffle], b[shuffle], r[a, b][shuffle], n_a, n_b)
    expected = sorted(zip(-r[a, b], a, b, strict=True))
    order = edges.order
    assert [(-edges.r[e], edges.ids_a[e], edges.ids_b[e]) for e in order] == expected
    expected_a, expected_b = [], []
    for e in range(len(edges)):
        row = sorted((-r[i, j], j) for i, j in zip(a, b, strict=True) if i == edges.ids_a[e])
        column = sorted((-r[i, j], i) for i, j in zip(a, b, strict=True) if j == edges.ids_b[e])
        expected_a.append(row.index((-edges.r[e], edges.ids_b[e])))
        expected_b.append(column.index((-edges.r[e], edges.ids_a[e])))
    once = greedy(edges)
    for chosen in (np.arange(len(edges)), once, once[::2], np.repeat(once, 2)):
        assert ranks(edges, "a", chosen).tolist() == [expected_a[e] for e in chosen]
        assert ranks(edges, "b", chosen).tolist() == [expected_b[e] for e in chosen]


@pytest.mark.parametrize("slab_rows", [1, 3, 4, 1000])
@pytest.mark.parametrize("minimum", [0.1, 0.5, 2.0])
def test_edges_read_from_disk_are_those_of_the_dense_matrix(correlation, monkeypatch, slab_rows, minimum):
    monkeypatch.setattr(importlib.import_module("pipeline.match.edges"), "SLAB_ROWS", slab_rows)
    rng = np.random.default_rng(0)
    r, heldout = rng.uniform(-1, 1, (2, 13, 11))
    r[4:9] = NAN  # a whole empty slab
    r[0, 0] = minimum
    heldout[:, ::3] = NAN
    heldout[1, 1] = 0.0
    path = correlation(r, r_heldout=heldout)
    edges = read_edges(path, open_result(path), minimum)
    expected = np.nonzero(np.nan_to_num(r, nan=-1) >= minimum)
    np.testing.assert_array_equal((edges.ids_a, edges.ids_b), expected)
    np.testing.assert_array_equal(edges.r, r[expected])
    assert (edges.ids_a.dtype, edges.ids_b.dtype, edges.r.dtype) == (np.int32, np.int32, np.float64)
    backwards = edges.ids_a[::-1], edges.ids_b[::-1]
    np.testing.assert_array_equal(lookup(path, "r_heldout", *backwards, n_a=13), heldout[backwards])


def test_pairs_that_are_not_stored_look_up_as_the_fill_value(correlation):
    path = correlation([[0.5, 0.0], [0.0, 0.6]])
    found = lookup(path, "r", np.array([1, 0, 0], np.int32), np.array([1, 1, 0], np.int32), n_a=2)
    assert found.tolist() == [0.6, 0.0, 0.5]
