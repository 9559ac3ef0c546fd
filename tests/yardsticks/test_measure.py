"""Scores between a floor and a ceiling: the arithmetic, the number of pairs, and what is undefined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import storage
from pipeline.compare.metrics.rsa import Rsa
from pipeline.yardsticks.base import Matching
from pipeline.yardsticks.measure import decoder_cosine, measure, normalise

N, WIDTH, D = 200, 80, 12


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A, B that is A seen with noise, and others that have nothing to do with A."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    active = (rng.random((N, WIDTH)) < 0.3).astype("f4")
    a = rng.normal(size=(WIDTH, D))
    noisy = {"a": a, "b": a + rng.normal(size=a.shape), "repeat": a + 0.2 * rng.normal(size=a.shape)}
    decoders = noisy | {"other": rng.normal(size=a.shape), "flipped": -a[::-1]}
    for name, decoder in decoders.items():
        storage.write_activations(folder / f"{name}.zarr", active, decoder=decoder)
    return {name: folder / f"{name}.zarr" for name in decoders}


def matching(stores: dict[str, Path], a: str, b: str, n: int, r: float) -> Matching:
    """Return n pairs of the same number on both sides, whose r fall from `r` on."""
    columns = {"a": np.arange(n), "b": np.arange(n), "r": r - 0.001 * np.arange(n), "r_heldout": np.full(n, r - 0.1)}
    columns["r_heldout"][3] = np.nan  # a feature that does not vary there
    shuffled = np.random.default_rng(n).permutation(n)
    return Matching.of((stores[a], stores[b]), {name: values[shuffled] for name, values in columns.items()})


def measured(stores: dict[str, Path], client: Client, ceiling: Matching, **options: Any) -> Any:
    yardsticks = {"token": [matching(stores, "a", "other", n, 0.3) for n in (70, 68)], "seeds": [ceiling]}
    real = matching(stores, "a", "b", 75, 0.6)
    given = {"named": ("token", "seeds"), "metrics": ["rsa", "svcca"], "groups": 10, **options}
    return measure(real, yardsticks, client=client, **given).load()


def test_all_are_compared_at_the_same_number_of_pairs_those_of_highest_r(
    stores: dict[str, Path], client: Client
) -> None:
    result = measured(stores, client, matching(stores, "a", "repeat", WIDTH, 0.9))
    assert result.n_compared == 68
    assert result.n_pairs.values.tolist() == [68, 68]
    means = {"score": 0.6, "floor": 0.3, "ceiling": 0.9}
    for name, first in means.items():
        assert result[name].sel(quantity="r").item() == pytest.approx(first - 0.001 * 33.5)
    assert result.normalised.sel(quantity="r").item() == pytest.approx(0.5)
    assert result.score.sel(quantity="r_heldout").item() == pytest.approx(0.5), "of the pairs that have one"
    decoders = [storage.open_activations(stores[name])["decoder"].values[:68] for name in ("a", "b")]
    assert result.raw.sel(yardstick="token", quantity="rsa").item() == pytest.approx(Rsa()(*decoders))


def test_a_score_stands_between_what_it_is_held_against(stores: dict[str, Path], client: Client) -> None:
    rsa = measured(stores, client, matching(stores, "a", "repeat", WIDTH, 0.9)).sel(quantity="rsa")
    expected = (rsa.score - rsa.floor) / (rsa.ceiling - rsa.floor)
    assert rsa.normalised.item() == pytest.approx(expected.item())
    assert 0 < rsa.low < rsa.normalised < rsa.high < 1
    assert rsa.floor.item() == pytest.approx(rsa.value.sel(yardstick="token").item())
    assert not rsa.note.item()


def test_pairs_are_counted_without_cutting_them(stores: dict[str, Path], client: Client) -> None:
    pairs = measured(stores, client, matching(stores, "a", "repeat", WIDTH, 0.9)).sel(quantity="pairs")
    assert [pairs[name].item() for name in ("score", "floor", "ceiling")] == [75, 69, 80]
    assert pairs.normalised.item() == pytest.approx(6 / 11)
    assert np.isnan(pairs.low)


def test_undefined_where_floor_and_ceiling_overlap_and_of_few_pairs(stores: dict[str, Path], client: Client) -> None:
    overlapping = measured(stores, client, matching(stores, "a", "other", WIDTH, 0.3)).sel(quantity="rsa")
    assert np.isnan(overlapping.normalised)
    assert "overlap" in overlapping.note.item()
    few = measured(stores, client, matching(stores, "a", "repeat", 30, 0.9)).sel(quantity="rsa")
    assert np.isnan(few.normalised)
    assert few.note.item() == "undefined: 30 pairs, at least 60 are needed for an interval"
    alone = measured(stores, client, matching(stores, "a", "repeat", 30, 0.9), named=("token", None))
    assert np.isnan(alone.normalised).all()
    assert alone.n_pairs.values.tolist() == [68, 30], "each yardstick is at the number of pairs that it has"


def test_intervals_hold_the_truth() -> None:
    """Of means of independent draws, 95 % intervals are about that: score 0.5 of the way, floor drawn three times."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        samples = [rng.normal(mean, 0.3, 100) for mean in (0.5, 0.0, 0.0, 0.0, 1.0)]
        groups = [np.arange(100) % 10 != group for group in range(10)]
        made = [np.array([each.mean(), *(each[group].mean() for group in groups)]) for each in samples]
        found = normalise(made[0], np.array(made[1:4]), np.array(made[4:]))
        inside += found.low <= 0.5 <= found.high
    assert 0.91 <= inside / 300 <= 1


def test_cosine_of_decoders_is_that_of_the_best_assignment(stores: dict[str, Path]) -> None:
    assert decoder_cosine((stores["a"], stores["flipped"])) == pytest.approx(1)
    assert decoder_cosine((stores["a"], stores["other"])) < 0.7 < decoder_cosine((stores["a"], stores["repeat"]))
