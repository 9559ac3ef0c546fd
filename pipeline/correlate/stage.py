"""The tasks of the correlation: every pair of sites, and each feature's best site of the other model."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.correlate.best_layer import best_layer, best_layer_manifest, table_paths
from pipeline.correlate.cost import CHOSEN_SHARE
from pipeline.correlate.forecast import CorrelateForecast, forecast_sizes
from pipeline.correlate.grid import KnownB, forget_rows_after
from pipeline.correlate.inputs import measure_store
from pipeline.correlate.plan import CHUNK, StoreSize
from pipeline.correlate.resources import find_resources, parse_memory
from pipeline.correlate.run import correlate, correlate_share, correlation_manifest
from pipeline.settings.experiment import Experiment
from pipeline.work.task import Cost, Outlook, Stage, Task
from storage import open_activations, open_result
from storage.rundir import SIDES, RunDirectory
from storage.sparse_array import DENSE_CHUNK


def tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks; all sites of A with one site of B follow each other, see :mod:`pipeline.correlate.grid`."""
    known_b = KnownB()
    for site_b, site_a in itertools.product(config.b.sites, config.a.sites):
        yield correlation_task(config, run, (site_a, site_b), known_b)
    results = {sites: run.correlation(*sites) for sites in config.site_pairs}
    yield Task(
        "best_layer",
        "",
        {run.best_layer: functools.partial(best_layer_manifest, results)},
        tuple(results.values()),
        lambda _: best_layer(results, run.best_layer, overwrite=True),
        tables=tuple(table_paths(run.best_layer).values()),
    )


def correlation_task(
    config: Experiment, run: RunDirectory, sites: tuple[str, str], known_b: KnownB | None = None
) -> Task:
    """Return the task of the correlation of two sites."""
    stores = run.activations("a", sites[0]), run.activations("b", sites[1])
    out, settings = run.correlation(*sites), config.correlate
    return Task(
        "correlate",
        " × ".join(sites),
        {out: lambda _: correlation_manifest(*stores, settings)},
        stores,
        lambda client: correlate(*stores, settings, out=out, overwrite=True, client=client, known_b=known_b),
        opens=stores,
        cost=functools.partial(correlation_cost, config, run, sites),
        share=lambda share, client: correlate_share(*stores, settings, out=out, share=share, client=client),
        progress=panels_done,
    )


def panels_done(partial: Path) -> str:
    """Say how many panels of an unfinished correlation, and tiles of others, are on disk."""
    panels = partial / "panels"
    if not panels.is_dir():
        return ""
    done, tiles = (len(list(panels.glob(f"{kind}-*.npz"))) for kind in ("panel", "tile"))
    return f"{done} panels are done" + (f", and {tiles} tiles of others" if tiles else "")


def correlation_cost(config: Experiment, run: RunDirectory, sites: tuple[str, str], outlook: Outlook) -> Cost:
    """Return what one correlation will take; `outlook` is told how many pairs it will keep."""
    settings, n_rows, gpu = config.correlate, open_result(run.rows, "rows").sizes["token"], outlook.gpu
    if gpu is not None:
        settings = settings.model_copy(update={"device": "cuda"})
    outlook.resources = outlook.resources or find_resources(
        outlook.client,
        parse_memory(settings.memory),
        settings.device,
        assumed_gpu=None if gpu is None else gpu.memory,
    )
    a, b = (_size_of(run.activations(side, site), n_rows, outlook) for side, site in zip(SIDES, sites, strict=True))
    forecast = forecast_sizes(a, b, n_rows, settings, outlook.resources, outlook.rates)
    outlook.kept[run.correlation(*sites)] = CHOSEN_SHARE * a.n_features * b.n_features
    return Cost(
        seconds=forecast.seconds,
        rows=n_rows,
        tasks=forecast.plan.n_tiles,
        flops=forecast.flops,
        read=forecast.read,
        disk=forecast.disk,
        memory=float(forecast.memory),
        note=_method(forecast),
    )


def _size_of(path: Path, n_rows: int, outlook: Outlook) -> StoreSize:
    """Return the size of a store: measured if it is there, else as it is forecast."""
    known = outlook.stores.get(path)
    if known is None:
        return measure_store(path, open_activations(path))[1]
    active = known.active if known.sparse else known.n_features
    entries = np.full(known.n_features, int(np.ceil(active * n_rows / known.n_features)))
    return StoreSize(known.sparse, 4, entries, CHUNK if known.sparse else DENSE_CHUNK[0])


def _method(forecast: CorrelateForecast) -> str:
    """Return how a correlation is made and cut, and what it takes of a GPU."""
    plan, ranks = forecast.plan, "ranks, " if forecast.ranking else ""
    cut = f", {plan.n_panels} × {plan.n_strips} tiles" if plan.n_strips > 1 else ""
    gpu = f", {plan.gpu_projected / 1e9:.1f} GB of the GPU" if plan.device == "cuda" else ""
    return f"{ranks}{plan.method}{cut}{gpu}"


STAGE = Stage("correlate", tasks, around=forget_rows_after)
