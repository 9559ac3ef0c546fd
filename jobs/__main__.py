"""``subspace``, and ``python -m jobs``: nothing is imported before Ctrl-C is taken care of.

Imports take a second or two. An interrupt inside of them would end in a traceback, or be swallowed by a library.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

#: As :data:`pipeline.work.boundary.INTERRUPTED`; that module's imports are among those that take a second.
INTERRUPTED = 130


def _leave(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(INTERRUPTED)


def _leave_quietly(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # else somebody ignores it, as `nohup` does
        signal.signal(signal.SIGINT, _leave)
    from jobs.cli import main as run  # noqa: PLC0415

    try:
        run()
    finally:
        if signal.getsignal(signal.SIGINT) == _leave:
            signal.signal(signal.SIGINT, _leave_quietly)  # the command has said what there is to say


if __name__ == "__main__":
    main()
