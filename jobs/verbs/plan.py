"""``subspace plan``: what an experiment will take, as a table or as JSON."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from pipeline.correlate.gpus import GPUS
from pipeline.experiment.forecast import Step, plan
from pipeline.work.script import (
    AsJson,
    Connect,
    ExperimentFile,
    RunDir,
    on_cluster,
    show,
    text_table,
    wide_console,
    with_prefix,
)

#: What is shown of a figure that is zero.
NOTHING = "–"
COLUMNS = ("stage", "what", "rows", "tasks", "FLOP", "read", "disk", "memory", "time")


@on_cluster
def command(
    connect: Connect,
    experiment: ExperimentFile,
    run_dir: RunDir = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the rates of this machine first, and store them.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Plan for one GPU per worker process that this machine lacks, by its published figures: "
            f"{', '.join(GPUS)}.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate rows, tasks, operations, disk, memory per worker and time of an experiment.

    The text and the rows are made (a run starts from them), and a sample of them goes through the models.
    """
    steps = plan(experiment, run_dir=run_dir, calibrate=calibrate, gpu=gpu, client=connect)
    total = {
        "seconds": sum(step.seconds for step in steps),
        "disk_bytes": sum(step.disk for step in steps),
        "peak_memory_of_a_worker_bytes": max(step.memory for step in steps),
    }
    if as_json:
        show({**total, "steps": [dataclasses.asdict(step) for step in steps]}, as_json=True)
        return
    console = wide_console(150)
    console.print(table_of(steps))
    if all(step.state == "there" for step in steps):
        console.print("All results exist: a run would make none.")
        return
    console.print(
        f"In total about {duration(total['seconds'])}, {_bytes(total['disk_bytes'])} of disk, and at most "
        f"{_bytes(total['peak_memory_of_a_worker_bytes'])} per worker process besides the models."
    )


def table_of(steps: list[Step]) -> Table:
    """Return a table with a line for each step; what is there already is marked and takes nothing."""
    rows = []
    for step in steps:
        figures = (
            f"{step.tasks:,}",
            f"{step.flops:.1e}" if step.flops else NOTHING,
            _bytes(step.read),
            _bytes(step.disk),
            _bytes(step.memory),
            duration(step.seconds),
        )
        there = (*[NOTHING] * 5, "there")
        n_rows = f"{step.rows:,}" if step.rows else NOTHING
        rows.append((step.stage, step.what, n_rows, *(there if step.state == "there" else figures)))
    return text_table(COLUMNS, rows, title="what is to come", right=COLUMNS[2:])


def _bytes(number: float) -> str:
    return f"{with_prefix(number)}B" if number else NOTHING


def duration(seconds: float) -> str:
    """Return a duration for people.

    >>> duration(4.2), duration(150), duration(9000)
    ('4 s', '2.5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
