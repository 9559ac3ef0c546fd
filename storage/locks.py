"""One writer at a time for every target, on one host and across hosts that share a file system.

Whoever writes PATH holds ``PATH.lock``: a file with an advisory lock of the operating system (``flock``), which
ends with the process, and with the holder's host, process, start and a heartbeat, which other hosts can read where
the file system does not pass locks on. A lock is taken over

* at once, if its holder was on this host and is dead (the operating system's lock is free, or, where the file system
  has none, there is no such process);
* after :data:`STALE_AFTER` seconds without a heartbeat, by the clock of the file system, if it was on another host.
  Heartbeats take their time from that clock too, whatever the hosts' own clocks say. A heartbeat that lies as many
  seconds in the future is no sign of life either: that clock was set back, or the file was copied or restored.

Processes that share one target's work (:mod:`pipeline.work.share`) hold a lock for their part, ``PATH.PART.lock``.
Parts do not exclude one another; they and the lock of the whole exclude each other.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import json
import logging
import os
import re
import socket
import stat
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from storage.errors import BusyError, InputError
from storage.files import LOCK_SUFFIX

logger = logging.getLogger(__name__)

#: Seconds between two heartbeats.
BEAT = 15.0
#: Seconds without a heartbeat after which a lock of another host counts as left behind.
STALE_AFTER = 120.0
#: Seconds after which a file system without ``flock`` is asked again whose lock it is.
SETTLE = 0.2
#: Seconds that a lock is waited for whose holder needs it for a moment.
PATIENCE = 30.0
_PART = re.compile(r"(begin|\d+)-of-\d+")
#: More bytes than a lock has.
_LONGEST = 8_192


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes
    ----------
    host, process, started
        Host name, process id, and when that process started, in seconds since the epoch: ids are used again.
    since
        When the lock was taken, in UTC.
    command
        What the process runs.
    token
        Random; tells two locks of one process apart.
    """

    host: str
    process: int
    started: float
    since: str
    command: str
    token: str

    @classmethod
    def this_process(cls) -> Self:
        """Return this process as a holder."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()) or 0.0, now, command, uuid.uuid4().hex)

    @classmethod
    def read(cls, descriptor: int) -> Self | None:
        """Return what a lock file says; None if it is empty or cut short, as a process leaves it that just died."""
        text = os.pread(descriptor, _LONGEST, 0).decode(errors="replace")
        try:
            return cls(**json.loads(text)) if _beginning_of_lock(text) else None
        except ValueError:
            return None

    def __str__(self) -> str:
        # whoever can write beside the target can write a lock: one line each, whatever it says
        host, command, since = (" ".join(text.split()) for text in (self.host, self.command, self.since))
        what = command or "unknown command"
        with contextlib.suppress(OverflowError, ValueError, OSError):  # no time that a calendar has
            started = dt.datetime.fromtimestamp(self.started, dt.UTC)
            what += f", started {started.isoformat(timespec='seconds')}" if self.started else ""
        return f"process {self.process} on {host} ({what}) since {since}"


_TEXT = r'"(?:[^"\\\x00-\x1f]|\\.)*'
_STRING, _OPEN_STRING = re.compile(_TEXT + '"'), re.compile(_TEXT + r"\\?")
_NUMBERS = {"process": re.compile(r"\d{1,19}"), "started": re.compile(r"\d+(?:\.\d*)?(?:[eE][-+]?\d*)?")}


def _beginning_of_lock(text: str) -> bool:
    """Return whether a text is what a holder writes, or the beginning of it.

    >>> text = json.dumps(asdict(Holder.this_process()))
    >>> _beginning_of_lock(text), _beginning_of_lock(text[:40]), _beginning_of_lock('{"host": "here", "port": 80}')
    (True, True, False)
    """
    for i, field in enumerate(fields(Holder)):
        label = f'{", " if i else "{"}"{field.name}": '
        if len(text) < len(label):
            return label.startswith(text)
        value = text.removeprefix(label)
        if value == text:
            return False
        match = _NUMBERS.get(field.name, _STRING).match(value)
        if match is None:
            return not value or (field.name not in _NUMBERS and _OPEN_STRING.fullmatch(value) is not None)
        text = value[match.end() :]
    return "}".startswith(text)


def _started(process: int) -> float | None:
    """Return when a process of this host started, or None if there is none."""
    import psutil  # noqa: PLC0415 - needed only where something is written

    try:
        return float(psutil.Process(process).create_time())
    except psutil.Error:
        return None


@dataclass
class _Lock:
    """A lock that this process holds."""

    file: Path
    descriptor: int
    holder: Holder
    thread: int
    depth: int = 1

    def __post_init__(self) -> None:
        self._over = threading.Event()
        threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.descriptor)

    def check(self) -> None:
        """Raise unless the lock is still this one's."""
        try:
            descriptor = os.open(self.file, os.O_RDONLY)
        except FileNotFoundError:
            holder = None
        else:
            holder = Holder.read(descriptor)
            os.close(descriptor)
        if holder != self.holder:
            raise BusyError(
                f"The lock {self.file} was taken over{f' by {holder}' if holder else ''} while this process was "
                "suspended or cut off from the file system. Nothing was replaced; run the command again"
            )

    def release(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            # whoever took the lock over has it now: its file stays
            if _is_at(self.file, self.descriptor) and Holder.read(self.descriptor) == self.holder:
                self.file.unlink()
        os.close(self.descriptor)


_locks: dict[Path, _Lock] = {}
_locks_guard = threading.Lock()


@contextlib.contextmanager
def lock(path: Path, part: str | None = None, *, name: Path | None = None) -> Iterator[None]:
    """Hold the lock of a target, or of a part of it; the same thread may take it again inside.

    Parameters
    ----------
    path
        The target; the folder that it is in must exist.
    part
        Which part, as ``3-of-16``; the whole if absent.
    name
        What messages call the target; `path` if absent.

    Raises
    ------
    BusyError
        If another process, or another thread of this one, holds it; the message says who.
    """
    path = path.absolute()
    name = path if name is None else name.absolute()
    whole = path.with_name(path.name + LOCK_SUFFIX)
    file = whole if part is None else path.with_name(f"{path.name}.{part}{LOCK_SUFFIX}")
    with _locks_guard:
        mine = _locks.get(file)
        if mine is not None and mine.thread == threading.get_ident():
            mine.depth += 1
        else:
            mine = _locks[file] = _take(file, name)
    try:
        if part is not None:
            _refuse_if_busy([whole], name)
        elif mine.depth == 1:
            _refuse_if_busy(_parts_of(path), name)
        yield
    finally:
        with _locks_guard:
            mine.depth -= 1
            if not mine.depth:
                del _locks[file]
                mine.release()


@contextlib.contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is written in a moment; whoever has it is waited for, :data:`PATIENCE` at most.

    Raises
    ------
    BusyError
        If somebody else has it for longer.
    """
    with contextlib.ExitStack() as stack:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                stack.enter_context(lock(path))
                break
            except BusyError:
                if time.monotonic() > end:
                    raise
            time.sleep(SETTLE / 10)
        yield


class Hold:
    """The lock of unfinished work, held from now on until it is released, or nobody refers to it any more.

    Unlike :func:`lock`, it is no thread's: whoever takes it a second time is refused, in this process too.

    Parameters
    ----------
    path
        The unfinished work.

    Raises
    ------
    BusyError
        If somebody holds it; the message says who.
    """

    def __init__(self, path: Path) -> None:
        path = path.absolute()
        with _locks_guard:
            mine = _take(path.with_name(path.name + LOCK_SUFFIX), path)
        self._finalizer = weakref.finalize(self, _release_here, mine, os.getpid())

    def check(self) -> None:
        """Raise :class:`BusyError` if another process took it over; nothing happens where it was released."""
        if (finalizer := self._finalizer.peek()) is not None:
            finalizer[2][0].check()

    def release(self) -> None:
        """Let others have it; nothing happens where it was released before."""
        self._finalizer()


def _release_here(mine: _Lock, process: int) -> None:
    """Release a lock, but not in a fork of the process that took it."""
    if os.getpid() == process:
        mine.release()


def is_held_here(path: Path) -> bool:
    """Return whether this thread holds the lock of `path`."""
    path = path.absolute()
    mine = _locks.get(path.with_name(path.name + LOCK_SUFFIX))
    return mine is not None and mine.thread == threading.get_ident()


def refuse_if_held(path: Path, *, name: Path | None = None) -> None:
    """Raise :class:`BusyError` if somebody else holds the lock of `path`, which messages call `name`."""
    path = path.absolute()
    with _locks_guard:
        _refuse_if_busy([path.with_name(path.name + LOCK_SUFFIX)], path if name is None else name.absolute())


def check_lock(path: Path) -> None:
    """Raise :class:`BusyError` if a lock that this process took on `path` was taken over by another since."""
    mine = _locks.get(path.absolute().with_name(path.name + LOCK_SUFFIX))
    if mine is not None:
        mine.check()


def _parts_of(path: Path) -> list[Path]:
    names = (entry.name for entry in os.scandir(path.parent) if entry.name.endswith(LOCK_SUFFIX))
    prefix = f"{path.name}."
    return [
        path.with_name(name)
        for name in names
        if name.startswith(prefix) and _PART.fullmatch(name.removeprefix(prefix).removesuffix(LOCK_SUFFIX))
    ]


def _refuse_if_busy(files: list[Path], path: Path) -> None:
    """Raise if one of these locks has a living holder; locks of the dead are removed."""
    for file in files:
        mine = _locks.get(file)
        if mine is not None and mine.thread == threading.get_ident():
            continue
        if file.exists():
            _take(file, path).release()


def _take(file: Path, path: Path) -> _Lock:
    """Take a lock, if need be from a dead holder."""
    while True:
        descriptor = _open(file)
        try:
            mine = _lock_file(file, descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        if mine is not None:
            return mine
        os.close(descriptor)


def _open(file: Path) -> int:
    """Open a lock file, which is made if it is not there; anything else of its name stays as it is."""
    try:
        # neither is a link followed, nor is a pipe's other end waited for
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(file, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _not_a_lock(file) from error
        raise
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:  # a second name may be somebody's file
        # cut short where its process died while it wrote, and zeros where its host did
        content = os.pread(descriptor, _LONGEST, 0).rstrip(b"\0")
        if len(content) < _LONGEST and _beginning_of_lock(content.decode(errors="replace")):
            return descriptor
    os.close(descriptor)
    raise _not_a_lock(file)


def _not_a_lock(file: Path) -> InputError:
    return InputError(
        f"{file} exists and is not a lock of this package, which needs a file of that name while it writes: "
        "move it away, or give another path"
    )


def _lock_file(file: Path, descriptor: int, path: Path) -> _Lock | None:
    """Make an open lock file this process's; None if its holder has removed it in the meantime."""
    by_flock = _flock(descriptor)
    previous = Holder.read(descriptor)
    if by_flock is False or (previous is not None and _lives(previous, file, by_flock=bool(by_flock))):
        raise BusyError(_message(path, previous, file))
    if not _is_at(file, descriptor):
        return None
    if previous is not None:
        logger.info("Taking over the lock of %s from %s, which is gone", path, previous)
    holder = Holder.this_process()
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
        if by_flock is None:
            _settle(file, descriptor, holder, path)
        return _Lock(file, descriptor, holder, threading.get_ident())
    except (OSError, RuntimeError):  # the disk is full, or no thread may be started
        file.unlink(missing_ok=True)
        raise


def _message(path: Path, holder: Holder | None, file: Path) -> str:
    who = str(holder) if holder is not None else "another process"
    hint = ""
    if holder is not None and holder.host != socket.gethostname():
        hint = f". If that process is gone, the lock is free {STALE_AFTER:.0f} s after its last sign of life"
    return f"{path} is being written by {who}: wait until it is done, or give another path (the lock is {file}){hint}"


def _flock(descriptor: int) -> bool | None:
    """Lock a file; False if somebody else has, None if the file system knows no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.info("This file system has no flock (%s): locks are held by heartbeat alone", error)
        return None
    return True


def _lives(holder: Holder, file: Path, *, by_flock: bool) -> bool:
    """Return whether a holder may still be at work, given that the operating system's lock of `file` was to be had."""
    if holder.host == socket.gethostname():
        if by_flock or (started := _started(holder.process)) is None:
            return False
        if started == holder.started:
            return True
        # another process has its number; or it is the same one, and the clock was set, which moves all starts
    return abs(_file_system_time(file) - file.stat().st_mtime) < STALE_AFTER


def _file_system_time(file: Path) -> float:
    """Return the present time by the clock that time stamps of files beside `file` come from."""
    probe = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _is_at(file: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), file.stat())
    return False


def _settle(file: Path, descriptor: int, holder: Holder, path: Path) -> None:
    """Without ``flock``, two processes may have written into one lock file: the last one has it."""
    time.sleep(SETTLE)
    if (other := Holder.read(descriptor)) != holder:
        raise BusyError(_message(path, other, file))
