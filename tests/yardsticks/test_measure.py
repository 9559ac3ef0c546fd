"""Scores between a floor and a ceiling: the arithmetic, the number of pairs, intervals, and what is undefined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from distributed import Client

import storage
from pipeline.compare.metrics.rsa import Rsa
from pipeline.yardsticks.base import Matching
from pipeline.yardsticks.measure import Comparison, decoder_cosine, measure, normalise

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
    columns["r_heldout"][3:4] = np.nan  # a feature that does not vary there
    shuffled = np.random.default_rng(n).permutation(n)
    return Matching.of((stores[a], stores[b]), {name: values[shuffled] for name, values in columns.items()})


def measured(stores: dict[str, Path], client: Client, ceiling: Matching, **options: Any) -> Any:
    real = matching(stores, "a", "b", 75, 0.6)
    sizes = options.pop("sizes", (70, 68))
    floor = [matching(stores, "a", "other", n, 0.3) for n in sizes]
    comparisons = {"token": Comparison(options.pop("moved", real), floor, 0.1), "seeds": Comparison(real, [ceiling])}
    given = {"named": ("token", "seeds"), "metrics": ["rsa", "svcca"], "groups": 10, **options}
    return measure(comparisons, client=client, **given).load()


def test_all_are_compared_at_the_same_number_of_pairs(stores: dict[str, Path], client: Client) -> None:
    result = measured(stores, client, matching(stores, "a", "repeat", WIDTH, 0.9))
    assert result.n_compared == 68
    assert result.n_pairs.values.tolist() == [68, 68]
    sample = matching(stores, "a", "b", 75, 0.6).sample(68)
    assert result.score.sel(quantity="r").item() == pytest.approx(sample.r.mean())
    assert result.score.sel(quantity="r_heldout").item() == pytest.approx(0.5), "of the pairs that have one"
    decoders = [storage.open_activations(stores[name])["decoder"].values[sample.a] for name in ("a", "b")]
    assert result.raw.sel(yardstick="token", quantity="rsa").item() == pytest.approx(Rsa()(*decoders))


def test_a_sample_of_pairs_is_drawn_whatever_their_r_and_of_the_same_features_in_all(stores: dict[str, Path]) -> None:
    many, few = (matching(stores, "a", "b", n, 0.6) for n in (80, 70))
    assert many.sample(40).r.mean() == pytest.approx(many.r.mean(), abs=0.008), "the highest 40 have 0.02 more"
    shared = np.intersect1d(many.sample(40).a, few.sample(40).a)
    assert len(shared) >= 30, "drawn apart, 40 of 80 and 40 of 70 share 20"


@pytest.mark.parametrize("truth", [0, 1])
def test_numbers_of_pairs_alone_put_nothing_between_floor_and_ceiling(truth: int) -> None:
    """A score of the floor's kind, or of the ceiling's, is at 0 or 1 though it has twice or half as many pairs."""
    rng, found = np.random.default_rng(truth), []
    for _ in range(40):
        # r of the floor are beyond the least r that is matched, many of them just so
        made = [r_alone(rng, n, mean) for n, mean in ((600, (0.15, 0.4)[truth]), (300, 0.15), (1200, 0.4))]
        found += [between(*made, overlap=0).normalised.sel(quantity=["r", "r_heldout"]).values]
    error = np.std(found, axis=0) / np.sqrt(len(found))
    assert np.abs(np.mean(found, axis=0) - truth).max() < 4 * error.max() < 0.15, "of those of highest r, 0.13 and 0.65"


def r_alone(rng: np.random.Generator, n: int, mean: float, common: np.ndarray | None = None) -> Matching:
    """Return pairs without decoder rows, r beyond 0.1; of a `common` part of features the r are alike."""
    a = np.sort(rng.choice(4 * n if common is None else len(common), n, replace=False))
    r = 0.1 + rng.exponential(mean, n) * (1 if common is None else common[a])
    return Matching.of((Path("a"), Path("b")), {"a": a, "b": a, "r": r, "r_heldout": r + rng.normal(0, 0.1, n)})


def between(real: Matching, floor: Matching | list[Matching], ceiling: Matching, *, overlap: float) -> xr.Dataset:
    draws = floor if isinstance(floor, list) else [floor]
    comparisons = {"token": Comparison(real, draws, overlap), "seeds": Comparison(real, [ceiling])}
    return measure(comparisons, ("token", "seeds"), metrics=[], groups=10, client=None)


def test_intervals_of_normalised_means_hold_the_truth() -> None:
    """Of pairs whose r depend on the feature, in the run and in a floor that is drawn three times; 95 % are 95 %."""
    n, rng, inside = 100, np.random.default_rng(1), []
    for _ in range(250):
        common = rng.lognormal(-0.125, 0.5, 2 * n)
        real, *floor = (r_alone(rng, n, mean, common) for mean in (0.25, 0.1, 0.1, 0.1))
        result = between(real, floor, r_alone(rng, n, 0.6), overlap=0).sel(quantity=["r", "r_heldout"])
        inside.append((result.low <= 0.3) & (result.high >= 0.3))
    assert 0.92 <= np.mean(inside) <= 0.99, np.mean(inside, axis=0)


def test_a_score_is_between_its_floor_and_ceiling(stores: dict[str, Path], client: Client) -> None:
    rsa = measured(stores, client, matching(stores, "a", "repeat", WIDTH, 0.9)).sel(quantity="rsa")
    expected = (rsa.score - rsa.floor) / (rsa.ceiling - rsa.floor)
    assert rsa.normalised.item() == pytest.approx(expected.item())
    assert 0 < rsa.low < rsa.normalised < rsa.high < 1
    assert rsa.floor.item() == pytest.approx(rsa.value.sel(yardstick="token").item())
    assert not rsa.note.item()


def test_the_score_is_that_of_the_rows_that_the_floor_uses(stores: dict[str, Path], client: Client) -> None:
    moved = matching(stores, "a", "b", 72, 0.4)
    result = measured(stores, client, matching(stores, "a", "repeat", WIDTH, 0.9), moved=moved)
    assert result.score.sel(quantity="r").item() == pytest.approx(moved.sample(68).r.mean())
    assert result.score.sel(quantity="pairs").item() == 72
    assert result.raw.sel(quantity="r").values == pytest.approx([0.366, 0.563], abs=0.002), "each on its own rows"


def test_pairs_are_counted_without_cutting_them(stores: dict[str, Path], client: Client) -> None:
    pairs = measured(stores, client, matching(stores, "a", "repeat", WIDTH, 0.9)).sel(quantity="pairs")
    assert [pairs[name].item() for name in ("score", "floor", "ceiling")] == [75, 69, 80]
    assert pairs.normalised.item() == pytest.approx(6 / 11)
    assert np.isnan(pairs.low)


def test_a_floor_without_pairs_leaves_their_number_and_says_why_the_rest_is_undefined(
    stores: dict[str, Path], client: Client
) -> None:
    result = measured(stores, client, matching(stores, "a", "repeat", WIDTH, 0.9), sizes=(0, 0))
    assert result.n_compared == 0
    assert result.normalised.sel(quantity="pairs").item() == pytest.approx(75 / 80)
    rest = result.drop_sel(quantity="pairs")
    assert np.isnan(rest.normalised).all()
    assert set(rest.note.values.tolist()) == {"undefined: the floor has no pairs"}


def test_undefined_where_floor_and_ceiling_overlap_and_no_interval_of_few_pairs(
    stores: dict[str, Path], client: Client
) -> None:
    overlapping = measured(stores, client, matching(stores, "a", "other", WIDTH, 0.3)).sel(quantity="rsa")
    assert np.isnan(overlapping.normalised)
    assert "overlap" in overlapping.note.item()
    few = measured(stores, client, matching(stores, "a", "repeat", 30, 0.9)).sel(quantity="rsa")
    assert 0 < few.normalised < 1
    assert np.isnan([few.low, few.high]).all()
    assert few.note.item() == "no interval: 30 pairs, at least 60 are needed"
    nine = measured(stores, client, matching(stores, "a", "repeat", 9, 0.9)).sel(quantity="rsa")
    assert nine.note.item() == "undefined: 9 pairs, at least 10 are needed"
    alone = measured(stores, client, matching(stores, "a", "repeat", 30, 0.9), named=("token", None))
    assert np.isnan(alone.normalised).all()
    assert alone.n_pairs.values.tolist() == [68, 30], "each yardstick is at the number of pairs that it has"


GROUPS = np.array([0, -0.01, 0.01, 0, 0])


def test_what_is_outside_of_floor_and_ceiling_is_flagged() -> None:
    below = normalise(0.1 + GROUPS, np.array([0.2 + GROUPS, 0.22 + GROUPS]), np.array([0.8 + GROUPS]))
    assert below.value < 0
    assert below.note == "below the floor"
    above = normalise(0.9 + GROUPS, np.array([0.2 + GROUPS, 0.22 + GROUPS]), np.array([0.8 + GROUPS]))
    assert above.note == "above the ceiling"


def test_draws_that_overlap_say_less_of_the_floor_and_one_draw_says_nothing() -> None:
    """The variance of the mean of n draws that share ρ of their partners is s² (1/n + ρ/(1 − ρ))."""
    score, ceiling = np.full(5, 0.5), np.array([np.full(5, 1.0)])
    draws = np.array([np.full(5, 0.0), np.full(5, 0.1), np.full(5, -0.1)])
    apart, alike = (normalise(score, draws, ceiling, overlap=rho) for rho in (0.0, 0.5))
    # with no variance over groups, all is that of three draws: Student's t of 2 degrees of freedom
    assert apart.high - apart.value == pytest.approx(4.3027 * 0.1 * np.sqrt(1 / 3) * 0.5, rel=1e-4)
    assert (alike.high - alike.value) / (apart.high - apart.value) == pytest.approx(2.0)
    one = normalise(0.5 + 2 * GROUPS, np.array([0.2 + GROUPS]), np.array([0.8 + GROUPS]))
    assert one.note == "one draw of the floor: the spread of draws is not in the interval"
    assert one.low < one.value < one.high
    same = normalise(0.5 + GROUPS, np.array([0.2 + GROUPS] * 2), np.array([0.8 + GROUPS]), overlap=1)
    assert np.isnan(same.low)
    assert same.note == "no interval: all draws of the floor are the same permutation"


def test_cosine_of_decoders_is_that_of_the_best_assignment(stores: dict[str, Path]) -> None:
    assert decoder_cosine((stores["a"], stores["flipped"])) == pytest.approx(1)
    assert decoder_cosine((stores["a"], stores["other"])) < 0.7 < decoder_cosine((stores["a"], stores["repeat"]))
