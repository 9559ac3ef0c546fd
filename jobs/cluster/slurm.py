"""Slurm: from a job's plain keys to the options of dask-jobqueue, and what Slurm says of jobs.

Jobs of one cluster have one name that no other cluster has, so that all of them, and only they, are found and
cancelled by it, whatever became of the process that submitted them.
"""

from __future__ import annotations

import getpass
import importlib.resources
import logging
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import yaml
from dask.utils import parse_bytes

from jobs.cluster.profiles import SlurmJob, refuse_control_characters, walltime_seconds
from storage.errors import InputError, MissingInputError, SubspaceError
from storage.extras import need

logger = logging.getLogger(__name__)

#: States of a job that ended as it should not have.
FAILED = ("FAILED", "OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")
#: State, here, of a job that Slurm says nothing of.
UNKNOWN = "UNKNOWN"
#: Lines of a failed job's log that are shown.
SHOWN_LINES = 20
#: File with the settings of a cluster, in its folder.
SETTINGS = "settings.yaml"
#: Share of the walltime that a worker leaves unused, with its bounds in seconds, and share over which workers spread
#: their end: without it all would be gone at once.
MARGIN, MARGIN_SECONDS, STAGGER = 0.05, (15.0, 600.0), 0.1
#: Bytes of a job that are not promised to its workers: the process which restarts them lives there too, and Slurm
#: would kill the whole job before a worker that grows reaches its limit. At most a tenth.
NANNY_BYTES = 250_000_000


def job_options(name: str, job: SlurmJob, folder: Path) -> dict[str, Any]:
    """Return the options of ``dask_jobqueue`` for the job of profile `name`, with what ``jobqueue.slurm`` adds.

    `folder`, which all nodes see, is where the settings are that the workers are to have.
    """
    log_directory = job.log_directory
    if log_directory is not None and not Path(log_directory).is_dir():
        raise MissingInputError(
            f"log-directory {log_directory} of profile {name!r} does not exist; Slurm would drop the jobs "
            "without a word. Make it, on a file system that all nodes see"
        )
    named = {
        "name": job.name, "queue": job.partition, "account": job.account, "walltime": job.walltime,
        "cores": job.cores, "processes": job.processes, "memory": job.memory, "job-cpu": job.job_cpu,
        "job-mem": job.job_mem, "interface": job.interface, "local-directory": job.scratch,
        "log-directory": log_directory, "death-timeout": job.death_timeout, "python": job.python,
        "shebang": job.shebang, "worker-command": job.worker_command, "scheduler-options": job.scheduler_options,
        "job-directives-skip": job.job_directives_skip, "job-extra-directives": [*directives(job)],
        "job-script-prologue": [*prologue(job, folder)], "worker-extra-args": [*worker_arguments(job)],
    }  # fmt: skip
    given = {key: value for key, value in named.items() if value is not None}
    site = dask.config.get("jobqueue.slurm", {})
    refuse_control_characters(site, "jobqueue.slurm")
    options: dict[str, Any] = dask.config.merge(_defaults(), site, given)
    for key in ("cores", "memory"):
        if options[key] is None:
            raise InputError(f"jobqueue.{name} says nothing of {key}; set it in your cluster file")
    options = with_margins(options)
    return _in_environment(options) if job.is_cuda else options


def _defaults() -> dict[str, Any]:
    """Return dask-jobqueue's own defaults; it puts them into Dask's configuration only once, as it is imported."""
    text = importlib.resources.files(import_jobqueue()).joinpath("jobqueue.yaml").read_text(encoding="utf-8")
    defaults: dict[str, Any] = yaml.safe_load(text)["jobqueue"]["slurm"]
    return defaults


