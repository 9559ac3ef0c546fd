"""The dense kernel on several array libraries; it may use nothing beyond the array API standard."""

from __future__ import annotations

import array_api_compat
import array_api_strict
import numpy as np
import pytest

from pipeline.correlate.kernels.dense import add_centred_products


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
def test_products_of_centred_values(xp, dtype):
    rng = np.random.default_rng(0)
    a = (1e4 + rng.standard_normal((2500, 600))).astype(dtype)
    b = rng.standard_normal((2500, 70)).astype(dtype)
    means = a.mean(0, dtype=np.float64), b.mean(0, dtype=np.float64)
    tile = xp.ones((600, 100), dtype=xp.float64)
    arrays = [xp.asarray(array) for array in (a, b, *means)]
    add_centred_products(xp, tile[:, 20:90], arrays[0], arrays[1], (arrays[2], arrays[3]))
    expected = np.ones((600, 100))
    expected[:, 20:90] += (a - means[0]).T @ (b - means[1])
    np.testing.assert_allclose(np.from_dlpack(tile), expected, atol=1e-8)
