"""Whether Dask's workers may sample their own stacks."""

from __future__ import annotations

import sys
from typing import Any

#: Dask settings. Before Python 3.12 the sampling profiler can stop a whole worker process for good: while
#: ``sys._current_frames`` has a lock of the interpreter it makes objects; if that starts a garbage collection that
#: deletes a ``threading.local``, the same thread waits for the same lock, with the interpreter lock in hand
#: (python/cpython#106883, dask/distributed#8616).
PROFILER: dict[str, Any] = {"distributed.worker.profile.enabled": sys.version_info >= (3, 12)}
