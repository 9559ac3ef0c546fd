"""Correlate two random stores, from disk to disk, cluster start included.

::

    python -m benchmarks.correlate --rows 300000 --features 32768 --active 32 --top-k 16
    python -m benchmarks.correlate --dense --rows 50000 --features 8192
    python -m benchmarks.correlate --device cuda --rows 3000000 --active 256      # where there is a GPU

The last line is one JSON object. ``ratios.sgemm`` is our time ÷ the time that the full dense product would take at
this machine's own float32 matrix product rate, measured in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

import storage
from benchmarks.measure import run_measured, sgemm_rate
from pipeline.correlate.rates import measure_rates
from pipeline.correlate.rows import split_rows
from pipeline.work.workers import n_cpus

SHARD_ROWS = 16_384
CHECKED_PAIRS = 200

MEASURED = """
import time
from pipeline.correlate.forecast import forecast
from pipeline.correlate.rates import Rates
from pipeline.correlate.run import correlate
from pipeline.work.workers import local_client
rates = Rates(**arguments.pop("rates"))
with local_client() as client:
    sizes = {name: arguments[name] for name in ("a", "b", "top_k", "memory", "device", "select")}
    planned = forecast(**sizes, rates=rates, client=client)
figures["planned_seconds"], figures["planned_gb"] = planned.seconds, planned.plan.projected / 1e9
figures["method"], figures["device"] = planned.plan.method, planned.plan.device
figures["planned_gpu_gb"] = planned.plan.gpu_projected / 1e9
start = time.perf_counter()
ds = correlate(**arguments)
figures["seconds"] = time.perf_counter() - start
figures["kernel"] = ds.attrs["kernel"]
figures["n_kept"] = ds.attrs["n_kept"]
"""


def random_rows(rng: np.random.Generator, rows: int, features: int, active: int) -> scipy.sparse.csr_array:
    """Return rows with exactly `active` different features each, uniformly at random, values uniform in [0, 1).

    >>> random_rows(np.random.default_rng(0), 3, 10, 4).nnz
    12
    """
    ids = np.sort(rng.integers(0, features, (rows, active), dtype=np.int32), axis=1)
    while (again := (np.diff(ids, axis=1) == 0).any(axis=1)).any():
        ids[again] = np.sort(rng.integers(0, features, (int(again.sum()), active), dtype=np.int32), axis=1)
    values = rng.random(rows * active, dtype=np.float32)
    start = np.arange(0, rows * active + 1, active)
    return scipy.sparse.csr_array((values, ids.ravel(), start), shape=(rows, features))


def random_slabs(rows: int, features: int, active: int | None, seed: int) -> Iterator[Any]:
    """Yield the rows of a random store; dense normal ones where `active` is None."""
    rng = np.random.default_rng(seed)
    for start in range(0, rows, SHARD_ROWS):
        n = min(SHARD_ROWS, rows - start)
        if active is None:
            yield rng.standard_normal((n, features), dtype=np.float32)
        else:
            yield random_rows(rng, n, features, active)


def write_random_store(path: str | Path, rows: int, features: int, active: int | None, seed: int) -> None:
    """Write a random store without token coordinates; the same seed gives the same store."""
    layout: Any = "dense" if active is None else "csr"
    storage.write_activations(
        path, random_slabs(rows, features, active, seed), layout=layout, shard_rows=SHARD_ROWS, overwrite=True
    )


def read_features(path: Path, features: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return (row, feature) float64: some features of a store, wherever they are."""
    parts = []
    for _, shard in storage.iter_shards(path):
        columns = shard[:, features]
        parts.append(columns if isinstance(columns, np.ndarray) else columns.toarray())
    return np.concatenate(parts).astype(np.float64)


def max_error(result: Path, path_a: Path, path_b: Path, seed: int = 0) -> float:
    """Return the largest difference from NumPy's float64 over random pairs of the result, in all halves."""
    ds = storage.open_result(result, stage="correlate")
    found = np.argwhere(ds["best_b"].values >= 0)
    chosen = found[np.random.default_rng(seed).choice(len(found), min(CHECKED_PAIRS, len(found)), replace=False)]
    ids_a, rank = chosen.T
    ids_b = ds["best_b"].values[ids_a, rank]
    a, b = read_features(path_a, ids_a), read_features(path_b, ids_b)
    half = split_rows(None, np.zeros(len(a), bool), ds.attrs["select"])
    worst = 0.0
    for h, name in enumerate(name for name in ("r_b", "r_heldout_b") if name in ds):
        reported = ds[name].values[ids_a, rank]
        for i in range(len(chosen)):
            worst = max(worst, abs(float(np.corrcoef(a[half == h, i], b[half == h, i])[0, 1]) - reported[i]))
    return worst


def benchmark(
    rows: int, features: int, active: int | None, top_k: int, memory: str, *, device: str = "auto", select: str = "half"
) -> dict[str, Any]:
    """Run the benchmark and return its figures.

    Parameters
    ----------
    rows, features
        Shape of both stores.
    active
        Active features a row; None for dense stores.
    top_k
        Partners kept.
    memory
        Budget, as ``pipeline.correlate`` takes it.
    device
        Where products are computed: ``auto``, ``cpu`` or ``cuda``.
    select
        Which rows choose: ``half``, or ``all``, with nothing held out.
    """
    folder = Path(tempfile.mkdtemp(prefix="benchmark-correlate-"))
    try:
        a, b, out = folder / "a.zarr", folder / "b.zarr", folder / "out.zarr"
        start = time.perf_counter()
        write_random_store(a, rows, features, active, seed=1)
        write_random_store(b, rows, features, active, seed=2)
        writing = time.perf_counter() - start
        settings = {"top_k": top_k, "memory": memory, "device": device, "select": select}
        arguments = {"a": str(a), "b": str(b), "out": str(out), **settings}
        rates = dataclasses.asdict(measure_rates(n_cpus()))
        figures = run_measured(MEASURED, {**arguments, "rates": rates})
        rate = sgemm_rate(size=min(4096, max(512, features)))
        bound = 2.0 * rows * features * features / rate
        kind = "--dense" if active is None else f"--active {active}"
        others = (("device", device, "auto"), ("select", select, "half"))
        also = "".join(f" --{name} {value}" for name, value, usual in others if value != usual)
        return {
            "name": "correlate",
            "command": f"python -m benchmarks.correlate --rows {rows} --features {features} {kind} --top-k {top_k} "
            f"--memory {memory}{also}",
            "rows": rows,
            "features": features,
            "active": active,
            "top_k": top_k,
            **figures,
            "write_seconds": writing,
            "planned_time_ratio": figures["planned_seconds"] / figures["seconds"],
            "max_error": max_error(out, a, b),
            "sgemm_gflops": rate / 1e9,
            "ratios": {"sgemm": figures["seconds"] / bound},
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=16)
    parser.add_argument("--memory", default="3GB")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where products are computed")
    parser.add_argument("--select", choices=["half", "all"], default="half", help="which rows choose")
    parser.add_argument("--dense", action="store_true", help="dense stores; --active is ignored")
    given = parser.parse_args()
    active = None if given.dense else given.active
    size = (given.rows, given.features, active)
    print(json.dumps(benchmark(*size, given.top_k, given.memory, device=given.device, select=given.select)))


if __name__ == "__main__":
    main()
