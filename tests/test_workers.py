"""Running tasks: all of them, bounded, retried, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time

import pytest
from distributed import Client, LocalCluster

from pipeline.workers import closing, dashboard_url, deferred_interrupt, ensure_client, in_order, n_slots, run_tasks

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


def test_the_dashboard_is_on_localhost() -> None:
    with ensure_client(None) as own:
        assert dashboard_url(own).startswith("http://127.0.0.1:")


def test_a_cluster_that_does_not_close_does_not_hold_up_a_finished_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Worker processes that are killed late leave a cluster of Dask's waiting for them for good."""
    monkeypatch.setattr("pipeline.workers.CLOSING_SECONDS", 0.2)
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
