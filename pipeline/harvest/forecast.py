"""How long a harvest will take: a sample of the text is run, as a shard is, and timed with every worker at it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from distributed import Client

from pipeline.harvest.run import Job, Prediction, begin, measure, predict, run_rows
from pipeline.settings.harvest import ModelSettings, StoreSettings
from pipeline.work.workers import n_slots, run_tasks
from storage.rundir import Side

#: Rows that are timed on each worker thread, after as many to warm up.
TIMED_ROWS = 1024


@dataclass(frozen=True)
class HarvestForecast:
    """What the harvest of one model will take.

    Attributes
    ----------
    prediction
        Rows, tokens, disk and memory.
    n_tasks
        Shards.
    seconds
        From here on: the model is loaded, and its sites are checked.
    flops
        Of the model's matrix products, up to the deepest site.
    """

    prediction: Prediction
    n_tasks: int
    seconds: float
    flops: float


def forecast_harvest(  # noqa: PLR0917 - as harvest
    corpus_path: str | Path,
    rows_path: str | Path,
    model: ModelSettings,
    side: Side,
    store: StoreSettings,
    out_dir: str | Path,
    *,
    client: Client,
) -> HarvestForecast | None:
    """Return what a harvest will take, or None if there is nothing left to harvest.

    Arguments are those of :func:`pipeline.harvest.run.harvest`; its checks are made, and its errors are raised.
    """
    job, _ = begin(corpus_path, rows_path, model, side, store, out_dir)
    if not job.sites:
        return None
    start = time.perf_counter()
    prediction = predict(job, store, *measure(job, client))
    checking = time.perf_counter() - start
    slots, width = n_slots(client), min(TIMED_ROWS, prediction.n_rows)
    starts = np.linspace(0, prediction.n_rows - width, 2 * slots).astype(int)
    spans = [slice(int(first), int(first) + width) for first in starts]
    timed = [
        item
        for _, item in run_tasks(
            client, _timed, spans, name="time-rows", label=f"Timing {side.upper()}", args=(job,), per_slot=1
        )
    ]
    # The first round loads the model on every worker
    seconds = sorted(second for second, _ in timed)[:slots]
    rate = width / (sum(seconds) / len(seconds))
    n_tasks = -(-prediction.n_rows // store.shard_rows)
    rounds = -(-n_tasks // slots) * min(store.shard_rows, prediction.n_rows) / rate
    return HarvestForecast(
        prediction=prediction,
        n_tasks=n_tasks,
        seconds=checking + rounds,
        flops=2.0 * timed[0][1] * prediction.n_tokens,
    )


def _timed(rows: slice, job: Job) -> tuple[float, int]:
    """Run some rows as a shard's task does, but for the writing; return the seconds, and the model's parameters."""
    start = time.perf_counter()
    run_rows(job, rows, tuple(job.sites), dict.fromkeys(job.sites, np.inf), np.dtype(np.float32))
    seconds = time.perf_counter() - start
    network = job.loaded().reader.network
    return seconds, sum(weights.numel() for weights in network.parameters() if weights.ndim > 1)


def n_rows_of(rows_path: str | Path) -> int:
    """Return how many rows a table has."""
    return int(zarr.open_group(str(rows_path), mode="r")["document"].shape[0])
