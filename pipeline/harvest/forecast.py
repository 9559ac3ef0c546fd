"""How long a harvest will take: a sample of the text is run, as a shard is, and timed with every worker at it."""

from __future__ import annotations

import time

import numpy as np

from pipeline.harvest.run import Job, measure, predict, run_rows
from pipeline.work.task import Cost, Outlook, StoreForecast
from pipeline.work.workers import run_tasks

#: Rows that are timed on each worker thread, after as many to warm up.
TIMED_ROWS = 1024


def forecast_harvest(job: Job, outlook: Outlook) -> Cost:
    """Return what a harvest will take, and tell the outlook of its stores; the errors are those of the harvest.

    Seconds are from here on: the model is loaded, and its sites are checked. Operations are those of the model's matrix
    products, up to the deepest site.
    """
    if not job.sites:
        return Cost(0.0, tasks=0)
    start = time.perf_counter()
    prediction = predict(job, *measure(job, outlook.client))
    checking = time.perf_counter() - start
    slots, width = outlook.n_slots, min(TIMED_ROWS, prediction.n_rows)
    starts = np.linspace(0, prediction.n_rows - width, 2 * slots).astype(int)
    spans = [slice(int(first), int(first) + width) for first in starts]
    label = f"Timing {job.side.upper()}"
    tasks = run_tasks(outlook.client, _timed, spans, name="time-rows", label=label, args=(job,), per_slot=1)
    timed = [result for _, result in tasks]
    # The first round loads the model on every worker
    seconds = sorted(second for second, _ in timed)[:slots]
    rate = width / (sum(seconds) / len(seconds))
    n_tasks = -(-prediction.n_rows // job.store.shard_rows)
    rounds = -(-n_tasks // slots) * min(job.store.shard_rows, prediction.n_rows) / rate
    for site, need in prediction.needs.items():
        outlook.stores[job.stores[site]] = StoreForecast(need.n_features, need.active, need.layout == "csr")
    return Cost(
        seconds=checking + rounds,
        rows=prediction.n_rows,
        tasks=n_tasks,
        flops=2.0 * timed[0][1] * prediction.n_tokens,
        disk=float(sum(prediction.disk.values())),
        memory=float(prediction.memory),
        note=job.model.label or job.model.id,
    )


def _timed(rows: slice, job: Job) -> tuple[float, int]:
    """Run some rows as a shard's task does, but for the writing; return the seconds, and the model's parameters."""
    start = time.perf_counter()
    run_rows(job, rows, tuple(job.sites), dict.fromkeys(job.sites, np.inf), np.dtype(np.float32))
    seconds = time.perf_counter() - start
    network = job.loaded().reader.network
    return seconds, sum(weights.numel() for weights in network.parameters() if weights.ndim > 1)
