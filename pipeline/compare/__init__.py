"""Comparison: how alike the spaces of matched features are, and how alike by chance."""

from pipeline.compare.arrays import compare_rows
from pipeline.compare.run import compare

__all__ = ["compare", "compare_rows"]
