"""The benchmark that knows what two dictionaries share: its worlds, its counting, its stored result and page."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import truth
from pipeline.settings.correlate import CorrelateSettings
from pipeline.settings.match import MatchSettings


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(truth, "FEATURES", 120)
    return {"n_rows": 1_500, "seed": (5,)}


@pytest.mark.parametrize("world", truth.WORLDS)
class TestWorlds:
    def test_nothing_is_right_where_nothing_is_shared(self, small, world):
        pair = truth.draw(world, overlap=0, **small)
        assert not pair.right.any()
        assert not pair.kin.any()

    def test_without_noise_a_shared_concept_is_the_same_column_in_both(self, small, world):
        pair = truth.draw(world, overlap=100, noise=0.0, **small)
        r = truth._dense_r(pair.a, pair.b)
        # split and absorbed features apart, each of A's features has one of B's
        alone = pair.right & (pair.right.sum(axis=1, keepdims=True) == 1)
        same = r[alone]
        assert np.mean(np.isclose(same[np.isfinite(same)], 1)) > 0.9
        assert (pair.right.sum(axis=1) > 1).any()

    def test_as_much_is_shared_as_was_asked(self, small, world):
        pair = truth.draw(world, overlap=50, **small)
        assert abs(pair.right.any(axis=1).mean() - 0.5) < 0.02

    def test_same_seed_same_bytes(self, small, world):
        first, second = (truth.draw(world, overlap=25, **small) for _ in range(2))
        assert first.b.data.tobytes() == second.b.data.tobytes()


@given(st.integers(2, 12), st.integers(0, 2**31))
def test_counting_against_plain_loops(n, seed):
    rng = np.random.default_rng(seed)
    right = rng.random((n, n)) < 0.3
    kin = rng.random((n, n)) < 0.2
    firing = rng.integers(0, 60, n), rng.integers(0, 60, n)
    pair = truth.Pair(None, None, None, right, kin)
    ids_a, ids_b = np.arange(n), rng.permutation(n)
    figures = truth.judge(pair, ids_a, ids_b, firing)
    chosen = set(zip(ids_a.tolist(), ids_b.tolist(), strict=True))
    assert figures["precision"] == pytest.approx(sum(right[i, j] for i, j in chosen) / n)
    assert figures["kin"] == pytest.approx(sum(kin[i, j] and not right[i, j] for i, j in chosen) / n)
    for least in truth.FIRINGS:
        often = [
            i for i in range(n)
            if firing[0][i] >= least and any(right[i, j] and firing[1][j] >= least for j in range(n))
        ]  # fmt: skip
        got = [i for i in often if any(right[i, j] for a, j in chosen if a == i)]
        assert figures[f"recall_{least}"] == (pytest.approx(len(got) / len(often)) if often else None)


STORED = json.loads(truth.RESULT.read_text(encoding="utf-8"))


def test_the_page_shows_the_stored_result() -> None:
    page = truth.PAGE.read_text(encoding="utf-8")
    assert truth.render(page, STORED) == page


def test_the_stored_result_is_of_the_defaults() -> None:
    assert STORED["defaults"] == {
        "min_firing": CorrelateSettings().min_firing,
        "min_correlation": MatchSettings().min_correlation,
    }


def test_the_defaults_pair_little_of_nothing_and_find_what_is_shared() -> None:
    for line in STORED["curve"]:
        if line["overlap"] == 0:
            assert line["paired"] <= 0.05, line
        if line["overlap"] == 100:
            assert line[truth.FOUND] >= 0.95, line


def test_the_defaults_on_a_small_world(small, client):
    pair = truth.draw("documents", overlap=100, **small)
    figures = next(truth._matchings(pair, matched=[{}]))
    assert figures["precision"] >= 0.9
    assert figures["recall_30"] >= 0.9
