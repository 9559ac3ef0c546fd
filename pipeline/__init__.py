"""The science: do two language models learn the same feature space.

It comes as functions over stores and results on disk. Each of the names below is a stage; they take paths or
opened datasets and, where they need workers, a Dask client.
"""

from pipeline.compare.activations import compare_activations
from pipeline.compare.arrays import compare_rows
from pipeline.compare.run import compare
from pipeline.correlate.run import correlate
from pipeline.experiment.run import run
from pipeline.harvest.contexts import contexts
from pipeline.match.run import match
from pipeline.report.run import report

__all__ = ["compare", "compare_activations", "compare_rows", "contexts", "correlate", "match", "report", "run"]
