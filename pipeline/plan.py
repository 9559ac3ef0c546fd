"""What an experiment will take, stage by stage, before it is run: ``subspace plan``.

The text is read and cut into rows, since a run begins with that anyway, and both are kept. A sample of the rows goes
through the models, which tells how fast they are and how many features are active. Everything behind is arithmetic:
correlation by its plan and this machine's rates (``--calibrate`` measures them), matching and comparison by rules of
thumb, as the number of pairs is not known yet; they are upper bounds for ordinary data.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from distributed import Client

from pipeline.config import Experiment, load_experiment
from pipeline.correlate.cost import CHOSEN_SHARE
from pipeline.correlate.forecast import CorrelateForecast, forecast_sizes
from pipeline.correlate.plan import CHUNK, StoreSize
from pipeline.correlate.rates import Rates, load_rates, measure_rates, save_rates
from pipeline.correlate.resources import Resources, find_resources, parse_memory
from pipeline.correlate.run import measure_store
from pipeline.run import make_text
from pipeline.workers import ensure_client, n_cpus
from storage import free_space, open_activations
from storage.errors import BudgetError
from storage.rundir import RunDirectory, Side
from storage.sparse_array import DENSE_CHUNK

if TYPE_CHECKING:
    from pipeline.harvest.plan import SiteNeed

logger = logging.getLogger(__name__)

#: Seconds and bytes of a kept pair while it is matched (measured, greedy), and bytes of a pair in its result.
MATCH_SECONDS, MATCH_BYTES, PAIR_BYTES = 4e-7, 40, 40
#: Seconds of one pair of pairs in a null run of RSA, and of one product in one of SVCCA, on one core (measured).
RSA_SECONDS, SVCCA_SECONDS = 8e-9, 4e-11
#: The same where a null draws other rows, which are ranked and decomposed in every run.
DRAWN_RSA_SECONDS, DRAWN_SVCCA_SECONDS = 4e-7, 1e-9
#: Subspaces with pairs enough to be tested at two sites, different numbers of pairs among them, and seconds of one
#: run of a null for one such number, on one core (measured on the demo, 10 to 80 pairs).
SUBSPACES, SUBSPACE_SIZES, DRAW_SECONDS, SHUFFLE_SECONDS = 40, 30, 2e-3, 4e-4
#: Seconds of the report, and bytes of it.
REPORT_SECONDS, REPORT_BYTES = 10.0, 3_000_000


@dataclass(frozen=True)
class Step:
    """What one part of a stage will take.

    Attributes
    ----------
    stage, what
        The stage, and the model or pair of sites.
    state
        ``to do``, or ``there`` if a result is on disk (a changed setting may yet have it made again).
    rows, tasks
        Rows that it reads, and tasks that it is cut into.
    flops, read, disk, memory
        Floating-point operations; bytes read, left on disk, and held by each worker process at most.
    seconds
        On the workers at hand.
    """

    stage: str
    what: str
    state: str
    rows: int
    tasks: int
    flops: float
    read: float
    disk: float
    memory: float
    seconds: float

    def done(self) -> Step:
        """Return the step as one whose result is there: nothing is left to be taken."""
        return dataclasses.replace(self, state="there", tasks=0, flops=0.0, read=0.0, memory=0.0, seconds=0.0)


def plan(
    experiment: str | Path | Experiment,
    *,
    run_dir: str | Path | None = None,
    calibrate: bool = False,
    client: Client | None = None,
) -> list[Step]:
    """Return what an experiment will take.

    Parameters
    ----------
    experiment
        The YAML file, or an experiment in memory.
    run_dir
        Its run directory, as :func:`pipeline.run.run` takes it. The corpus and the table of rows are made in it.
    calibrate
        Measure this machine's rates first, and keep them.
    client
        The workers that the plan is for; threads of this process by default.

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
    config = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
    directory = RunDirectory.of(config.name, run_dir)
    with ensure_client(client) as used:
        harvested, sizes, n_rows = _harvest_steps(config, directory, used)
        resources = find_resources(used, parse_memory(config.correlate.memory), config.correlate.device)
        correlated = list(_correlate_steps(config, directory, sizes, (n_rows, resources, find_rates(calibrate))))
    later = [*_match_steps(config, directory, sizes), *_compare_steps(config, directory, sizes, resources)]
    steps = [*harvested, *correlated, *later, *_semantics_steps(config, directory, sizes, resources), _report_step()]
    _check_disk(steps, directory)
    return steps