def directives(job: SlurmJob) -> Iterator[str]:
    """Yield the ``#SBATCH`` options that dask-jobqueue has no key for.

    >>> list(directives(SlurmJob(qos="short", gpus=2, gpu_type="a100")))
    ['--qos=short', '--gpus-per-node=a100:2']
    """
    for key in ("qos", "constraint", "reservation"):
        if (value := getattr(job, key)) is not None:
            yield f"--{key}={shlex.quote(value)}"
    if job.gpus is not None:
        wanted = f"{job.gpu_type}:{job.gpus}" if job.gpu_type else str(job.gpus)
        yield f"--gpus-per-node={wanted}" if job.gpu_request == "gpus-per-node" else f"--gres=gpu:{wanted}"
    if job.exclusive:
        yield "--exclusive"
    yield from job.job_extra_directives


def prologue(job: SlurmJob, folder: Path) -> Iterator[str]:
    """Yield the commands before the worker starts: modules, the settings of this cluster, and the site's own."""
    for module in job.modules:
        yield f"module load {shlex.quote(module)}"
    # limits of memory and the like stand in this file; a worker on another host would not know of them otherwise
    yield f"export DASK_CONFIG={shlex.quote(str(folder / SETTINGS))}"
    yield from job.job_script_prologue


def worker_arguments(job: SlurmJob) -> Iterator[str]:
    """Yield the arguments of the worker that dask-jobqueue has no key for.

    >>> gpu = SlurmJob(gpus=1, cores=1, worker_command="dask cuda worker", rmm_pool_size=0.5, rmm_libraries=["cupy"])
    >>> " ".join(worker_arguments(gpu))
    '--dashboard-address 127.0.0.1:0 --rmm-pool-size 0.5 --set-rmm-allocator-for-libs cupy'
    """
    yield from ("--dashboard-address", "127.0.0.1:0")
    if job.is_cuda:
        for key in ("device_memory_limit", "rmm_pool_size", "rmm_maximum_pool_size"):
            if (value := getattr(job, key)) is not None:
                yield from (f"--{key.replace('_', '-')}", str(value))
        if job.rmm_async:
            yield "--rmm-async"
        if job.rmm_libraries:
            yield from ("--set-rmm-allocator-for-libs", ",".join(job.rmm_libraries))
    for option in ("lifetime", "lifetime_stagger"):
        if (value := getattr(job, option)) is not None:
            yield from (f"--{option.replace('_', '-')}", value)
    yield from job.worker_extra_args


