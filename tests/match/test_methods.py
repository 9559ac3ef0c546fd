"""Every method against a reference that works on the dense matrix, with many ties, NaN and empty edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pipeline.match.edges import Edges, make_edges
from pipeline.match.methods import assignment
from pipeline.match.methods.assignment import optimal
from pipeline.match.methods.greedy import best, best_of_b, greedy, mutual, unique, unique_greedy

METHODS = (best, best_of_b, mutual, unique, greedy, optimal, unique_greedy)


FEW_VALUES = st.sampled_from([2, 4, 10, 1000])


@st.composite
def matrices(draw, levels=FEW_VALUES):
    """Dense r with few distinct values, NaN where a pair is missing, whole rows and columns of NaN."""
    n_a, n_b, n_levels = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(levels)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    r = rng.integers(1, n_levels + 1, (n_a, n_b)) / n_levels
    r[rng.random((n_a, n_b)) > draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))] = np.nan
    r[rng.random(n_a) < 0.1] = np.nan
    r[:, rng.random(n_b) < 0.1] = np.nan
    return r


def as_edges(r: np.ndarray) -> Edges:
    a, b = np.indices(r.shape)
    return make_edges(a.ravel(), b.ravel(), r.ravel(), *r.shape)


def pairs_of(edges: Edges, chosen: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(edges.ids_a[chosen].tolist(), edges.ids_b[chosen].tolist(), strict=True))


def all_pairs(r: np.ndarray) -> list[tuple[float, int, int]]:
    """Every defined pair, best first, ties by ids."""
    return sorted((-r[i, j], i, j) for i, j in np.ndindex(r.shape) if not np.isnan(r[i, j]))


def dense_greedy(r: np.ndarray) -> list[tuple[int, int]]:
    """Take the largest entry, strike its row and column, repeat."""
    left, pairs = np.where(np.isnan(r), -np.inf, r), []
    while left.size and left.max() > -np.inf:
        i, j = np.unravel_index(np.argmax(left), left.shape)  # argmax is the first: lowest a, then lowest b
        pairs.append((int(i), int(j)))
        left[i], left[:, j] = -np.inf, -np.inf
    return pairs


def dense_best(r: np.ndarray) -> set[tuple[int, int]]:
    return {(i, int(np.nanargmax(row))) for i, row in enumerate(r) if not np.isnan(row).all()}


@given(matrices())
def test_greedy_equals_striking_rows_and_columns(r):
    edges = as_edges(r)
    assert pairs_of(edges, greedy(edges)) == dense_greedy(r)


@given(matrices())
def test_best_of_either_side_equals_argmax(r):
    edges = as_edges(r)
    of_a, of_b = dense_best(r), {(i, j) for j, i in dense_best(r.T)}
    assert set(pairs_of(edges, best(edges))) == of_a
    assert set(pairs_of(edges, best_of_b(edges))) == of_b
    assert set(pairs_of(edges, mutual(edges))) == of_a & of_b


@given(matrices(), st.integers(1, 3))
def test_unique_keeps_the_best_uses_not_the_first(r, max_uses):
    edges = as_edges(r)
    uses: dict[int, list] = {}
    for pair in sorted((-r[i, j], i, j) for i, j in dense_best(r)):
        uses.setdefault(pair[2], []).append(pair)
    expected = sorted(pair for of_b in uses.values() for pair in of_b[:max_uses])
    assert pairs_of(edges, unique(edges, max_uses)) == [(i, j) for _, i, j in expected]


def dense_unique_greedy(r: np.ndarray) -> list[tuple[int, int]]:
    """Keep (a, b) where b is the best of a and of no other a; strike them; take the largest entry left, repeat."""
    wanted = dense_best(r)
    kept = {(i, j) for i, j in wanted if sum(other == j for _, other in wanted) == 1}
    left = r.copy()
    for i, j in kept:
        left[i], left[:, j] = np.nan, np.nan
    return sorted(kept | set(dense_greedy(left)))


@given(matrices())
def test_unique_greedy_keeps_the_natural_pairs_and_matches_the_rest_best_first(r):
    edges = as_edges(r)
    assert sorted(pairs_of(edges, unique_greedy(edges))) == dense_unique_greedy(r)


def gale_shapley(r: np.ndarray) -> set[tuple[int, int]]:
    """Deferred acceptance, rows proposing; each side ranks the other by r, then by id."""
    lists = [
        sorted((j for j in range(r.shape[1]) if not np.isnan(r[i, j])), key=lambda j: (-r[i, j], j))
        for i in range(len(r))
    ]
    held: dict[int, int] = {}
    free = list(range(len(r)))
    while free:
        i = free.pop()
        if not lists[i]:
            continue
        j = lists[i].pop(0)
        rival = held.get(j)
        if rival is None or (-r[i, j], i) < (-r[rival, j], rival):
            held[j] = i
            free += [] if rival is None else [rival]
        else:
            free.append(i)
    return {(i, j) for j, i in held.items()}


@given(matrices())
def test_greedy_is_the_stable_matching_whoever_proposes(r):
    edges = as_edges(r)
    found = set(pairs_of(edges, greedy(edges)))
    assert found == gale_shapley(r)
    assert found == {(i, j) for j, i in gale_shapley(r.T)}


@given(matrices())
def test_greedy_leaves_no_pair_that_would_both_rather_have_each_other(r):
    edges = as_edges(r)
    pairs = pairs_of(edges, greedy(edges))
    of_a, of_b = dict(pairs), {j: i for i, j in pairs}
    for i, j in np.ndindex(r.shape):
        if not np.isnan(r[i, j]):
            a_would = i not in of_a or r[i, j] > r[i, of_a[i]]
            b_would = j not in of_b or r[i, j] > r[of_b[j], j]
            assert not (a_would and b_would)


@pytest.mark.parametrize("dense_share", [0.0, 2.0])
@given(matrices())
def test_optimal_has_the_total_of_the_dense_solver_however_full_the_matrix(dense_share, r):
    edges = as_edges(r)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "DENSE_SHARE", dense_share)
        chosen = optimal(edges)
    assert len(set(edges.ids_a[chosen])) == len(set(edges.ids_b[chosen])) == len(chosen)
    assert (edges.r[chosen] > 0).all()
    dense = np.nan_to_num(r, nan=0.0)
    assert edges.r[chosen].sum() == pytest.approx(dense[linear_sum_assignment(dense, maximize=True)].sum(), abs=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_optimal_has_the_total_of_trying_everything(seed):
    rng = np.random.default_rng(seed)
    r = rng.choice([np.nan, -0.5, 0.25, 0.5, 0.75], (4, 5))
    edges = as_edges(r)
    gains = np.maximum(np.nan_to_num(r, nan=0.0), 0.0)  # a negative pair is never worth taking
    expected = max(sum(gains[i, j] for i, j in enumerate(columns)) for columns in itertools.permutations(range(5), 4))
    chosen = optimal(edges)
    assert edges.r[chosen].sum() == pytest.approx(expected, abs=1e-12)
    assert (edges.r[chosen] > 0).all()


@given(matrices())
def test_optimal_leaves_no_positive_pair_between_free_features(r):
    edges = as_edges(r)
    chosen = optimal(edges)
    free_a, free_b = (~np.isin(ids, ids[chosen]) for ids in (edges.ids_a, edges.ids_b))
    assert not np.any(free_a & free_b)


@pytest.mark.parametrize("dense_share", [0.0, 2.0])
def test_optimal_keeps_tiny_gains(monkeypatch, dense_share):
    monkeypatch.setattr(assignment, "DENSE_SHARE", dense_share)
    edges = make_edges([0, 1, 1], [0, 0, 1], [1.0, 1.0, 1e-9], n_a=2, n_b=2)
    assert pairs_of(edges, optimal(edges)) == [(0, 0), (1, 1)]


@given(matrices())
def test_chosen_edges_are_distinct_and_sorted(r):
    edges = as_edges(r)
    for method in METHODS:
        chosen = method(edges)
        assert len(set(chosen.tolist())) == len(chosen)
        ordered = sorted((-edges.r[e], edges.ids_a[e], edges.ids_b[e]) for e in chosen)
        assert [(-edges.r[e], edges.ids_a[e], edges.ids_b[e]) for e in chosen] == ordered


@given(matrices())
def test_one_to_one_uses_no_feature_twice(r):
    edges = as_edges(r)
    for method in (mutual, unique, greedy, optimal, unique_greedy):
        for ids in (edges.ids_a, edges.ids_b):
            used = ids[method(edges)]
            assert len(set(used.tolist())) == len(used)


@pytest.mark.parametrize("method", METHODS)
def test_no_edges_no_pairs(method):
    assert method(make_edges([], [], [], n_a=3, n_b=4)).tolist() == []


@given(matrices(levels=st.just(10**9)), st.integers(0, 2**32 - 1))
def test_the_order_of_the_edges_does_not_matter(r, seed):
    edges = as_edges(r)
    shuffle = np.random.default_rng(seed).permutation(len(edges))
    shuffled = make_edges(edges.ids_a[shuffle], edges.ids_b[shuffle], edges.r[shuffle], *r.shape)
    for method in METHODS:
        assert pairs_of(edges, method(edges)) == pairs_of(shuffled, method(shuffled))


def test_trap_7_the_best_partner_wins_not_the_one_with_the_lowest_id():
    # features 0 and 1 of A both like feature 0 of B best; the original kept the first by index and lost the better one
    edges = make_edges([0, 1], [0, 0], [0.3, 0.9], n_a=2, n_b=1)
    assert pairs_of(edges, unique(edges)) == pairs_of(edges, greedy(edges)) == [(1, 0)]


def test_trap_13_the_direction_matters():
    r = np.array([[0.9, 0.8], [0.7, 0.1]])
    edges = as_edges(r)
    assert pairs_of(edges, best(edges)) == [(0, 0), (1, 0)]
    assert pairs_of(edges, best_of_b(edges)) == [(0, 0), (0, 1)]


def test_permuted_columns_are_recovered_and_permuted_rows_are_not():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 60))
    permutation = rng.permutation(60)
    noisy = x[:, permutation] + 0.5 * rng.normal(size=x.shape)
    r = np.corrcoef(x.T, noisy.T)[:60, 60:]
    for method in METHODS:
        chosen = method(edges := as_edges(np.where(r >= 0.3, r, np.nan)))
        assert sorted(pairs_of(edges, chosen)) == sorted((int(a), b) for b, a in enumerate(permutation))
    destroyed = np.corrcoef(x.T, noisy[rng.permutation(2000)].T)[:60, 60:]
    assert not len(greedy(as_edges(np.where(destroyed >= 0.3, destroyed, np.nan))))
