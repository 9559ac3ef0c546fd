"""Subsets in bulk: the scores and nulls of the plain comparison, whatever the metric, the stack and the workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from distributed import Client
from scipy import stats
from scipy.spatial.distance import pdist

import storage
from pipeline.compare import batched
from pipeline.compare.arrays import compare_rows
from pipeline.compare.base import families
from pipeline.compare.batched import scores_of_stack
from pipeline.compare.subsets import compare_subsets
from pipeline.settings.compare import parse_metrics
from pipeline.work.workers import local_client
from storage.errors import InputError

N, D_A, D_B = 90, 24, 16
METRICS = ("svcca:k=3", "rsa", "svcca_pc1", "svcca")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stores whose first 30 features are arranged alike; the last 5 of either are dead."""
    folder = tmp_path_factory.mktemp("subsets")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(N, D_A)), rng.normal(size=(N, D_B))
    b[:30] = a[:30] @ rng.normal(size=(D_A, D_B)) / np.sqrt(D_A) + 0.3 * rng.normal(size=(30, D_B))
    active = np.eye(N)
    active[-5:] = 0
    for name, rows in {"a": a, "b": b}.items():
        storage.write_activations(folder / f"{name}.zarr", active, decoder=rows, overwrite=True)
    return folder / "a.zarr", folder / "b.zarr"


def subset(n: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(start, start + n), np.arange(start, start + n)


SUBSETS = {
    "alike": subset(20),
    "also alike": subset(20, 10),
    "unrelated": subset(25, 40),
    "few": subset(4),
    "none": subset(0),
}


@pytest.fixture(scope="module")
def found(stores: tuple[Path, Path], client: Client) -> xr.Dataset:
    nulls = ("shuffled", "random_features", "random_pairs")
    return compare_subsets(
        SUBSETS, *stores, pool=subset(80), metrics=METRICS, nulls=nulls, null_runs=120, client=client
    )


def test_the_same_as_the_plain_comparison(stores: tuple[Path, Path], found: xr.Dataset, client: Client) -> None:
    rows = (
        storage.open_activations(path)["decoder"].values[ids]
        for path, ids in zip(stores, SUBSETS["alike"], strict=True)
    )
    plain = compare_rows(*rows, metrics=METRICS, null_runs=120, client=client).sel(null="shuffled")
    ours = found.isel(subset=0).sel(null="shuffled")
    for name in ("score", "null_mean", "null_std", "p", "z"):
        np.testing.assert_allclose(ours[name], plain[name], atol=1e-6, err_msg=name)


def test_rsa_against_scipy(stores: tuple[Path, Path], found: xr.Dataset) -> None:
    rows = [storage.open_activations(path)["decoder"].values.astype(np.float64)[:20] for path in stores]
    expected = stats.spearmanr(*(pdist(side, "cosine") for side in rows)).statistic
    assert float(found["score"].sel(subset="alike", metric="rsa")) == pytest.approx(expected, abs=1e-6)


def test_random_pairs_are_pairs_of_the_pool(stores: tuple[Path, Path], found: xr.Dataset) -> None:
    """Its mean is that of a plain draw of pairs, and above that of unpaired features: a third of the pool is alike."""
    rows = [storage.open_activations(path)["decoder"].values.astype(np.float64) for path in stores]
    rng = np.random.default_rng(5)
    draws = [rng.choice(80, 20, replace=False) for _ in range(300)]
    plain = [stats.spearmanr(*(pdist(side[at], "cosine") for side in rows)).statistic for at in draws]
    mean = found["null_mean"].sel(subset="alike", metric="rsa")
    assert float(mean.sel(null="random_pairs")) == pytest.approx(np.mean(plain), abs=0.03)
    assert float(mean.sel(null="random_features")) == pytest.approx(0, abs=0.03)


def test_verdicts_of_the_planted_subsets(found: xr.Dataset) -> None:
    p = found["p"].sel(metric="rsa")
    assert (p.sel(subset=["alike", "also alike"]) < 0.02).all()
    assert float(p.sel(subset="unrelated", null="shuffled")) > 0.05


def test_subsets_of_one_size_share_their_draws(found: xr.Dataset) -> None:
    two = found["null_mean"].sel(subset=["alike", "also alike"], null="random_features").transpose("subset", "metric")
    np.testing.assert_array_equal(two[0], two[1])


@pytest.mark.parametrize("name", ["few", "none"])
def test_too_few_pairs_have_no_score(found: xr.Dataset, name: str) -> None:
    own = found.sel(subset=name)
    assert np.isnan(own["score"]).all()
    assert np.isnan(own["p"]).all()
    assert set(own["note"].values.tolist()) == {"undefined: fewer than 10 pairs"}
    assert int(own["n_pairs"]) == len(SUBSETS[name][0])


def test_saturation_is_noted(found: xr.Dataset) -> None:
    assert "saturated: 20 pairs" in str(found["note"].sel(subset="alike", metric="svcca").item())
    assert "saturated" not in str(found["note"].sel(subset="alike", metric="svcca:k=3").item())


def test_a_pool_that_is_not_larger_gives_no_null(stores: tuple[Path, Path], client: Client) -> None:
    own = compare_subsets(
        {"all": subset(20)},
        *stores,
        pool=subset(20),
        metrics=["rsa"],
        nulls=["random_pairs"],
        null_runs=9,
        client=client,
    )
    assert np.isfinite(own["score"]).all()
    assert np.isnan(own["p"]).all()


def test_whatever_the_workers_and_the_stacks(
    stores: tuple[Path, Path], found: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "STACK_BYTES", 1)
    nulls = ("shuffled", "random_features", "random_pairs")
    with local_client(n_workers=3, threads_per_worker=1) as client:
        again = compare_subsets(
            SUBSETS, *stores, pool=subset(80), metrics=METRICS, nulls=nulls, null_runs=120, client=client
        )
    xr.testing.assert_identical(found, again)


@pytest.mark.parametrize(
    "metrics", [["svcca:k=3", "svcca_pc1", "svcca"], ["pwcca", "cka", "procrustes"], ["rsa", "mutual_knn"]]
)
def test_stacks_score_like_one_by_one(metrics: list[str]) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(4, 12, 30)), rng.normal(size=(4, 12, 20))
    groups = tuple(families(parse_metrics(metrics).values()))
    single = [[score for family in groups for score in family.scores_of(*rows)] for rows in zip(x, y, strict=True)]
    np.testing.assert_allclose(scores_of_stack(groups, x, y), single, atol=1e-8)


