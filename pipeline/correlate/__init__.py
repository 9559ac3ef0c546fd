"""Correlation: every feature of one store with every feature of another, exactly, out of core."""

from __future__ import annotations

from pipeline.correlate.run import correlate

__all__ = ["correlate"]
