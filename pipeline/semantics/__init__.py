"""Meanings: which features fire on a concept, which on nothing of the kind, and what they are called."""
