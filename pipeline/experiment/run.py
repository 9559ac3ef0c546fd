"""One experiment from text to report: the tasks of every stage, each skipped where it is current."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import xarray as xr
from distributed import Client

from pipeline.experiment.stages import STAGES, all_tasks, ordered_stages
from pipeline.settings.experiment import Experiment, load_experiment
from pipeline.work.share import Share
from pipeline.work.task import Assessment, Task
from pipeline.work.usage import UsageLog
from pipeline.work.workers import ClientSource, Staged, ensure_client, tell
from storage.errors import InputError
from storage.results import open_result
from storage.rundir import RunDirectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What :func:`run` leaves behind: the folder, and its results opened lazily."""

    directory: RunDirectory
    experiment: Experiment

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.directory.report

    def pairs(self, site_a: str, site_b: str) -> xr.Dataset:
        """Open the matched pairs of two sites."""
        return open_result(self.directory.pairs(site_a, site_b))

    def scores(self, site_a: str, site_b: str) -> xr.Dataset:
        """Open the scores, nulls and p-values of two sites."""
        return open_result(self.directory.scores(site_a, site_b))


def run(
    experiment: str | Path | Experiment,
    *,
    run_dir: str | Path | None = None,
    until: str = "report",
    share: Share | None = None,
    client: ClientSource = None,
) -> RunResult:
    """Run an experiment, or resume it.

    A finished stage whose inputs and settings have not changed is skipped; a half-finished one resumes at its first
    missing part.

    Parameters
    ----------
    experiment
        The YAML file, or an experiment in memory.
    run_dir
        Where everything is written; ``runs/NAME`` by default.
    until
        The last stage to run.
    share
        For job arrays without a scheduler: begin the stage `until`, or do this share of it, and leave it unfinished;
        `harvest` or `correlate`. See :mod:`pipeline.work.share`.
    client
        Where the tasks run; threads of this process by default.

    Returns
    -------
    RunResult

    Raises
    ------
    InputError
        If the experiment is not valid, something that it names is missing, or the run directory is another
        experiment's, or holds other files;
        before anything is computed.
    BusyError
        If another process runs there.

    Examples
    --------
    >>> run("experiment.yaml", until="match")  # doctest: +SKIP
    """
    config = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
    directory = RunDirectory.of(config.name, run_dir)
    if share is not None and not share.begins:
        directory.check(config.name)
        return _run(config, directory, until, share, client)  # shares at once hold their targets, not the run
    directory.check_free(config.name)
    check_inputs(config)  # what does not fit is said before anything is written
    with directory.claim():
        return _run(config, directory, until, share, client)


def _run(
    config: Experiment, directory: RunDirectory, until: str, share: Share | None, client: ClientSource
) -> RunResult:
    stages = ordered_stages()
    wanted = stages[: stages.index(STAGES[until]) + 1]
    by_stage = all_tasks(config, directory)
    if share is not None:
        _require_shareable(by_stage, until)
        # the process that begins a stage finishes those before it; the others find them finished
        wanted = wanted[:-1] if share.begins else []
    if share is None or share.begins:
        directory.write_experiment(config.model_dump(mode="json"))
    assessment = Assessment(task for tasks in by_stage.values() for task in tasks)
    with ensure_client(client) as used:
        usage = UsageLog(directory.usage, used)
        for number, stage in enumerate(wanted, start=1):
            logger.info("[%d/%d] %s", number, len(stages), stage.name)
            tell(Staged(stage.name, tuple(other.name for other in wanted)))
            with usage.stage(stage.name), stage.around(used):
                assessment.finish(by_stage[stage.name], used)
        if share is not None:
            with usage.stage(f"{until} {share}"):
                _share(by_stage[until], assessment, share, used)
    return RunResult(directory, config)


def check_inputs(config: Experiment) -> None:
    """Raise if something that an experiment names is not there or does not fit; no cluster, no file is needed for that.

    Raises
    ------
    InputError
        The message names what to change.
    """
    for stage in ordered_stages():
        if stage.check is not None:
            stage.check(config)


def _require_shareable(by_stage: dict[str, list[Task]], until: str) -> None:
    shareable = [name for name, tasks in by_stage.items() if any(task.share for task in tasks)]
    if until not in shareable:
        raise InputError(f"A share is of the stage {' or '.join(shareable)}: give it as `until`, not {until!r}")


def _share(tasks: list[Task], assessment: Assessment, share: Share, client: Client) -> None:
    """Begin the tasks of a stage, or do a share of them."""
    if share.begins:
        assessment.finish([task for task in tasks if task.prepares], client)
    for task in tasks:
        if task.share is not None:
            task.share(share, client)
