"""`subspace submit` on a real Slurm: the driver as a job, and arrays without a scheduler."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cluster.slurm import slurm_output

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

Subspace = Callable[..., str]
Digest = Callable[[Path], dict[str, str]]


@pytest.fixture
def small_driver(cluster_file: Path) -> Path:
    """A site whose drivers are small."""
    settings = yaml.safe_load(cluster_file.read_text())
    settings["subspace"]["profiles"]["slurm-cpu"]["driver"] = {"cores": 1, "memory": "3GB", "walltime": "00:10:00"}
    cluster_file.write_text(yaml.safe_dump(settings))
    return cluster_file


def wait_until_over(ids: list[str], seconds: float = 240) -> set[str]:
    """Wait until jobs are over, and return the states in which they ended."""
    deadline = time.monotonic() + seconds
    while True:
        lines = slurm_output("squeue", "-h", "-t", "all", "-j", ",".join(ids), "-o", "%i %T").splitlines()
        states = dict(line.split() for line in lines)
        if set(states.values()) <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}:
            return set(states.values())
        assert time.monotonic() < deadline, states
        time.sleep(1)


def wait_for_jobs(ids: list[str], logs: Path, seconds: float = 240) -> None:
    """Wait until jobs are over, and require that all of them succeeded."""
    states = wait_until_over(ids, seconds)
    said = "\n".join(f"--- {log}\n{log.read_text()[-3000:]}" for log in sorted(logs.glob("*.log")))
    assert states == {"COMPLETED"}, said


def test_the_driver_as_a_job(
    slurm: Path,
    slurmctl: Any,
    small_driver: Path,
    subspace: Subspace,
    tiny_inputs: Path,
    local_run: dict[str, str],
    digest: Digest,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    said = json.loads(
        subspace(
            "submit", tiny_inputs / "experiment.yaml", "--run-dir", folder, "--cluster-file", small_driver, "--json"
        )
    )
    script = (folder / "jobs" / "driver.sbatch").read_text()
    assert "#SBATCH -p main" in script
    assert "#SBATCH -t 00:10:00" in script
    # preempted as it works, and put back into the queue: its workers' jobs end, and it goes on where it stopped
    end = time.monotonic() + 240
    while not any(folder.glob("activations/*/*")):
        assert time.monotonic() < end, [log.read_text()[-3000:] for log in (folder / "logs").glob("*.log")]
        time.sleep(0.1)
    (driver,) = said["jobs"]
    workers = set(slurmctl.jobs()) - {driver}
    slurmctl.requeue(driver)
    while workers & set(slurmctl.jobs()) or slurmctl.jobs()[driver][0] != "PENDING":
        assert time.monotonic() < end, slurmctl.jobs()
        time.sleep(0.2)
    # Slurm would have it wait for two minutes
    slurm_output("scontrol", "update", f"jobid={driver}", "starttime=now")
    wait_for_jobs(said["jobs"], folder / "logs", 400)
    assert digest(folder) == local_run
    assert (folder / "report.html").is_file()


def test_why_a_submitted_run_failed_is_shown(
    slurm: Path, small_driver: Path, subspace: Subspace, tiny_inputs: Path, tmp_path: Path
) -> None:
    """By `status`, which a user asks in the morning."""
    inputs, folder = tmp_path / "inputs", tmp_path / "run"
    shutil.copytree(tiny_inputs, inputs)
    (inputs / "texts.jsonl").unlink()
    command = ("submit", inputs / "experiment.yaml", "--run-dir", folder, "--cluster-file", small_driver)
    (number,) = json.loads(subspace(*command, "--json"))["jobs"]
    assert wait_until_over([number]) == {"FAILED"}
    said = subspace(
        "status",
        folder if folder.joinpath("experiment.json").exists() else inputs / "experiment.yaml",
        "--run-dir",
        folder,
    )
    assert f"job {number} on n" in said
    assert "FAILED (NonZeroExitCode)" in said
    assert f"subspace-driver-{number}.log, its end:" in said
    assert "texts.jsonl" in said


def test_arrays_without_a_scheduler(
    slurm: Path,
    small_driver: Path,
    subspace: Subspace,
    tiny_inputs: Path,
    local_run: dict[str, str],
    digest: Digest,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "it's a run"
    command = ("submit", tiny_inputs / "experiment.yaml", "--run-dir", folder, "--cluster-file", small_driver)
    said = json.loads(subspace(*command, "--array", "4%2", "--json"))
    assert len(said["jobs"]) == 5
    assert "ArrayTaskThrottle=2" in slurm_output("scontrol", "show", "job", said["jobs"][1])
    wait_for_jobs(said["jobs"], folder / "logs", 550)
    assert digest(folder) == local_run
    assert (folder / "report.html").is_file()
    shares = [
        text for log in (folder / "logs").glob("subspace-share-*.log") if "harvest A" in (text := log.read_text())
    ]
    assert len(shares) == 4, "all tasks of the array harvested"
