"""Correlate two random stores, from disk to disk, cluster start included.

::

    python -m benchmarks.correlate --rows 300000 --features 32768 --active 32 --top-k 16
    python -m benchmarks.correlate --features 1048576 --firing zipf --min-firing 10 --keep-above 0.3
    python -m benchmarks.correlate --dense --rows 50000 --features 8192
    python -m benchmarks.correlate --device cuda --rows 3000000 --active 256      # where there is a GPU

The last line is one JSON object. ``ratios.sgemm`` is our time ÷ the time that the full dense product would take at
this machine's own float32 matrix product rate, measured in the same run. ``ratios.bare_loop`` is our time, from disk to
disk, ÷ that of :mod:`benchmarks.bare_loop`, which works in memory and keeps next to nothing; of many features it does a
part, and its time for all is reckoned from that.
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
#: Figures of the bare loop that are reported.
LOOP = {"seconds", "loop_cpu_seconds", "share", "n_kept"}

MEASURED = """
import time
from pipeline.correlate.forecast import forecast
from pipeline.correlate.rates import Rates
from pipeline.correlate.run import correlate
from pipeline.work.workers import local_client
rates = Rates(**arguments.pop("rates"))
with local_client() as client:
    inputs = {name: value for name, value in arguments.items() if name != "out"}
    planned = forecast(**inputs, rates=rates, client=client)
