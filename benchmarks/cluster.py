"""What Dask costs: the correlation of two random stores on 1, 2 and 4 workers, against the same panels without Dask.

::

    python -m benchmarks.cluster --rows 300000 --features 32768 --active 32 --folder /tmp/stores
    python -m benchmarks.cluster --reads --rows 65536 --active 16 --memory 4 1.2 --folder /tmp/stores

The bare runs call the same tasks on the same panels from plain threads of one process, and from as many plain
processes, and do everything else (plan, statistics, merge, result) alike. Workers are processes, as those of a cluster
are, each with one thread; all have done a small correlation before, so that imports and compilation are not timed.
Every process reads all of B for itself, with Dask or without. Bare runs and those with Dask take turns, and the fastest
of each counts: whatever else the machine does only adds. Then, through the same function that runs all tasks, tasks
that do nothing tell what one costs the scheduler. The last line is one JSON object; ``overheads`` is time with Dask ÷
time of the bare run of the same kind − 1, both measured in the same run: `panels` of the tasks alone, `whole` from
stores to result.

With ``--reads`` nothing is timed: bytes read from the shards of both stores are counted while one process does the
tasks of 1, 4, 16 and 64 workers in turn, each with a memory of its own for what a worker keeps.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from benchmarks.correlate import write_random_store
from pipeline.correlate import job
from pipeline.correlate.plan import Plan, Resources
from pipeline.correlate.run import correlate
from pipeline.work.workers import closing, local_client, n_cpus, run_tasks
from storage.sparse_array import Shard

#: The module, where the package holds a function of that name.
STAGE: Any = importlib.import_module("pipeline.correlate.run")
PLAN: Any = importlib.import_module("pipeline.correlate.plan")
REST: Any = importlib.import_module("pipeline.correlate.rest")
SHARD: Any = Shard
NO_OPS = 10_000
WARM_UP = {"rows": 4096, "features": 512, "active": 8}


def nothing(item: int) -> int:
    """Do nothing; the task whose cost is all Dask's."""
    return item


def without_dask(pool: Executor) -> Callable[..., Iterator[Any]]:
    """Return what does the work of ``run_tasks`` on plain threads or processes."""

    def run_bare(
        _client: Client, function: Callable[..., Any], items: Sequence[Any], *, args: Sequence[Any] = (), **_: Any
    ) -> Iterator[Any]:
        for item, future in [(item, pool.submit(function, item, *args)) for item in items]:
            yield item, future.result()

    return run_bare


@contextlib.contextmanager
def timed_tasks(how: Callable[..., Iterator[Any]], seconds: list[float]) -> Iterator[None]:
    """Have the stage run its tasks by a function, and note how long all of them took."""

    def timed(*arguments: Any, **settings: Any) -> Iterator[Any]:
        start = time.perf_counter()
        yield from how(*arguments, **settings)
        seconds.append(time.perf_counter() - start)

    previous, STAGE.run_tasks = STAGE.run_tasks, timed
    try:
        yield
    finally:
        STAGE.run_tasks = previous


def time_correlation(
    stores: tuple[Path, Path], out: Path, client: Client, how: Callable[..., Iterator[Any]], memory: str
) -> dict[str, float]:
    """Correlate two stores once; return the seconds of the tasks and of the whole."""
    shutil.rmtree(out, ignore_errors=True)
    tasks: list[float] = []
    start = time.perf_counter()
    with timed_tasks(how, tasks):
        correlate(*stores, memory=memory, out=out, client=client)
    return {"panels": sum(tasks), "whole": time.perf_counter() - start}


