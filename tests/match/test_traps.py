"""What the original study fell into, and its sanity checks, through the stages from stores to pairs."""

from __future__ import annotations

import numpy as np
import pytest

import storage
from pipeline.correlate.run import correlate
from pipeline.match.fates import DEAD
from pipeline.match.run import match
from pipeline.settings.registries import METHODS

N, FEATURES = 1500, 48
DEAD_A, DEAD_B = [0, 7, 20], [0, 11]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A and, as B, A's features in another order with noise; some features are dead on either side."""
    folder = tmp_path_factory.mktemp("traps")
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(N, FEATURES)) * (rng.random((N, FEATURES)) < 0.2)
    order = rng.permutation(FEATURES)
    a, b = x.copy(), x[:, order] * rng.uniform(0.6, 1.4, (N, FEATURES))
    a[:, DEAD_A], b[:, DEAD_B] = 0, 0
    documents = np.arange(N) // 15
    tokens = {"document": documents, "char_start": np.arange(N), "char_end": np.arange(N) + 1}
    for name, values in {"a": a, "b": b}.items():
        storage.write_activations(
            folder / f"{name}.zarr", values, tokens=tokens, layout="csr", shard_rows=256, overwrite=True
        )
    for i in range(6):
        shuffled = b[rng.permutation(N)]
        storage.write_activations(
            folder / f"rows{i}.zarr", shuffled, tokens=tokens, layout="csr", shard_rows=256, overwrite=True
        )
        correlate(folder / "a.zarr", folder / f"rows{i}.zarr", keep_above=0.01, out=folder / f"rows{i}-cor.zarr")
    correlate(folder / "a.zarr", folder / "b.zarr", keep_above=0.01, out=folder / "cor.zarr")
    expected = {(int(one), i) for i, one in enumerate(order) if one not in DEAD_A and i not in DEAD_B}
    return folder, expected


@pytest.mark.parametrize("method", METHODS)
def test_a_permutation_of_columns_is_recovered_exactly(world, method):
    folder, expected = world
    pairs = match(folder / "cor.zarr", method=method, min_correlation=0.3)
    assert set(zip(pairs.feature_a.values, pairs.feature_b.values, strict=True)) == expected
    assert pairs.sizes["pair"] == len(expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_permutation_of_rows_leaves_nothing_above_the_null(world, method):
    """One shuffle of rows against five others: neither r nor the number of pairs stands out, and none is near 0.3."""
    folder, _ = world
    found = [match(folder / f"rows{i}-cor.zarr", method=method, min_correlation=0.01) for i in range(6)]
    assert max(float(pairs.r.max()) for pairs in found) < 0.3
    mean_r = np.array([pairs.mean_r for pairs in found])
    assert mean_r[0] <= mean_r[1:].mean() + 4 * max(mean_r[1:].std(), 0.01)
    # where it was not chosen, r is nothing at all
    assert abs(found[0].mean_r_heldout) < 0.03
    real = match(folder / "cor.zarr", method=method, min_correlation=0.3)
    assert real.mean_r > 4 * mean_r.max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "filters", [[], [{"name": "min_firing", "n": 1}, {"name": "min_r", "value": 0.05, "when": "after"}]]
)
def test_trap_6_dead_features_never_appear_and_are_counted(world, method, filters):
    folder, _ = world
    for name in ("cor.zarr", "rows0-cor.zarr"):
        pairs = match(folder / name, method=method, min_correlation=0.01, filters=filters)
        assert not set(pairs.feature_a.values) & set(DEAD_A)
        assert not set(pairs.feature_b.values) & set(DEAD_B)
        assert np.flatnonzero(pairs.fate_a.values == DEAD.code).tolist() == DEAD_A
        assert np.flatnonzero(pairs.fate_b.values == DEAD.code).tolist() == DEAD_B
        assert sum(pairs.fates_a.values()) == sum(pairs.fates_b.values()) == FEATURES


def test_trap_7_one_to_one_keeps_the_best_and_leaves_no_duplicates(world):
    folder, _ = world
    cor = folder / "rows1-cor.zarr"  # noise: many features share their best
    many = match(cor, method="best", min_correlation=0.01).to_dataframe()
    assert many.feature_b.duplicated().any()
    kept = match(cor, method="unique", min_correlation=0.01).to_dataframe()
    best = many.sort_values(["r", "feature_a"], ascending=[False, True]).drop_duplicates("feature_b")
    assert dict(zip(kept.feature_b, kept.feature_a, strict=True)) == dict(
        zip(best.feature_b, best.feature_a, strict=True)
    )
    first_by_index = many.sort_values("feature_a").drop_duplicates("feature_b")
    assert first_by_index.r.mean() < kept.r.mean()
    for method in ("unique", "greedy", "optimal", "mutual", "unique_greedy"):
        pairs = match(cor, method=method, min_correlation=0.01)
        assert len(set(pairs.feature_a.values)) == len(set(pairs.feature_b.values)) == pairs.sizes["pair"]


def test_trap_9_no_filter_is_silent(world):
    folder, _ = world
    filters = [
        {"name": "min_firing", "n": 10**6, "when": "after"},
        {"name": "max_uses", "n": 10**6},
        {"name": "reproducible", "tolerance": 2.0},
    ]
    reports = match(folder / "cor.zarr", method="best", min_correlation=0.3, filters=filters).filters
    assert [(one["name"], one["pairs_dropped"] > 0) for one in reports] == [
        ("max_uses", False),
        ("reproducible", False),
        ("min_firing", True),
    ]
    assert reports[-1]["pairs_dropped"] == reports[-1]["pairs_before"]
