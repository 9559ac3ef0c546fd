"""The verbs of ``subspace``, a module for those that belong together; :mod:`jobs.verbs.index` lists all."""
