"""The task of the report."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pipeline.report.results import result_paths
from pipeline.report.run import read_report_manifest, report, report_manifest
from pipeline.settings.experiment import Experiment
from pipeline.work.task import Cost, Stage, Task
from storage.rundir import RunDirectory

#: Seconds of the report, and bytes of it.
REPORT_SECONDS, REPORT_BYTES = 10.0, 3_000_000.0


def tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the one task."""
    yield Task(
        "report",
        "",
        {run.report: functools.partial(report_manifest, config, run)},
        tuple(result_paths(config, run)),
        lambda _: report(run.root),
        cost=lambda _: Cost(REPORT_SECONDS, disk=REPORT_BYTES),
        tables=(run.pairs_table, *([run.concepts_page] if config.semantics is not None else [])),
        recorded=read_report_manifest,
    )


STAGE = Stage("report", tasks)
