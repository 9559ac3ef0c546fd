"""Correlation: every feature of one store with every feature of another, exactly, out of core."""
