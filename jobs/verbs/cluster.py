"""The verbs ``subspace cluster up|down|status|job-script`` and ``subspace submit``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import dask
import typer
from rich.table import Table

from jobs.cluster import service
from jobs.cluster.profiles import JobsProfile, find_job, find_profile, load_settings
from jobs.cluster.running import known_names, state_root
from jobs.cluster.scripts import job_options, worker_class
from jobs.cluster.slurm import Job, failures
from jobs.cluster.submission import submit_run
from pipeline.settings.experiment import load_experiment
from pipeline.work.script import AsJson, ClusterFile, ExperimentFile, RunDir, show, text_table, wide_console
from storage.errors import InputError
from storage.rundir import RunDirectory

Name = Annotated[str, typer.Argument(help="Name of the cluster.", show_default=False)]


def up_command(
    name: Name,
    profile: Annotated[str, typer.Option(help="Profile that starts processes or jobs.")] = "processes",
    cluster_file: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Start a cluster that keeps running after this command ends; `--cluster NAME` connects to it."""
    _show(service.status(service.up(name, profile, cluster_file)), as_json=as_json)


def down_command(name: Name, as_json: AsJson = False) -> None:
    """Stop a cluster: exactly the processes and jobs that it started, even after a crash."""
    ended = service.down(name)
    if as_json:
        show(vars(ended), as_json=True)
        return
    typer.echo(f"{name} is down." if ended.gone is None else f"{name} was no longer running: {ended.gone}.")
    for what, left in (("processes", ended.processes), ("jobs", ended.jobs)):
        if left:
            typer.echo(f"Stopped remaining {what}: {', '.join(map(str, left))}")
    if ended.elsewhere is not None:
        typer.echo(f"Its process on {ended.elsewhere} did not answer: if it is still running, stop it there.")


def status_command(
    name: Annotated[str | None, typer.Argument(help="Name of one cluster; default: all.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show persistent clusters: scheduler, workers, jobs, and how to reach the dashboard."""
    states = [service.known(name)] if name is not None else [service.known(known) for known in known_names()]
    reports = [service.status(state) for state in states]
    if as_json:
        show({"clusters": reports}, as_json=True)
        return
    if not reports:
        typer.echo(f"No cluster was started (in {state_root() / 'clusters'}); `subspace cluster up NAME` starts one.")
    for report in reports:
        _show(report, as_json=False)


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    """Print what is known of a cluster."""
    if as_json:
        show(report, as_json=True)
        return
    jobs, logs = [Job(**job) for job in report.pop("jobs")], report.pop("logs", None)
    if "memory_bytes" in report:
        report["memory"] = f"{report.pop('memory_bytes') / 1e9:.1f} GB"
    show({key: value for key, value in report.items() if value is not None}, as_json=False)
    if jobs:
        wide_console(120).print(job_table(jobs))
    for line in failures(jobs, Path(logs) if logs else None):
        typer.echo(line)


def job_table(jobs: list[Job]) -> Table:
    """Return a table with a line for each job."""
    rows = [(job.id, job.state, job.node, "" if job.reason == "None" else job.reason) for job in jobs]
    return text_table(("job", "state", "node", "reason"), rows, title="Slurm jobs")


def job_script_command(
    profile: Annotated[str, typer.Argument(help="Profile whose workers are jobs.")] = "slurm-cpu",
    cluster_file: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Print a profile's worker job script without submitting it."""
    script = job_script(profile, cluster_file)
    if as_json:
        show({"profile": profile, "script": script}, as_json=True)
    else:
        typer.echo(script.rstrip("\n"))


def job_script(name: str, cluster_file: Path | None = None) -> str:
    """Return the script of a profile's worker jobs, with placeholders for what only a running cluster has."""
    settings = load_settings(cluster_file)
    profile = find_profile(name, settings)
    if not isinstance(profile, JobsProfile):
        raise InputError(f"Profile {name!r} is of kind {profile.kind!r}; its workers are not jobs")
    description = find_job(name, settings)
    options = job_options(name, description, state_root() / "runs" / f"{name}-XXXXXXXX")
    with dask.config.set(settings):
        job = worker_class(name, description, options)(
            "tls://SCHEDULER:PORT", name="WORKER", config_name=name, protocol="tls://"
        )
        return str(job.job_script())


def submit_command(
    experiment: ExperimentFile,
    run_dir: RunDir = None,
    cluster: Annotated[str, typer.Option(metavar="PROFILE", help="Profile of kind slurm.")] = "slurm-cpu",
    cluster_file: ClusterFile = None,
    array: Annotated[
        str | None,
        typer.Option(
            metavar="N[%M]", help="Run without a scheduler: job arrays of N tasks, M at a time, share the work."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the scripts and print what would be submitted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a run: as a small driver job that submits the workers, or as job arrays without a scheduler."""
    config = load_experiment(experiment)  # a wrong key stops here, not in a job tomorrow
    run = RunDirectory.of(config.name, run_dir)
    run.check(config.name)
    directory = run.root
    submitted = submit_run(
        experiment, directory, profile=cluster, cluster_file=cluster_file, array=array, dry_run=dry_run
    )
    if as_json:
        jobs = [] if dry_run else [step.job for step in submitted]
        show(
            {"jobs": jobs, "commands": [step.command for step in submitted], "run_directory": str(directory)},
            as_json=True,
        )
        return
    for step in submitted:
        typer.echo(step.command if dry_run else f"job {step.job}: {step.command}")
    if not dry_run:
        typer.echo(f"Logs: {directory / 'logs'}. Cancel: scancel {shlex.join(step.job for step in submitted)}")
