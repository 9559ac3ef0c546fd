"""The stage between matching and comparison: how much of a matching is left when rows of B have changed places."""
