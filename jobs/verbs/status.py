"""``subspace status``: what is done, what would run, and why."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from jobs.cluster.slurm import FAILED, NOT_ASKED, UNKNOWN, exit_code, failures
from jobs.cluster.submission import submitted_jobs
from jobs.verbs.cluster import job_table
from jobs.watch.follow import follow as followed
from pipeline.experiment.status import status
from pipeline.settings.experiment import Experiment, load_experiment, stored_experiment
from pipeline.work.script import AsJson, show, text_table, wide_console
from pipeline.work.task import Item
from storage.rundir import RunDirectory

STYLES = {"current": "green", "missing": "", "unfinished": "yellow", "waiting": "yellow"}
STYLES |= {"outdated": "red", "damaged": "bold red"}


def command(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|EXPERIMENT", help="Run directory, or an experiment's YAML file.", show_default=False
        ),
    ],
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run directory of an experiment; default: runs/NAME.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print a line whenever the run progresses, until it ends.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show which results of an experiment are done, what a run would do next, and why. Computes nothing.

    For a run submitted to Slurm, also show its jobs, and the end of the log of each failed one.

    With a run directory, the experiment is the one that was last run there; with a YAML file, it is the current file.

    With `--follow`, the exit status is 0 if the run finished, else that of the failed job, or 1.
    """
    config, directory = _open(what, run_dir)
    if follow:
        _follow(directory, as_json=as_json)
        return
    items = status(config, directory)
    counts = Counter(item.state for item in items)
    jobs = submitted_jobs(directory.root)
    if as_json:
        listed = [{**dataclasses.asdict(item), "path": str(item.path)} for item in items]
        summary = {"run_directory": str(directory.root), "counts": counts, "results": listed}
        show({**summary, "jobs": [vars(job) for job in jobs]}, as_json=True)
        return
    console = wide_console(150)
    console.print(table_of(items))
    console.print(f"{directory.root}: " + ", ".join(f"{n} {state}" for state, n in counts.items()))
    if jobs:
        console.print(job_table(jobs))
        # where a run stopped and Slurm does not say which jobs failed, the logs of all that are over
        stopped = set(counts) != {"current"} and not any(job.active for job in jobs)
        for line in failures(jobs, directory.root / "logs", (*FAILED, UNKNOWN, NOT_ASKED) if stopped else FAILED):
            typer.echo(line)


def _follow(directory: RunDirectory, *, as_json: bool) -> None:
    """Print a line whenever a run gets on; at its end why it failed, if it did."""
    for progress in followed(directory.root):
        now = dt.datetime.now().astimezone().strftime("%H:%M:%S")
        if as_json:
            show({"session": progress.session, "jobs": [vars(job) for job in progress.jobs]}, as_json=True)
        else:
            typer.echo(f"{now} {progress}")
    if progress.succeeded:
        return
    if not as_json:
        for line in failures(progress.jobs, directory.root / "logs", (*FAILED, UNKNOWN, NOT_ASKED)):
            typer.echo(line)
    codes = [exit_code(job.id) for job in progress.jobs if job.state in FAILED]
    raise typer.Exit(next((code for code in codes if code), 1))


def _open(what: Path, run_dir: Path | None) -> tuple[Experiment, RunDirectory]:
    if not what.is_dir():
        config = load_experiment(what)
        return config, RunDirectory.of(config.name, run_dir)
    directory = RunDirectory(what)
    return stored_experiment(directory), directory


def table_of(items: list[Item]) -> Table:
    """Return a table with a line for each stage and state of its results, with what is first to say of them."""
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.stage, item.state), []).append(item)
    rows = [
        (stage, f"{len(some)} of {sum(one.stage == stage for one in items)}", Text(state, STYLES[state]), _why(some))
        for (stage, state), some in groups.items()
    ]
    return text_table(("stage", "results", "state", "why"), rows, title="what is done, and what a run would do")


def _why(items: list[Item]) -> str:
    """Return what is said of some results: the first reason, with the result it is of if there are others."""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.why, item)
    why, item = next(iter(first.items()))
    others = len(first) - 1
    name = f"{item.what}: " if others and item.what else ""
    return f"{name}{why}" + (
        f" (and {others} other reason{'s' if others > 1 else ''}; --json lists all)" if others else ""
    )
