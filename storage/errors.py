"""Errors that a user can act on.

Every message says what was given, what was expected, and the remedy. The command line prints the message of a
:class:`SubspaceError` alone and exits with its ``exit_code``; see :mod:`pipeline.work.boundary` for what else may
happen.

::

    SubspaceError                    1
    ├── InputError                   2  also a ValueError
    │   ├── MissingInputError           also a FileNotFoundError
    │   ├── RowMismatchError
    │   └── FormatError
    │       └── CorruptError
    ├── BudgetError                  3  also a MemoryError
    ├── MissingDependencyError       4  also an ImportError
    ├── UnreachableError             1
    └── WorkerLostError              1
"""

from __future__ import annotations

import reprlib

#: Characters of a value that a message repeats.
VALUE_CHARACTERS = 120
#: Characters of a line of a message.
LINE_CHARACTERS = 2000
#: Lines of a message.
MOST_LINES = 60

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = VALUE_CHARACTERS
_REPR.maxlevel = 3


def shown(value: object) -> str:
    """Return a value as a message repeats it: its ``repr``, shortened where it is long or deeply nested.

    >>> shown("layers.3"), len(shown("x" * 100_000)), shown([[[[[1]]]]])
    ("'layers.3'", 120, '[[[...]]]')
    """
    text = _REPR.repr(value)
    return text if len(text) <= 2 * VALUE_CHARACTERS else shorten(text, 2 * VALUE_CHARACTERS)


def shorten(text: str, length: int = LINE_CHARACTERS) -> str:
    """Return a text with its middle left out where it is longer than `length`.

    >>> shorten("abcdefghij", 7), shorten("abc", 7)
    ('abc…hij', 'abc')
    """
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def readable_message(text: str) -> str:
    r"""Return a message that a terminal can show: no control characters, no endless lines, not too many of them.

    >>> print(readable_message("a" + chr(27) + "[31m"), readable_message("x" * 9999).count("x"))
    a\x1b[31m 1998
    """
    lines = text.split("\n")
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"… and {len(lines) - MOST_LINES} more lines"]
    return "\n".join(shorten("".join(map(_printable, line))) for line in lines)


def _printable(character: str) -> str:
    safe = character.isprintable() or character == "\t"
    return character if safe else character.encode("unicode_escape").decode()


class SubspaceError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message as it was given (``OSError`` would quote it), shortened where a value made it endless."""
        return readable_message(str(self.args[0])) if self.args else ""


class InputError(SubspaceError, ValueError):
    """A value, file or setting that the user gave cannot be used."""

    exit_code = 2


class MissingInputError(InputError, FileNotFoundError):
    """A file, folder, model or dictionary that the user named is not there."""


class RowMismatchError(InputError):
    """Two stores do not describe the same rows of text."""


class FormatError(InputError):
    """Data on disk is not what its metadata or this version expects."""


class CorruptError(FormatError):
    """Data on disk fails its checksum or its structure is broken."""


class BudgetError(SubspaceError, MemoryError):
    """What was asked for does not fit in memory or disk that was allowed."""

    exit_code = 3


class MissingDependencyError(SubspaceError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 4


class BusyError(SubspaceError):
    """Another process is writing the same target."""

    exit_code = 75


class UnreachableError(SubspaceError):
    """A service on the network does not answer."""


class WorkerLostError(SubspaceError):
    """A task lost its worker again and again.

    Attributes
    ----------
    worker
        Name of the last worker that it ran on.
    """

    def __init__(self, message: str, *, worker: str = "") -> None:
        super().__init__(message)
        self.worker = worker
