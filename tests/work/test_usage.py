"""What each stage took: time, and the memory of its workers, as the kernel counts it."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from dask import config as dask_config
from distributed import Client, LocalCluster

from pipeline.work.usage import StageUsage, UsageLog, read_usage, worth_showing
from pipeline.work.workers import Planned, tell

MB = 10**6
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere peaks are of the whole process")


def take(n_bytes: int) -> tuple[str, int]:
    """Hold so many bytes for a moment, and say where."""
    assert np.ones(n_bytes // 8).sum() == n_bytes // 8
    return socket.gethostname(), os.getpid()


@pytest.fixture(scope="module")
def processes() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as own,
    ):
        yield own


def test_a_peak_is_seen_though_it_was_short_and_belongs_to_its_stage_alone(client: Client, tmp_path: Path) -> None:
    log = UsageLog(tmp_path, client)
    held = psutil.Process().memory_info().rss
    with log.stage("harvest"):
        client.submit(take, 400 * MB, pure=False).result()
    with log.stage("match"):
        pass
    first, second = read_usage(tmp_path)
    assert (first.stage, second.stage, first.ended) == ("harvest", "match", "finished")
    assert first.peak is not None
    assert second.peak is not None
    assert held + 380 * MB < first.peak < held + 700 * MB
    assert second.peak < first.peak - 200 * MB
    assert (first.processes, first.threads) == (1, 2)
    assert first.peak == first.peak_sum, "threads of one process are counted once"
    assert first.peak_driver is None, "the process that runs the stages is the workers' own"
    assert first.seconds > 0
    assert not first.since_start


def test_of_processes_the_fullest_and_all_of_them(processes: Client, tmp_path: Path) -> None:
    log = UsageLog(tmp_path, processes)
    with log.stage("correlate"):
        processes.run(take, 300 * MB, workers=list(processes.nthreads())[:1])
    (result,) = read_usage(tmp_path)
    assert result.peak is not None
    assert result.peak_sum is not None
    assert result.peak_driver is not None
    assert result.processes == 2
    assert result.peak > 300 * MB
    assert result.peak + 30 * MB < result.peak_sum < 2 * result.peak


def test_the_plan_counts_from_what_was_held(client: Client, tmp_path: Path) -> None:
    held = psutil.Process().memory_info().rss
    with UsageLog(tmp_path, client).stage("correlate"):
        tell(Planned("test", 700 * MB, reserved=500 * MB))
        tell(Planned("test", 600 * MB, reserved=500 * MB))
    (result,) = read_usage(tmp_path)
    assert result.planned == pytest.approx(max(700 * MB, held + 200 * MB), abs=60 * MB)


def test_a_stage_without_a_plan_has_none(client: Client, tmp_path: Path) -> None:
    with UsageLog(tmp_path, client).stage("report"):
        pass
    assert read_usage(tmp_path)[0].planned is None


def test_a_stage_that_fails_is_recorded_too(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on purpose"), UsageLog(tmp_path, client).stage("match"):
        raise ValueError("on purpose")
    assert read_usage(tmp_path)[0].ended == "stopped by ValueError"


def test_workers_that_are_gone_are_counted(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as own,
    ):
        with UsageLog(tmp_path, own).stage("harvest"):
            own.retire_workers(list(own.nthreads())[:1])
            cluster.scale(1)
        (result,) = read_usage(tmp_path)
    assert (result.processes, result.gone) == (2, 1)


def test_a_cluster_that_is_gone_costs_the_figures_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        own = Client(cluster)
        log = UsageLog(tmp_path, own)
        with caplog.at_level(logging.WARNING, logger="pipeline.work.usage"), log.stage("harvest"):
            own.close()
    (result,) = read_usage(tmp_path)
    assert result.peak is None
    assert "memory" in caplog.text


def test_the_profile_is_named(client: Client, tmp_path: Path) -> None:
    with dask_config.set({"subspace.cluster": "slurm-cpu"}), UsageLog(tmp_path, client).stage("match"):
        pass
    assert read_usage(tmp_path)[0].cluster == "slurm-cpu"


def test_sessions_are_read_in_their_order_and_damage_is_said(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_usage(tmp_path / "none") == []
    for stage in ("harvest", "match"):
        with UsageLog(tmp_path, client).stage(stage):
            pass
    assert [one.stage for one in read_usage(tmp_path)] == ["harvest", "match"]
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "0.json").write_text("{")
    (tmp_path / "1.json").write_text(json.dumps({"stages": [{"stage": "harvest"}]}))
    assert len(read_usage(tmp_path)) == 2
    assert "0.json" in caplog.text
    assert "1.json" in caplog.text


def usage(stage: str, seconds: float) -> StageUsage:
    return StageUsage(stage=stage, begun="2026-01-01T00:00:00.000+00:00", seconds=seconds, cluster="local")


def test_stages_that_found_their_work_done_are_left_out() -> None:
    rows = [usage("harvest", 80), usage("match", 0.2), usage("harvest", 0.3), usage("match", 0.1), usage("harvest", 9)]
    assert worth_showing(rows) == [rows[0], rows[1], rows[4]]
