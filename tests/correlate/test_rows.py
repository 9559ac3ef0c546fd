"""Which rows choose, which are held out, which count in neither."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import storage
from pipeline.correlate.intervals import intervals
from pipeline.correlate.rows import half_of, read_halves, read_split, split_rows
from pipeline.correlate.run import correlate
from storage.rows import group_number
from tests.correlate import conftest

NUMBERS = st.integers(0, 2**63 - 1)
SEEDS = st.integers(0, 2**62 - 1)


@given(st.lists(NUMBERS, min_size=1, max_size=50), SEEDS)
def test_the_half_is_a_bit_of_the_published_hash(numbers, seed):
    expected = [conftest.half_of(number, seed) for number in numbers]
    assert half_of(np.array(numbers), seed).tolist() == expected


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(0, 2**32 - 1), SEEDS)
def test_documents_are_never_cut(documents, seed, split_seed):
    documents = np.array(documents)
    sink = np.random.default_rng(seed).random(len(documents)) < 0.2
    half = split_rows(documents, sink, "half", seed=split_seed)
    assert ((half == -1) == sink).all()
    left = set(documents[~sink])
    if len(left) > 1:
        halves = [set(documents[half == h]) for h in (0, 1)]
        assert halves[0] | halves[1] == left
        assert not halves[0] & halves[1]
    else:
        assert (np.diff(half[~sink]) >= 0).all()
        assert abs((half == 0).sum() - (half == 1).sum()) <= 1


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60).filter(lambda old: len(set(old)) > 1),
    st.lists(st.integers(0, 80), max_size=60),
    st.integers(0, 2**32 - 1),
    SEEDS,
)
def test_more_text_moves_no_document(old, new, order, seed):
    """Wherever the new rows come, and whether or not they are of old documents."""
    rows = np.array(old + new)
    place = np.random.default_rng(order).permutation(len(rows))
    before = split_rows(np.array(old), np.zeros(len(old), bool), "half", seed=seed)
    after = np.empty(len(rows), np.int8)
    after[place] = split_rows(rows[place], np.zeros(len(rows), bool), "half", seed=seed)
    assert after[: len(old)].tolist() == before.tolist()


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_many_documents_are_split_evenly(seed):
    """As fair coins: the number in each half, and runs of neighbours; by rows, too, where lengths differ."""
    half = half_of(np.arange(100_000), seed)
    assert scipy.stats.binomtest(int(half.sum()), len(half)).pvalue > 1e-3
    changes = int((np.diff(half) != 0).sum())
    assert scipy.stats.binomtest(changes, len(half) - 1).pvalue > 1e-3
    length = np.random.default_rng(seed).geometric(0.01, len(half))
    assert length[half == 1].sum() / length.sum() == pytest.approx(0.5, abs=0.015)


def test_seeds_are_independent():
    one, other = half_of(np.arange(100_000), 0), half_of(np.arange(100_000), 1)
    assert scipy.stats.binomtest(int((one == other).sum()), len(one)).pvalue > 1e-3


def test_all_rows_choose():
    half = split_rows(None, np.array([False, True, False]), "all", seed=0)
    np.testing.assert_array_equal(half, [0, -1, 0])


@pytest.mark.parametrize("n", [2, 3, 10, 11])
@pytest.mark.parametrize("documents", [None, 7])
def test_without_documents_or_with_one_the_first_half_chooses(n, documents):
    texts = None if documents is None else np.full(n, documents)
    half = split_rows(texts, np.zeros(n, bool), "half", seed=0)
    np.testing.assert_array_equal(half, np.arange(n) >= (n + 1) // 2)


def test_two_documents_in_one_half_are_refused_with_a_seed_that_separates_them(client, make_case, values):
    rng = np.random.default_rng(0)
    numbers = next((a, b) for a in range(9) for b in range(a) if conftest.half_of(a) == conftest.half_of(b))
    case = make_case(values(rng, 40, 5, 0.6), values(rng, 40, 5, 0.6), documents=np.repeat(numbers, 20))
    other = next(s for s in range(1, 99) if conftest.half_of(numbers[0], s) != conftest.half_of(numbers[1], s))
    with pytest.raises(storage.InputError, match=rf"split_seed={other}, 20 rows choose and 20 are held out"):
        case.correlate(client=client)
    assert not list(case.folder.glob("cor*"))
    ds = case.correlate(client=client, split_seed=other)
    assert (ds.attrs["n_rows_select"], ds.attrs["n_rows_heldout"], ds.attrs["split_seed"]) == (20, 20, other)


@pytest.mark.parametrize("n", range(2, 30))
def test_the_first_documents_of_a_corpus_can_be_split(n):
    """Those who correlate a few documents without a thought of halves are not refused."""
    assert 0 < half_of(np.arange(n), 0).sum() < n


def test_unequal_halves_are_warned_of(client, make_case, values, caplog):
    rng = np.random.default_rng(0)
    documents = np.repeat([0, 1, 2], [100, 10, 10])
    assert [conftest.half_of(number) for number in range(3)] == [1, 0, 1]
    case = make_case(values(rng, 120, 5, 0.6), values(rng, 120, 5, 0.6), documents=documents)
    case.correlate(client=client)
    assert "The smaller half has only 10 of 120 rows" in caplog.text
    assert "split_seed=" not in caplog.text  # no seed would help: one document has most rows
    caplog.clear()
    even = make_case(case.x, case.y, documents=np.repeat([1, 4, 5, 6, 7, 0], [30, 30, 20, 20, 10, 10]))
    even.correlate(client=client)
    assert "The smaller half has only 10 of 120 rows" in caplog.text
    assert "with split_seed=" in caplog.text


def test_one_document_is_warned_of_and_none_is_told(client, make_case, values, caplog):
    caplog.set_level("INFO")
    x = values(np.random.default_rng(0), 40, 5, 0.6)
    one = make_case(x, x, documents=np.zeros(40, int))
    assert one.correlate(client=client).attrs["n_rows_select"] == 20
    assert "All rows are of one document" in caplog.text
    make_case(x, x).correlate(client=client)
    assert "The stores know no documents: the first 20 rows choose" in caplog.text


def test_the_seed_decides_the_halves_and_is_recorded(client, make_case, values):
    rng = np.random.default_rng(0)
    case = make_case(values(rng, 400, 8, 0.5), values(rng, 400, 8, 0.5), documents=np.arange(400) // 10)
    for seed in (0, 5):
        ds = case.correlate(f"seed-{seed}", client=client, split_seed=seed)
        rows = case.halves("half", seed)
        assert storage.read_manifest(case.folder / f"seed-{seed}.zarr").settings["split_seed"] == seed
        for h, name in enumerate(("r_b", "r_heldout_b")):
            r = np.corrcoef(case.x[rows[h]], case.y[rows[h]], rowvar=False)[:8, 8:]
            np.testing.assert_allclose(ds[name][:, 0], r[np.arange(8), ds["best_b"][:, 0]], atol=1e-6)
    assert not np.array_equal(*(case.halves("half", seed)[0] for seed in (0, 5)))


@pytest.mark.parametrize("seed", [-1, 2**62, 0.5])
def test_seeds_that_are_none_are_refused(make_case, values, seed):
    case = make_case(*2 * [values(np.random.default_rng(0), 40, 5, 0.6)])
    with pytest.raises(storage.InputError, match="split_seed"):
        correlate(case.a, case.b, split_seed=seed)


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
@pytest.mark.parametrize("documents", [np.arange(60) // 6, np.zeros(60, int), None], ids=["ten", "one", "none"])
def test_halves_of_two_stores(make_case, values, monkeypatch, rows_at_once, documents):
    monkeypatch.setattr(importlib.import_module("pipeline.correlate.rows"), "ROWS_AT_ONCE", rows_at_once)
    x = values(np.random.default_rng(0), 60, 5, 0.6)
    case = make_case(x, x, documents=documents, sink=np.arange(60) % 7 == 0)
    split = read_split(case.a, case.b, "half", seed=3)
    np.testing.assert_array_equal(np.stack([split.half == h for h in (0, 1)]), case.halves("half", 3))
    if documents is not None:
        numbers, counts = np.unique(documents[~case.sink], return_counts=True)
        np.testing.assert_array_equal(split.numbers, numbers)
        np.testing.assert_array_equal(split.rows, counts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=20), st.integers(0, 2**32 - 1), SEEDS)
def test_groups_are_never_torn(make_case, of_document, seed, split_seed):
    """Whatever documents a group has, and where; more groups move none, and names count, not their order."""
    names = [f"group {number}" for number in of_document]
    numbers = np.array([group_number(name) for name in names])
    rows = np.random.default_rng(seed).integers(0, len(names), 8 * len(names))
    halves = [{name for name, row_half in zip(np.array(names)[rows], half_of(numbers, split_seed)[rows], strict=True)
               if row_half == h} for h in (0, 1)]  # fmt: skip
    assert not halves[0] & halves[1]
    assume(halves[0] and halves[1] and min((half_of(numbers, split_seed)[rows] == h).sum() for h in (0, 1)) > 1)
    x = np.ones((len(rows), 2), np.float32)
    case = make_case(x, x, documents=np.sort(rows), groups=numbers[np.sort(rows)])
    half = read_halves(case.a, case.b, "half", seed=split_seed)
    np.testing.assert_array_equal(np.stack([half == h for h in (0, 1)]), case.halves("half", split_seed))


def test_a_correlation_of_groups(client, make_case, values):
    """Everything that is in halves is by group: the correlation, and what is drawn or left out."""
    rng = np.random.default_rng(1)
    documents = np.arange(600) // 10
    case = make_case(values(rng, 600, 6, 0.5), values(rng, 600, 6, 0.5), documents=documents, groups=documents // 3)
    ds = case.correlate(client=client, top_k=3)
    case.check(ds, 3, 0.1)
    drawn = intervals(ds, case.a, case.b, client=client)
    assert drawn.attrs["unit"] == "groups"
    n_groups = [len(set(case.groups[rows])) for rows in case.halves("half")]
    assert drawn.attrs["n_documents"] == n_groups
    np.testing.assert_allclose(drawn["r"], ds["r_b"].values[drawn["feature_a"], 0], atol=1e-9)


def test_groups_of_one_store_serve_both_and_must_agree(client, make_case, values):
    x = values(np.random.default_rng(2), 80, 4, 0.6)
    documents = np.arange(80) // 4
    plain = make_case(x, x, documents=documents)
    grouped = make_case(x, x, documents=documents, groups=documents // 2)
    other = make_case(x, x, documents=documents, groups=(documents + 1) // 2)
    expected = read_halves(grouped.a, grouped.b, "half", seed=0)
    for pair in ((grouped.a, plain.b), (plain.a, grouped.b)):
        np.testing.assert_array_equal(read_halves(*pair, "half", seed=0), expected)
    with pytest.raises(storage.InputError, match="different groups from row 4 on"):
        read_halves(grouped.a, other.b, "half", seed=0)


def test_one_group_is_refused(client, make_case, values):
    x = values(np.random.default_rng(2), 80, 4, 0.6)
    case = make_case(x, x, documents=np.arange(80) // 4, groups=np.full(80, 7))
    with pytest.raises(storage.InputError, match=r"of one group of documents.*corpus: group.*select='all'"):
        case.correlate(client=client)
    assert case.correlate(client=client, select="all").attrs["n_rows_select"] == 80