def fastest(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the least of each figure."""
    return {name: min(run[name] for run in runs) for name in runs[0]}


@contextlib.contextmanager
def processes(workers: int, threads: int = 1) -> Iterator[Client]:
    """Start worker processes."""
    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=threads, memory_limit=0, dashboard_address="127.0.0.1:0"
    )
    with closing(cluster), Client(cluster) as client:
        yield client


def plain_processes(count: int) -> ProcessPoolExecutor:
    """Return as many processes without Dask, started again as Dask's are."""
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def seconds_a_task(count: int, workers: int = 2) -> float:
    """Return the seconds of one task that does nothing, on worker processes of eight threads each."""
    with processes(workers, 8) as client:
        list(run_tasks(client, nothing, range(100), name="benchmark-warm", label="Warm-up"))
        start = time.perf_counter()
        for _ in run_tasks(client, nothing, range(count), name="benchmark-nothing", label="Nothing"):
            pass
        return (time.perf_counter() - start) / count


def make_stores(folder: Path, rows: int, features: int, active: int) -> tuple[Path, Path]:
    """Return two random stores of a shape, those that are there already or new ones."""
    paths = (folder / f"a-{rows}-{features}-{active}.zarr", folder / f"b-{rows}-{features}-{active}.zarr")
    for seed, path in enumerate(paths, start=1):
        if not path.exists():
            write_random_store(path, rows, features, active, seed=seed)
    return paths


def benchmark(  # noqa: PLR0917
    rows: int, features: int, active: int, memory: str, folder: Path, workers: Sequence[int], repeats: int, no_ops: int
) -> dict[str, Any]:
    """Run the benchmark and return its figures.

    Parameters
    ----------
    rows, features, active
        Shape of both stores, and active features a row.
    memory
        Budget, as ``pipeline.correlate`` takes it.
    folder
        For the stores, which stay, and the results, which do not.
    workers
        How many worker processes, one after the other.
    repeats
        Runs of each; the fastest counts.
    no_ops
        Tasks that do nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stores, small = make_stores(folder, rows, features, active), make_stores(folder, **WARM_UP)
    out = folder / "out.zarr"
    found: dict[str, dict[str, float]] = {}

    def measure(kind: str, client: Client, pool: Executor) -> None:
        # the client is asked for its workers also where it runs nothing, so that both have the same panels
        ways = {f"bare, {kind}": without_dask(pool), f"dask, {kind}": run_tasks}
        for how in ways.values():
            time_correlation(small, out, client, how, memory)
        runs = [
            {name: time_correlation(stores, out, client, how, memory) for name, how in ways.items()}
            for _ in range(repeats)
        ]
        found.update({name: fastest([run[name] for run in runs]) for name in ways})

    threads = n_cpus()
    try:
        with local_client(1, threads) as client, ThreadPoolExecutor(threads) as plain_threads:
            measure(f"{threads} threads", client, plain_threads)
        for count in workers:
            with processes(count) as client, plain_processes(count) as pool:
                measure(f"{count} processes", client, pool)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    overheads = {
        name: {part: value / found[name.replace("dask", "bare")][part] - 1 for part, value in figures.items()}
        for name, figures in found.items()
        if name.startswith("dask")
    }
    return {
        "name": "cluster",
        "command": f"python -m benchmarks.cluster --rows {rows} --features {features} --active {active}",
        "rows": rows,
        "features": features,
        "active": active,
        "cpus": threads,
        "all_seconds": found,
        "overheads": overheads,
        "seconds_a_task": seconds_a_task(no_ops),
        "seconds": found[f"dask, {workers[-1]} processes"]["whole"],
        "ratios": {f"without Dask, {name[6:]}": 1 + over["whole"] for name, over in overheads.items()},
    }


@contextlib.contextmanager
def simulated(workers: int, memory: int, method: str) -> Iterator[list[Plan]]:
    """Have this process do the tasks of so many workers, each of its memory, in turn; yield the plans that it makes."""
    processes, plans = [job.Process() for _ in range(workers)], []
    real = job.PROCESS, STAGE.find_resources, STAGE.make_plan, PLAN._methods

    def run_in_turn(
        _client: Client, function: Callable[..., Any], items: Sequence[Any], *, args: Sequence[Any] = (), **_: Any
    ) -> Iterator[Any]:
        for i, item in enumerate(items):
            job.PROCESS = processes[i % workers]
            yield item, function(item, *args)

    def plan(*sizes: Any, **more: Any) -> Plan:
        plans.append(real[2](*sizes, **more))
        return plans[-1]

    STAGE.find_resources = lambda *_: Resources(workers * memory, workers)
    STAGE.make_plan, PLAN._methods = plan, lambda _: [method]
    STAGE.run_tasks, REST.run_tasks = run_in_turn, run_in_turn
    try:
        yield plans
    finally:
        STAGE.run_tasks, REST.run_tasks = run_tasks, run_tasks
        job.PROCESS, STAGE.find_resources, STAGE.make_plan, PLAN._methods = real


@contextlib.contextmanager
def counted_bytes(stores: Sequence[Path]) -> Iterator[list[int]]:
    """Count the bytes that are read from the shards of stores."""
    read, n_bytes = Shard._read, [0]

    def counting(shard: Shard, offset: int, length: int) -> bytes:
        if any(store in Path(shard.path).parents for store in stores):
            n_bytes[0] += length
        return read(shard, offset, length)

    SHARD._read = counting
    try:
        yield n_bytes
    finally:
        SHARD._read = read


def count_reads(  # noqa: PLR0917
    rows: int, features: int, active: int, memory: Sequence[float], folder: Path, workers: Sequence[int]
) -> dict[str, Any]:
    """Count what correlating two random stores reads from them; memory in GB of each worker, several one by one.

    Resident plans have the first memory alone: rows of a strip take little.
    """
    stores = make_stores(folder, rows, features, active)
    shards = [file for store in stores for file in (store / "activation").rglob("*") if file.is_file()]
    size, out, counted = sum(file.stat().st_size for file in shards) / 2, folder / "out.zarr", []
    with local_client(1, 1) as client:
        ways = [("resident", memory[0]), *(("streaming", each) for each in memory)]
        for (method, each), count in itertools.product(ways, workers):
            shutil.rmtree(out, ignore_errors=True)
            with simulated(count, int(each * 1e9), method) as plans, counted_bytes(stores) as n_bytes:
                correlate(*stores, memory=f"{each * count}GB", out=out, client=client, kernel="sparse")
            plan = plans[-1]
            counted.append(
                {
                    "method": method,
                    "memory": each,
                    "workers": count,
                    "panels": plan.n_panels,
                    "strips": plan.n_strips,
                    "touched": plan.touched,
                    "planned": sum(plan.reads(count)),
                    "stores": n_bytes[0] / size,
                }
            )
    shutil.rmtree(out, ignore_errors=True)
    given = f"--rows {rows} --features {features} --active {active} --memory {' '.join(f'{each:g}' for each in memory)}"
    return {
        "name": "cluster-reads",
        "command": f"python -m benchmarks.cluster --reads {given}",
        "rows": rows,
        "features": features,
        "active": active,
        "store_bytes": size,
        "reads": counted,
    }


def show_reads(result: dict[str, Any]) -> None:
    """Print a table."""
    for run in result["reads"]:
        print(*(f"{name} {value:.4g}" if not isinstance(value, str) else value for name, value in run.items()))


def show(result: dict[str, Any]) -> None:
    """Print a table."""
    print(f"{'':<22}{'panels s':>10}{'over':>8}{'whole s':>10}{'over':>8}")
    for name, figures in result["all_seconds"].items():
        over = result["overheads"].get(name)
        shown = [f"{100 * over[part]:+.0f} %" if over else "" for part in ("panels", "whole")]
        print(f"{name:<22}{figures['panels']:>10.2f}{shown[0]:>8}{figures['whole']:>10.2f}{shown[1]:>8}")
    print(f"a task that does nothing: {1e3 * result['seconds_a_task']:.2f} ms")


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument(
        "--memory", help="budget of all workers; with --reads, GB of each, several one by one", nargs="+"
    )
    parser.add_argument("--workers", type=int, nargs="+")
    parser.add_argument("--reads", action="store_true", help="count bytes that are read, in place of times")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-ops", type=int, default=NO_OPS)
    parser.add_argument("--folder", type=Path, help="where the stores are kept; by default they are deleted")
    given = vars(parser.parse_args())
    with contextlib.ExitStack() as stack:
        if given["folder"] is None:
            given["folder"] = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-cluster-")))
        if given.pop("reads"):
            given |= {"memory": [float(each) for each in given["memory"] or (4.0,)]}
            given["workers"] = given["workers"] or [1, 4, 16, 64]
            result = count_reads(**{name: given[name] for name in given if name not in {"repeats", "no_ops"}})
            show_reads(result)
        else:
            given |= {"memory": (given["memory"] or ["4GB"])[0], "workers": given["workers"] or [1, 2, 4]}
            result = benchmark(**given)
            show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
