"""What Slurm says of jobs, and how they are submitted and cancelled.

Jobs of one cluster have one name that no other cluster has, so that all of them, and only they, are found and
cancelled by it, whatever became of the process that submitted them.
"""

from __future__ import annotations

import getpass
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import SubspaceError

#: States of a job that ended as it should not have.
FAILED = ("FAILED", "OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")
#: State, here, of a job that Slurm says nothing of.
UNKNOWN = "UNKNOWN"
#: Seconds that Slurm may take to say what became of a job.
ANSWERING = 10.0
#: Lines of a failed job's log that are shown.
SHOWN_LINES = 20


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
        raise SubspaceError(f"There is no {command[0]} on PATH: this is not a host of a Slurm cluster") from error
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
        code = exit_code(job.id)
        shown_code = "" if code is None else f", exit code {code}"
        yield f"--- job {job.id} on {job.node or 'no node'}: {job.state} ({job.reason}){shown_code}"
        files = sorted(logs.glob(f"*-{job.id}.*")) if logs is not None and logs.is_dir() else []
        for file in files:
            if text := file.read_text(encoding="utf-8", errors="replace").strip():
                yield f"    {file}, its end:"
                yield from (f"    {line}" for line in text.splitlines()[-SHOWN_LINES:])
        if not files:
            yield f"    no log in {logs}" if logs is not None else "    no log-directory is set: no log"


def exit_code(number: str) -> int | None:
    """Return the exit code of a job that is over; None if Slurm does not know it any more."""
    try:
        listed = slurm_output("scontrol", "--oneliner", "show", "job", number, timeout=ANSWERING)
    except SubspaceError:
        return None
    match = re.search(r"\bExitCode=(\d+):", listed)
    return None if match is None else int(match[1])


def submit(script: Path, options: Sequence[str], arguments: Sequence[str]) -> str:
    """Submit a script and return the number of its job."""
    return slurm_output("sbatch", "--parsable", *options, str(script), *arguments).strip().split(";")[0]
