"""Measures other than Pearson's against SciPy and scikit-learn, by every method, with many ties."""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
import scipy.sparse
import scipy.spatial.distance
import scipy.stats
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score, matthews_corrcoef
from sklearn.metrics.pairwise import cosine_similarity

import storage
from pipeline.correlate.cost import Rates
from pipeline.correlate.forecast import forecast_sizes
from pipeline.correlate.plan import RESERVED, Resources, StoreSize, make_plan
from pipeline.correlate.ranks import plan_ranks, rank_columns, rank_entries
from pipeline.match.run import match
from pipeline.settings.correlate import CorrelateSettings

METHODS = ("resident", "streaming", "dense")
KERNEL = {"resident": "sparse", "streaming": "sparse", "dense": "dense"}
MEASURES = ("cosine", "spearman", "phi", "jaccard")


def cosine_similarity_of_columns(x, y):
    return cosine_similarity(x.T.astype(np.float64), y.T.astype(np.float64))


def where_defined(measure, defined):
    """Return a function of two matrices that fills in NaN for the columns that are not defined."""

    def every_pair(x, y):
        r = np.full((x.shape[1], y.shape[1]), np.nan)
        one, other = (np.flatnonzero([defined(column) for column in side.T]) for side in (x, y))
        if len(one) and len(other):
            r[np.ix_(one, other)] = measure(x[:, one], y[:, other])
        return r

    return every_pair


def spearman(x, y):
    ranks = [scipy.stats.rankdata(side, axis=0) for side in (x, y)]
    if x.shape[1] + y.shape[1] > 2:
        return scipy.stats.spearmanr(x, y).statistic[: x.shape[1], x.shape[1] :]
    return np.corrcoef(*ranks, rowvar=False)[:1, 1:]


def jaccard(x, y):
    return 1 - scipy.spatial.distance.cdist(x.T != 0, y.T != 0, "jaccard")


def phi(x, y):
    """(n11 · n00 − n10 · n01) / √(product of the four margins), from the table of counts."""
    x, y = (x != 0).astype(float), (y != 0).astype(float)
    n11, n00, n10, n01 = x.T @ y, (1 - x).T @ (1 - y), x.T @ (1 - y), (1 - x).T @ y
    margins = np.outer(x.sum(0) * (1 - x).sum(0), y.sum(0) * (1 - y).sum(0))
    return (n11 * n00 - n10 * n01) / np.sqrt(margins)


ORACLES = {
    "cosine": where_defined(cosine_similarity_of_columns, np.any),
    "spearman": where_defined(spearman, lambda column: np.ptp(column) > 0),
    "phi": where_defined(phi, lambda column: 0 < np.count_nonzero(column) < len(column)),
    "jaccard": where_defined(jaccard, np.any),
}


def test_the_oracles_are_what_scikit_learn_calls_so():
    x, y = awkward(np.random.default_rng(0), 50, 6)[:, [0]], awkward(np.random.default_rng(1), 50, 6)[:, [0]]
    x[:5], y[:8] = 0, 0
    fires = (x != 0).ravel(), (y != 0).ravel()
    assert jaccard(x, y)[0, 0] == pytest.approx(jaccard_score(*fires))
    assert phi(x, y)[0, 0] == pytest.approx(matthews_corrcoef(*fires))


def awkward(rng, n, features):
    """Few distinct values, so many ties; negative, dead, constant and always-on features among them."""
    x = rng.integers(-1, 4, (n, features)) * (rng.random((n, features)) < rng.choice([0.1, 0.4, 1.0], features))
    x = x * rng.choice([0.5, 1.0, 3.0], features)
    kinds = rng.integers(0, 8, features)
    x[:, kinds == 0] = np.abs(x[:, kinds == 0])
    x[:, kinds == 1] = 0
    x[:, kinds == 2] = rng.choice([-2.0, 7.0])
    x[:, kinds == 3] += 50
    x[: n // 2, kinds == 4] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("measure", MEASURES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=3)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(12, 90),
    top_k=st.sampled_from([2, 50]),
    select=st.sampled_from(["half", "all"]),
)
def test_every_number_matches_the_oracle(client, make_case, force, measure, method, seed, n, top_k, select):
    rng = np.random.default_rng(seed)
    x, y = awkward(rng, n, int(rng.integers(2, 50))), awkward(rng, n, int(rng.integers(2, 40)))
    y[:, 0] = x[:, 1]
    x[0], y[1] = 0, 0  # no feature fires everywhere, which phi and jaccard refuse if it is all of them
    sink = rng.random(n) < 0.1
    sink[:5], sink[-5:] = False, False
    force(method, panel=16, slab_rows=32)
    case = make_case(x, y, sink=sink, oracle=ORACLES[measure])
    ds = case.correlate(
        top_k=top_k, keep_above=0.05, select=select, measure=measure, kernel=KERNEL[method], client=client
    )
    case.check_r(ds, top_k, 0.05)
    assert ds.attrs["measure"] == ds["r_b"].attrs["measure"] == measure
    assert not list((case.folder / "cor.zarr").rglob("*ranks*"))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("layouts", [("dense", "dense"), ("csr", "dense")])
