"""A cluster that outlives its command, on a real Slurm: up, status, run, down; and after a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import jobs
from jobs.cluster import service
from jobs.cluster.running import cluster_of
from jobs.cluster.slurm import jobs_named
from storage.errors import InputError

pytestmark = pytest.mark.slurm

Subspace = Callable[..., str]


def wait_until(true: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.3)


def active(name: str) -> list[str]:
    return [job.id for job in jobs_named(name) if job.active]


def test_up_status_run_down(
    slurm: Path,
    make_cluster_file: Callable[..., Path],
    other_python: Path,
    subspace: Subspace,
    tiny_inputs: Path,
    local_run: dict[str, str],
    digest: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    """The workers are of another environment, which is read-only, and have no home."""
    cluster_file = make_cluster_file(tmp_path, job={"python": str(other_python)})
    subspace("cluster", "up", "night", "--profile", "slurm-cpu", "--cluster-file", cluster_file)
    state = cluster_of("night")
    wait_until(lambda: service.status(state).get("workers") == 2)
    said: dict[str, Any] = json.loads(subspace("cluster", "status", "--json"))["clusters"][0]
    assert (said["name"], said["state"], said["profile"]) == ("night", "running", "slurm-cpu")
    assert [job["state"] for job in said["jobs"]] == ["RUNNING", "RUNNING"]
    assert said["scheduler"].startswith("tls://")
    assert said["dashboard"].startswith("http://127.0.0.1:")
    assert said["tunnel"].startswith("ssh -N -L ")
    assert said["logs"] == str(cluster_file.parent / "logs")
    assert state.folder.stat().st_mode & 0o777 == 0o700
    assert (state.folder / "key.pem").stat().st_mode & 0o777 == 0o600
    process = psutil.Process(state.service.pid)  # type: ignore[union-attr]
    assert os.getsid(process.pid) == process.pid, "a session of its own"

    with service.answering(state) as client:
        # a lambda is pickled by value: those workers do not have this file
        where = client.run(lambda: (str(Path(jobs.__file__).parents[4]), Path.home().exists()))
    assert set(where.values()) == {(str(other_python.parents[1]), False)}
    # the later stages on jobs: test_pipeline.py
    wanted = ("--run-dir", tmp_path / "run", "--cluster", "night", "--until", "match")
    subspace("run", tiny_inputs / "experiment.yaml", *wanted)
    made = digest(tmp_path / "run")
    assert made.items() <= local_run.items()
    assert {"activations", "correlation", "pairs"} <= {Path(name).parts[0] for name in made}

    job_name = state.service.job_name  # type: ignore[union-attr]
    before = active(job_name)
    assert len(before) == 2
    assert subspace("cluster", "down", "night").strip() == "night is down."
    assert not process.is_running()
    assert not state.folder.exists()
    wait_until(lambda: not active(job_name), 20)


def test_down_after_a_crash_ends_what_was_started_and_nothing_else(
    slurm: Path, cluster_file: Path, subspace: Subspace, tmp_path: Path
) -> None:
    other = subprocess.run(
        ["sbatch", "--parsable", "--wrap", "sleep 300", "--output", str(tmp_path / "other")],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    subspace("cluster", "up", "night", "--profile", "slurm-cpu", "--cluster-file", cluster_file)
    state = cluster_of("night")
    assert state.service is not None
    job_name = state.service.job_name
    assert job_name is not None
    wait_until(lambda: len(active(job_name)) == 2)
    os.kill(state.service.pid, signal.SIGKILL)
    wait_until(lambda: state.gone() is not None)
    said = service.status(state)
    assert said["state"] == "gone"
    assert "died" in said["why"]
    with pytest.raises(InputError, match=r"does not run.*cluster down night"):
        state.address()
    service.down("night")
    wait_until(lambda: not active(job_name), 20)
    assert not state.folder.exists()
    states = subprocess.run(
        ["squeue", "-h", "-j", other, "-o", "%T"], capture_output=True, text=True, check=True
    ).stdout
    assert states.strip() in ("RUNNING", "PENDING")
    subprocess.run(["scancel", other], check=True)
