"""The matching methods.

Each takes the candidate pairs as :class:`~pipeline.match.edges.Edges` and returns the positions of the chosen ones,
int64, shape (pair,), highest r first.
"""
