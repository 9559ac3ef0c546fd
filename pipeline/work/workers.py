"""Running many small tasks on Dask: bounded submission, readable names, progress, clean interruption.

Every stage hands its work to :func:`run_tasks`, so that all of them show progress in the same way, keep only a few
futures in flight, and leave nothing running on the cluster when they are interrupted.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import dask
from distributed import Client, KilledWorker, LocalCluster, as_completed
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from threadpoolctl import threadpool_limits

from pipeline.work.profiler import PROFILER
from storage.errors import WorkerLostError, shown

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Seconds between two progress lines where the output is not a terminal.
LOG_INTERVAL = 15.0

#: Seconds between two changes of a bar in a notebook.
NOTEBOOK_INTERVAL = 0.25

#: Seconds between two looks at how many tasks the workers can run: jobs of a cluster start one after the other.
SLOTS_INTERVAL = 1.0

#: Seconds that a cluster may take to close.
CLOSING_SECONDS = 30.0

#: Where the dashboard of a local cluster listens, if nothing else does.
DASHBOARD_PORT = 8787


@dataclass(frozen=True)
class Planned:
    """What a stage will take at most in each worker process, in bytes.

    Those `reserved` of them a process takes before it holds any data; one that ran other stages may hold more.
    """

    what: str
    memory: int
    reserved: int = 0

    def limit(self, before: float) -> float:
        """Return what a process may hold at most, if it held so much before the stage."""
        return max(float(self.memory), before - self.reserved + self.memory)


@dataclass(frozen=True)
class Advanced:
    """How far the tasks of one :func:`run_tasks` are: of how many, and how many rows the newest ones stand for."""

    label: str
    done: int
    total: int
    rows: float


@dataclass(frozen=True)
class Staged:
    """Which stage of a run has begun, and the names of all that the run will pass, in their order."""

    name: str
    names: tuple[str, ...]


Event = Planned | Advanced | Staged
Listener = Callable[[Event], None]
#: :meth:`ItemProgress.advance`.
Advance = Callable[..., None]
_listeners: list[Listener] = []


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have a function told what stages plan and how far they are, for as long as the block lasts.

    It is called in the thread that runs the stage, so it has to be quick.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(event: Event) -> None:
    """Tell whoever listens."""
    for listener in _listeners:
        listener(event)


@contextlib.contextmanager
def local_client(n_workers: int = 1, threads_per_worker: int | None = None) -> Iterator[Client]:
    """Run workers that are threads of this process, for as long as the block lasts.

    Threads start in about 0.1 s, need no ``if __name__ == "__main__"`` guard, and share memory; the kernels release
    the interpreter lock. Each worker has as many as the CPUs this process may use allow, if `threads_per_worker` does
    not say. The dashboard is bound to localhost: port 8787, or any free one when that is taken.
    """
    threads = threads_per_worker or max(1, n_cpus() // n_workers)
    with dask.config.set(PROFILER):
        cluster = LocalCluster(
            n_workers=n_workers,
            threads_per_worker=threads,
            processes=False,
            # limited by each stage's own plan; Dask's limit would pause threads that share one process
            memory_limit=0,
            dashboard_address=f"127.0.0.1:{_free_port(DASHBOARD_PORT)}",
        )
    with cluster, Client(cluster) as client:
        logger.info("Dashboard: %s", dashboard_url(client))
        yield client


@contextlib.contextmanager
def closing(cluster: Any) -> Iterator[Any]:
    """Yield a Dask cluster and close it, without waiting for ever.

    Where a worker process was killed shortly before, ``cluster.close()`` may wait for good (seen in three of four runs
    with distributed 2026.7.1), and a run whose results are all complete would never end.
    """
    try:
        yield cluster
    finally:
        try:
            cluster.close(timeout=CLOSING_SECONDS)
        except TimeoutError:
            logger.warning(
                "The cluster did not close within %g s: it still waits for a worker that died late. Results are not "
                "concerned, and its processes end with this one",
                CLOSING_SECONDS,
            )


#: A client; a function that opens one, called when all that can be refused is; or None, for threads of this process.
ClientSource: TypeAlias = Client | Callable[[], contextlib.AbstractContextManager[Client]] | None


@contextlib.contextmanager
def ensure_client(source: ClientSource) -> Iterator[Client]:
    """Yield the client that is given, or one that lives as long as the block: what `source` opens, or threads here.

    BLAS is held to one thread in this process meanwhile: tasks that are threads and each call a multi-threaded BLAS
    wait for each other, at worst for longer than they compute. (Dask starts worker processes with one BLAS thread.)
    """
    with threadpool_limits(1, user_api="blas"), contextlib.ExitStack() as stack:
        yield source if isinstance(source, Client) else stack.enter_context((source or local_client)())


def dashboard_url(client: Client) -> str:
    """Return the address of `client`'s dashboard, as a browser on the scheduler's machine opens it."""
    port = client.scheduler_info(n_workers=0)["services"].get("dashboard")
    local = isinstance(client.cluster, LocalCluster)
    return f"http://127.0.0.1:{port}/status" if local else client.dashboard_link


def n_cpus() -> int:
    """Return how many CPUs this process may use (fewer than the machine has, under Slurm or ``taskset``)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port(wanted: int) -> int:
    """Return `wanted` if nothing listens there, else 0, which lets the system choose."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


def n_slots(client: Client) -> int:
    """Return how many tasks `client`'s workers can run at once (at least 1)."""
    return max(1, sum(client.nthreads().values()))


