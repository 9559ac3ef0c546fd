"""The dense kernel on several array libraries; it may use nothing beyond the array API standard."""

from __future__ import annotations

import array_api_compat
import array_api_strict
import numpy as np
import pytest

from pipeline.correlate.kernels.dense import ERROR, add_products, standardise


def torch_namespace():
    return array_api_compat.array_namespace(pytest.importorskip("torch").zeros(1))


NAMESPACES = {
    "numpy": lambda: array_api_compat.array_namespace(np.zeros(1)),
    "strict": lambda: array_api_strict,
    "torch": torch_namespace,
}


@pytest.fixture(params=list(NAMESPACES))
def xp(request):
    """An array namespace."""
    return NAMESPACES[request.param]()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_of_standardised_values(xp, dtype):
    rng = np.random.default_rng(0)
    a = (1e4 + rng.standard_normal((2500, 600))).astype(dtype)
    b = (1e-30 * rng.standard_normal((2500, 70))).astype(dtype)
    scales = [np.ldexp(np.ones(n), e).astype(dtype) for n, e in ((600, 0), (70, 100))]
    offsets = [
        (side.mean(0, dtype=np.float64) * scale).astype(dtype) for side, scale in zip((a, b), scales, strict=True)
    ]
    sides = [
        standardise(xp, *(xp.asarray(array) for array in arrays))
        for arrays in zip((a, b), scales, offsets, strict=True)
    ]
    assert all(side.dtype == xp.float32 for side in sides)
    tile = xp.ones((600, 100), dtype=xp.float64)
    add_products(xp, tile[:, 20:90], *sides)
    expected = np.ones((600, 100))
    exact = [
        side.astype(np.float64) * scale - offset for side, scale, offset in zip((a, b), scales, offsets, strict=True)
    ]
    expected[:, 20:90] += exact[0].T @ exact[1]
    np.testing.assert_allclose(np.from_dlpack(tile), expected, atol=2500 * ERROR)
