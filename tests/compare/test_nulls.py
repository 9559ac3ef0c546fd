from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipeline.compare.base import Family, Metric
from pipeline.compare.engine import score_draws, score_pairs, score_rows
from pipeline.compare.nulls import Draws, check_finite, run_blocks, score_null, shuffle_clumps, shuffle_ids
from pipeline.compare.rows import ArrayRows
from pipeline.settings.compare import CompareSettings
from pipeline.settings.registries import NULLS
from pipeline.text.top_tokens import effective_pairs
from pipeline.work.workers import local_client
from storage.errors import InputError


@dataclass(frozen=True)
class Entry(Metric):
    """The entry of B that is paired with one row of A, times that row's: shows which rows a run saw."""

    name = "entry"
    at: int = 0

    @property
    def family(self):
        return "entry"

    @staticmethod
    def prepare(metrics, x, y):
        return x[:, 0], y[:, 0]

    def arrange(self, state, pairing):
        return state[0], state[1][pairing]

    def score(self, arranged):
        return float(arranged[0][self.at] * 1000 + arranged[1][self.at])

    def memory(self, n, d_a, d_b):
        return n


BOTH = Family((Entry(0), Entry(-1)))


def column(n: int) -> np.ndarray:
    return np.arange(float(n))[:, None]


def draws_of(null: str, n: int, sizes: tuple[int | None, int | None], runs: int, seed: int) -> Draws:
    return Draws(NULLS[null], n, sizes, runs, seed)


def test_shuffles_are_permutations_and_all_runs_differ():
    shuffles = draws_of("shuffled", 50, (50, 50), 30, seed=4)
    drawn = [shuffles.places(run) for run in range(30)]
    assert all(np.array_equal(a, np.arange(50)) for a, _ in drawn), "A keeps its order"
    assert all(np.array_equal(np.sort(b), np.arange(50)) for _, b in drawn)
    assert len({b.tobytes() for _, b in drawn}) == 30
    assert not np.array_equal(drawn[0][1], draws_of("shuffled", 50, (50, 50), 30, seed=5).places(0)[1])


def test_shuffles_of_ids_are_all_equally_likely():
    rng, ids = np.random.default_rng(0), np.array([7, 2, 11, 3])
    counts = Counter(shuffle_ids(rng, ids).tobytes() for _ in range(4800))
    assert len(counts) == 24
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_features_of_a_change_places_alike_at_all_sites_of_b():
    """Where one site of B has pairs of a few more features, nearly all others still go where they went."""
    rng = np.random.default_rng(1)
    more = rng.permutation(500)
    fewer = rng.permutation(more[:450])
    partner = []
    for ids in (more, fewer):
        places = Draws(NULLS["shuffled"], len(ids), (len(ids),) * 2, 1, 3, ids=ids).places(0)[1]
        partner.append(dict(zip(ids.tolist(), ids[places].tolist(), strict=True)))
    same = np.mean([partner[0][feature] == partner[1][feature] for feature in fewer.tolist()])
    assert 0.85 < same < 0.95
    places = Draws(NULLS["shuffled"], 500, (500, 500), 1, 3, ids=np.sort(more)).places(0)[1]
    assert dict(enumerate(places.tolist())) == partner[0], "the order of the pairs says nothing"


@pytest.mark.parametrize("per_task", [1, 7, 1000])
def test_scores_come_in_the_order_of_the_runs_whatever_the_blocks(client, per_task):
    draws = draws_of("random_features", 5, (30, 40), 25, seed=1)
    args = column(30), column(40), draws, [BOTH]
    found = run_blocks(client, score_draws, range(25), *args, per_task=per_task, label="draws")
    expected = [BOTH.scores_of(column(30)[a], column(40)[b]) for a, b in map(draws.places, range(25))]
    np.testing.assert_array_equal(found, np.array(expected).T)
    np.testing.assert_array_equal(
        found, run_blocks(None, score_draws, range(25), *args, per_task=per_task, label="draws")
    )


def test_each_metric_has_the_runs_that_its_null_needs(client):
    draws, low, high = draws_of("random_features", 5, (30, 40), 450, seed=1), *BOTH.metrics
    args = column(30), column(40), draws
    whole = score_draws(range(450), *args, [BOTH])
    observed = {low: float(np.sort(whole[0])[-30]), high: float(whole[1].max()) + 1}
    ended = np.flatnonzero(whole[0] >= observed[low])[19] + 1
    assert 100 < ended < 450
    options = {"observed": observed, "stop_after": 20, "label": "draws"}
    with local_client(n_workers=3, threads_per_worker=1) as other:
        for used, per_task in itertools.product((None, client, other), (7, 30, 1000)):
            found = score_null(used, score_draws, draws, [BOTH], *args, per_task=per_task, **options)
            np.testing.assert_array_equal(found[low], np.where(np.arange(450) < ended, whole[0], np.nan))
            np.testing.assert_array_equal(found[high], whole[1])