def test_dense_and_mixed_stores(client, make_case, force, measure, layouts):
    rng = np.random.default_rng(2)
    force("dense", panel=16, slab_rows=64)
    case = make_case(awkward(rng, 130, 30), awkward(rng, 130, 20), layouts=layouts, oracle=ORACLES[measure])
    ds = case.correlate(top_k=5, keep_above=0.1, measure=measure, client=client)
    assert ds.attrs["kernel"] == "dense"
    case.check_r(ds, 5, 0.1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("measure", MEASURES)
def test_a_feature_with_itself_is_exactly_one(client, make_case, force, values, measure, method):
    rng = np.random.default_rng(3)
    x = values(rng, 400, 40, 0.1)
    x[:, 5] = rng.normal(size=400) * 1e3
    x[:, 5] *= rng.random(400) < 0.9
    x[:, 6] = -x[:, 7]
    x = x[:, x.any(0)]
    force(method, panel=16, slab_rows=64)
    ds = make_case(x, 2 * x).correlate(top_k=2, measure=measure, client=client, kernel=KERNEL[method])
    assert (ds["r_b"].values[:, 0] == 1).all()
    assert (ds["r_heldout_b"].values[:, 0] == 1).all()
    same = 6 if measure in ("phi", "jaccard") else 7  # 6 and 7 fire together: the lower id wins
    np.testing.assert_array_equal(
        ds["best_b"].values[:, 0], np.where(np.arange(x.shape[1]) == 7, same, np.arange(x.shape[1]))
    )


def identical(one: xr.Dataset, two: xr.Dataset) -> None:
    for name in ("best_b", "r_b", "r_heldout_b", "best_a", "r_a", "r_heldout_a", "histogram", "mean_a", "std_b"):
        np.testing.assert_array_equal(one[name].values, two[name].values)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_same_bits_for_all_panels_and_modes(client, make_case, force, measure):
    rng = np.random.default_rng(4)
    case = make_case(awkward(rng, 300, 50), awkward(rng, 300, 40))
    reference = case.correlate("reference", measure=measure, top_k=6, kernel="sparse", client=client)
    for method, panel in (("resident", 16), ("streaming", 27)):
        force(method, panel=panel, slab_rows=50)
        identical(case.correlate(method, measure=measure, top_k=6, kernel="sparse", client=client), reference)


def test_ties_of_counts_are_the_same_in_both_kernels(client, make_case, force, values):
    rng = np.random.default_rng(5)
    case = make_case(values(rng, 200, 40, 0.05), values(rng, 200, 30, 0.05))
    sparse = case.correlate("sparse", measure="jaccard", top_k=20, kernel="sparse", client=client)
    force("dense", panel=16, slab_rows=64)
    identical_ids = case.correlate("dense", measure="jaccard", top_k=20, kernel="dense", client=client)
    for name in ("best_b", "r_b", "best_a", "r_heldout_a", "histogram"):
        np.testing.assert_array_equal(identical_ids[name].values, sparse[name].values)


def test_a_constant_feature_has_a_cosine_and_one_that_always_fires_an_index(client, make_case):
    x = np.ones((40, 2), np.float32)
    x[:, 0] = np.arange(40) % 3
    case = make_case(x, x, oracle=ORACLES["cosine"])
    ds = case.correlate(measure="cosine", top_k=2, client=client)
    np.testing.assert_array_equal(ds["best_b"].values, [[0, 1], [1, 0]])
    case.check_r(ds, 2, 0.1)
    ds = case.correlate("index", measure="jaccard", top_k=1, client=client)
    assert ds.attrs["n_undefined_a"] == 0


@pytest.mark.parametrize("measure", ["phi", "jaccard"])
def test_firing_needs_rows_in_which_nothing_fires(client, make_case, values, measure):
    rng = np.random.default_rng(6)
    case = make_case(rng.normal(size=(50, 4)), values(rng, 50, 4, 0.5), layouts=("dense", "csr"))
    with pytest.raises(storage.InputError, match=r"a\.zarr has no zeros"):
        case.correlate(measure=measure, client=client)
    assert not storage.partial_path(case.folder / "cor.zarr").exists()


def test_an_unknown_measure_is_named(client, make_case, values):
    case = make_case(np.eye(8), np.eye(8))
    with pytest.raises(storage.InputError, match=r"measure: .* 'pearson', 'cosine'.*kendall"):
        case.correlate(measure="kendall", client=client)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 2))
