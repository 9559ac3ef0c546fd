"""The boundary of the command line: whatever happens inside a command leaves it as a sentence and an exit status.

======  ================================================================================================================
status  what happened
======  ================================================================================================================
0       done
1       something failed that is not the user's input: a worker died again and again, the network, a broken disk
2       a value, file or setting cannot be used, is damaged, or is not there
3       it does not fit in memory or the disk
4       an optional dependency is missing
5       ``verify`` found damage, or an input that was replaced
70      a bug of this program (``EX_SOFTWARE``)
75      another process is writing there (``EX_TEMPFAIL``)
130     Ctrl-C
======  ================================================================================================================

A traceback is shown with ``--debug`` only.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import logging
import os
import resource
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from storage.damage import cause_of, is_out_of_threads
from storage.errors import BudgetError, FormatError, SubspaceError, readable_message
from storage.files import free_space

#: Exit status of a bug, as ``sysexits.h`` has it.
BUG = 70
#: Exit status after Ctrl-C, as shells expect it.
INTERRUPTED = 130
#: Whether tracebacks are wanted, whatever the command's own option says.
DEBUG: ContextVar[bool] = ContextVar("DEBUG", default=False)
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")]

#: Address space below which libraries fail in ways of their own, rather than with a MemoryError.
LITTLE_MEMORY = 2**31

_HOW_TO_DEBUG = "The same command with --debug shows where it happened"
_RESUME = "Finished parts are kept: the same command resumes from there"
#: What is wrong, what to do, and the exit status, by the number of a system error.
_SYSTEM_ERRORS: Mapping[int, tuple[str, str, int]] = {
    errno.ENOSPC: ("the disk is full", f"Free some space, or write elsewhere. {_RESUME}", 3),
    errno.EDQUOT: ("your quota is used up", f"Free some space, or write elsewhere. {_RESUME}", 3),
    errno.EFBIG: ("the file is larger than allowed here", "Raise the limit (ulimit -f), or write elsewhere", 3),
    errno.ENOMEM: ("the system has no memory left", "Lower --memory, or use a machine with more", 3),
    errno.EROFS: ("the file system is read-only", "Write elsewhere", 2),
    errno.EACCES: ("you have no permission", "Change its mode (chmod), or choose another place", 2),
    errno.EPERM: ("it is not permitted", "Change its mode (chmod), or choose another place", 2),
    errno.EISDIR: ("it is a folder, not a file", "Give the path of a file, or remove the folder", 2),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "Check the path", 2),
    errno.ENOENT: ("there is no such file or folder", "Check the path", 2),
    errno.EEXIST: ("there is something of that name already", "Remove it, or choose another place", 2),
    errno.ENOTEMPTY: ("the folder is not empty", "Remove it, or choose another place", 2),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "Choose a shorter one", 2),
    errno.ELOOP: ("symbolic links go in a circle", "Check the path", 2),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n), or use fewer threads", 1),
    errno.ENFILE: ("too many files are open on this machine", "Use fewer threads, or wait", 1),
    errno.EIO: ("the disk or network drive does not answer as it should", f"Look at it, then try again. {_RESUME}", 1),
    errno.ESTALE: ("the network drive has lost the file", f"Try again. {_RESUME}", 1),
}
#: Libraries that read data and raise all sorts of things where it is damaged.
_READERS = ("zarr", "numcodecs", "h5py")
#: Libraries that write to standard output, and to no file.
_PRINTERS = ("typer", "rich")
#: Options that say where something is written.
_OUTPUTS = ("out", "run_dir", "csv", "plot", "table")
#: Wrong usage; the class has no public name in typer.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command, so that nothing leaves it but a sentence on standard error and an exit status.

    The command gets an option ``--debug``.
    """

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            with interruptible():
                command(*args, **kwargs)
        except (typer.Exit, typer.Abort, _USAGE_ERROR, BrokenPipeError):
            raise  # typer's own, and a reader such as `head` that has seen enough
        except KeyboardInterrupt:
            _say(f"Interrupted. {_RESUME}.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            message, status = explain(error, [path for name in _OUTPUTS if isinstance(path := kwargs.get(name), Path)])
            if debug or DEBUG.get():
                traceback.print_exception(error)
            _say(f"Error: {message}", style="red")
            if is_out_of_threads(error):
                _forget_threads_of_zarr()
            raise typer.Exit(status) from error

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    run.__annotations__ = {name: part.annotation for name, part in signature.parameters.items()} | {"debug": Debug}
    return run


def _forget_threads_of_zarr() -> None:
    """Have Zarr end without a traceback where its thread could not be started: it would wait for it."""
    sync = sys.modules.get("zarr.core.sync")
    if sync is not None:
        sync.reset_resources_after_fork()
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")


def explain(error: Exception, paths: Iterable[Path] = ()) -> tuple[str, int]:
    """Return what to tell a user of an error, and the exit status; `paths` are those where the command writes.

    Examples
    --------
    >>> explain(PermissionError(errno.EACCES, "Permission denied", "/etc/shadow"))
    ('/etc/shadow: you have no permission. Change its mode (chmod), or choose another place', 2)
    """
    if isinstance(error, SubspaceError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError) or is_out_of_threads(error):
        where = "a machine with more, or with higher limits (ulimit -v, ulimit -u)"
        return f"There is not enough memory ({cause_of(error)}). Lower --memory, or use {where}", BudgetError.exit_code
    if isinstance(error, OSError) and (known := _system_error(error, paths)):
        return known
    if (place := _damaged_place(error)) is not None:
        return (
            f"{place} cannot be read ({cause_of(error)}). It is damaged; `subspace verify` has details. Delete it and "
            "run what wrote it again",
            FormatError.exit_code,
        )
    if isinstance(error, OSError):
        return f"The system refused something ({cause_of(error)}). Try again; {_HOW_TO_DEBUG}", 1
    return _unexpected(error)


def _unexpected(error: Exception) -> tuple[str, int]:
    """Return what to tell of an error that no user can be blamed for, and the exit status."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LITTLE_MEMORY:
        return (
            f"Something failed ({cause_of(error)}), as anything may where memory is short: {limit // 2**20:,} MiB are "
            f"allowed. Raise the limit (ulimit -v) to {LITTLE_MEMORY // 2**20:,} MiB or more",
            BudgetError.exit_code,
        )
    return f"A bug in this program ({cause_of(error)}): please report it. {_HOW_TO_DEBUG}", BUG


def _system_error(error: OSError, paths: Iterable[Path]) -> tuple[str, int] | None:
    if error.errno is None or error.errno not in _SYSTEM_ERRORS:
        return None
    what, remedy, status = _SYSTEM_ERRORS[error.errno]
    files = [str(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | Path)]
    if not files and _last_module(error) in _PRINTERS:
        return f"Standard output: {what}. Redirect it elsewhere", status
    files = files or [str(path) for path in paths]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what += " (" + "; ".join(_free(file) for file in dict.fromkeys(files or ["."])) + ")"
    return f"{' or '.join(files) or 'A file'}: {what}. {remedy}", status


def _last_module(error: BaseException) -> str:
    """Return the package in which an error was raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")).split(".")[0] if frames else ""


def _free(file: str) -> str:
    try:
        free, folder = free_space(file)
    except (OSError, StopIteration, ValueError):
        return f"what is free at {file} is not known"
    return f"{free / 1e6:,.0f} MB are free in {folder}"


def _damaged_place(error: Exception) -> str | None:
    """Return where a library was reading when it failed; None if no library that reads data raised the error."""
    place = None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not any(frame.f_globals.get("__name__", "").split(".")[0] in _READERS for frame in frames):
        return None
    for frame in frames:
        # Zarr's own functions know which array they are at, its errors do not
        place = frame.f_locals.get("store_path", place)
    return str(place).removeprefix("file://") if place is not None else "What was given"


def _say(message: str, style: str | None = None) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed where all goes well

    text = readable_message(message)
    with contextlib.suppress(OSError):  # nobody listens any more
        Console(stderr=True, highlight=False, soft_wrap=True).print(text, style=style, markup=False, emoji=False)


def is_no_failed_task(record: logging.LogRecord) -> bool:
    """Return whether a record of a log is not a traceback of Dask that is no news.

    The error of a task arrives here as a sentence; and a cluster that closes on a busy machine cuts off heartbeats.
    """
    error = record.exc_info[1] if record.exc_info else None
    closing = "ConnectionPool closing" in str(error)
    return record.name != "distributed.worker" or not (closing or str(record.msg).startswith("Compute Failed"))


def forgiving_output() -> None:
    """Have characters that a terminal's encoding does not know replaced, rather than end the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have the first Ctrl-C end the block in an orderly way, and a second one the process at once."""
    ignored = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, end_at_once)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def end_at_once(_number: int, _frame: FrameType | None) -> None:
    """Handle Ctrl-C where there is nothing to clean up, or no wish to wait for it."""
    os.write(2, b"Interrupted.\n")
    os._exit(INTERRUPTED)
