"""Semantic subspaces: the meanings that two models share."""
