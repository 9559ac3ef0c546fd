from .compare.activations import compare_activations
from .compare.arrays import compare_rows
from .compare.run import compare
from .correlate.run import correlate
from .harvest.contexts import contexts
from .match.run import match
from .report.run import report
from .run import run

__all__ = ["compare", "compare_activations", "compare_rows", "contexts", "correlate", "match", "report", "run"]
