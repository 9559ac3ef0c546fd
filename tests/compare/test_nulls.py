from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.compare import nulls
from pipeline.compare.base import Family, Metric
from pipeline.compare.nulls import Draws, Shuffles, check_finite, drawn_scores, shuffled_scores
from pipeline.workers import local_client
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


def test_shuffles_are_permutations_and_all_runs_differ():
    shuffles = Shuffles(50, 30, seed=4)
    drawn = [shuffles.pairing(run) for run in range(30)]
    assert all(np.array_equal(np.sort(pairing), np.arange(50)) for pairing in drawn)
    assert len({pairing.tobytes() for pairing in drawn}) == 30
    assert not np.array_equal(drawn[0], Shuffles(50, 30, seed=5).pairing(0))


@pytest.mark.parametrize("per_task", [1, 7, 1000])
def test_scores_come_in_the_order_of_the_runs_whatever_the_blocks(client, monkeypatch, per_task):
    monkeypatch.setattr(nulls, "RUNS_PER_TASK", per_task)
    shuffles = Shuffles(9, 25, seed=1)
    state = BOTH.prepare(column(9), column(9))
    found = shuffled_scores(client, BOTH, client.submit(BOTH.prepare, column(9), column(9)), shuffles)
    expected = np.array([BOTH.scores(state, shuffles.pairing(run)) for run in range(25)]).T
    np.testing.assert_array_equal(found, expected)


def test_scores_do_not_depend_on_the_number_of_workers(client):
    shuffles, draws = Shuffles(9, 45, seed=1), Draws("random_features", 5, (30, 40), 11, seed=1)
    with local_client(n_workers=3, threads_per_worker=1) as other:
        for each in (client, other):
            state = each.submit(BOTH.prepare, column(9), column(9))
            banks = each.scatter(column(30)), each.scatter(column(40))
            found = shuffled_scores(each, BOTH, state, shuffles), drawn_scores(each, [BOTH], banks, draws, "draws")
            if each is client:
                first = found
    for one, again in zip(first, found, strict=True):
        np.testing.assert_array_equal(one, again)


def test_draws_are_without_replacement_and_paired_only_where_pairs_are_drawn():
    runs = [Draws("random_features", 20, (25, 40), 9, seed=3).places(run) for run in range(9)]
    assert all(len(set(a.tolist())) == len(set(b.tolist())) == 20 for a, b in runs)
    assert max(b.max() for _, b in runs) > 25
    assert len({a.tobytes() for a, _ in runs}) == 9
    a, b = Draws("random_pairs", 20, (25, 25), 9, seed=3).places(0)
    assert a is b
    assert not np.array_equal(a, runs[0][0]), "each null has draws of its own"
    assert Draws("random_dictionary", 20, (None, 40), 9, seed=3).places(0)[0].tolist() == list(range(20))


def test_every_row_is_drawn_equally_often():
    draws = Draws("random_pairs", 10, (20, 20), 2000, seed=0)
    counts = np.bincount(np.concatenate([draws.places(run)[0] for run in range(2000)]), minlength=20)
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(2000 * 0.25))


def test_trap_11_a_metric_that_fails_on_runs_is_counted_and_raised():
    values = np.ones(60)
    values[[7, 9, 30]] = np.nan
    message = r"bad is undefined in 3 of 60 shuffled runs \(the first is run 7\)"
    with pytest.raises(InputError, match=message):
        check_finite(values, "bad", "shuffled")
