"""The dense kernel on several array libraries; it may use nothing beyond the array API standard."""

from __future__ import annotations

import importlib

import array_api_compat
import array_api_strict
import numpy as np
import pytest

import storage
from pipeline.correlate.kernels import dense
from pipeline.correlate.kernels.dense import ERROR, add_products, standardise
from pipeline.correlate.kernels.device import Device
from pipeline.correlate.run import correlate


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
    rows = rng.permutation(2500)[:2000]
    sides = [xp.zeros((2000, n), dtype=xp.float32) for n in (600, 70)]
    for values, scale, offset, out in zip((a, b), scales, offsets, sides, strict=True):
        given = [xp.asarray(array) for array in (values, rows, scale, offset)]
        standardise(xp, given[0], given[1], (given[2], given[3]), out[:, :])
    tile = xp.ones((600, 100), dtype=xp.float64)
    add_products(xp, tile[:, 20:90], *sides)
    expected = np.ones((600, 100))
    each = zip((a, b), scales, offsets, strict=True)
    exact = [side[rows].astype(np.float64) * scale - offset for side, scale, offset in each]
    expected[:, 20:90] += exact[0].T @ exact[1]
    np.testing.assert_allclose(np.from_dlpack(tile), expected, atol=2500 * ERROR)


def test_blocks_can_be_multiplied_in_double(xp, monkeypatch):
    monkeypatch.setattr(dense, "FEATURES", 8)
    rng = np.random.default_rng(0)
    a, b = (np.full((4000, 16), 3.3, "f4") * (rng.random((4000, 16)) < 0.95) for _ in "ab")
    tile = xp.zeros((16, 16), dtype=xp.float64)
    dense.add_products(xp, tile, xp.asarray(a), xp.asarray(b), [False, True])
    error = np.abs(np.from_dlpack(tile) - a.astype(np.float64).T @ b.astype(np.float64))
    assert error[8:].max() < 1e-7 < error[:8].max()


def test_the_whole_kernel_runs_on_another_library(client, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    panel = importlib.import_module("pipeline.correlate.panel")
    rng = np.random.default_rng(0)
    x, y = (rng.random((500, n)).astype("f4") for n in (40, 30))
    x[:, 7], y[:, 3] = 2.5, 0  # features that do not vary are left out
    y[:, 10:20] += x[:, 10:20]
    for name, values in (("a", x), ("b", y)):
        storage.write_activations(tmp_path / name, values, layout="dense", overwrite=True)
    results = []
    for name in ("numpy", "torch"):
        monkeypatch.setattr(importlib.import_module("pipeline.correlate.moments"), "FEWEST_ROWS", 0)
        xp = array_api_compat.array_namespace(torch.zeros(1) if name == "torch" else x)
        monkeypatch.setattr(panel, "find_device", lambda _, name=name, xp=xp: Device(name, xp))
        results.append(
            correlate(
                tmp_path / "a", tmp_path / "b", kernel="dense", keep_above=0.01, out=tmp_path / name, client=client
            )
        )
    for name in results[0].variables:
        one, other = (ds[name].values for ds in results)
        np.testing.assert_allclose(one, other, atol=ERROR if one.dtype.kind == "f" else 0)