figures["planned_seconds"], figures["planned_gb"] = planned.seconds, planned.plan.projected / 1e9
figures["method"], figures["device"] = planned.plan.method, planned.plan.device
figures["touched"], figures["panels"] = planned.plan.touched, planned.plan.n_panels
figures["planned_gpu_gb"] = planned.plan.gpu_projected / 1e9
start, used = time.perf_counter(), time.process_time()
ds = correlate(**arguments)
figures["seconds"], figures["correlate_cpu_seconds"] = time.perf_counter() - start, time.process_time() - used
figures["kernel"] = ds.attrs["kernel"]
figures["n_kept"] = ds.attrs["n_kept"]
"""


BARE_LOOP = """
from benchmarks.bare_loop import bare_loop
figures.update(bare_loop(**arguments))
"""


def zipf_rows(
    rng: np.random.Generator, rows: int, features: NDArray[np.integer], active: int
) -> scipy.sparse.csr_array:
    """Return rows with at most `active` features each, the first of `features` the most often, by Zipf's law.

    Feature i of them is drawn in proportion to 1 / (i + 10)^0.8; one that is drawn twice in a row fires once.

    >>> zipf_rows(np.random.default_rng(0), 3, np.arange(10), 4).nnz <= 12
    True
    """
    below = np.cumsum((np.arange(len(features)) + 10.0) ** -0.8)
    drawn = np.searchsorted(below, below[-1] * rng.random((rows, active)), side="right")
    ids = np.sort(features[np.minimum(drawn, len(features) - 1)], axis=1)
    new = np.concatenate([np.ones((rows, 1), bool), np.diff(ids, axis=1) > 0], axis=1)
    start = np.concatenate([[0], np.cumsum(new.sum(axis=1))])
    values = rng.random(int(start[-1]), dtype=np.float32)
    return scipy.sparse.csr_array((values, ids[new], start), shape=(rows, len(features)))


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


def random_slabs(rows: int, features: int, active: int | None, seed: int, *, firing: str = "uniform") -> Iterator[Any]:
    """Yield the rows of a random store; dense normal ones where `active` is None."""
    rng = np.random.default_rng(seed)
    by_frequency = rng.permutation(features).astype(np.int32) if firing == "zipf" else None
    for start in range(0, rows, SHARD_ROWS):
        n = min(SHARD_ROWS, rows - start)
        if active is None:
            yield rng.standard_normal((n, features), dtype=np.float32)
        elif by_frequency is not None:
            yield zipf_rows(rng, n, by_frequency, active)
        else:
            yield random_rows(rng, n, features, active)


def write_random_store(
    path: str | Path, rows: int, features: int, active: int | None, seed: int, *, firing: str = "uniform"
) -> None:
    """Write a random store without token coordinates; the same seed gives the same store."""
    layout: Any = "dense" if active is None else "csr"
    slabs = random_slabs(rows, features, active, seed, firing=firing)
    storage.write_activations(path, slabs, layout=layout, shard_rows=SHARD_ROWS, overwrite=True)


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
    half = split_rows(None, np.zeros(len(a), bool), ds.attrs["select"], seed=0)
    worst = 0.0
    for h, name in enumerate(name for name in ("r_b", "r_heldout_b") if name in ds):
        reported = ds[name].values[ids_a, rank]
        for i in range(len(chosen)):
            worst = max(worst, abs(float(np.corrcoef(a[half == h, i], b[half == h, i])[0, 1]) - reported[i]))
    return worst


#: Settings of the correlation that the command line takes, and their usual values.
USUAL = {"top_k": 16, "memory": "3GB", "device": "auto", "select": "half", "min_firing": 10, "keep_above": 0.1}


def benchmark(
    rows: int, features: int, active: int | None, *, firing: str = "uniform", **settings: Any
) -> dict[str, Any]:
    """Run the benchmark and return its figures.

    Parameters
    ----------
    rows, features
        Shape of both stores.
    active
        Active features a row; None for dense stores.
    firing
        How often features fire: all alike (``uniform``), or by Zipf's law (``zipf``).
    **settings
        Of the correlation, in place of those in :data:`USUAL`.
    """
    settings = USUAL | settings
    folder = Path(tempfile.mkdtemp(prefix="benchmark-correlate-"))
    try:
        a, b, out = folder / "a.zarr", folder / "b.zarr", folder / "out.zarr"
        start = time.perf_counter()
        write_random_store(a, rows, features, active, seed=1, firing=firing)
        write_random_store(b, rows, features, active, seed=2, firing=firing)
        writing = time.perf_counter() - start
        arguments = {"a": str(a), "b": str(b), "out": str(out), **settings}
        rates = dataclasses.asdict(measure_rates(n_cpus()))
        figures = run_measured(MEASURED, {**arguments, "rates": rates})
        rate = sgemm_rate(size=min(4096, max(512, features)))
        bound = 2.0 * rows * features * features / rate
        kind = "--dense" if active is None else f"--active {active}"
        ratios = {"sgemm": figures["seconds"] / bound}
        if active is not None:
            figures |= run_measured_loop(a, b, settings)
            ratios |= {
                "bare_loop": figures["seconds"] / figures["bare_loop_seconds"],
                "bare_loop_cpu": figures["correlate_cpu_seconds"] / figures["bare_loop_cpu_seconds"],
            }
            figures["seconds_per_product"] = figures["seconds"] / n_products(a, b)
        return {
            "name": "correlate",
            "command": f"python -m benchmarks.correlate --rows {rows} --features {features} {kind}"
            f"{options(settings | {'firing': firing})}",
            "rows": rows,
            "features": features,
            "active": active,
            "firing": firing,
            **{name: settings[name] for name in ("top_k", "min_firing", "keep_above")},
            **figures,
            "write_seconds": writing,
            "planned_time_ratio": figures["planned_seconds"] / figures["seconds"],
            "max_error": max_error(out, a, b),
            "sgemm_gflops": rate / 1e9,
            "ratios": ratios,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def options(settings: dict[str, Any]) -> str:
    """Return the options of a command line that gives these settings: those that a result's name has had always, first.

    >>> options(USUAL | {"firing": "zipf"})
    ' --top-k 16 --memory 3GB --firing zipf'
    """
    usual = USUAL | {"firing": "uniform"}
    named = {name: value for name, value in settings.items() if name in {"top_k", "memory"} or value != usual[name]}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in named.items())


def run_measured_loop(a: Path, b: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of the bare loop over two stores, in a process of its own."""
    arguments = {"a": str(a), "b": str(b), "threads": n_cpus(), "keep_above": settings["keep_above"]}
    figures = run_measured(BARE_LOOP, arguments)
    return {f"bare_loop_{name.removeprefix('loop_')}": value for name, value in figures.items() if name in LOOP}


def n_products(a: Path, b: Path) -> float:
    """Return how many products of two values in a row two stores have."""
    rows = [np.diff(storage.read_csr(path).indptr).astype(np.float64) for path in (a, b)]
    return float(rows[0] @ rows[1])


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument("--firing", choices=["uniform", "zipf"], default="uniform", help="how often features fire")
    parser.add_argument("--top-k", type=int, default=16)
    parser.add_argument("--min-firing", type=int, default=10)
    parser.add_argument("--keep-above", type=float, default=0.1)
    parser.add_argument("--memory", default="3GB")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where products are computed")
    parser.add_argument("--select", choices=["half", "all"], default="half", help="which rows choose")
    parser.add_argument("--dense", action="store_true", help="dense stores; --active is ignored")
    given = vars(parser.parse_args())
    active = None if given["dense"] else given["active"]
    settings = {name: given[name] for name in (*USUAL, "firing")}
    print(json.dumps(benchmark(given["rows"], given["features"], active, **settings)))


if __name__ == "__main__":
    main()
