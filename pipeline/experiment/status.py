"""What of an experiment is done, what a run would do next, and why: ``subspace status``.

Manifests are compared, those that results have with those that a run would give them: nothing is computed, no model is
run. What a run would make is what :func:`pipeline.run` makes, since both ask the same tasks.
"""

from __future__ import annotations

import functools

from pipeline.experiment.stages import all_tasks
from pipeline.settings.experiment import Experiment, stored_experiment
from pipeline.work.task import Assessment, Item
from storage import fingerprint
from storage.rundir import RunDirectory
from storage.verify import ExpectedResult


def status(config: Experiment, directory: RunDirectory) -> list[Item]:
    """Return the state of every result of an experiment, in the order of running.

    Parameters
    ----------
    config
        The experiment.
    directory
        Its run directory; it needs not exist.

    Returns
    -------
    list of pipeline.work.task.Item

    Examples
    --------
    >>> from pathlib import Path
    >>> side = {"model": "gpt2", "dictionary": "identity", "sites": ["layers.1"]}
    >>> config = Experiment.model_validate({"name": "toy", "corpus": {"path": "x.txt"}, "a": side, "b": side})
    >>> [(item.stage, item.state, item.why) for item in status(config, RunDirectory(Path("nowhere")))][:2]
    [('corpus', 'missing', 'not there yet'), ('rows', 'missing', 'waits for corpus')]
    """
    return Assessment(task for tasks in all_tasks(config, directory).values() for task in tasks).items()


def expected(directory: RunDirectory) -> list[ExpectedResult]:
    """Return all results of the experiment that was last run in a run directory, for :func:`storage.verify.verify`.

    What text, rows and stores depend on is left out: models would have to be loaded.

    Raises
    ------
    FormatError
        If the experiment that the directory keeps cannot be read.
    """
    by_stage = all_tasks(stored_experiment(directory), directory)
    return [
        ExpectedResult(
            path,
            task.inputs,
            functools.partial(task.recorded, path),
            None if task.by_content or task.prepares else functools.partial(expect, fingerprint),
        )
        for tasks in by_stage.values()
        for task in tasks
        for path, expect in task.targets.items()
    ]
