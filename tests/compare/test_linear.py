"""Decompositions by small cross-products, against SciPy's of the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from pipeline.compare import linear
from pipeline.compare.linear import decompose, singular_values
from pipeline.settings.compare import parse_metric


def rows_of(n, d, condition, seed=0):
    """Random rows whose centred columns have singular values from 1 down to 1 / `condition`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    u, _ = np.linalg.qr(x - x.mean(axis=0))
    v, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return u * np.logspace(0, -np.log10(condition), d) @ v.T + 0.5


@pytest.mark.parametrize("condition", [1.0, 1e3, 9e3, 1e5, 1e9])
@pytest.mark.parametrize("shape", [(400, 30), (31, 30)])
def test_tall_rows_are_decomposed_as_by_scipy(shape, condition):
    x = rows_of(*shape, condition)
    side, centred = decompose(x), x - x.mean(axis=0)
    np.testing.assert_allclose(side.s, scipy.linalg.svdvals(centred), rtol=1e-6)
    np.testing.assert_allclose(side.u.T @ side.u, np.eye(len(side.s)), atol=1e-6)
    np.testing.assert_allclose(side.u @ side.loadings, centred, atol=1e-9)


@pytest.mark.parametrize("condition", [10.0, 9e3, 1e7])
@pytest.mark.parametrize("name", ["cca", "svcca", "pwcca", "procrustes", "cka_debiased"])
def test_scores_of_tall_rows_do_not_depend_on_how_they_were_decomposed(monkeypatch, name, condition):
    """Canonical correlations divide by the smallest variance: the hardest case for a squared matrix."""
    x, y = rows_of(300, 12, condition), rows_of(300, 15, condition, seed=1)
    y[:, :12] += 0.3 * x
    fast = parse_metric(name)(x, y)
    monkeypatch.setattr(linear, "LARGEST_CONDITION", 1e-3)
    assert fast == pytest.approx(parse_metric(name)(x, y), abs=1e-6)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
def test_singular_values_are_those_of_scipy(shape):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=shape) * np.logspace(0, -6, shape[1])
    expected = scipy.linalg.svdvals(matrix)
    np.testing.assert_allclose(singular_values(matrix)[::-1], expected, atol=1e-7 * expected[0])
    assert singular_values(matrix).sum() == pytest.approx(expected.sum(), rel=1e-6)
