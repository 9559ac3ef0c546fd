"""The stages of an experiment, in their order.

A stage is a module with a :class:`~pipeline.work.task.Stage`, whose function yields its tasks. It takes part in runs,
status and forecasts once it stands in :data:`STAGES`; :func:`register` puts one there from outside.
"""

from __future__ import annotations

from typing import Literal

from pipeline.compare.stage import STAGE as COMPARE
from pipeline.correlate.stage import STAGE as CORRELATE
from pipeline.harvest.stage import STAGE as HARVEST
from pipeline.match.stage import tasks as match_tasks
from pipeline.report.stage import STAGE as REPORT
from pipeline.semantics.stage import STAGE as SEMANTICS
from pipeline.semantics.stage import non_concept_tasks
from pipeline.settings.experiment import Experiment
from pipeline.work.task import Stage, Task
from storage.errors import InputError
from storage.rundir import RunDirectory

#: The names of the stages that come with the package.
StageName = Literal["harvest", "correlate", "match", "compare", "semantics", "report"]

# a filter of the matching reads which features stand for no concept
MATCH = Stage("match", lambda config, run: [*non_concept_tasks(config, run), *match_tasks(config, run)])

#: All stages, each behind those whose results it reads.
STAGES: list[Stage] = [HARVEST, CORRELATE, MATCH, COMPARE, SEMANTICS, REPORT]


def register(stage: Stage, *, before: str = "report") -> None:
    """Add a stage in front of another one; it replaces one of the same name.

    Parameters
    ----------
    stage
        The new stage.
    before
        The name of the stage that is to follow it.
    """
    STAGES[:] = [one for one in STAGES if one.name != stage.name]
    STAGES.insert(position(before), stage)


def position(name: str) -> int:
    """Return the place of a stage.

    Raises
    ------
    InputError
        If there is none of this name.
    """
    names = [stage.name for stage in STAGES]
    if name not in names:
        raise InputError(f"There is no stage {name!r}; there are {', '.join(names)}")
    return names.index(name)


def all_tasks(config: Experiment, directory: RunDirectory) -> dict[str, list[Task]]:
    """Return the tasks of every stage, by its name, in the order of running."""
    return {stage.name: list(stage.tasks(config, directory)) for stage in STAGES}
