"""GPU profiles: their scripts as text, their worker command as Dask-CUDA reads it, and a Slurm with declared GPUs.

There is no GPU here. What is shown: Slurm takes the scripts as they are and gives each job its GPUs; Dask-CUDA's own
command line takes the workers' arguments; and where the worker command is exchanged for Dask's, workers start in these
jobs and heal. What is not: that CUDA workers start.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from jobs.cluster import keeper as watcher
from jobs.cluster.client import connect
from jobs.cluster.slurm import submit
from jobs.verbs.cluster import job_script
from storage.errors import SubspaceError

PROFILES = {"slurm-gpu": 1, "slurm-gpu-node": 2}


@pytest.fixture
def gpu_file(tmp_path: Path) -> Path:
    """A site of two small nodes with two GPUs each."""
    job = {
        "partition": "main", "walltime": "00:10:00", "job-cpu": 1, "memory": "3GB", "interface": "lo",
        "shared-temp-directory": str(tmp_path),
        "log-directory": str(tmp_path), "scheduler-options": {"dashboard_address": "127.0.0.1:0"},
    }  # fmt: skip
    node = {**job, "gpus": 2, "processes": 2, "cores": 2, "job-cpu": 2}
    path = tmp_path / "gpu.yaml"
    path.write_text(yaml.safe_dump({"jobqueue": {"slurm-gpu": job, "slurm-gpu-node": node}}))
    return path


def directives(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (.+)$", script, re.MULTILINE)


def worker_command(script: str) -> list[str]:
    return shlex.split(script.strip().splitlines()[-1])


def test_scripts_as_text() -> None:
    script = job_script("slurm-gpu")
    assert {"--gpus-per-node=1", "--cpus-per-task=8", "-n 1"} <= set(directives(script))
    command = worker_command(script)
    assert command[1:5] == ["-m", "dask", "cuda", "worker"]
    line = " ".join(command)
    for wanted in (
        "--nthreads 1", "--device-memory-limit 0.8", "--rmm-pool-size 0.5", "--rmm-maximum-pool-size 0.9",
        "--set-rmm-allocator-for-libs cupy,torch", "--tls-ca-file", "--tls-cert", "--tls-key", "--protocol tls://",
        "--dashboard-address 127.0.0.1:0",
    ):  # fmt: skip
        assert wanted in line
    assert not {"--nanny", "--no-nanny", "--nworkers", "--lifetime"} & set(command), "dask cuda worker refuses these"
    assert "export DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION=" in script


def test_a_whole_node() -> None:
    script = job_script("slurm-gpu-node")
    assert {"--gpus-per-node=4", "--exclusive", "--cpus-per-task=32"} <= set(directives(script))
    command = worker_command(script)
    assert command[command.index("--nthreads") + 1] == "1", "four workers share four threads"
    limit = command[command.index("--memory-limit") + 1]
    assert limit == "59.55GiB", "four workers share 256 GB, less what the parent process takes"


@pytest.mark.parametrize("profile", PROFILES)
def test_dask_cuda_takes_the_arguments(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command line is parsed by itself; keys must exist for it."""
    worker = pytest.importorskip("dask_cuda.cli").worker
    monkeypatch.setenv("SUBSPACE_STATE", str(tmp_path))
    arguments = worker_command(job_script(profile))[5:]
    keys = [Path(each) for each in arguments if each.endswith(".pem")]
    assert len(keys) == 3
    for key in keys:
        key.parent.mkdir(parents=True, exist_ok=True)
        key.touch()
    parsed = worker.make_context("worker", arguments).params
    assert (parsed["nthreads"], parsed["rmm_pool_size"], parsed["rmm_maximum_pool_size"]) == (1, "0.5", "0.9")
    assert parsed["rmm_allocator_external_lib_list"] == ["cupy", "torch"]
    assert parsed["device_memory_limit"] == "0.8"
    assert parsed["death_timeout"] == "300"
    assert parsed["tls_key"] == str(keys[-1].resolve())
    assert not parsed["preload_argv"]


