"""Comparison: how alike the spaces of matched features are, and how alike by chance."""
