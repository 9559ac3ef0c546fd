"""Correlations on a GPU beside the same on the CPU, and beside what the GPU can do. ``benchmarks/gpu.sh`` runs it.

::

    python -m benchmarks.gpu
    python -m benchmarks.gpu --rows 3000000 --active 256

The last line is one JSON object. For a sparse and a dense case it has the seconds of both devices, from disk to disk,
after one small run for each that compiles the kernels, and what differs between the two results: nothing for the
sparse case, whose sums are the same additions in the same order; r within the error of float32 for the dense one.
``ratios.cublas`` is the dense time ÷ that of the bare product by cuBLAS in float32, ``ratios.bandwidth`` the sparse
time ÷ that of the bytes which its sums move at the rate of a copy within the GPU's memory: both measured in this run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client

import storage
from benchmarks.correlate import n_products, write_random_store
from pipeline.correlate.cost import SECTORS
from pipeline.correlate.kernels.dense import ERROR
from pipeline.correlate.kernels.device import find_device
from pipeline.correlate.run import correlate
from pipeline.work.workers import local_client

#: Rows of the run that compiles the kernels.
WARM_ROWS = 2_000
#: Numbers that are copied to measure the bandwidth, and the side of the matrices of the bare product.
COPIED, SIDE = 2**28, 8192


def largest_difference(first: Path, second: Path, *, exact: bool) -> float:
    """Return the largest difference of two correlations' lists and kept pairs; AssertionError where it is too large.

    `exact` allows none; else r may differ by twice the error of float32, and ids where their r does not differ more.
    """
    one, other = (storage.open_result(path, stage="correlate") for path in (first, second))
    worst = max(_difference(one[name], other[name]) for name in ("r_b", "r_a", "r_heldout_b", "r_heldout_a"))
    if exact:
        for name in one.variables:
            np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=str(name))
        for part in ("indptr", "indices", "data"):
            kept, others = (getattr(storage.read_csr(path, name="r"), part) for path in (first, second))
            np.testing.assert_array_equal(kept, others, err_msg=f"kept pairs, {part}")
    assert worst <= (0.0 if exact else 2 * ERROR), worst
    return worst


def _difference(one: xr.DataArray, other: xr.DataArray) -> float:
    return float(np.nanmax(np.abs(one.values - other.values), initial=0.0))


def compare_devices(
    folder: Path, shape: tuple[int, int, int | None], client: Client, **settings: Any
) -> dict[str, Any]:
    """Correlate two random stores on the GPU and on the CPU; return seconds, and what differs.

    Parameters
    ----------
    folder
        Where stores and results are written.
    shape
        Rows, features, and active features a row; None for dense stores.
    client
        The workers.
    **settings
        Of the correlation.
    """
    rows, features, active = shape
    for name, seed in (("a", 1), ("b", 2)):
        write_random_store(folder / name, rows, features, active, seed)
        write_random_store(folder / f"warm-{name}", min(rows, WARM_ROWS), features, active, seed)
    figures: dict[str, Any] = {"rows": rows, "features": features, "active": active}
    for device in ("cuda", "cpu"):
        correlate(folder / "warm-a", folder / "warm-b", device=device, client=client, **settings)
        start = time.perf_counter()
        correlate(folder / "a", folder / "b", device=device, out=folder / device, client=client, **settings)
        figures[f"{device}_seconds"] = time.perf_counter() - start
    figures["largest_difference"] = largest_difference(folder / "cuda", folder / "cpu", exact=active is not None)
    return figures


def in_a_folder(work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Do something in a new folder, which is removed."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-gpu-"))
    try:
        return work(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def peak_rates() -> dict[str, float]:
    """Return what the GPU of this process does bare: float32 operations in a second, and bytes moved in a second."""
    import cupy  # noqa: PLC0415 - an extra

    square, source = cupy.ones((SIDE, SIDE), cupy.float32), cupy.ones(COPIED, cupy.float32)
    target = cupy.empty_like(source)

    def seconds(work: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(4):  # the first one warms up
            start = time.perf_counter()
            work()
            cupy.cuda.Device().synchronize()
            best = min(best, time.perf_counter() - start)
        return best

    return {
        "cublas_flops": 2.0 * SIDE**3 / seconds(lambda: square @ square),
        "bandwidth": 2.0 * source.nbytes / seconds(lambda: cupy.copyto(target, source)),
    }


def on_dask_cuda(folder: Path, rows: int, features: int, active: int) -> dict[str, Any]:
    """Correlate on a worker of Dask-CUDA and on the CPU; return seconds, and what differs."""
    from dask_cuda import LocalCUDACluster  # noqa: PLC0415 - an extra

    with LocalCUDACluster(n_workers=1) as cluster, Client(cluster) as client:
        return compare_devices(folder, (rows, features, active), client)


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    import cupy  # noqa: PLC0415 - an extra

    find_device("cuda")  # refuses where there is none
    peaks = peak_rates()

    def sparse(folder: Path) -> dict[str, Any]:
        with local_client() as client:
            figures = compare_devices(folder, (options.rows, options.features, options.active), client)
        moved = SECTORS * n_products(folder / "a", folder / "b")
        return figures | {"ratios": {"bandwidth": figures["cuda_seconds"] / (moved / peaks["bandwidth"])}}

    def dense(folder: Path) -> dict[str, Any]:
        shape = options.dense_rows, options.dense_features, None
        with local_client() as client:
            figures = compare_devices(folder, shape, client, select="all")
        product = 2.0 * shape[0] * shape[1] ** 2 / peaks["cublas_flops"]
        return figures | {"ratios": {"cublas": figures["cuda_seconds"] / product}}

    cases = {
        "sparse": sparse,
        "dense": dense,
        "dask_cuda": lambda folder: on_dask_cuda(folder, options.rows // 10, options.features, options.active),
    }
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return {"name": "gpu", "gpu": properties["name"].decode(), **peaks, **{n: in_a_folder(c) for n, c in cases.items()}}


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--active", type=int, default=64)
    parser.add_argument("--dense-rows", type=int, default=50_000)
    parser.add_argument("--dense-features", type=int, default=8_192)
    print(json.dumps(benchmark(parser.parse_args())))


if __name__ == "__main__":
    main()