def with_margins(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's settings with what keeps faults small added, where they do not say it themselves.

    Workers retire before the walltime, and their memory limit leaves room for the process that restarts them.
    Thresholds for spilling, pausing and restarting come with the cluster's settings, which the job is told to read.

    Examples
    --------
    >>> job = with_margins({"walltime": "01:00:00", "memory": "8GB", "worker-extra-args": []})
    >>> job["worker-extra-args"], job["memory"], job["job-mem"]
    (['--lifetime', '3060s', '--lifetime-stagger', '360s'], '7750000000B', '8G')
    """
    changed = dict(job)
    changed["worker-extra-args"] = retiring(job.get("walltime"), job.get("worker-extra-args") or [])
    if job.get("job-mem") is None and job.get("memory") is not None:
        whole = parse_bytes(job["memory"])
        changed["job-mem"] = str(import_jobqueue().slurm.slurm_format_bytes_ceil(whole))
        changed["memory"] = f"{whole - min(NANNY_BYTES, whole // 10)}B"
    return changed


def retiring(walltime: str | int | None, arguments: Sequence[str]) -> list[str]:
    """Return arguments of a worker with which it retires before its job's walltime; as they are if they say when.

    A worker that retires hands its results on and takes no more tasks; one that Slurm kills loses both. Ends are spread
    over ± a tenth of the walltime.

    Examples
    --------
    >>> retiring("1-00:00:00", ["--resources", "GPU=1"])
    ['--resources', 'GPU=1', '--lifetime', '77160s', '--lifetime-stagger', '8640s']
    >>> retiring("01:00:00", ["--lifetime", "10m"])
    ['--lifetime', '10m']
    """
    seconds = None if walltime is None else walltime_seconds(walltime)
    if seconds is None or any(str(argument).startswith("--lifetime") for argument in arguments):
        return list(arguments)
    margin = min(max(MARGIN * seconds, MARGIN_SECONDS[0]), MARGIN_SECONDS[1])
    lifetime = max(seconds - margin - STAGGER * seconds, 0.25 * seconds)
    return [*arguments, "--lifetime", f"{lifetime:.0f}s", "--lifetime-stagger", f"{STAGGER * seconds:.0f}s"]


def _in_environment(options: dict[str, Any]) -> dict[str, Any]:
    """Return options in which a worker's lifetime is set by variables: `dask cuda worker` refuses ``--lifetime``."""
    arguments, exports = list(options["worker-extra-args"]), []
    for option, key in (("--lifetime", "DURATION"), ("--lifetime-stagger", "STAGGER")):
        if option in arguments:
            at = arguments.index(option)
            exports.append(f"export DASK_DISTRIBUTED__WORKER__LIFETIME__{key}={shlex.quote(arguments[at + 1])}")
            del arguments[at : at + 2]
    exports += options["job-script-prologue"]
    return {**options, "worker-extra-args": arguments, "job-script-prologue": exports}


def import_jobqueue() -> Any:
    """Import dask-jobqueue, which is an extra's."""
    return need("dask_jobqueue", "cluster")


# --- what Slurm says --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job: number (``12_3`` for a task of an array), state, node, and why it waits or ended."""

    id: str
    state: str
    node: str
    reason: str

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED")


def slurm_output(*command: str, timeout: float | None = None) -> str:
    """Run one of Slurm's commands and return what it prints; SubspaceError if it fails or takes longer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)  # noqa: S603
    except FileNotFoundError as error:
        raise SubspaceError(f"There is no {command[0]} on PATH: this is no host of a Slurm cluster") from error
    except subprocess.TimeoutExpired as error:
        raise SubspaceError(f"`{shlex.join(command)}` did not end within {timeout:g} s") from error
    if done.returncode:
        raise SubspaceError(f"`{shlex.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def jobs_named(name: str) -> list[Job]:
    """Return this user's jobs of that name, or names with commas between; those that ended lately too, by number."""
    lines = slurm_output(
        "squeue", "--noheader", "--states=all", "--user", getpass.getuser(), "--name", name, "-o", "%i|%T|%N|%r"
    ).splitlines()
    jobs = [Job(*line.split("|", 3)) for line in lines]
    return sorted(jobs, key=lambda job: [int(part) for part in job.id.split("_") if part.isdigit()])


def cancel(jobs: Sequence[Job]) -> None:
    """Cancel those jobs that wait or run."""
    if ids := [job.id for job in jobs if job.active]:
        slurm_output("scancel", *ids)


def failures(jobs: Sequence[Job], logs: Path | None, states: Sequence[str] = FAILED) -> Iterator[str]:
    """Yield what there is to read of each failed job: its reason, and the end of its log."""
    for job in jobs:
        if job.state not in states:
            continue
        yield f"--- job {job.id} on {job.node or 'no node'}: {job.state} ({job.reason})"
        files = sorted(logs.glob(f"*-{job.id}.*")) if logs is not None and logs.is_dir() else []
        for file in files:
            if text := file.read_text(encoding="utf-8", errors="replace").strip():
                yield f"    {file}, its end:"
                yield from (f"    {line}" for line in text.splitlines()[-SHOWN_LINES:])
        if not files:
            yield f"    no log in {logs}" if logs is not None else "    no log-directory is set: no log"


def submit(script: Path, options: Sequence[str], arguments: Sequence[str]) -> str:
    """Submit a script and return the number of its job."""
    return slurm_output("sbatch", "--parsable", *options, str(script), *arguments).strip().split(";")[0]
