"""The tasks of the yardsticks: what each needs, and then every pair of sites beside all of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from pipeline.settings.experiment import Experiment
from pipeline.settings.yardsticks import YardsticksSettings
from pipeline.work.task import Assessment, Stage, Task
from pipeline.work.usage import UsageLog
from pipeline.work.workers import ClientSource, ensure_client
from pipeline.yardsticks.run import measure_sites, yardsticks_manifest
from storage.errors import MissingInputError
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
        If the experiment lacks what a yardstick needs; before anything is computed.
    MissingInputError
        If an earlier stage has not run.
    FormatError
        If what a yardstick reads was made by an earlier release.
    """
    check(config)
    for yardstick in config.yardsticks.use if config.yardsticks is not None else ():
        yardstick.check_run(config, run)
    todo = list(tasks(config, run))
    made = {path for task in todo for path in task.targets}
    needed = (path for task in todo for path in task.inputs if path not in made)
    if missing := next((path for path in needed if not path.exists()), None):
        raise MissingInputError(
            f"{run.root} lacks {missing.relative_to(run.root).as_posix()}, which the yardsticks are made from; finish "
            "it with: subspace run EXPERIMENT.yaml"
        )
    with run.claim(), ensure_client(client) as used, UsageLog(run.usage, used).stage("yardsticks"):
        Assessment(todo).finish(todo, used)


STAGE = Stage("yardsticks", tasks, check=check)
