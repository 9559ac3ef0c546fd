"""How and where Subspace is run: the command line, clusters, job scripts."""
