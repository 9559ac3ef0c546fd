"""The tasks of the yardsticks: what each needs, and then every pair of sites beside all of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator

from pipeline.settings.experiment import Experiment
from pipeline.settings.yardsticks import YardsticksSettings
from pipeline.work.task import Assessment, Stage, Task
from pipeline.work.usage import UsageLog
from pipeline.work.workers import ClientSource, ensure_client
from pipeline.yardsticks.run import measure_sites, yardsticks_manifest
from storage.errors import InputError, MissingInputError
from storage.provenance import RunInputs
from storage.rundir import RunDirectory


def tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks; none where yardsticks are not asked for."""
    if config.yardsticks is None:
        return
    for yardstick in config.yardsticks.use:
        yield from yardstick.tasks(config, run)
    for sites in config.site_pairs:
        yield _measured(config, config.yardsticks, run, sites)


def _measured(config: Experiment, settings: YardsticksSettings, run: RunDirectory, sites: tuple[str, str]) -> Task:
    results = (yardstick.results(config, run, sites) for yardstick in settings.use)
    manifest = functools.partial(yardsticks_manifest, config, settings, run, sites)
    return Task(
        "yardsticks",
        " × ".join(sites),
        {run.yardsticks(*sites): manifest},
        (run.pairs(*sites), *itertools.chain(*results)),
        lambda client: measure_sites(config, settings, run, sites, client=client),
    )


def check(config: Experiment) -> None:
    """Raise an InputError if the experiment lacks what a yardstick needs, before anything is computed."""
    for yardstick in config.yardsticks.use if config.yardsticks is not None else ():
        yardstick.check(config)


def run_yardsticks(config: Experiment, run: RunDirectory, client: ClientSource = None) -> None:
    """Make what is missing of the yardsticks of a run whose pairs are matched.

    Parameters
    ----------
    config
        The experiment, with the section `yardsticks`.
    run
        Its run directory.
    client
        Where the tasks run; threads of this process by default.

    Raises
    ------
    InputError
        If the experiment lacks what a yardstick needs, or results of the run do not belong together; before anything is
        computed.
    MissingInputError
        If an earlier stage has not run.
    FormatError
        If what a yardstick reads was made by an earlier release.
    """
    check(config)
    todo = list(tasks(config, run))
    _check_inputs(config, run, todo)
    with run.claim(), ensure_client(client) as used, UsageLog(run.usage, used).stage("yardsticks"):
        Assessment(todo).finish(todo, used)


def _check_inputs(config: Experiment, run: RunDirectory, todo: Iterable[Task]) -> None:
    """Raise unless all that the run itself has to have made is there, of this release, and belongs together."""
    remake = f"with: subspace run EXPERIMENT.yaml --run-dir {run.root}"
    made = {path for task in todo for path in task.targets}
    needed = dict.fromkeys(path for task in todo for path in task.inputs if path not in made)
    if missing := next((path for path in needed if not path.exists()), None):
        raise MissingInputError(
            f"{run.root} lacks {missing.relative_to(run.root).as_posix()}, which the yardsticks are made from; finish "
            f"it {remake}"
        )
    for yardstick in config.yardsticks.use if config.yardsticks is not None else ():
        yardstick.check_run(config, run)
    belonging = RunInputs(run, config.site_pairs)
    if reason := next(filter(None, map(belonging.why_not, needed)), None):
        raise InputError(f"{run.root}: {reason}; make it again {remake}")


STAGE = Stage("yardsticks", tasks, check=check)