def test_gres(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    job = {"gpu-request": "gres", "gpu-type": "a100", "qos": "gpu", "constraint": "a100&nvlink", "modules": ["cuda/12"]}
    path.write_text(yaml.safe_dump({"jobqueue": {"slurm-gpu": job}}))
    script = job_script("slurm-gpu", path)
    assert {"--gres=gpu:a100:1", "--qos=gpu", "--constraint='a100&nvlink'"} <= set(directives(script))
    assert "module load cuda/12\n" in script


# --- on a real Slurm --------------------------------------------------------------------------------------------------


@pytest.mark.slurm
@pytest.mark.parametrize(("profile", "gpus"), PROFILES.items())
def test_slurm_takes_the_script_and_gives_the_gpus(
    slurm: Path, profile: str, gpus: int, gpu_file: Path, tmp_path: Path
) -> None:
    script = tmp_path / "worker.sbatch"
    script.write_text(job_script(profile, gpu_file))
    tested = subprocess.run(["sbatch", "--test-only", str(script)], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    # the same script, the worker's command exchanged for one that says what it was given
    *head, _ = script.read_text().strip().splitlines()
    script.write_text("\n".join([*head, "env | grep -E '^SLURM_(GPUS|JOB_GPUS|STEP_GPUS)' | sort", "sleep 60"]))
    job = submit(script, ["--output", str(tmp_path / "out")], [])
    try:
        shown = ""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and "RUNNING" not in shown:
            time.sleep(0.5)
            shown = subprocess.run(
                ["scontrol", "show", "job", "-d", job], capture_output=True, text=True, check=True
            ).stdout
        assert "JobState=RUNNING" in shown
        assert re.search(rf"GRES=gpu:{gpus}\b", shown), shown
        assert re.search(rf"TresPerNode=\S*gpu:{gpus}\b", shown), shown
    finally:
        subprocess.run(["scancel", job], check=True)


@pytest.mark.slurm
def test_a_worker_that_finds_no_gpu_is_said_with_its_log(
    slurm: Path, gpu_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profile as it is, on nodes whose GPUs are declared but not there: Slurm starts the job, CUDA refuses."""
    pytest.importorskip("dask_cuda.cli")
    settings = yaml.safe_load(gpu_file.read_text())
    settings["jobqueue"]["slurm-gpu"] |= {"log-directory": str(gpu_file.parent)}
    settings["subspace"] = {"profiles": {"slurm-gpu": {"jobs": 1, "wait": 60}}}
    gpu_file.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(watcher, "BACKOFF", (0.1, 0.1))
    monkeypatch.setattr(watcher, "SPARE_JOBS", 0)
    with pytest.raises(SubspaceError, match=r"rmm|NVML|CUDA"), connect("slurm-gpu", gpu_file):
        pass


def gpus_of_job() -> tuple[str | None, str | None]:
    return os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("SLURM_JOB_GPUS")


@pytest.mark.slurm
@pytest.mark.parametrize(("profile", "gpus"), PROFILES.items())
def test_workers_run_in_jobs_with_gpus(slurm: Path, profile: str, gpus: int, gpu_file: Path) -> None:
    """With Dask's own worker in place of Dask-CUDA's; the pipeline on such jobs: test_pipeline.py."""
    settings = yaml.safe_load(gpu_file.read_text())
    settings["jobqueue"][profile] |= {
        "worker-command": "distributed.cli.dask_worker", "rmm-libraries": [], "rmm-pool-size": None,
        "rmm-maximum-pool-size": None, "device-memory-limit": None,
    }  # fmt: skip
    settings["subspace"] = {"profiles": {profile: {"jobs": 2 if gpus == 1 else 1, "wait": 60}}}
    gpu_file.write_text(yaml.safe_dump(settings))
    with connect(profile, gpu_file) as client:
        client.wait_for_workers(2, timeout=60)
        jobs = dict(client.run(gpus_of_job).values())
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
    assert len(jobs) == (2 if gpus == 1 else 1)
    assert set(jobs.values()) == {str(gpus)}
