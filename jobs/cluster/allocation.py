"""Workers on the nodes of the allocation that a run is in, for sites where jobs may not submit jobs.

The driver runs on the first node of a job, with the scheduler, and `srun` starts a worker for each task that the job
was given. They end with the run, whose exit status is the job's.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.deploy.spec import SpecCluster
from distributed.security import Security

from jobs.cluster.keeper import tail
from jobs.cluster.profiles import SlurmJob
from jobs.cluster.scripts import SETTINGS, log_pattern, memory_of_workers, prologue, shell_word, worker_arguments
from storage.errors import InputError, SubspaceError

#: Bytes of the first node that are left to the driver and the scheduler, but at most a quarter.
DRIVER_BYTES = 4 * 10**9
#: Seconds that `srun` may take to end all workers.
ENDING = 30.0


@dataclass(frozen=True)
class Allocation:
    """The Slurm job that a run is in.

    Attributes
    ----------
    job
        Its number.
    tasks, per_node
        How many tasks it was given, and on each node.
    cpus
        CPUs of a task.
    memory
        Bytes of each node that are the job's; None where it has no limit.
    """

    job: str
    tasks: int
    per_node: int
    cpus: int
    memory: int | None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Allocation:
        """Return what Slurm's variables say; InputError outside a job.

        Examples
        --------
        >>> job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "4", "SLURM_NTASKS": "8", "SLURM_CPUS_ON_NODE": "32"}
        >>> Allocation.of(job | {"SLURM_MEM_PER_NODE": "64000"})
        Allocation(job='7', tasks=8, per_node=2, cpus=16, memory=67108864000)
        """
        if "SLURM_JOB_ID" not in environment:
            raise InputError(
                "This profile starts workers in the Slurm job that it runs in, and this is none: submit a script with "
                "the command (docs/cluster.md has one), or run salloc first"
            )

        def number(name: str) -> int:
            return int(environment.get(f"SLURM_{name}") or 0)

        nodes = number("NNODES") or 1
        tasks = number("NTASKS") or nodes
        per_node = math.ceil(tasks / nodes)
        cpus = number("CPUS_PER_TASK") or number("CPUS_ON_NODE") // per_node or 1
        mebibytes = number("MEM_PER_NODE") or number("MEM_PER_CPU") * cpus * per_node
        return cls(environment["SLURM_JOB_ID"], tasks, per_node, cpus, mebibytes * 2**20 or None)

    def memory_of_task(self, *, beside_driver: bool) -> int | None:
        """Return the bytes of a task: of those of a node, the driver takes its part first where it runs.

        >>> half = Allocation("7", 8, 2, 16, 40 * 10**9)
        >>> half.memory_of_task(beside_driver=False), half.memory_of_task(beside_driver=True)
        (20000000000, 18000000000)
        """
        if self.memory is None:
            return None
        return (self.memory - beside_driver * min(DRIVER_BYTES, self.memory // 4)) // self.per_node


def worker_script(job: SlurmJob, allocation: Allocation, address: str, folder: Path) -> str:
    """Return the script that each task runs; `folder` has the settings and certificates."""

    def limit(*, beside_driver: bool) -> str:
        whole = allocation.memory_of_task(beside_driver=beside_driver)
        memory = job.memory if job.memory is not None or whole is None else f"{whole}B"
        return memory_of_workers(job.model_copy(update={"memory": memory})) or "auto"

    arguments = [
        shell_word(job.python or sys.executable), "-m", "distributed.cli.dask_worker", address,
        "--name", "task-$SLURM_PROCID", "--nthreads", str(job.cores or allocation.cpus), "--nanny",
        "--memory-limit", "$limit",
        *(("--interface", job.interface) if job.interface is not None else ()),
        *(("--local-directory", shell_word(job.scratch)) if job.scratch is not None else ()),
        *(("--death-timeout", str(job.death_timeout)) if job.death_timeout is not None else ()),
        *worker_arguments(job, folder),
    ]  # fmt: skip
    lines = [
        "#!/bin/bash",
        *prologue(job, {"DASK_CONFIG": shlex.quote(str(folder / SETTINGS))}),
        f"limit={limit(beside_driver=False)}",
        f"if [[ $SLURM_NODEID == 0 ]]; then limit={limit(beside_driver=True)}; fi",
        f"exec {' '.join(arguments)}",
    ]
    return "\n".join(lines) + "\n"


def scheduler_cluster(job: SlurmJob, security: Security) -> Any:
    """Return a running scheduler in this process, which the nodes reach, without workers."""
    options = {"interface": job.interface, "protocol": "tls://", "security": security} | job.scheduler_options
    return SpecCluster(workers={}, scheduler={"cls": Scheduler, "options": options}, security=security)


class Tasks:
    """The workers of an allocation, started by one `srun`."""

    def __init__(self, process: subprocess.Popen[bytes], logs: Path, pattern: str) -> None:
        self.process, self.logs, self.pattern = process, logs, pattern

    def check(self) -> None:
        """Raise a SubspaceError if `srun` has ended."""
        if self.process.poll() is not None:
            raise SubspaceError(f"srun ended with status {self.process.returncode}. {self.why()}")

    def why(self) -> str:
        """Return the ends of what `srun` and the workers wrote."""
        files = [file for file in sorted(self.logs.glob(self.pattern)) if file.stat().st_size]
        return "\n".join(["What the workers wrote:", *(f"--- {file}\n{tail(file)}" for file in files)])


@contextlib.contextmanager
def tasks(script: str, allocation: Allocation, folder: Path, logs: Path) -> Iterator[Tasks]:
    """Run a script on all tasks of the allocation for as long as the block lasts; they write to `logs`."""
    file = folder / "worker.sh"
    file.write_text(script, encoding="utf-8")
    name = f"allocation-{allocation.job}"
    # srun does not take the job's CPUs for granted; and one worker that is lost is not the end of the others
    command = [
        "srun", f"--ntasks={allocation.tasks}", f"--cpus-per-task={allocation.cpus}", "--kill-on-bad-exit=0",
        "--no-kill", "--unbuffered", f"--output={log_pattern(logs, f'{name}-%t.log')}", "bash", str(file),
    ]  # fmt: skip
    try:
        with (logs / f"{name}-srun.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603
    except FileNotFoundError as error:
        raise SubspaceError("There is no srun on PATH: this is not a host of a Slurm cluster") from error
    try:
        yield Tasks(process, logs, f"{name}-*.log")
    finally:
        process.terminate()
        try:
            process.wait(ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