def run_tasks(
    client: Client,
    function: Callable[..., Result],
    items: Sequence[Item],
    *,
    name: str,
    label: str,
    args: Sequence[Any] = (),
    retries: int = 2,
    per_slot: int = 2,
    rows: Callable[[Item], float] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Run ``function(item, *args)`` for every item and yield ``(item, result)`` as they finish.

    Parameters
    ----------
    function
        A module-level function. Its result should be small: large ones are written to disk by the task.
    items
        One task each. Their order is the order of submission, not of completion.
    name, label
        Prefix of the task keys, as the dashboard shows them (``correlate-panel``), and what the progress bar says.
    args
        Further arguments, the same for every task.
    retries
        How often a task is tried again when it raises or its worker dies.
    per_slot
        Tasks in flight for each thread of the cluster; bounds the memory that waiting results can take.
    rows
        How many rows of text an item stands for, for those who watch.

    Raises
    ------
    WorkerLostError
        If worker after worker dies under the same task (``distributed.scheduler.allowed-failures``); with its name.
    """
    run = f"{time.time_ns():x}"
    waiting = iter(enumerate(items))
    in_flight: dict[str, tuple[Item, Any]] = {}

    def submit(count: int) -> list[Any]:
        futures = []
        for i, item in itertools.islice(waiting, count):
            # dask takes the part before the last dashes as the group's name
            future = client.submit(function, item, *args, key=(f"{name}-{run}", i), retries=retries, pure=False)
            in_flight[str(future.key)] = item, future
            futures.append(future)
        return futures

    done, looked = 0, time.monotonic()
    # results come in the background: fetching each as it is asked for takes a round trip of some milliseconds
    completed = as_completed(submit(per_slot * n_slots(client)), with_results=True)
    try:
        with progress(label, len(items)) as advance:
            try:
                for future, result in completed:
                    if future.cancelled():
                        raise result
                    item, _ = in_flight.pop(str(future.key))
                    future.release()
                    count = 1
                    if time.monotonic() - looked >= SLOTS_INTERVAL:  # workers that came since can be given work too
                        count, looked = max(0, per_slot * n_slots(client) - len(in_flight)), time.monotonic()
                    for new in submit(count):
                        completed.add(new)
                    n_rows = rows(item) if rows else 0.0
                    advance(1, n_rows)
                    done += 1
                    tell(Advanced(label, done, len(items), n_rows))
                    yield item, result
            except KilledWorker as error:
                suspects = {key: item for key, (item, future) in in_flight.items() if future.status == "error"}
                raise _poisoned(error, label, suspects) from error
    finally:
        if completed.futures:
            client.cancel(list(completed.futures), force=True)


def _poisoned(error: KilledWorker, label: str, suspects: dict[str, Item]) -> WorkerLostError:
    """Return the error of a task that took worker after worker with it, with the task named.

    Dask suspects all tasks that were on the worker, also those that only waited there, so all of them are named.
    """
    group = error.task[0] if isinstance(error.task, tuple) else error.task
    name = str(group).rpartition("-")[0] or str(group)
    named = " or ".join(f"{name} {shown(str(item))}" for item in suspects.values())
    return WorkerLostError(
        f"{label}: {named} took its worker with it {error.allowed_failures + 1} times, the last one being "
        f"{error.last_worker.name} at {error.last_worker.address}, and is not tried again. Most often a worker "
        "that dies has run out of memory: give each more of it, or the stage less (`memory`). If workers were "
        "cancelled or preempted that often, raise distributed.scheduler.allowed-failures in your cluster file. What "
        "is finished is kept",
        worker=str(error.last_worker.name),
    )


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """Show progress: a bar in a notebook or on a terminal (standard error), a log line now and then elsewhere."""
    if in_notebook():
        yield ItemProgress(label, total, _notebook_bar(total), NOTEBOOK_INTERVAL).advance
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, rate="")
            show = lambda state: bar.update(task, completed=state.done, rate=state.rate)  # noqa: E731
            yield ItemProgress(label, total, show).advance
    else:
        yield ItemProgress(label, total, lambda state: logger.info("%s", state), LOG_INTERVAL).advance


def in_notebook() -> bool:
    """Return whether this runs in a notebook's kernel; where IPython was never imported, it does not."""
    interactive = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class ItemProgress:
    """How far and how fast work is; given to `show`, for its text, at most every `interval` seconds and at the end."""

    def __init__(self, label: str, total: int, show: Callable[[ItemProgress], object], interval: float = 0.0) -> None:
        self.label, self.total, self.show, self.interval = label, total, show, interval
        self.done, self.rows, self.seconds, self.rate = 0, 0.0, 0.0, ""
        self._start = self._shown = time.monotonic()

    def advance(self, n: int, rows: float = 0.0) -> None:
        """Take in how many items were done, and, where it is known, how many rows of text that is."""
        now = time.monotonic()
        self.done, self.rows, self.seconds = self.done + n, self.rows + rows, max(now - self._start, 1e-9)
        self.rate = f"{self.rows / self.seconds:,.0f} rows/s" if self.rows else f"{self.done / self.seconds:,.3g}/s"
        if self.done == self.total or now - self._shown >= self.interval:
            self._shown = now
            self.show(self)

    def __str__(self) -> str:
        text = f"{self.label}: {self.done} of {self.total} in {self.seconds:.1f} s"
        if not 0 < self.done < self.total:
            return f"{text}, {self.rate}" if self.rate else text
        return f"{text}, {self.rate}, about {self.seconds * (self.total - self.done) / self.done:.0f} s left"


def _notebook_bar(total: int) -> Callable[[ItemProgress], None]:
    """Display a bar of plain HTML and return what updates it: it needs no widgets, and stays when saved."""
    from IPython.display import HTML, display  # noqa: PLC0415 - only notebooks have it

    def bar(text: str, done: int) -> Any:
        return HTML(f'<progress max="{total}" value="{done}"></progress> {html.escape(text)}')

    handle = display(bar("", 0), display_id=True)
    return lambda state: handle.update(bar(str(state), state.done))


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends: some libraries swallow it while they are imported."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    seen: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous or signal.default_int_handler)
    if seen:
        raise KeyboardInterrupt


def in_order(results: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Yield the results of numbered tasks in the order of their numbers, holding only those that came early."""
    early: dict[int, Result] = {}
    expected = 0
    for number, result in results:
        early[number] = result
        while expected in early:
            yield early.pop(expected)
            expected += 1
