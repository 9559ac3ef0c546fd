"""``subspace submit``: a run as Slurm jobs, for people who may not keep a process on a login node.

Two ways. *Driver*: one small job runs ``subspace run --cluster PROFILE``, which submits the worker jobs. *Array*: no
scheduler at all; the harvest's shards and the correlation's panels are done by the tasks of two job arrays, and jobs
before, between and behind them begin and finish (:mod:`pipeline.work.share`).

The scripts are ``driver.sbatch`` and ``share.sbatch`` beside this file. What is submitted is a copy of them under
``RUN/jobs``, with the site's settings filled in: it can be read, and submitted again by hand.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.cluster.profiles import (
    Driver,
    Share,
    SlurmJob,
    SlurmProfile,
    find_job,
    find_profile,
    load_settings,
    refuse_control_characters,
)
from jobs.cluster.scripts import Script, fill, log_pattern, overlaid, read_script
from jobs.cluster.site import submit_explained
from jobs.cluster.slurm import NOT_ASKED, UNKNOWN, Job, jobs_numbered, slurm_output
from storage.errors import CorruptError, InputError, SubspaceError
from storage.files import remove_stray_files, write_atomically
from storage.json_files import read_json
from storage.locks import lock
from storage.rundir import RunDirectory

#: In ``RUN/jobs``: what was submitted last.
RECORD = "submitted.json"


@dataclass(frozen=True)
class Step:
    """One job, or one array of jobs, of a submission: a script, its arguments, and options of ``sbatch``.

    `after` says how it depends on the step before it.
    """

    script: Script
    arguments: tuple[str, ...]
    options: tuple[str, ...] = ()
    after: Literal["afterok", "afterany"] | None = None

    def sbatch_options(self, before: str | None) -> list[str]:
        """Return the options of ``sbatch``, given the number of the job before."""
        if self.after is None or before is None:
            return list(self.options)
        # a job whose condition can never come true would wait for good
        return [*self.options, f"--dependency={self.after}:{before}", "--kill-on-invalid-dep=yes"]


@dataclass(frozen=True)
class Submitted:
    """A step that Slurm has taken: the number of its job, and the command that submitted it."""

    job: str
    command: str


def submit_run(
    experiment: Path,
    run_dir: Path,
    *,
    profile: str = "slurm-cpu",
    cluster_file: Path | None = None,
    array: str | int | None = None,
    arguments: Sequence[str] = (),
    dry_run: bool = False,
) -> list[Submitted]:
    """Write the scripts of a run to ``RUN/jobs`` and submit them; return the jobs in the order in which they run.

    Parameters
    ----------
    experiment, run_dir
        The experiment's YAML file, and the run directory; compute nodes see both.
    profile, cluster_file
        A profile of kind ``slurm``: its workers, and how the driver is submitted.
    array
        Do without workers and scheduler: so many tasks share the harvest, and the correlation. ``16%4``: at most four
        of them at a time.
    arguments
        Further arguments of ``subspace run``.
    dry_run
        Write the scripts, submit nothing; the commands are then lines for a shell, the numbers of jobs its variables.
    """
    refuse_control_characters(str(run_dir), "the run directory")
    refuse_control_characters(str(experiment), "the experiment's path")
    RunDirectory(run_dir).check()
    settings = load_settings(cluster_file)
    chosen = find_profile(profile, settings)
    if not isinstance(chosen, SlurmProfile):
        raise InputError(f"Profile {profile!r} is of kind {chosen.kind!r}; a run is submitted to one of kind 'slurm'")
    tasks = None if array is None else parse_array(array)
    workers = find_job(profile, settings)
    folder = run_dir.absolute() / "jobs"
    common = [str(experiment.absolute()), "--run-dir", str(run_dir.absolute()), *arguments]
    if tasks is None:
        file = [] if cluster_file is None else ["--cluster-file", str(cluster_file.absolute())]
        steps = [Step("driver", (*common, "--cluster", profile, *file))]
    else:
        steps = list(array_steps(common, *tasks))
    sections: dict[Script, tuple[Driver | Share, ...]] = {
        "driver": (chosen.driver,),
        "share": (chosen.driver, chosen.share),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):  # nobody submits the same run twice at once
        remove_stray_files(folder)
        scripts = {
            name: _write_script(name, folder, overlaid(workers, *sections[name]), run_dir)
            for name in {step.script for step in steps}
        }
        submitted: list[Submitted] = []
        try:
            for job in _submit(steps, scripts, dry_run=dry_run):
                submitted.append(job)
                if not dry_run:  # after each, so that none is unknown to `subspace status` if this process dies
                    write_atomically(folder / RECORD, [json.dumps([vars(job) for job in submitted], indent=1).encode()])
        except SubspaceError as error:
            raise SubspaceError(f"{error}{_take_back(submitted)}") from error
        return submitted


def _take_back(submitted: Sequence[Submitted]) -> str:
    """Cancel the steps before one that Slurm refused, which would lead to nothing; return a sentence about them."""
    numbers = [step.job for step in submitted]
    if not numbers:
        return ""
    try:
        slurm_output("scancel", *numbers)
    except SubspaceError as error:
        return f"\nThe jobs before it are still there, cancel them: scancel {shlex.join(numbers)} ({error})"
    return f"\nThe jobs before it are cancelled: {', '.join(numbers)}"


def submitted_jobs(run_dir: Path) -> list[Job]:
    """Return what Slurm says of the jobs that were submitted last for a run, of an array each task; none if none were.

    A job that Slurm has forgotten, which it does minutes after the end, is of state ``UNKNOWN``; where Slurm could not
    be asked, now or on this host, all are of state ``NOT_ASKED``.

    Examples
    --------
    >>> submitted_jobs(Path("runs/never-submitted"))
    []
    """
    record = run_dir / "jobs" / RECORD
    if not record.is_file():
        return []
    remedy = "delete it; Slurm's own squeue still shows the jobs"
    steps = read_json(record, f"There is no {record}", remedy)
    if not isinstance(steps, list) or not all(isinstance(step, dict) and "job" in step for step in steps):
        raise CorruptError(f"{record} is not a list of jobs; {remedy}")
    if not steps:
        return []
    numbers = [str(step["job"]) for step in steps]
    try:
        listed = [job for job in jobs_numbered(numbers) if job.id.split("_")[0] in numbers]
    except SubspaceError as error:
        return [Job(number, NOT_ASKED, "", f"Slurm could not be asked: {error}") for number in numbers]
    seen = {job.id.split("_")[0] for job in listed}
    forgotten = "Slurm does not know it any more"
    return [Job(number, UNKNOWN, "", forgotten) for number in numbers if number not in seen] + listed


def parse_array(text: str | int) -> tuple[int, int | None]:
    """Return how many tasks an array has, and how many may run at a time.

    >>> parse_array("16"), parse_array("16%4")
    ((16, None), (16, 4))
    """
    match = re.fullmatch(r"([1-9]\d*)(?:%([1-9]\d*))?", str(text))
    if match is None:
        raise InputError(f"An array has at least one task, as 16, or as 16%4 (four at a time), not {text}")
    return int(match[1]), int(match[2]) if match[2] else None


def array_steps(common: Sequence[str], count: int, at_once: int | None = None) -> Iterator[Step]:
    """Yield the jobs that do a run in shares, at most `at_once` tasks of them at a time.

    >>> for step in array_steps(["e.yaml"], 4):
    ...     print(step.after, step.script, *step.arguments)
    None driver e.yaml --until harvest --share begin/4
    afterok share 4 e.yaml --until harvest
    afterany driver e.yaml --until correlate --share begin/4
    afterok share 4 e.yaml --until correlate
    afterany driver e.yaml
    """
    tasks = (f"--array=0-{count - 1}{'' if at_once is None else f'%{at_once}'}",)
    after: Literal["afterany"] | None = None
    for stage in ("harvest", "correlate"):
        yield Step("driver", (*common, "--until", stage, "--share", f"begin/{count}"), after=after)
        yield Step("share", (str(count), *common, "--until", stage), tasks, after="afterok")
        after = "afterany"
    yield Step("driver", tuple(common), after="afterany")


def _submit(steps: Sequence[Step], scripts: dict[Script, Path], *, dry_run: bool) -> Iterator[Submitted]:
    before: str | None = None
    for i, step in enumerate(steps):
        options, script = step.sbatch_options(before), scripts[step.script]
        command = " ".join(["sbatch", "--parsable", *options, shlex.join([str(script), *step.arguments])])
        if dry_run:
            before, command = f"$job{i}", f"job{i}=$({command})"
        else:
            before = submit_explained(script, options, step.arguments)
        yield Submitted(before, command)


def _write_script(name: Script, folder: Path, job: SlurmJob, run_dir: Path) -> Path:
    """Write a script with the site's settings to the run directory, and return where it is."""
    logs = run_dir.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    text = fill(read_script(name), job, log_pattern(logs, {"driver": "%x-%j.log", "share": "%x-%A_%a.log"}[name]))
    path = folder / f"{name}.sbatch"
    write_atomically(path, [text.encode()])
    return path