def test_only_runs_that_a_null_needs_have_to_be_defined():
    draws = draws_of("random_features", 5, (30, 40), 300, seed=1)
    fails = {run: run in (150, 250) for run in range(300)}

    def score(runs, groups):
        return np.array([[np.nan if fails[run] else 1.0 for run in runs] for _ in groups])

    options = {"observed": {BOTH.metrics[0]: 1.0}, "per_task": 10, "label": "draws"}
    only = [Family(BOTH.metrics[:1])]
    found = score_null(None, score, draws, only, stop_after=120, **options)[BOTH.metrics[0]]
    assert np.isfinite(found).sum() == 120
    with pytest.raises(
        InputError, match=r"entry is undefined in 1 of 172 random_features runs \(the first is run 150\)"
    ):
        score_null(None, score, draws, only, stop_after=171, **options)


def test_pairings_of_the_same_rows_are_those_of_the_null(client):
    shuffles, state = draws_of("shuffled", 9, (9, 9), 45, seed=1), BOTH.prepare(column(9), column(9))
    expected = np.array([BOTH.scores(state, shuffles.places(run)[1]) for run in range(45)]).T
    with local_client(n_workers=3, threads_per_worker=1) as other:
        for used in (None, client, other):
            rows = [side if used is None else used.submit(column, 9, pure=False) for side in (column(9), column(9))]
            found = score_rows(rows, 9, [BOTH], [shuffles], used)
            np.testing.assert_array_equal([outcome.null["shuffled"] for outcome in found.values()], expected)


def test_draws_are_without_replacement_and_paired_only_where_pairs_are_drawn():
    runs = [draws_of("random_features", 20, (25, 40), 9, seed=3).places(run) for run in range(9)]
    assert all(len(set(a.tolist())) == len(set(b.tolist())) == 20 for a, b in runs)
    assert max(b.max() for _, b in runs) > 25
    assert len({a.tobytes() for a, _ in runs}) == 9
    a, b = draws_of("random_pairs", 20, (25, 25), 9, seed=3).places(0)
    assert a is b
    assert not np.array_equal(a, runs[0][0]), "each null has draws of its own"
    assert draws_of("random_dictionary", 20, (None, 40), 9, seed=3).places(0)[0].tolist() == list(range(20))


def test_every_row_is_drawn_equally_often():
    draws = draws_of("random_pairs", 10, (20, 20), 2000, seed=0)
    counts = np.bincount(np.concatenate([draws.places(run)[0] for run in range(2000)]), minlength=20)
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(2000 * 0.25))


def test_trap_11_a_metric_that_fails_on_runs_is_counted_and_raised():
    values = np.ones(60)
    values[[7, 9, 30]] = np.nan
    message = r"bad is undefined in 3 of 60 shuffled runs \(the first is run 7\)"
    with pytest.raises(InputError, match=message):
        check_finite(values, "bad", "shuffled")


@given(st.lists(st.integers(-3, 6), min_size=1, max_size=40), st.integers(0, 5))
def test_clumps_take_the_place_of_clumps_with_as_many_rows(listed, seed):
    clumps = np.array(listed)
    order = shuffle_clumps(np.random.default_rng(seed), clumps)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(clumps)))
    sizes = dict(zip(*np.unique(clumps, return_counts=True), strict=True))
    for clump, size in sizes.items():
        (there,) = set(clumps[order[clumps == clump]].tolist())
        assert sizes[there] == size


def test_every_order_of_like_clumps_is_as_likely():
    clumps = np.array([0, 0, 1, 1, 2])
    orders = [tuple(shuffle_clumps(np.random.default_rng(seed), clumps)) for seed in range(1600)]
    counts = Counter(orders)
    assert len(counts) == 8, "two clumps of two rows each, and one alone"
    assert min(counts.values()) > 140


def clumped(seed, shared):
    """Make pairs of words: features of one word lie together on both sides; words are arranged alike, or not."""
    rng = np.random.default_rng(seed)
    word = np.repeat(np.arange(30), rng.integers(1, 4, 30))
    centres = rng.normal(size=(2, 30, 6))
    centres[1] = centres[0] if shared else centres[1]
    x, y = (side[word] + 0.3 * rng.normal(size=(len(word), 6)) for side in centres)
    return tuple(ArrayRows(side) for side in (x, y)), word


def test_clumps_of_words_beat_shuffled_pairings_and_not_shuffled_words(client):
    settings = CompareSettings(metrics=["rsa", "svcca:k=3"], nulls=["shuffled", "shuffled_words"], null_runs=39)
    p = []
    for seed in range(40):
        sides, word = clumped(seed, shared=False)
        scores = score_pairs(sides, {}, settings, client, words=word)
        p.append(scores.p.values)
        assert scores.n_effective.item() == effective_pairs(word) < scores.n_pairs.item()
    rejected = (np.array(p) <= 0.05).mean(axis=0)
    assert rejected[0, 0] > 0.8, "RSA, by clumps alone"
    assert (rejected[1] <= 0.15).all()
    sides, word = clumped(0, shared=True)
    assert (score_pairs(sides, {}, settings, client, words=word).p.values <= 0.05).all()
