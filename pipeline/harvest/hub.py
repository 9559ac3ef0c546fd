"""The Hugging Face hub: what broke off is asked for again, and what it does not give is said in our words."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TypeVar

from storage.damage import first_line
from storage.errors import MissingInputError, SubspaceError, UnreachableError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOGIN = "log in with `hf auth login` or set HF_TOKEN"

#: Seconds between one try and the next where a connection broke off; what arrived before stays in the hub's cache.
_WAITS = (0.5, 1, 2, 4, 8, 8)


def from_hub(read: Callable[[], T], what: str, repository: str, hint: str = "Check the id") -> T:
    """Call a function that reads from the hub, and call it again where the connection broke off.

    huggingface_hub tries again by itself where it cannot connect, and where the rate of requests is limited.

    Parameters
    ----------
    read
        May be called several times.
    what, repository
        What is read, for messages; and the repository that it is in.
    hint
        What to look at if there is no such repository.

    Raises
    ------
    MissingInputError
        If it is not there, is gated or private, or HF_HUB_OFFLINE keeps it from being looked for.
    UnreachableError
        If the hub does not answer.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError

    for wait in (*_WAITS, None):
        try:
            return read()
        except SubspaceError:
            raise
        except (OSError, HTTPError, HFValidationError) as error:
            if wait is None or not _broke_off(error):
                raise refusal(error, what, repository, hint) from error
            logger.warning("The connection broke off (%s); again in %g s: %s", first_line(error), wait, what)
            time.sleep(wait)
    raise AssertionError  # the last wait is None


def _broke_off(error: BaseException) -> bool:
    """Say whether an answer did not arrive in full, which huggingface_hub passes on as the error of its client.

    It has tried again by itself where there was no connection (``ConnectError``, ``ConnectTimeout``).
    """
    from huggingface_hub.errors import HfHubHTTPError

    return _is_of_client(error) and not isinstance(error, HfHubHTTPError) and "Connect" not in type(error).__name__


def _is_of_client(error: BaseException) -> bool:
    from huggingface_hub.errors import HTTPError

    return isinstance(error, HTTPError)


def refusal(error: BaseException, what: str, repository: str, hint: str) -> SubspaceError:
    """Return our error for one of huggingface_hub, or of a library that has called it."""
    from huggingface_hub import constants, errors

    causes = list(_causes(error))

    def was(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if was(errors.GatedRepoError) or "is a gated" in str(error):
        address = f"{constants.ENDPOINT}/{repository.strip('/')}"
        return MissingInputError(f"{what} is gated: ask for access at {address}, then {_LOGIN}")
    if was(errors.RevisionNotFoundError):
        return MissingInputError(f"{what} has no such revision on the hub: check 'revision'")
    if constants.HF_HUB_OFFLINE:
        return MissingInputError(
            f"{what} is not here, nor in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set: unset "
            "it, or run the same once with a network (a dataset is kept with 'streaming: false' only)"
        )
    if not was(errors.RepositoryNotFoundError) and (no_answer := next(filter(_is_no_answer, causes), None)):
        return UnreachableError(
            f"{what} cannot be read: the hub at {constants.ENDPOINT} does not answer ({first_line(no_answer)}). Check "
            "your network and HF_ENDPOINT, and run the same again; HF_HUB_OFFLINE=1 goes on with what is in the cache"
        )
    reason = "" if was(errors.RepositoryNotFoundError) else f" ({first_line(error)})"
    return MissingInputError(
        f"{what} is neither a folder here nor readable from the hub{reason}. {hint}; if it is private, {_LOGIN}"
    )


def _is_no_answer(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return _is_of_client(error) or isinstance(error, ConnectionError | TimeoutError)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised for, the last first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
