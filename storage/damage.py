"""Reading what others wrote, or what time has damaged: whatever a parser raises becomes one error with the file's name.

>>> import io, zipfile
>>> with reading("x.npz"):
...     zipfile.ZipFile(io.BytesIO(b"none"))
Traceback (most recent call last):
storage.errors.CorruptError: x.npz cannot be read (BadZipFile: File is not a zip file); is it complete?
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from storage.errors import CorruptError, SubspaceError, shorten

#: Trouble of the system, not of the file: it stays what it is.
SYSTEM = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EIO, errno.ESTALE,
}  # fmt: skip
#: Characters of a parser's own message.
CAUSE_CHARACTERS = 300


@contextlib.contextmanager
def reading(what: str | Path, remedy: str = "is it complete?") -> Iterator[None]:
    """Have whatever a parser raises inside the block arrive as a CorruptError that names the file and the remedy.

    Parsers of foreign formats raise anything on damaged input: ``KeyError``, ``struct.error``, ``RuntimeError``,
    ``zlib.error``. Errors on purpose, lack of memory, missing libraries and trouble of the system (no permission, a
    full disk) pass as they are.
    """
    try:
        yield
    except (SubspaceError, MemoryError, ImportError):
        raise
    except Exception as error:
        if is_out_of_threads(error) or (isinstance(error, OSError) and error.errno in SYSTEM):
            raise
        raise CorruptError(f"{what} cannot be read ({cause_of(error)}); {remedy}") from error


def is_out_of_threads(error: BaseException) -> bool:
    """Return whether the system refused a thread: Python has no class for it."""
    return isinstance(error, RuntimeError) and str(error) == "can't start new thread"


def cause_of(error: BaseException) -> str:
    """Return the type and the first line of an error that somebody else raised.

    >>> cause_of(KeyError("shape"))
    "KeyError: 'shape'"
    """
    name, first = type(error).__name__, first_line(error)
    return shorten(name if first == name else f"{name}: {first}", CAUSE_CHARACTERS)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