def find_rates(calibrate: bool) -> Rates:
    """Return this machine's rates: measured now, measured before, or those that come with the package."""
    from pipeline.harvest.gguf import cache_folder  # noqa: PLC0415 - an extra's dependencies

    if calibrate:
        logger.info("Measuring this machine's rates: some ten seconds; leave it alone")
        rates = measure_rates(n_cpus())
        logger.info("Kept in %s", save_rates(rates, cache_folder()))
        return rates
    known = load_rates(cache_folder())
    if known is None:
        logger.info("This machine's rates are not known: times are those of another one. --calibrate measures them")
    return known or Rates()


Sizes = dict[tuple[Side, str], StoreSize]


def _harvest_steps(config: Experiment, directory: RunDirectory, client: Client) -> tuple[list[Step], Sizes, int]:
    # torch and transformers take seconds to import
    from pipeline.harvest.forecast import forecast_harvest, n_rows_of  # noqa: PLC0415

    make_text(config, directory, client)
    n_rows, steps, sizes = n_rows_of(directory.rows), [], Sizes()
    for side, model in config.sides:
        folder = directory.activations(side, "x").parent
        found = forecast_harvest(directory.corpus, directory.rows, model, side, config.store, folder, client=client)
        needs = found.prediction.needs if found else {}
        for site in model.sites:
            sizes[side, site] = _size_of(directory.activations(side, site), needs.get(site), n_rows)
        what = f"{side.upper()}: {model.label or model.id}"
        step = Step("harvest", what, "to do", n_rows, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
        if found:
            disk, memory = float(sum(found.prediction.disk.values())), float(found.prediction.memory)
            step = dataclasses.replace(
                step, tasks=found.n_tasks, flops=found.flops, disk=disk, memory=memory, seconds=found.seconds
            )
        steps.append(step if found else step.done())
    return steps, sizes, n_rows


def _size_of(path: Path, need: SiteNeed | None, n_rows: int) -> StoreSize:
    """Return the size of a store: measured if it is there, else as its sample says."""
    if need is None:
        return measure_store(path, open_activations(path))[1]
    n_features, active, sparse = need.n_features, need.active, need.layout == "csr"
    entries = np.full(n_features, int(np.ceil((active if sparse else n_features) * n_rows / n_features)))
    return StoreSize(sparse, 4, entries, CHUNK if sparse else DENSE_CHUNK[0])


def _correlate_steps(
    config: Experiment, directory: RunDirectory, sizes: Sizes, given: tuple[int, Resources, Rates]
) -> Iterator[Step]:
    n_rows, resources, rates = given
    for site_a, site_b in config.site_pairs:
        found = forecast_sizes(
            sizes["a", site_a],
            sizes["b", site_b],
            n_rows=n_rows,
            n_halves=2 if config.correlate.select == "half" else 1,
            top_k=config.correlate.top_k,
            kernel=config.correlate.kernel,
            device=config.correlate.device,
            measure=config.correlate.measure,
            resources=resources,
            rates=rates,
        )
        step = Step(
            stage="correlate",
            what=f"{site_a} × {site_b}, {_method(found)}",
            state="to do",
            rows=n_rows,
            tasks=found.plan.n_panels,
            flops=found.flops,
            read=found.read,
            disk=found.disk,
            memory=float(found.memory),
            seconds=found.seconds,
        )
        yield step.done() if directory.correlation(site_a, site_b).exists() else step


def _method(found: CorrelateForecast) -> str:
    """Return how a correlation is made, and what it takes of a GPU."""
    ranks = "ranks, " if found.ranking else ""
    gpu = f", {found.plan.gpu_projected / 1e9:.1f} GB of the GPU" if found.plan.device == "cuda" else ""
    return f"{ranks}{found.plan.method}{gpu}"


def _match_steps(config: Experiment, directory: RunDirectory, sizes: Sizes) -> Iterator[Step]:
    for site_a, site_b in config.site_pairs:
        n_a, n_b = sizes["a", site_a].n_features, sizes["b", site_b].n_features
        kept = CHOSEN_SHARE * n_a * n_b
        what, seconds = f"{site_a} × {site_b}, {config.match.method}", 0.3 + kept * MATCH_SECONDS
        disk = float(min(n_a, n_b) * PAIR_BYTES)
        step = Step("match", what, "to do", int(kept), 1, 0.0, kept * 16, disk, kept * MATCH_BYTES, seconds)
        yield step.done() if directory.pairs(site_a, site_b).exists() else step


def _compare_steps(config: Experiment, directory: RunDirectory, sizes: Sizes, resources: Resources) -> Iterator[Step]:
    runs, slots = config.compare.null_runs, resources.processes * resources.threads
    for site_a, site_b in config.site_pairs:
        n = min(sizes["a", site_a].n_features, sizes["b", site_b].n_features)
        products = runs * n * 512.0 * 512.0
        pairs = runs * n * n / 2.0
        drawn = len(set(config.compare.nulls) - {"shuffled"})
        shuffling = (pairs * RSA_SECONDS + products * SVCCA_SECONDS) * ("shuffled" in config.compare.nulls)
        drawing = (pairs * DRAWN_RSA_SECONDS + products * DRAWN_SVCCA_SECONDS) * drawn
        seconds = 0.5 + (shuffling + drawing) / slots
        step = Step(
            stage="compare",
            what=f"{site_a} × {site_b}, at most {n:,} pairs",
            state="to do",
            rows=n,
            tasks=slots,
            flops=2 * products,
            read=n * 1024 * 4.0,
            disk=runs * 8.0 * len(config.compare.metrics) * len(config.compare.nulls),
            memory=8.0 * n * n / 2,
            seconds=seconds,
        )
        yield step.done() if directory.scores(site_a, site_b).exists() else step


def _semantics_steps(config: Experiment, directory: RunDirectory, sizes: Sizes, resources: Resources) -> Iterator[Step]:
    """Yield what concepts will take, as far as it can be known before they are looked for."""
    if config.semantics is None:
        return
    runs, slots = config.semantics.null_runs, resources.processes * resources.threads
    drawn = sum(null != "shuffled" for null in config.semantics.nulls)
    sized = SUBSPACE_SIZES + config.semantics.clusters
    for site_a, site_b in config.site_pairs:
        rows = sizes["a", site_a].n_features + sizes["b", site_b].n_features
        seconds = 1 + runs * (drawn * sized * DRAW_SECONDS + SUBSPACES * SHUFFLE_SECONDS) / slots
        step = Step(
            stage="semantics",
            what=f"{site_a} × {site_b}, concepts",
            state="to do",
            rows=rows,
            tasks=SUBSPACES + drawn * sized,
            flops=0.0,
            read=rows * 1024 * 4.0,
            disk=500_000.0,
            memory=rows * 1024 * 4.0,
            seconds=seconds,
        )
        yield step.done() if directory.semantics(site_a, site_b).exists() else step


def _report_step() -> Step:
    return Step("report", "", "to do", 0, 1, 0.0, 0.0, REPORT_BYTES, 0.0, REPORT_SECONDS)


def _check_disk(steps: list[Step], directory: RunDirectory) -> None:
    needed, (free, folder) = sum(step.disk for step in steps if step.state == "to do"), free_space(directory.root)
    if needed > free:
        raise BudgetError(
            f"The run needs {needed / 1e9:.2f} GB of disk (projected), and {free / 1e9:.2f} GB is free at {folder}: "
            "choose another --run-dir, fewer documents or sites, or 'store: {dtype: float16}'"
        )
