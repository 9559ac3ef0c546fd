"""Both kernels on a GPU. ``pytest -m gpu`` where there is one, with the extra ``gpu`` installed.

Without one, Numba's simulator runs the sparse kernel's CUDA code, thread by thread, in a process of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import storage
from pipeline.correlate.kernels.dense import ERROR, add_products, standardise
from pipeline.correlate.kernels.device import Gpu, find_device
from pipeline.correlate.resources import GPU_SHARE
from pipeline.correlate.run import correlate
from pipeline.workers import local_client
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


def test_processes_share_a_gpu_or_none_uses_one():
    resources = importlib.import_module("pipeline.correlate.resources")

    def process(host, gpu):
        return [resources._Worker(host, 1, 1, 10**9, None, True, gpu)]

    one, other = Gpu("0000:01:00.0", 8 * 10**9), Gpu("0000:02:00.0", 6 * 10**9)
    assert resources._gpu_allowance([process("x", one), process("x", other)]) == int(GPU_SHARE * 6 * 10**9)
    assert resources._gpu_allowance([process("x", one), process("x", one)]) == int(GPU_SHARE * 4 * 10**9)
    assert resources._gpu_allowance([process("x", one), process("y", one)]) == int(GPU_SHARE * 8 * 10**9)
    assert resources._gpu_allowance([process("x", one), process("y", None)]) is None


SIMULATED = """
import importlib, json, operator, sys
import numpy as np
import xarray as xr
from numba.cuda import libdevice
import storage
from pipeline.correlate.kernels.device import Device, find_device
from pipeline.correlate.run import correlate
from pipeline.workers import local_client
libdevice.dmul_rn = operator.mul  # the simulator has no device library
panel, plan, resources, scatter = (
    importlib.import_module(f"pipeline.correlate.{name}") for name in ("panel", "plan", "resources", "kernels.scatter")
)
scatter.WARP = 2
gpu = Device("cuda", np)
panel.find_device = lambda name: gpu if name == "cuda" else find_device("cpu")
resources._gpu_allowance = lambda _: 10**9
resources.find_device = lambda _: find_device("cpu")
plan._widths, plan._slab_rows, plan.FETCHED = lambda *_: iter([5]), lambda *_: 40, 20
a, b, folder, method = (json.loads(sys.argv[1])[name] for name in ("a", "b", "folder", "method"))
plan._methods = lambda _: [method]
with local_client(threads_per_worker=1) as client:
    for device in ("cpu", "cuda"):
        correlate(a, b, top_k=4, kernel="sparse", device=device, out=f"{folder}/{device}", client=client)
"""


@pytest.mark.parametrize(("method", "dtype"), [("resident", "float32"), ("streaming", "float64")])
def test_sums_on_a_simulated_gpu_are_those_of_the_cpu_bit_by_bit(tmp_path, values, method, dtype):
    rng = np.random.default_rng(3)
    x, y = values(rng, 90, 12, 0.2).astype(dtype), values(rng, 90, 9, 0.3).astype(dtype)
    x[:, 7], y[:, 4], y[:, 6] = y[:, 2], x[:, 3], 0
    for name, side in (("a", x), ("b", y)):
        storage.write_activations(tmp_path / name, side, layout="csr", dtype=dtype)
    given = json.dumps({"a": str(tmp_path / "a"), "b": str(tmp_path / "b"), "folder": str(tmp_path), "method": method})
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", SIMULATED, given], check=True, env=environment)
    cpu, cuda = (storage.open_result(tmp_path / device, stage="correlate") for device in ("cpu", "cuda"))
    for name in cpu.variables:
        np.testing.assert_array_equal(cpu[name].values, cuda[name].values)
    for name in ("r", "r_heldout"):
        one, other = (storage.read_csr(tmp_path / device, name=name) for device in ("cpu", "cuda"))
        for part in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    assert cuda["r_b"].values[7, 0] == 1.0
    assert cuda["best_b"].values[7, 0] == 2


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Grid size:numba.core.errors.NumbaPerformanceWarning")
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

    @pytest.mark.parametrize("method", ["resident", "streaming"])
    def test_sparse_sums_are_those_of_the_cpu_bit_by_bit(self, tmp_path, values, client, monkeypatch, method):
        monkeypatch.setattr(importlib.import_module("pipeline.correlate.plan"), "_methods", lambda _: [method])
        rng = np.random.default_rng(3)
        for name, n in (("a", 700), ("b", 600)):
            storage.write_activations(tmp_path / name, values(rng, 20_000, n, 0.02), layout="csr")
        paths = tmp_path / "a", tmp_path / "b"
        cpu, cuda = (
            correlate(*paths, kernel="sparse", device=device, out=tmp_path / device, client=client)
            for device in ("cpu", "cuda")
        )
        for name in cpu.variables:
            np.testing.assert_array_equal(cpu[name].values, cuda[name].values)
        kept = [storage.read_csr(tmp_path / device, name="r") for device in ("cpu", "cuda")]
        np.testing.assert_array_equal(kept[0].data, kept[1].data)

    @pytest.mark.parametrize("kernel", ["sparse", "dense"])
    def test_the_gpu_memory_that_is_planned_is_enough(self, tmp_path, values, monkeypatch, kernel):
        import cupy

        rng, run = np.random.default_rng(4), importlib.import_module("pipeline.correlate.run")
        for name in "ab":
            storage.write_activations(tmp_path / name, values(rng, 20_000, 3000, 0.02), layout="csr")
        plans, make = [], run.make_plan
        monkeypatch.setattr(run, "make_plan", lambda *a, **given: plans.append(make(*a, **given)) or plans[-1])
        pool, announce = cupy.get_default_memory_pool(), run._announce
        pool.free_all_blocks()

        def limited(plan, *given):
            pool.set_limit(size=plan.gpu_projected)  # beyond it, CuPy raises OutOfMemoryError
            announce(plan, *given)

        monkeypatch.setattr(run, "_announce", limited)
        try:
            with local_client(threads_per_worker=1) as client:
                correlate(tmp_path / "a", tmp_path / "b", kernel=kernel, device="cuda", client=client)
        finally:
            pool.set_limit(size=0)
        assert plans[-1].device == "cuda"
        assert 0 < plans[-1].gpu_projected <= plans[-1].gpu_allowed

    def test_rates_of_the_gpu_are_measured(self):
        rates = importlib.import_module("pipeline.correlate.rates")
        measured = rates._measure_gpu(find_device("cuda"))
        assert set(measured) == {"gpu_byte", "gpu_dense_product", "gpu_copy"}
        assert all(0 < value < 1e-6 for value in measured.values())

    def test_workers_of_dask_cuda(self, stores):
        dask_cuda, distributed = pytest.importorskip("dask_cuda"), pytest.importorskip("distributed")
        with dask_cuda.LocalCUDACluster(n_workers=1) as cluster, distributed.Client(cluster) as client:
            assert set(client.run(lambda: find_device("auto").name).values()) == {"cuda"}
            ds = correlate(stores / "a", stores / "b", kernel="dense", out=stores / "cor", client=client)
            for name in "ab":
                dense = storage.read_dense(stores / name) * (np.random.default_rng(5).random((20_000, 1)) < 0.1)
                storage.write_activations(stores / f"{name}-csr", dense, layout="csr")
            arguments = {"kernel": "sparse", "device": "cuda", "out": stores / "cor-csr", "client": client}
            sparse = correlate(stores / "a-csr", stores / "b-csr", **arguments)
        assert sparse["r_b"].values[100:160, 0].min() > 0.5
        np.testing.assert_array_equal(ds["best_b"].values[100:160, 0], np.arange(60))
