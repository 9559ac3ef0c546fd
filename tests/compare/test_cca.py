from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA

from pipeline.compare.base import Family
from pipeline.compare.linear import decompose
from pipeline.compare.metrics.cca import Svcca, SvccaPc1
from pipeline.settings.compare import parse_metric
from storage.errors import InputError


def rows(seed: int, n: int, d: int, *, decay: float = 0.0) -> np.ndarray:
    """Return normal rows whose columns shrink, shifted away from the origin."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.exp(-decay * np.arange(d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def related(seed: int, n: int, d_a: int, d_b: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rows(seed, n, d_a, decay=0.3)
    return x, x @ rng.normal(size=(d_a, d_b)) + 2 * rng.normal(size=(n, d_b))


def kept(side: np.ndarray, variance: float = 0.99) -> int:
    return Svcca(variance=variance).kept(decompose(side).s)


def svcca_by_qr(x: np.ndarray, y: np.ndarray, variance: float) -> tuple[float, int, int]:
    """SVCCA step by step: PCA by the covariance's eigenvectors, then canonical correlations by QR."""
    reduced = []
    for side in (x, y):
        centred = side - side.mean(axis=0)
        values, vectors = np.linalg.eigh(centred.T @ centred)
        values, vectors = values[::-1], vectors[:, ::-1]
        k = 1
        while values[:k].sum() < variance * values.sum():
            k += 1
        reduced.append(centred @ vectors[:, :k])
    q_x, q_y = (np.linalg.qr(side)[0] for side in reduced)
    correlations = np.sqrt(np.maximum(np.linalg.eigvals((q_x.T @ q_y) @ (q_y.T @ q_x)).real, 0))
    ordered = np.sort(correlations)[::-1][: min(side.shape[1] for side in reduced)]
    return float(ordered.mean()), reduced[0].shape[1], reduced[1].shape[1]


@given(st.integers(0, 10_000), st.integers(40, 90), st.integers(2, 9), st.integers(2, 9))
def test_svcca_equals_plain_pca_then_cca_by_qr(seed, n, d_a, d_b):
    x, y = related(seed, n, d_a, d_b)
    expected, k_a, k_b = svcca_by_qr(x, y, 0.99)
    assert [kept(x), kept(y)] == [k_a, k_b]
    assert Svcca()(x, y) == pytest.approx(expected, abs=1e-6)


def test_svcca_equals_scikit_learn():
    x, y = related(0, 200, 8, 6)
    k = min(PCA(0.9, svd_solver="full").fit(side).n_components_ for side in (x, y))
    pcs = [PCA(0.9, svd_solver="full").fit_transform(side) for side in (x, y)]
    u, v = CCA(n_components=k, max_iter=5000, tol=1e-12).fit_transform(*pcs)
    expected = np.mean([np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(k)])
    assert Svcca(variance=0.9)(x, y) == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 10_000))
def test_svcca_does_not_see_rotation_scale_shift_or_the_order_of_pairs(seed):
    rng = np.random.default_rng(seed)
    x, y = related(seed, 60, 5, 4)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    order = rng.permutation(60)
    for metric in (Svcca(), SvccaPc1()):
        assert metric(x[order], 7 * (y @ rotation)[order] + 3) == pytest.approx(metric(x, y), abs=1e-9)


def test_a_space_equals_itself():
    x = rows(0, 50, 6)
    assert Svcca()(x, x) == pytest.approx(1, abs=1e-12)
    assert SvccaPc1()(x, x) == pytest.approx(1, abs=1e-12)


def test_pc1_is_pearson_of_the_first_principal_scores():
    x, y = related(3, 80, 7, 5)
    first = [PCA(1).fit_transform(side)[:, 0] for side in (x, y)]
    assert SvccaPc1()(x, y) == pytest.approx(abs(np.corrcoef(*first)[0, 1]), abs=1e-9)


@given(st.integers(0, 10_000), st.integers(4, 90), st.integers(2, 20), st.integers(2, 20))
def test_single_precision_and_shuffled_pairings_agree_with_shuffled_rows(seed, n, d_a, d_b):
    x, y = related(seed, n, d_a, d_b)
    pairing = np.random.default_rng(seed).permutation(n)
    family = Family((Svcca(), SvccaPc1()))
    found = family.scores(family.compact(family.prepare(x, y)), pairing)
    assert found == pytest.approx([Svcca()(x, y[pairing]), SvccaPc1()(x, y[pairing])], abs=1e-6)


def test_trap_1_svcca_keeps_the_components_that_hold_the_variance_not_one():
    # the variance kept as a share of 1 was compared with 0.99 × the total variance, so that one component was kept
    x = np.random.default_rng(0).normal(size=(500, 20))
    assert kept(x) == 20
    assert kept(1000 * x) == kept(0.001 * x) == 20
    dominated = x * np.r_[100, np.ones(19)]
    assert kept(dominated) == 1


def test_trap_1_the_null_of_pc1_is_that_of_a_correlation():
    rng = np.random.default_rng(0)
    n = 200
    null = [SvccaPc1()(*rng.normal(size=(2, n, 4))) for _ in range(400)]
    assert np.mean(null) == pytest.approx(np.sqrt(2 / (np.pi * n)), rel=0.1)


@pytest.mark.parametrize(("n", "chance", "draws"), [(24, 1.00, 3), (239, 0.97, 2), (1000, 0.77, 1)])
def test_trap_2_chance_is_high_with_few_pairs(n, chance, draws):
    rng = np.random.default_rng(n)
    for _ in range(draws):
        sides = [
            side / np.linalg.norm(side, axis=1, keepdims=True)
            for side in map(rng.normal, (0, 0), (1, 1), ((n, 512), (n, 768)))
        ]
        assert Svcca()(*sides) == pytest.approx(chance, abs=0.006)


def test_trap_2_saturation_is_said():
    rng = np.random.default_rng(0)
    metric = Svcca(variance=1.0)
    few = metric.prepare([metric], rng.normal(size=(12, 9)), rng.normal(size=(12, 6)))
    assert metric.warning(few).startswith(
        "saturated: 12 pairs, not more than the 9 + 6 components kept, so that any pairing scores high"
    )
    correlations = np.linalg.svd(few.a.u.T @ few.b.u, compute_uv=False)
    assert np.sum(correlations > 1 - 1e-9) == 9 + 6 - (12 - 1)
    enough = metric.prepare([metric], rng.normal(size=(18, 9)), rng.normal(size=(18, 8)))
    assert metric.warning(enough) == ""


def test_rounding_makes_no_components():
    flat = np.full((30, 4), 0.1)
    assert kept(flat) == 0
    assert np.isnan(Svcca()(flat, rows(0, 30, 3)))
    assert np.isnan(SvccaPc1()(flat, rows(0, 30, 3)))
    line = np.outer(np.arange(30.0), [1.0, 2.0, 3.0]) + 100
    assert kept(line, 1.0) == 1


def test_bad_rows_are_refused():
    x = np.ones((5, 2))
    with pytest.raises(InputError, match=r"shapes \(5, 2\) and \(4, 2\)"):
        Svcca()(x, x[:4])
    with pytest.raises(InputError, match="2 pairs cannot be compared"):
        SvccaPc1()(x[:2], x[:2])
    with pytest.raises(InputError, match="row 3 of y is not finite"):
        Svcca()(x, np.where(np.arange(5)[:, None] == 3, np.inf, x))
    for variance in (0.0, 1.1):
        with pytest.raises(InputError, match="variance"):
            parse_metric(f"svcca:variance={variance}")
