"""One BLAS thread for each task, so that tasks that are threads of one process do not get in each other's way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

_lock = threading.Lock()
_limits: list[Any] = []
_inside = 0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep BLAS to one thread until the last task of this process has left.

    The number of BLAS threads belongs to the process. Two tasks that call a multi-threaded BLAS at once
    wait for each other's threads, at worst hundreds of times longer than they compute; and each task that set the
    number back for itself would set it for the others.

    Examples
    --------
    >>> from threadpoolctl import threadpool_info
    >>> with one_thread():
    ...     {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
    {1}
    """
    global _inside  # noqa: PLW0603 - the state that it counts is the process's own
    with _lock:
        if not _inside:
            _limits.append(threadpool_limits(1, user_api="blas"))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _limits.pop().restore_original_limits()
