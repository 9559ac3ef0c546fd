"""The stages of an experiment, in their order.

A stage is a module with a :class:`~pipeline.work.task.Stage`, whose function yields its tasks. It takes part in runs,
status and forecasts once it is in :data:`STAGES`, where ``STAGES.register`` or an entry point puts one from outside.
"""

from __future__ import annotations

from pipeline.compare.stage import STAGE as COMPARE
from pipeline.correlate.stage import STAGE as CORRELATE
from pipeline.harvest.stage import STAGE as HARVEST
from pipeline.match.stage import check as check_match
from pipeline.match.stage import tasks as match_tasks
from pipeline.rematch.stage import STAGE as REMATCH
from pipeline.report.stage import STAGE as REPORT
from pipeline.semantics.stage import STAGE as SEMANTICS
from pipeline.semantics.stage import non_concept_tasks
from pipeline.settings.experiment import Experiment
from pipeline.work.task import Stage, Task
from pipeline.yardsticks.stage import STAGE as YARDSTICKS
from storage.registry import Registry
from storage.rundir import RunDirectory

# a filter of the matching reads which features stand for no concept
MATCH = Stage(
    "match", lambda config, run: [*non_concept_tasks(config, run), *match_tasks(config, run)], check=check_match
)

#: All stages by name, those of this package behind those whose results they read.
STAGES: Registry[Stage] = Registry("stage", "subspace.stages")
for _stage in (HARVEST, CORRELATE, MATCH, REMATCH, COMPARE, SEMANTICS, YARDSTICKS, REPORT):
    STAGES.register(_stage)


def ordered_stages() -> list[Stage]:
    """Return all stages in the order of running.

    Raises
    ------
    InputError
        If one is to run before a stage that does not exist.

    Examples
    --------
    >>> [stage.name for stage in ordered_stages()]
    ['harvest', 'correlate', 'match', 'rematch', 'compare', 'semantics', 'yardsticks', 'report']
    """
    ordered: list[Stage] = []
    for stage in STAGES.values():
        names = [other.name for other in ordered]
        following = STAGES[stage.before].name
        ordered.insert(names.index(following) if following in names else len(names), stage)
    return ordered


def all_tasks(config: Experiment, directory: RunDirectory) -> dict[str, list[Task]]:
    """Return the tasks of every stage, by its name, in the order of running."""
    return {stage.name: list(stage.tasks(config, directory)) for stage in ordered_stages()}
