"""What an experiment will take, task by task, before it is run: ``subspace plan``.

The text is read and cut into rows, since a run begins with that anyway, and both are kept. A sample of the rows goes
through the models, which tells how fast they are and how many features are active. Everything behind is arithmetic:
correlation by its plan and this machine's rates (``--calibrate`` measures them), matching and comparison by rules of
thumb, as the number of pairs is not known yet; they are upper bounds for ordinary data.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline.correlate.gpus import published_gpu
from pipeline.correlate.rates import Rates, load_rates, measure_rates, save_rates
from pipeline.experiment.stages import all_tasks
from pipeline.harvest.gguf import cache_folder
from pipeline.settings.experiment import Experiment, load_experiment
from pipeline.work.task import Assessment, Cost, Outlook
from pipeline.work.workers import ClientSource, ensure_client, n_cpus
from storage import free_space
from storage.errors import BudgetError
from storage.rundir import RunDirectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Step(Cost):
    """What one part of a stage will take: its cost, and what it is.

    Attributes
    ----------
    stage, what
        The stage, and the model or pair of sites; with the note of its cost.
    state
        ``to do``, or ``there`` if the results are current: nothing is left to be taken.
    """

    stage: str
    what: str
    state: str


def plan(
    experiment: str | Path | Experiment,
    *,
    run_dir: str | Path | None = None,
    calibrate: bool = False,
    gpu: str | None = None,
    client: ClientSource = None,
) -> list[Step]:
    """Estimate what an experiment needs, stage by stage.

    Parameters
    ----------
    experiment
        The YAML file, or an experiment in memory.
    run_dir
        Its run directory, as :func:`pipeline.run` takes it. The corpus and the table of rows are made in it.
    calibrate
        Measure the rates of this machine first, and store them.
    gpu
        Plan for one GPU per worker process, which this machine may lack: a name of
        :data:`pipeline.correlate.gpus.GPUS`.
    client
        Workers to plan for; threads of this process by default.

    Returns
    -------
    list of Step
        In the order of running.

    Raises
    ------
    InputError
        If a model, dictionary or text does not fit, as ``run`` would say it.
    BudgetError
        If memory or disk are too small; with what is projected and what is there.
    """
    assumed = None if gpu is None else published_gpu(gpu)
    config = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
    directory = RunDirectory.of(config.name, run_dir)
    directory.check(config.name)
    by_stage = all_tasks(config, directory)
    tasks = [task for tasks in by_stage.values() for task in tasks]
    assessment = Assessment(tasks)
    steps = []
    with ensure_client(client) as used:
        rates = find_rates(calibrate)
        outlook = Outlook(used, rates=rates if assumed is None else assumed.rates(rates), gpu=assumed)
        assessment.finish([task for task in tasks if task.prepares], used)
        for task in tasks:
            if task.cost is not None:
                current = assessment.is_current(task)
                cost = Cost(0.0, tasks=0) if current else task.cost(outlook)
                what, state = ", ".join(filter(None, (task.what, cost.note))), "there" if current else "to do"
                steps.append(Step(**vars(cost), stage=task.name, what=what, state=state))
    _check_disk(steps, directory)
    return steps


def find_rates(calibrate: bool) -> Rates:
    """Return this machine's rates: measured now, measured before, or those that come with the package."""
    if calibrate:
        logger.info("Measuring this machine's rates: some ten seconds; leave it alone")
        rates = measure_rates(n_cpus())
        logger.info("Kept in %s", save_rates(rates, cache_folder()))
        return rates
    known = load_rates(cache_folder())
    if known is None:
        logger.info("This machine's rates are not known: times are those of another one. --calibrate measures them")
    return known or Rates()


def _check_disk(steps: list[Step], directory: RunDirectory) -> None:
    needed, (free, folder) = sum(step.disk for step in steps if step.state == "to do"), free_space(directory.root)
    if needed > free:
        raise BudgetError(
            f"The run needs {needed / 1e9:.2f} GB of disk (projected), and {free / 1e9:.2f} GB is free at {folder}: "
            "choose another --run-dir, fewer documents or sites, or 'store: {dtype: float16}'"
        )
