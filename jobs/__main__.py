"""``subspace``, and ``python -m jobs``: nothing is imported before Ctrl-C is taken care of.

Imports take a second or two. An interrupt inside of them would end in a traceback, or be swallowed by a library.
"""

from __future__ import annotations

import os
import resource
import signal
from types import FrameType

#: As :data:`pipeline.work.boundary.INTERRUPTED`; that module's imports are among those that take a second.
INTERRUPTED = 130
#: As :attr:`storage.errors.BudgetError.exit_code`.
NO_MEMORY = 3
#: Address space below which the libraries cannot be loaded, measured with one thread.
LEAST_MEMORY = 768 * 2**20


def _leave(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(INTERRUPTED)


def _leave_quietly(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _check_limit() -> None:
    """End the process where the libraries could not be loaded: some of them wait for memory without end."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_MEMORY:
        raise MemoryError(f"{limit // 2**20} MiB are allowed, {LEAST_MEMORY // 2**20} MiB are needed to start")


def _reason(error: Exception) -> tuple[str, int]:
    """Return what to tell of an error outside of any command, and the exit status."""
    if isinstance(error, OSError) and error.errno is not None:
        from pipeline.work.boundary import explain  # noqa: PLC0415

        return explain(error)
    return f"subspace cannot start ({type(error).__name__}: {error}). Raise the limit of memory (ulimit -v)", NO_MEMORY


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # else somebody ignores it, as `nohup` does
        signal.signal(signal.SIGINT, _leave)
    try:
        _check_limit()
        from jobs.cli import main as run  # noqa: PLC0415

        run()
    except (MemoryError, ImportError, OSError) as error:
        message, status = _reason(error)
        os.write(2, f"Error: {message}\n".encode())
        raise SystemExit(status) from error
    finally:
        if signal.getsignal(signal.SIGINT) == _leave:
            signal.signal(signal.SIGINT, _leave_quietly)  # the command has said what there is to say


if __name__ == "__main__":
    main()
