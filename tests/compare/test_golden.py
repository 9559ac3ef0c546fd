"""Scores and nulls of fixed seeds, as they were before all comparisons had one engine: results can be made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from distributed import Client

import storage
from pipeline import compare_activations, compare_rows
from pipeline.compare.subsets import compare_subsets

#: BLAS libraries round differently; an entry of a null that came from other rows differs by much more.
CLOSE = {"abs": 1e-7}
SCORES = [0.4914523545, 0.3201474771]
NULLS = [
    0.2448975302,
    0.3448326834,
    -0.0419295066,
    -0.0438652529,
    0.370403855,
    0.2603588465,
    0.0896627533,
    -0.0344643896,
    0.4747519263,
    0.6073196122,
    0.2695832125,
    0.3741496668,
    0.3706309875,
    0.3287772472,
    0.0122778039,
    -0.0026245851,
]
SUBSET_MEANS = [
    0.3822510134,
    0.3844524572,
    0.5677227876,
    0.0099051002,
    0.0078932351,
    0.3080351839,
    0.2638277677,
    0.2642100063,
    0.4777925554,
    -0.0003331636,
    0.0066483336,
    0.3137428626,
]
SUBSET_P = [
    0.0163934426,
    0.0163934426,
    0.2950819672,
    0.0163934426,
    0.0163934426,
    0.4262295082,
    0.0163934426,
    0.0163934426,
    0.131147541,
    0.0163934426,
    0.0163934426,
    0.6557377049,
]
MOMENT_SCORES = [0.6047309870, 0.4595979014]
MOMENT_NULLS = [0.0383120823, 0.0426048645, -0.0000553481, 0.0003843596]
MOMENT_INTERVALS = [0.5983779068, 0.4476086875, 0.6134416019, 0.4691598897]


def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(90, 24))
    return a, a @ rng.normal(size=(24, 16)) / 5 + rng.normal(size=(90, 16))


def values(found: xr.Dataset, name: str, *at: int) -> list[float]:
    """Return the values of a variable at some index of its last dimension, first dimensions first."""
    return found[name].values[..., list(at)].ravel().tolist()


def test_rows(client: Client) -> None:
    a, b = rows()
    found = compare_rows(
        a[:30], b[:30], metrics=["svcca:k=4", "rsa"], nulls=["shuffled", "random_features", "random_pairs",
        "random_dictionary"], features=(a, b), pool=(a, b), control=(a[::-1], None), null_runs=25, seed=3,
        client=client,
    )  # fmt: skip
    assert values(found, "score", 0, 1) == pytest.approx(SCORES, **CLOSE)
    assert values(found, "null_score", 0, 24) == pytest.approx(NULLS, **CLOSE)


def test_subsets(tmp_path: Path, client: Client) -> None:
    for name, side in zip("ab", rows(), strict=True):
        storage.write_activations(tmp_path / f"{name}.zarr", np.eye(90), decoder=side, overwrite=True)
    subsets = {"x": (np.arange(20), np.arange(20)), "y": (np.arange(40), np.arange(40))}
    found = compare_subsets(
        subsets, tmp_path / "a.zarr", tmp_path / "b.zarr", pool=(np.arange(80), np.arange(80)),
        metrics=["svcca:k=4", "rsa"], nulls=["shuffled", "random_features", "random_pairs"], null_runs=60, seed=2,
        client=client,
    )  # fmt: skip
    assert values(found, "null_mean", 0, 1, 2) == pytest.approx(SUBSET_MEANS, **CLOSE)
    assert values(found, "p", 0, 1, 2) == pytest.approx(SUBSET_P)


def test_activations(tmp_path: Path, client: Client) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, 6))
    for name, side in {"a": x, "b": x @ rng.normal(size=(6, 5)) + 2 * rng.normal(size=(3000, 5))}.items():
        storage.write_activations(tmp_path / f"{name}.zarr", side, overwrite=True)
    found = compare_activations(
        tmp_path / "a.zarr", tmp_path / "b.zarr", metrics=["svcca", "cka_debiased"], null_runs=30, intervals=40,
        seed=4, client=client,
    )  # fmt: skip
    assert values(found, "score", 0, 1) == pytest.approx(MOMENT_SCORES, **CLOSE)
    assert values(found, "null_score", 0, 29) == pytest.approx(MOMENT_NULLS, **CLOSE)
    assert [*found.low.values, *found.high.values] == pytest.approx(MOMENT_INTERVALS, **CLOSE)
