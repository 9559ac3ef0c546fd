"""PBS, Grid Engine and LSF: what dask-jobqueue is to write for them, and how they are asked which jobs there are.

Slurm is the scheduler that everything here knows; on these, workers run, are replaced when they are lost, and end with
the run. Their scripts are dask-jobqueue's, of the same keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from dask.utils import parse_bytes

from jobs.cluster.profiles import BatchJob, SlurmJob, walltime_seconds
from jobs.cluster.slurm import NUMBER, OVER, slurm_output, user_name
from storage.errors import SubspaceError


@dataclass(frozen=True)
class Scheduler:
    """A scheduler other than Slurm.

    Attributes
    ----------
    queue
        The command that lists a user's jobs, but for the name.
    options
        Returns dask-jobqueue's options for a job.
    number
        The line in which the number of a submitted job is printed.
    """

    queue: tuple[str, ...]
    options: Callable[[BatchJob], dict[str, Any]]
    number: str


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
    "pbs": Scheduler(("qstat", "-u"), _pbs, r"^\s*(\d+)(?:\[\])?(?:\.\S+)?\s*$"),
    "sge": Scheduler(("qstat", "-u"), _sge, r"^Your job(?:-array)? (\d+)"),
    "lsf": Scheduler(("bjobs", "-noheader", "-o", "jobid stat", "-u"), _lsf, r"^Job <(\d+)>"),
}


def number_pattern(scheduler: str) -> str:
    """Return the line in which a scheduler prints the number of a job that it has taken."""
    return SCHEDULERS[scheduler].number if scheduler in SCHEDULERS else NUMBER


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


def listed_jobs(scheduler: str, jobs: Collection[str], timeout: float) -> dict[str, str]:
    """Return which of these jobs wait or run, by their numbers, and what the scheduler prints about each."""
    if not jobs:
        return {}
    if scheduler in SCHEDULERS:
        command = (*SCHEDULERS[scheduler].queue, user_name())
    else:
        command = ("squeue", "--noheader", "--states=all", "--format=%A %T %R", "--jobs", ",".join(sorted(jobs)))
    try:
        live = live_jobs(slurm_output(*command, timeout=timeout))
    except SubspaceError as error:
        # LSF, with status 255, and Slurm, where it has forgotten the only one
        if re.search("no unfinished job|invalid job id", str(error), re.IGNORECASE):
            return {}
        raise
    return {number: line for number, line in live.items() if number in jobs}


def live_jobs(listing: str) -> dict[str, str]:
    r"""Return the numbers of the jobs in a listing that are not over, which its lines begin with, and the rest of each.

    >>> live_jobs("Job ID   Username\n------- ---\n1234.server  ada\n  56 RUNNING n1\n57 CANCELLED\n")
    {'1234': '.server  ada', '56': 'RUNNING n1'}
    """
    found = re.findall(r"^\s*(\d+)\b(.*)$", listing, re.MULTILINE)
    return {number: rest.strip() for number, rest in found if not rest.strip().startswith(OVER)}
