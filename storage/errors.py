"""Errors that a user can act on.

Every message says what was given, what was expected, and the remedy. The command line prints the message of a
:class:`SubspaceError` alone and exits with its ``exit_code``; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class SubspaceError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class InputError(SubspaceError, ValueError):
    """A value, file or setting that the user gave cannot be used."""

    exit_code = 2


class MissingInputError(InputError, FileNotFoundError):
    """A file, folder, model or dictionary that the user named is not there."""

    def __str__(self) -> str:
        """Return the message as it was given (``OSError`` would quote it)."""
        return str(self.args[0]) if self.args else ""


class RowMismatchError(InputError):
    """Two stores do not describe the same rows of text."""


class FormatError(InputError):
    """Data on disk is not what its metadata or this version expects."""


class CorruptError(FormatError):
    """Data on disk fails its checksum or its structure is broken."""


class BudgetError(SubspaceError, MemoryError):
    """What was asked for does not fit the memory or disk that was allowed."""

    exit_code = 3


class MissingDependencyError(SubspaceError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 4


class BusyError(SubspaceError):
    """Another process is writing the same target."""

    exit_code = 75


class WorkerLostError(SubspaceError):
    """A task lost its worker again and again.

    Attributes
    ----------
    worker
        Name of the last worker that it ran on.
    """

    def __init__(self, message: str, *, worker: str) -> None:
        super().__init__(message)
        self.worker = worker
