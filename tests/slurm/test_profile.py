"""The `slurm-cpu` profile on a real Slurm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from distributed import Client
from distributed.security import Security

from jobs.cluster.client import connect

pytestmark = pytest.mark.slurm


def job_of_worker() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def test_workers_are_slurm_jobs_that_talk_tls(slurm: Path, cluster_file: Path) -> None:
    with connect("slurm-cpu", cluster_file) as client:
        client.wait_for_workers(2, timeout=60)
        jobs = client.run(job_of_worker)
        assert len(set(jobs.values())) == 2
        assert None not in jobs.values()
        assert client.scheduler.address.startswith("tls://")
        queue = subprocess.run(["squeue", "-h", "-o", "%T"], capture_output=True, text=True, check=True).stdout
        assert queue.split() == ["RUNNING", "RUNNING"]
        (folder,) = cluster_file.parent.glob("slurm-cpu-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        keys = list(folder.glob("*.pem"))
        assert keys
        assert not [path for path in keys if path.stat().st_mode & 0o077], "TLS keys are readable by others"


def test_a_client_with_other_keys_is_refused(slurm: Path, cluster_file: Path) -> None:
    with (
        connect("slurm-cpu", cluster_file) as client,
        pytest.raises(OSError, match=r"TLS|SSL|certificate|connect"),
    ):
        Client(client.scheduler.address, security=Security.temporary(), timeout=3)
