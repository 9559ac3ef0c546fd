"""What Slurm says of jobs, and how they are submitted and cancelled.

Jobs of one cluster have one name that no other cluster has, so that all of them, and only they, are found and
cancelled by it, whatever became of the process that submitted them.
"""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import SubspaceError

#: States of a job that ended as it should not have.
FAILED = ("FAILED", "OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
#: States here, not Slurm's, of a job that Slurm has forgotten, and of one that it could not be asked about.
UNKNOWN, NOT_ASKED = "UNKNOWN", "NOT_ASKED"
#: States of a job that is over; a job in any other, as REQUEUE_HOLD, may still run.
OVER = (*FAILED, "COMPLETED", "CANCELLED", "REVOKED", UNKNOWN, NOT_ASKED)
#: Seconds that Slurm may take to say what became of a job, and to do what it is told.
ANSWERING, DOING = 10.0, 60.0
#: Beginnings of the variables by which users change what Slurm's commands print, list or ask.
OF_DISPLAY = ("SQUEUE_", "SINFO_", "SCONTROL_", "SCANCEL_", "SACCT_", "SACCTMGR_")
#: Options that no variable may set: each would make another kind of job, or keep ``sbatch`` from returning.
OURS = ("array", "debug", "error", "input", "output", "wait")
#: Variables of ``sbatch`` that are not spelled as their option is.
VARIABLES = {
    "ARRAY_INX": "array", "TIMELIMIT": "time", "NO_REQUEUE": "requeue",
    "MEM_PER_NODE": "mem", "MEM_PER_CPU": "mem", "MEM_PER_GPU": "mem",
}  # fmt: skip
#: Short options of ``sbatch``, and the long ones that mean the same.
LONG_OPTIONS = {
    "-A": "--account", "-a": "--array", "-C": "--constraint", "-c": "--cpus-per-task", "-D": "--chdir",
    "-d": "--dependency", "-e": "--error", "-G": "--gpus", "-J": "--job-name", "-L": "--licenses", "-N": "--nodes",
    "-n": "--ntasks", "-o": "--output", "-p": "--partition", "-q": "--qos", "-t": "--time", "-w": "--nodelist",
    "-x": "--exclude",
}  # fmt: skip
#: The line in which ``sbatch`` says the number of a job, with or without ``--parsable``.
NUMBER = r"^\s*(?:Submitted batch job )?(\d+)(?:;\S+| on cluster \S+)?\s*$"
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
        return self.state not in OVER


def long_option(line: str) -> str:
    """Return an option of ``sbatch`` in its long spelling, with its value.

    >>> [long_option(line) for line in ("-t 01:00:00", "-c4", "--mem=8G", "--exclusive", "-q")]
    ['--time=01:00:00', '--cpus-per-task=4', '--mem=8G', '--exclusive', '--qos']
    """
    name, value = line[:2], line[2:].strip()
    if name not in LONG_OPTIONS:
        return line
    return f"{LONG_OPTIONS[name]}={value}" if value else LONG_OPTIONS[name]


def slurm_environment(script: str = "") -> dict[str, str]:
    """Return the environment for Slurm's commands: what users set for their own eyes would hide jobs from us.

    What a job script says goes before ``SBATCH_…`` variables, although Slurm has it the other way round: with
    ``SBATCH_JOB_NAME``, for instance, no job would be found again. Variables that say which cluster is meant stay.
    """
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    said = {re.split(r"[= ]", long_option(line).removeprefix("--"), maxsplit=1)[0] for line in lines}

    def passes(name: str) -> bool:
        if not name.startswith("SBATCH_"):
            return not name.startswith(OF_DISPLAY)
        rest = name.removeprefix("SBATCH_")
        return VARIABLES.get(rest, rest.lower().replace("_", "-")) not in {*OURS, *said}

    return {name: value for name, value in os.environ.items() if passes(name)}


def slurm_output(*command: str, timeout: float = DOING, script: str = "") -> str:
    """Run one of Slurm's commands and return what it prints; SubspaceError if it fails or takes longer.

    `script` is the text of the job script that it submits.
    """
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=timeout,
            stdin=subprocess.DEVNULL, env=slurm_environment(script),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SubspaceError(f"There is no {command[0]} on PATH: this is not a host of a Slurm cluster") from error
    except OSError as error:
        raise SubspaceError(f"`{shlex.join(command)}` cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise SubspaceError(f"`{shlex.join(command)}` did not end within {timeout:g} s") from error
    if done.returncode:
        raise SubspaceError(f"`{shlex.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def jobs_named(name: str) -> list[Job]:
    """Return this user's jobs of that name; those that ended lately too, in the order of their numbers."""
    return _jobs("--user", str(os.getuid()), "--name", name, timeout=DOING)


def jobs_numbered(numbers: Sequence[str]) -> list[Job]:
    """Return what Slurm says of jobs, whose names a site may have changed; of an array, each task."""
    try:
        return _jobs("--jobs", ",".join(numbers), timeout=ANSWERING)
    except SubspaceError as error:
        if "invalid job id" in str(error).lower():  # it has forgotten the only one
            return []
        raise


def _jobs(*which: str, timeout: float) -> list[Job]:
    listed = slurm_output("squeue", "--noheader", "--states=all", "--format=%i|%T|%N|%r", *which, timeout=timeout)
    # a site's squeue may print more than the jobs
    jobs = [
        Job(*line.strip().split("|", 3)) for line in listed.splitlines() if re.match(r"\s*\d[^|]*(\|[^|]*){3}", line)
    ]
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
    text = script.read_text(encoding="utf-8")
    return job_number(slurm_output("sbatch", "--parsable", *options, str(script), *arguments, script=text))


def user_name() -> str:
    """Return the name that the system has for this user; ``LOGNAME``, which Python asks first, may be another's."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, perhaps
        return getpass.getuser()


def job_number(printed: str, pattern: str = NUMBER) -> str:
    r"""Return the number of a job from what its submission printed, below and above what else a site prints.

    >>> job_number("Welcome to 2026\n4096 cores free\n17;alpha\n"), job_number("Submitted batch job 17\n")
    ('17', '17')
    """
    found: list[str] = re.findall(pattern, printed, re.MULTILINE)
    if not found:
        raise SubspaceError(f"The job was taken, but its number is not in what was printed: {printed.strip()!r}")
    return found[-1]
