"""PBS, Grid Engine and LSF: what dask-jobqueue is to write for them, and how they are asked which jobs there are.

Slurm is the scheduler that everything here knows; on these, workers run, are replaced when they are lost, and end with
the run. Their scripts are dask-jobqueue's, of the same keys.
"""

from __future__ import annotations

import getpass
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dask.utils import parse_bytes

from jobs.cluster.profiles import BatchJob, SlurmJob, walltime_seconds
from jobs.cluster.slurm import slurm_output
from storage.errors import SubspaceError


@dataclass(frozen=True)
class Scheduler:
    """A scheduler: the command that lists a user's jobs, but for the name, and dask-jobqueue's options for a job."""

    queue: tuple[str, ...]
    options: Callable[[BatchJob], dict[str, Any]]


def _clock(job: SlurmJob, *, seconds: bool = True) -> str | None:
    """Return the walltime as HH:MM:SS, or HH:MM."""
    whole = None if job.walltime is None else walltime_seconds(job.walltime)
    if whole is None:
        return None
    hours, rest = divmod(math.ceil(whole), 3600)
    clock = f"{hours:02d}:{rest // 60:02d}"
    return f"{clock}:{rest % 60:02d}" if seconds else clock


def _mebibytes(job: SlurmJob) -> int:
    return math.ceil(parse_bytes(job.memory or "0") / 2**20)


def _pbs(job: BatchJob) -> dict[str, Any]:
    resources = job.resource_spec or f"select=1:ncpus={job.cores}:mem={_mebibytes(job)}MB"
    return {"account": job.account, "resource-spec": resources, "walltime": _clock(job)}


def _sge(job: BatchJob) -> dict[str, Any]:
    # Parallel environments and names of memory differ from site to site. Without -S, queues of Grid Engine run scripts
    # by a shell of their own, by default csh, whatever the first line says.
    return {
        "project": job.account, "resource-spec": job.resource_spec, "walltime": _clock(job),
        "job-extra-directives": ["-S /bin/bash", *job.job_extra_directives],
    }  # fmt: skip


def _lsf(job: BatchJob) -> dict[str, Any]:
    extra = [f'-R "{job.resource_spec}"'] if job.resource_spec is not None else []
    return {
        "project": job.account, "ncpus": job.cores, "mem": _mebibytes(job) * 10**6, "lsf-units": "mb",
        "walltime": _clock(job, seconds=False), "job-extra-directives": [*extra, *job.job_extra_directives],
    }  # fmt: skip


SCHEDULERS = {
    "pbs": Scheduler(("qstat", "-u"), _pbs),
    "sge": Scheduler(("qstat", "-u"), _sge),
    "lsf": Scheduler(("bjobs", "-noheader", "-o", "jobid stat", "-u"), _lsf),
}
SLURM_QUEUE = ("squeue", "--format", "%A %T %R", "--user")


def batch_options(job: SlurmJob) -> dict[str, Any]:
    """Return dask-jobqueue's options that depend on the scheduler; none for Slurm, whose header is ours.

    Examples
    --------
    >>> from jobs.cluster.profiles import PbsJob
    >>> options = batch_options(PbsJob(cores=4, memory="8GB", walltime="1-00:00:00"))
    >>> options["resource-spec"], options["walltime"]
    ('select=1:ncpus=4:mem=7630MB', '24:00:00')
    """
    if not isinstance(job, BatchJob):
        return {}
    common = {
        "queue": job.partition,
        "job-extra-directives": job.job_extra_directives,
        "job-directives-skip": job.job_directives_skip,
    }
    return common | SCHEDULERS[job.scheduler].options(job)


def listed_jobs(scheduler: str, timeout: float) -> str:
    """Return what a scheduler prints about this user's jobs, those that wait or run."""
    command = SCHEDULERS[scheduler].queue if scheduler in SCHEDULERS else SLURM_QUEUE
    try:
        return slurm_output(*command, getpass.getuser(), timeout=timeout)
    except SubspaceError as error:
        if "no unfinished job" in str(error).lower():  # LSF, with status 255
            return ""
        raise


def numbers(listing: str) -> set[str]:
    r"""Return the numbers of the jobs in a listing, which are what its lines begin with.

    >>> sorted(numbers("Job ID   Username\n------- ---\n1234.server  ada\n  56 0.5 subspace\n"))
    ['1234', '56']
    """
    return set(re.findall(r"^\s*(\d+)\b", listing, re.MULTILINE))
