from . import (
    boundary,
    config,
    experiment,
    harvest,
    outputs,
    registries,
    script,
    semantics,
    share,
    statistics,
    text,
    usage,
    work,
    workers,
)
from .compare.activations import (
    compare_activations,
)
from .compare.arrays import (
    compare_rows,
)
from .compare.run import (
    compare,
)
from .correlate.run import (
    correlate,
)
from .experiment.run import (
    run,
)
from .harvest.contexts import (
    contexts,
)
from .match.run import (
    match,
)
from .report.run import (
    report,
)

__all__ = [
    "boundary",
    "compare",
    "compare_activations",
    "compare_rows",
    "config",
    "contexts",
    "correlate",
    "experiment",
    "harvest",
    "match",
    "outputs",
    "registries",
    "report",
    "run",
    "script",
    "semantics",
    "share",
    "statistics",
    "text",
    "usage",
    "work",
    "workers",
]