def test_shifted_ranks_are_those_of_scipy(seed, n, halves):
    rng = np.random.default_rng(seed)
    x = awkward(rng, n, 7)
    half = rng.integers(-1, halves, n).astype(np.int8)
    counts = np.array([np.count_nonzero(half == h) for h in range(halves)])
    expected = np.zeros(x.shape)
    for h in range(halves):
        part = x[half == h]
        below, zeros = (part < 0).sum(0), (part == 0).sum(0)
        ranks = scipy.stats.rankdata(part, axis=0) if len(part) else part
        expected[half == h] = ranks - (below + (zeros + 1) / 2)
    np.testing.assert_array_equal(rank_columns(x, half, counts, np.zeros(x.shape)), expected)
    stored = scipy.sparse.csr_array(x)
    out = np.zeros(stored.nnz)
    rank_entries(stored.indptr.astype(np.int64), stored.indices, stored.data, half, counts, 7, out)
    np.testing.assert_array_equal(
        scipy.sparse.csr_array((out, stored.indices, stored.indptr), shape=x.shape).toarray(), expected
    )
    assert ((expected != 0) <= (x != 0)).all()


@pytest.mark.parametrize("layouts", [("csr", "csr"), ("dense", "dense")])
def test_ranking_that_was_stopped_goes_on(client, make_case, monkeypatch, layouts):
    rng = np.random.default_rng(7)
    case = make_case(awkward(rng, 200, 60), awkward(rng, 200, 50), layouts=layouts)
    reference = case.correlate("reference", measure="spearman", top_k=4, client=client)
    ranks = importlib.import_module("pipeline.correlate.ranks")
    monkeypatch.setattr(ranks, "CHUNK", 16)
    run_tasks, asked = ranks.run_tasks, []

    def dying(client, function, items, **settings):
        yield from run_tasks(client, function, items[:2], **settings)
        raise KeyboardInterrupt

    def recording(client, function, items, **settings):
        asked.append((settings["name"], list(items)))
        return run_tasks(client, function, items, **settings)

    monkeypatch.setattr(ranks, "run_tasks", dying)
    with pytest.raises(KeyboardInterrupt):
        case.correlate(measure="spearman", top_k=4, client=client)
    monkeypatch.setattr(ranks, "run_tasks", recording)
    identical(case.correlate(measure="spearman", top_k=4, client=client), reference)
    assert asked[0] == ("correlate-rank", [2, 3])
    assert [items for name, items in asked if name == "correlate-rank"] == [[2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize("sparse", [True, False])
def test_ranking_fits_the_budget_or_is_refused(sparse):
    n_rows, features = 1_000_000, 64
    size = StoreSize(sparse, 4, np.full(features, n_rows if not sparse else n_rows // 8))
    widths = []
    for memory in (12 * 10**8, 9 * 10**8, 7 * 10**8):
        plan = make_plan(size, size, n_rows, CorrelateSettings(top_k=4), Resources(4 * 10**9, threads=2))
        plan = dataclasses.replace(plan, allowed=memory)
        ranking = plan_ranks(size, n_rows=n_rows, plan=plan, resources=Resources(memory, threads=2))
        assert RESERVED < ranking.projected <= memory
        widths.append(ranking.width)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]
    plan = dataclasses.replace(plan, allowed=RESERVED + 10**6)
    with pytest.raises(storage.BudgetError, match=r"one feature of a store at a time takes 0\.\d\d GB .*projected"):
        plan_ranks(size, n_rows=n_rows, plan=plan, resources=Resources(10**9, threads=2))


def test_a_store_that_cannot_be_ranked_leaves_nothing_behind(client, make_case, values, monkeypatch):
    rng = np.random.default_rng(8)
    case = make_case(values(rng, 100, 8, 0.2), values(rng, 100, 8, 0.2))
    ranks = importlib.import_module("pipeline.correlate.ranks")
    monkeypatch.setattr(ranks, "_panel_bytes", lambda *_: 10**13)
    with pytest.raises(storage.BudgetError, match=r"Ranking does not fit: one feature of .*a\.zarr at a time"):
        case.correlate(measure="spearman", client=client)
    partial = list(case.folder.glob("cor.zarr*"))
    assert not [folder for folder in partial if (folder / "panels").exists()]


def test_the_forecast_of_ranks_has_their_memory_time_and_disk():
    size = StoreSize(True, 4, np.full(2000, 200_000))
    resources = Resources(4 * 10**9, threads=2)
    values, ranks = (
        forecast_sizes(size, size, 1_000_000, CorrelateSettings(measure=measure), resources, Rates())
        for measure in ("pearson", "spearman")
    )
    assert values.ranking == 0 < ranks.ranking <= ranks.memory <= 4 * 10**9
    assert values.memory == values.plan.projected
    assert ranks.seconds > values.seconds
    assert ranks.disk > values.disk + 1e9


def test_pairs_say_what_their_r_is(client, make_case, values):
    rng = np.random.default_rng(9)
    x = values(rng, 100, 8, 0.4)
    cor = make_case(x, x).correlate(measure="jaccard", client=client)
    pairs = match(cor, method="greedy", min_correlation=0.1)
    assert pairs.attrs["measure"] == "jaccard"
    assert pairs["r_heldout"].attrs["long_name"] == "Jaccard index of firing on the held-out rows"
