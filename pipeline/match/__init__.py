"""Matching: which feature of A is which feature of B, from the kept pairs of a correlation result."""
