"""The science: do two language models learn the same feature space.

It comes as functions over stores and results on disk. Each of the names below is a stage; they take paths or
opened datasets and, where they need workers, a Dask client.

What ``__init__.pyi`` lists, functions and modules, is imported when it is first looked up. Where a module has the name
of its stage, as :mod:`pipeline.run`, the attribute of this package is the function.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
