"""Running tasks: all of them, bounded, retried, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest
from distributed import Client, LocalCluster

from pipeline.work import workers
from pipeline.work.workers import (
    Advanced,
    Event,
    Planned,
    closing,
    dashboard_url,
    deferred_interrupt,
    ensure_client,
    in_order,
    listening,
    local_client,
    n_slots,
    progress,
    run_tasks,
    tell,
)
from storage.errors import WorkerLostError

_lock = threading.Lock()
_running = 0
_most = 0
_failed: set[int] = set()


def counted(item: int) -> int:
    global _running, _most
    with _lock:
        _running += 1
        _most = max(_most, _running)
    time.sleep(0.005)
    with _lock:
        _running -= 1
    return item * item


def fails_once(item: int) -> int:
    with _lock:
        first = item not in _failed
        _failed.add(item)
    if first:
        raise RuntimeError(f"first try of {item}")
    return item


def fails(item: int) -> int:
    raise ValueError(f"item {item} is bad")


def test_workers_do_not_sample_stacks_where_that_can_stop_the_process() -> None:
    with (
        dask.config.set({"distributed.worker.profile.enabled": True}),
        local_client(threads_per_worker=1) as client,
    ):
        (worker,) = client.cluster.workers.values()
        assert ("profile" in worker.periodic_callbacks) == (sys.version_info >= (3, 12))


def test_every_item_once_in_order(client: Client) -> None:
    results = list(in_order(run_tasks(client, counted, range(50), name="test-square", label="Squares")))
    assert results == [i * i for i in range(50)]
    assert n_slots(client) >= _most >= 1


def test_retries(client: Client) -> None:
    assert sorted(i for i, _ in run_tasks(client, fails_once, range(3), name="test-retry", label="Retry")) == [0, 1, 2]


def test_an_error_reaches_the_caller_and_nothing_runs_on(client: Client) -> None:
    with pytest.raises(ValueError, match="is bad"):
        list(run_tasks(client, fails, range(100), name="test-fail", label="Fail", retries=0))
    deadline = time.monotonic() + 5
    while client.processing() and any(client.processing().values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(client.processing().values())


def test_an_interrupt_that_is_swallowed_inside_comes_when_the_block_ends() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # test runners set their own, or ignore it
    try:
        with pytest.raises(KeyboardInterrupt), deferred_interrupt(), contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_items(client: Client) -> None:
    assert list(run_tasks(client, counted, [], name="test-none", label="None")) == []


def test_workers_that_come_later_are_given_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a cluster start one after the other, and the tasks in flight follow the threads there are."""
    global _most
    monkeypatch.setattr(workers, "SLOTS_INTERVAL", 0.05)
    _most = 0
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as own,
    ):
        for done, _ in enumerate(run_tasks(own, counted, range(300), name="test-grow", label="Grow")):
            if done == 5:
                assert _most == 1
                cluster.scale(4)
                own.wait_for_workers(4)
    assert _most == 4


def test_the_dashboard_is_on_localhost() -> None:
    with ensure_client(None) as own:
        assert dashboard_url(own).startswith("http://127.0.0.1:")


def test_a_cluster_that_does_not_close_does_not_hold_up_a_finished_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Worker processes that are killed late leave a cluster of Dask's waiting for them for good."""
    monkeypatch.setattr("pipeline.work.workers.CLOSING_SECONDS", 0.2)
    cluster = LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0")
    close = cluster._close
    monkeypatch.setattr(cluster, "_close", lambda: asyncio.sleep(60))
    with closing(cluster) as same:
        assert same is cluster
    assert "did not close within 0.2 s" in caplog.text
    monkeypatch.setattr(cluster, "_close", close)
    cluster.close()


def test_a_cluster_is_closed_where_it_can_be() -> None:
    with closing(LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0")) as cluster:
        assert cluster.status.name == "running"
    assert cluster.status.name == "closed"


def kills_its_worker(item: int) -> int:
    if item == 3:
        os._exit(9)
    return item


def test_a_task_that_kills_its_workers_is_named() -> None:
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    said = r"Doomed: .*test-doomed '3'.* took its worker with it 1 times"
    with closing(cluster), Client(cluster) as own, pytest.raises(WorkerLostError, match=said):
        list(run_tasks(own, kills_its_worker, range(6), name="test-doomed", label="Doomed", retries=5))


def test_who_listens_is_told_how_far_tasks_are(client: Client) -> None:
    heard: list[Event] = []
    with listening(heard.append):
        tell(Planned("x", 5))
        list(run_tasks(client, counted, range(3), name="test-listen", label="Listen", rows=lambda item: 10.0 * item))
    tell(Planned("nobody hears it", 6))
    assert heard[0] == Planned("x", 5)
    assert [event.done for event in heard[1:] if isinstance(event, Advanced)] == [1, 2, 3]
    assert sum(event.rows for event in heard[1:] if isinstance(event, Advanced)) == 30.0


def test_progress_in_a_log_file(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pipeline.work.workers"), progress("Stage", 3) as advance:
        for _ in range(3):
            advance(1)
    assert [record.message.split(" in ")[0] for record in caplog.records] == ["Stage: 3 of 3"]
    assert re.fullmatch(r".* s, [\d.,e+]+/s", caplog.records[0].message)


def test_progress_says_rows_a_second_and_the_time_that_is_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level("INFO", "pipeline.work.workers"), progress("Stage", 4) as advance:
        advance(1, 50_000.0)
    assert caplog.records[0].message == "Stage: 1 of 4 in 20.0 s, 2,500 rows/s, about 60 s left"


def test_progress_on_a_terminal() -> None:
    """A process of its own whose standard error is a pseudo-terminal."""
    ours, theirs = pty.openpty()
    code = "from pipeline.work.workers import progress\nwith progress('Stage', 3) as advance:\n    advance(3)\n"
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # a pseudo-terminal ends like this
            while part := os.read(ours, 4096):
                seen += part
    os.close(ours)
    assert process.returncode == 0
    assert b"Stage" in seen
    assert b"3/3" in seen
    assert b"/s" in seen


def test_progress_in_a_notebook(tmp_path: Path) -> None:
    """A real kernel; what is saved with the notebook is the full bar, without any widget."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    code = "import pipeline.work.workers as w\nwith w.progress('Stage <1>', 3) as advance:\n    advance(2); advance(1)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    [shown] = [output for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert '<progress max="3" value="3"></progress> Stage &lt;1&gt;: 3 of 3' in shown["data"]["text/html"]
    assert "application/vnd.jupyter.widget-view+json" not in shown["data"]
