from . import (
    config,
    grid,
    harvest,
    passages,
    plan,
    script,
    semantics,
    semantics_stage,
    share,
    statistics,
    status,
    sweep,
    usage,
    workers,
)
from .compare.activations import compare_activations
from .compare.arrays import compare_rows
from .compare.run import compare
from .correlate.run import correlate
from .harvest.contexts import contexts
from .match.run import match
from .report.run import report
from .run import run

__all__ = [
    "compare",
    "compare_activations",
    "compare_rows",
    "config",
    "contexts",
    "correlate",
    "grid",
    "harvest",
    "match",
    "passages",
    "plan",
    "report",
    "run",
    "script",
    "semantics",
    "semantics_stage",
    "share",
    "statistics",
    "status",
    "sweep",
    "usage",
    "workers",
]
