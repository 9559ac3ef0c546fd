"""Both kernels on a GPU. ``pytest -m gpu`` where there is one, with the extra ``gpu`` installed.

Without one, the sparse kernel's CUDA source is compiled by a C++ compiler, and the threads of a block are threads.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import itertools
import shutil
import subprocess

import array_api_compat
import numpy as np
import pytest

import storage
from benchmarks.gpu import compare_devices
from pipeline.correlate.kernels import scatter
from pipeline.correlate.kernels.dense import ERROR, add_products, standardise
from pipeline.correlate.kernels.device import Device, Gpu, find_device
from pipeline.correlate.resources import GPU_SHARE
from pipeline.correlate.run import correlate
from pipeline.work.workers import local_client
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
        storage.write_activations(tmp_path / name, values, layout="dense", overwrite=True)
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


#: What CUDA gives, for a C++ compiler: threads of a block are threads, blocks come one after the other.
SHIM = """
#include <barrier>
#include <mutex>
#include <thread>
#include <vector>
struct Index { unsigned int x; };
static Index blockIdx, blockDim;
static thread_local Index threadIdx;
static std::barrier<>* gate;
#define __global__
static void __syncthreads() { gate->arrive_and_wait(); }
static double __dmul_rn(double x, double y) { return x * y; }
static double __dadd_rn(double x, double y) { return x + y; }
"""
LAUNCH = """
extern "C" void launch(unsigned int blocks, unsigned int threads, double* tile, long long width, long long first,
    const long long* start_a, const unsigned int* row_a, const VALUE_A* value_a, const long long* start_b,
    const FEATURE* feature_b, const VALUE_B* value_b)
{
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> held(one_at_a_time);
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        std::barrier<> all(threads);
        gate = &all;
        std::vector<std::thread> running;
        for (unsigned int t = 0; t < threads; t++)
            running.emplace_back([=] {
                threadIdx.x = t;
                scatter(tile, width, first, start_a, row_a, value_a, start_b, feature_b, value_b);
            });
        for (auto& one : running) one.join();
    }
}
"""


@pytest.fixture
def gpu_of_threads(tmp_path, monkeypatch):
    """A device that has the GPU's name and runs its sparse kernel's CUDA source, compiled for this processor."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    launched = []

    @functools.cache
    def compiled(*types):
        name = "-".join(types)
        (tmp_path / f"{name}.cpp").write_text(SHIM + scatter.source_for(*types) + LAUNCH)
        library = str(tmp_path / f"{name}.so")
        options = ["-std=c++20", "-O1", "-ffp-contract=off", "-pthread", "-shared", "-fPIC", "-o", library]
        subprocess.run([compiler, *options, str(tmp_path / f"{name}.cpp")], check=True)
        launch = ctypes.CDLL(library).launch

        def kernel(grid, block, arguments):
            given = [x.ctypes.data_as(ctypes.c_void_p) if x.ndim else ctypes.c_longlong(int(x)) for x in arguments]
            launch(ctypes.c_uint(grid[0]), ctypes.c_uint(block[0]), *given)
            launched.append(types)

        return kernel

    panel, resources = (importlib.import_module(f"pipeline.correlate.{name}") for name in ("panel", "resources"))
    monkeypatch.setattr(scatter, "WARP", 4)
    monkeypatch.setattr(scatter, "compiled", compiled)
    monkeypatch.setattr(panel, "find_device", lambda name: Device(name, np))
    monkeypatch.setattr(
        resources, "find_device", lambda _: Device("cpu", array_api_compat.array_namespace(np.empty(0)))
    )
    monkeypatch.setattr(resources, "_gpu_allowance", lambda _: 10**9)
    return launched


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cuda_compiles_every_pair_of_types_and_joins_no_product_with_its_sum(tmp_path):
    """A fused multiply-add would round once, where the CPU rounds twice."""
    kinds = list(itertools.product(("float32", "float64"), ("float32", "float64"), ("uint16", "uint32")))
    for i, types in enumerate(kinds):
        source = scatter.source_for(*types).replace(" scatter(", f" scatter_{i}(")
        for name in ("VALUE_A", "VALUE_B", "FEATURE"):
            source = source.replace(name, f"{name}_{i}")
        with (tmp_path / "all.cu").open("a") as file:
            file.write(source + "\n")
    ptx = tmp_path / "all.ptx"
    command = ["nvcc", "-ptx", "-arch=compute_80", "-Werror=all-warnings", "-o", ptx, tmp_path / "all.cu"]
    compiled = subprocess.run(command, check=False, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    code = ptx.read_text()
    assert code.count(".entry scatter_") == len(kinds)
    assert code.count("mul.rn.f64") == code.count("add.rn.f64") >= len(kinds)
    assert "fma." not in code


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float64", "float32")])
@pytest.mark.parametrize("method", ["resident", "streaming"])
def test_sparse_sums_by_the_gpu_code_are_those_of_the_cpu(
    gpu_of_threads, tmp_path, values, client, force, monkeypatch, method, dtypes
):
    force(method, panel=25, slab_rows=64, strip=24 if method == "streaming" else None)
    monkeypatch.setattr(importlib.import_module("pipeline.correlate.plan"), "FETCHED", 400)  # ten rows at a time
    rng = np.random.default_rng(3)
    sides = [values(rng, 300, n, 0.2).astype(dtype) for n, dtype in zip((60, 40), dtypes, strict=True)]
    sides[0][:, 7], sides[0][:, 9], sides[1][:, 4], sides[1][:, 6] = sides[1][:, 2], 2, sides[0][:, 3], 0
    for name, side, dtype in zip("ab", sides, dtypes, strict=True):
        storage.write_activations(tmp_path / name, side, layout="csr", dtype=dtype, overwrite=True)
    given = {"top_k": 4, "keep_above": 0.05, "kernel": "sparse", "client": client, "full": "float32"}
    cpu, cuda = (
        correlate(tmp_path / "a", tmp_path / "b", device=device, out=tmp_path / device, **given)
        for device in ("cpu", "cuda")
    )
    assert gpu_of_threads
    assert {types[:2] for types in gpu_of_threads} == {dtypes}
    for name in (name for name in cpu.variables if name not in ("r", "r_heldout")):
        np.testing.assert_array_equal(cpu[name].values, cuda[name].values)
    for name in ("r", "r_heldout"):
        one, other = (storage.read_csr(tmp_path / device, name=name) for device in ("cpu", "cuda"))
        for part in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    half = importlib.import_module("pipeline.correlate.rows").split_rows(None, np.zeros(300, bool), "half", seed=0)
    exact = np.corrcoef(sides[0][half == 0, 11].astype("f8"), sides[1][half == 0, 20].astype("f8"))[0, 1]
    assert cuda["r_all"].values[11, 20] == pytest.approx(exact, abs=1e-6)
    if dtypes[0] == dtypes[1]:
        assert (cuda["best_b"].values[7, 0], cuda["r_b"].values[7, 0]) == (2, 1.0)


def test_the_benchmark_sets_the_devices_beside_each_other(gpu_of_threads, tmp_path, client, force):
    force("streaming", panel=25, slab_rows=64)
    figures = compare_devices(tmp_path, (200, 50, 4), client, kernel="sparse")
    assert gpu_of_threads
    assert figures["largest_difference"] == 0
    assert min(figures["cuda_seconds"], figures["cpu_seconds"]) > 0


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

    @pytest.mark.parametrize("method", ["resident", "streaming"])
    def test_sparse_sums_are_those_of_the_cpu_bit_by_bit(self, tmp_path, values, client, monkeypatch, method):
        monkeypatch.setattr(importlib.import_module("pipeline.correlate.plan"), "_methods", lambda _: [method])
        rng = np.random.default_rng(3)
        for name, n in (("a", 700), ("b", 600)):
            storage.write_activations(tmp_path / name, values(rng, 20_000, n, 0.02), layout="csr", overwrite=True)
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
            storage.write_activations(tmp_path / name, values(rng, 20_000, 3000, 0.02), layout="csr", overwrite=True)
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
                storage.write_activations(stores / f"{name}-csr", dense, layout="csr", overwrite=True)
            arguments = {"kernel": "sparse", "device": "cuda", "out": stores / "cor-csr", "client": client}
            sparse = correlate(stores / "a-csr", stores / "b-csr", **arguments)
        assert sparse["r_b"].values[100:160, 0].min() > 0.5
        np.testing.assert_array_equal(ds["best_b"].values[100:160, 0], np.arange(60))