BAD: list[tuple[dict, str]] = [
    ({"nulls": ["random_dictionary"]}, "subsets are compared against"),
    ({"nulls": ["random_pairs"]}, "needs pool="),
    ({"metrics": ["svcka"]}, "no metric 'svcka'"),
    ({"subsets": {"bad": subset(5, 88)}}, "bad holds features 88 to 92"),
    ({"subsets": {"bad": (np.arange(3), np.arange(4))}}, "give one a pair on either side"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input(stores: tuple[Path, Path], changes: dict, message: str) -> None:
    arguments = {"subsets": {"one": subset(12)}, "nulls": ["shuffled"], "null_runs": 5, **changes}
    with pytest.raises(InputError, match=message):
        compare_subsets(arguments.pop("subsets"), *stores, **arguments)


def test_subsets_beyond_memory_are_refused(stores: tuple[Path, Path], client: Client) -> None:
    with pytest.raises(storage.BudgetError, match=r"one with 12 pairs needs .* allowed are"):
        compare_subsets({"one": subset(12)}, *stores, nulls=["shuffled"], null_runs=5, client=client, memory="1MB")


def test_a_metric_that_fails_on_draws_is_refused(tmp_path: Path, client: Client) -> None:
    decoder = np.random.default_rng(0).normal(size=(40, 6))
    decoder[30:] = 0  # cosines of these are undefined
    make: Callable[[str], Path] = lambda name: tmp_path / f"{name}.zarr"  # noqa: E731
    for name in "ab":
        storage.write_activations(make(name), np.eye(40), decoder=decoder, overwrite=True)
    with pytest.raises(InputError, match=r"rsa is undefined in \d+ of 30 random_features"):
        compare_subsets(
            {"one": subset(12)},
            make("a"),
            make("b"),
            metrics=["rsa"],
            nulls=["random_features"],
            null_runs=30,
            client=client,
        )
