from __future__ import annotations

import numpy as np
import pytest

from pipeline.compare import nulls
from pipeline.compare.nulls import Shuffles, null_scores
from pipeline.workers import local_client
from storage.errors import InputError


def first(state, pairing):
    return float(state[pairing[0]])


def last(state, pairing):
    return float(state[pairing[-1]])


def fails_sometimes(state, pairing):
    return np.nan if pairing[0] == 0 else 1.0


def test_shuffles_are_permutations_and_all_runs_differ():
    shuffles = Shuffles(50, 30, seed=4)
    drawn = [shuffles.pairing(run) for run in range(30)]
    assert all(np.array_equal(np.sort(pairing), np.arange(50)) for pairing in drawn)
    assert len({pairing.tobytes() for pairing in drawn}) == 30
    assert not np.array_equal(drawn[0], Shuffles(50, 30, seed=5).pairing(0))


@pytest.mark.parametrize("per_task", [1, 7, 1000])
def test_scores_come_in_the_order_of_the_runs_whatever_the_blocks(client, monkeypatch, per_task):
    monkeypatch.setattr(nulls, "RUNS_PER_TASK", per_task)
    state, shuffles = np.arange(9.0), Shuffles(9, 25, seed=1)
    found = null_scores(client, {"first": first, "last": last}, client.submit(np.arange, 9.0), shuffles)
    expected = [[score(state, shuffles.pairing(run)) for run in range(25)] for score in (first, last)]
    np.testing.assert_array_equal(found, expected)


def test_scores_do_not_depend_on_the_number_of_workers(client):
    shuffles = Shuffles(9, 45, seed=1)
    with local_client(n_workers=3, threads_per_worker=1) as other:
        found = [null_scores(each, {"first": first}, each.submit(np.arange, 9.0), shuffles) for each in (client, other)]
    np.testing.assert_array_equal(*found)


def test_trap_11_a_metric_that_fails_on_draws_is_counted_and_raised(client):
    shuffles = Shuffles(5, 60, seed=0)
    failing = [run for run in range(60) if shuffles.pairing(run)[0] == 0]
    message = rf"bad is undefined in {len(failing)} of 60 shuffled runs \(the first is run {failing[0]}\)"
    with pytest.raises(InputError, match=message):
        null_scores(client, {"ok": first, "bad": fails_sometimes}, client.submit(np.arange, 5.0), shuffles)
