"""A run without workers is neither silent nor endless: a line says why it waits, and there is a limit."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from distributed import Client, Future

from storage.errors import SubspaceError

logger = logging.getLogger(__name__)

#: Seconds between two looks, until the first line, and between further lines.
LOOK_SECONDS, FIRST_LINE, NEXT_LINES = 1.0, 5.0, 60.0


class Absence:
    """For how long there has been no worker; logs a line after :data:`FIRST_LINE` seconds, and then now and again.

    Parameters
    ----------
    limit
        Seconds after which waiting is over; None for never.
    why
        Returns what is known of the reason.
    """

    def __init__(self, limit: float | None, why: Callable[[], str]) -> None:
        self.limit, self.why = limit, why
        self._since: float | None = None
        self._next = 0.0

    def look(self, *, present: bool) -> bool:
        """Take in whether there is a worker now; return whether the limit is exceeded."""
        now = time.monotonic()
        if present:
            if self._next > FIRST_LINE:
                logger.warning("There are workers again")  # as loud as the line before it
            self._since, self._next = None, 0.0
            return False
        if self._since is None:
            self._since, self._next = now, FIRST_LINE
        waited = now - self._since
        if waited >= self._next:
            self._next = waited + NEXT_LINES
            most = "" if self.limit is None else f", at most {self.limit:g} s"
            logger.warning("No worker for %.0f s; waiting%s. %s", waited, most, self.why())
        return self.limit is not None and waited > self.limit

    def error(self) -> SubspaceError:
        """Return the error that ends the wait."""
        return SubspaceError(f"No worker for {self.limit:g} s. {self.why()}")


def has_worker(client: Client) -> bool:
    """Return whether a client's scheduler has a worker."""
    return bool(client.scheduler_info(n_workers=1)["workers"])


@contextlib.contextmanager
def watching_workers(
    client: Client,
    *,
    limit: float | None,
    why: Callable[[], str],
    check: Callable[[], None] = lambda: None,
    elastic: bool = False,
) -> Iterator[None]:
    """Wait for a worker, then watch in the background, as long as the block lasts, that there is one.

    Where all workers are lost and none comes within `limit` seconds, the block's tasks are cancelled and it ends with a
    SubspaceError. What was finished is kept. `check` raises an error where it is known that no worker will come. Where
    workers come with the work (`elastic`), none is waited for before there is some.
    """
    absence, stop, over = Absence(limit, why), threading.Event(), threading.Event()
    while not elastic and not has_worker(client):
        check()
        if absence.look(present=False):
            raise absence.error()
        time.sleep(LOOK_SECONDS)

    def watch() -> None:
        while not stop.wait(LOOK_SECONDS):
            try:
                if absence.look(present=(elastic and not client.futures) or has_worker(client)):
                    over.set()
                    # again and again, since the block may submit more before it hears of it
                    client.cancel([Future(key, client) for key in list(client.futures)], force=True)
            except (OSError, RuntimeError, TimeoutError) as error:
                logger.debug("The scheduler could not be asked for its workers: %s", error)

    thread = threading.Thread(target=watch, name="worker-watcher", daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        if over.is_set():
            raise absence.error() from error
        raise
    finally:
        stop.set()
        thread.join(timeout=2 * LOOK_SECONDS)
