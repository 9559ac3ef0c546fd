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
    what
        What is waited for.
    """

    def __init__(self, limit: float | None, why: Callable[[], str], what: str = "worker") -> None:
        self.limit, self.why, self.what = limit, why, what
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
            logger.warning("No %s for %.0f s; waiting%s. %s", self.what, waited, most, self.why())
        return self.limit is not None and waited > self.limit

    def error(self) -> SubspaceError:
        """Return the error that ends the wait."""
        return SubspaceError(f"No {self.what} for {self.limit:g} s. {self.why()}")


def has_worker(client: Client) -> bool:
    """Return whether a client's scheduler has a worker."""
    return bool(client.scheduler_info(n_workers=1)["workers"])


class _Watch:
    """Looks for workers, again and again, and cancels the client's tasks where waiting for one is over."""

    def __init__(self, client: Client, absence: Absence, check: Callable[[], None], *, elastic: bool) -> None:
        self.client, self.absence, self.check, self.elastic = client, absence, check, elastic
        self.started = False
        self.error: SubspaceError | None = None

    def look(self) -> None:
        """Look once; SubspaceError where waiting is over."""
        present = has_worker(self.client)
        self.started = self.started or present
        if not self.started:
            self.check()
        if self.absence.look(present=present or (self.elastic and not self.client.futures)):
            raise self.absence.error()

    def until(self, stop: threading.Event) -> None:
        """Look until `stop`; keep the error that ends the wait."""
        while not stop.wait(LOOK_SECONDS):
            try:
                if self.error is None:
                    self.look()
                else:  # again and again, since the block may submit more before it hears of it
                    self.client.cancel([Future(key, self.client) for key in list(self.client.futures)], force=True)
            except SubspaceError as error:
                self.error = error
            except (OSError, RuntimeError, TimeoutError) as error:
                logger.debug("The scheduler could not be asked for its workers: %s", error)


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
    SubspaceError. What was finished is kept. `check` raises an error where it is known that no worker will come; it is
    called until the first one is there. Where workers come with the work (`elastic`), none is waited for before there
    is some.
    """
    watch, stop = _Watch(client, Absence(limit, why), check, elastic=elastic), threading.Event()
    while not (elastic or watch.started):
        watch.look()
        time.sleep(0 if watch.started else LOOK_SECONDS)
    thread = threading.Thread(target=watch.until, args=(stop,), name="worker-watcher", daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        if watch.error is not None:
            raise watch.error from error
        raise
    finally:
        stop.set()
        thread.join(timeout=2 * LOOK_SECONDS)
