"""The dense kernel on a GPU. ``pytest -m gpu`` where there is one, with the extra ``gpu`` installed."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np
import pytest

import storage
from pipeline.correlate.kernels.dense import ERROR, add_products, standardise
from pipeline.correlate.kernels.device import find_device
from pipeline.correlate.run import correlate
from storage import MissingDependencyError


def random_side(rng, n_rows, n_features):
    return (100 + rng.standard_normal((n_rows, n_features))).astype(np.float32)


@pytest.fixture
def stores(tmp_path):
    """Two dense stores of 20,000 rows, a tenth of whose features are shared; one feature of each is constant."""
    rng = np.random.default_rng(0)
    x, y = random_side(rng, 20_000, 700), random_side(rng, 20_000, 600)
    y[:, :60] += 2 * x[:, 100:160]
    x[:, 5], y[:, 7] = 1.5, 0
    for name, values in (("a", x), ("b", y)):
        storage.write_activations(tmp_path / name, values, layout="dense")
    return tmp_path


def test_a_gpu_that_is_not_there_is_asked_for_in_vain(monkeypatch):
    device = importlib.import_module("pipeline.correlate.kernels.device")
    monkeypatch.setattr(device, "_why_no_gpu", lambda: "this worker sees no GPU")
    with pytest.raises(MissingDependencyError, match=r"sees no GPU.*extra 'gpu'"):
        find_device.__wrapped__("cuda")
    assert find_device.__wrapped__("auto").name == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy and a CUDA device")
class TestOnGpu:
    """What needs a GPU."""

    def test_products(self):
        rng = np.random.default_rng(1)
        a, b = (rng.standard_normal((4000, n)).astype(np.float32) for n in (700, 300))
        device = find_device("cuda")
        xp, rows = device.xp, np.arange(0, 4000, 2)
        sides = [xp.empty((2000, side.shape[1]), dtype=xp.float32) for side in (a, b)]
        for side, out in zip((a, b), sides, strict=True):
            scaling = tuple(device.put(np.full(side.shape[1], v, np.float32)) for v in (0.5, 0.25))
            standardise(xp, device.put(side), device.put(rows), scaling, out)
        tile = xp.zeros((700, 300), dtype=xp.float64)
        add_products(xp, tile, *sides, [False, True])
        exact = [(side[rows].astype(np.float64) * 0.5 - 0.25) for side in (a, b)]
        np.testing.assert_allclose(device.get(tile), exact[0].T @ exact[1], atol=2000 * ERROR)

    def test_parity_with_the_cpu(self, stores, client):
        found = {
            device: correlate(
                stores / "a", stores / "b", kernel="dense", device=device, out=stores / device, client=client
            )
            for device in ("cpu", "cuda")
        }
        assert found["cpu"]["histogram"].values.sum() == found["cuda"]["histogram"].values.sum()
        for name in ("best_a", "best_b"):
            np.testing.assert_array_equal(found["cpu"][name], found["cuda"][name])
        for name in ("r_a", "r_b", "r_heldout_a", "r_heldout_b"):
            np.testing.assert_allclose(found["cpu"][name], found["cuda"][name], atol=ERROR)
        kept = [storage.read_csr(stores / device, name="r") for device in ("cpu", "cuda")]
        np.testing.assert_array_equal(kept[0].indices, kept[1].indices)

    def test_workers_of_dask_cuda(self, stores):
        dask_cuda, distributed = pytest.importorskip("dask_cuda"), pytest.importorskip("distributed")
        with dask_cuda.LocalCUDACluster(n_workers=1) as cluster, distributed.Client(cluster) as client:
            assert set(client.run(lambda: find_device("auto").name).values()) == {"cuda"}
            ds = correlate(stores / "a", stores / "b", kernel="dense", out=stores / "cor", client=client)
        np.testing.assert_array_equal(ds["best_b"].values[100:160, 0], np.arange(60))
