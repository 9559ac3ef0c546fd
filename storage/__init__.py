"""What is on disk: activation stores, the corpus, results and their manifests. Knows nothing of models or metrics.

Everything is Zarr v3 and opens with plain ``xarray.open_zarr`` where this package is installed; the format is
written down in ``docs/store-format.md``.

What ``__init__.pyi`` lists, functions and modules, is imported when it is first looked up.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
