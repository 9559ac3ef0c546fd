from . import (
    experiment,
    harvest,
    semantics,
    settings,
    text,
    work,
    yardsticks,
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
from .rematch.run import (
    rematch,
)
from .report.feature import (
    feature,
)
from .report.run import (
    report,
)
from .yardsticks.stage import (
    run_yardsticks,
)

__all__ = [
    "compare",
    "compare_activations",
    "compare_rows",
    "contexts",
    "correlate",
    "experiment",
    "feature",
    "harvest",
    "match",
    "rematch",
    "report",
    "run",
    "run_yardsticks",
    "semantics",
    "settings",
    "text",
    "work",
    "yardsticks",
]
