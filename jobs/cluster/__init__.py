"""Clusters: profiles, Slurm jobs, their keys, the client that reaches them.

:func:`jobs.cluster.client.connect` is imported when it is first looked up.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
