"""Processes for :mod:`benchmarks.crash`: the preloaded library, children that are forked warm, and jobs among them."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("crash.c")
#: Environment variable with the path of the preloaded library.
LIBRARY = "SUBSPACE_CRASH_LIBRARY"
#: Seconds that a child may take.
LIMIT = 120


def preload(module: str) -> ctypes.CDLL:
    """Return the library; where it is not loaded yet, build it and start this program again with it."""
    path = os.environ.get(LIBRARY)
    if path is None:
        path = build(Path(tempfile.mkdtemp(prefix="crash-library-")))
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        variables = {LIBRARY: path, "LD_PRELOAD": path, "TOKENIZERS_PARALLELISM": "false", **one_thread}
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | variables)  # noqa: S606
    return ctypes.CDLL(path)


def build(folder: Path) -> str:
    """Compile the library into a folder; return its path."""
    path = f"{folder}/crash.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", path, str(SOURCE), "-ldl", "-lpthread"], check=True)
    return path


def arm(library: ctypes.CDLL, root: Path, log: Path, *, die_after: int = 0, torn: bool = False) -> None:
    """Count operations below `root` from now on, each a line of `log`; die after, or in, one of them."""
    descriptor = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    library.crash_arm(os.fsencode(root), ctypes.c_long(die_after), int(torn), descriptor)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status or the signal (negative), what it returned, and what it printed."""

    status: int
    returned: list[str]
    printed: str


class Child:
    """A forked process that runs a function in a folder; what it prints goes to a file beside that folder.

    This process must run no thread, since none survives the fork.
    """

    def __init__(self, function: Callable[[], list[str]], folder: Path, name: str = "") -> None:
        assert threading.active_count() == 1
        self.output = folder.with_name(f"{folder.name}{name}.out")
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _be_child(function, folder, self.output, writer)
        os.close(writer)
        self._status: int | None = None

    def ended(self) -> bool:
        """Return whether it has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def kill(self, signal: int) -> None:
        """Send it a signal, if it has not ended."""
        if not self.ended():
            os.kill(self.pid, signal)

    def wait(self) -> Ended:
        """Wait for its end."""
        with os.fdopen(self._reader, encoding="utf-8") as pipe:
            returned = pipe.read()
        if self._status is None:
            _, self._status = os.waitpid(self.pid, 0)
        status = self._status
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        printed = self.output.read_text(encoding="utf-8", errors="replace")
        return Ended(code, json.loads(returned) if returned else [], printed)


def fork(function: Callable[[], list[str]], folder: Path) -> Ended:
    """Run a function in a child to its end."""
    return Child(function, folder).wait()


def _be_child(function: Callable[[], list[str]], folder: Path, output: Path, writer: int) -> None:
    """Run the function and end the process, whatever happens."""
    status = 1
    try:
        descriptor = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", buffering=1, closefd=False) for n in (1, 2))
        faulthandler.dump_traceback_later(LIMIT, exit=True, file=2)
        os.chdir(folder)
        os.write(writer, json.dumps(function()).encode())
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is the child's end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def last_words(printed: str) -> str:
    """Return the last line that a process printed, and whether that was the end of a traceback."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    if "Timeout (" in printed:
        ours = [line for line in lines if "/storage/" in line or "/pipeline/" in line]
        return f"takes longer than {LIMIT} s: {' < '.join(ours)[:300]}"
    traced = " (with a traceback)" if "Traceback" in printed else ""
    return (lines[-1][:300] if lines else "") + traced


def load(modules: Iterable[str]) -> None:
    """Import modules here, so that no child has to, and bring all kernels in that are compiled on disk."""
    for name in modules:
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(ImportError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
    from numba.core.registry import CPUDispatcher  # noqa: PLC0415

    ours = [module for name, module in sys.modules.items() if name.split(".")[0] in ("pipeline", "storage")]
    for kernel in [value for module in ours for value in vars(module).values() if isinstance(value, CPUDispatcher)]:
        cache = getattr(kernel._cache, "_cache_file", None)
        for signature, *_ in cache._load_index() if cache is not None else ():
            if signature not in kernel.overloads:
                kernel.compile(signature)


def spread(jobs: list[Any], work: Callable[[Any, int], dict[str, Any]], workers: int) -> Iterator[dict[str, Any]]:
    """Do jobs in some forked processes, each the next that is left; yield their results as they come.

    A result is a line of a pipe that all write to, so it is cut where it would not be written at once.
    """
    following = multiprocessing.get_context("fork").Value("l", 0)
    reader, writer = os.pipe()
    gc.collect()
    gc.freeze()
    children = []
    for worker in range(min(workers, len(jobs))):
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work_off(jobs, work, worker, following, writer)
        children.append(child)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        for line in pipe:
            yield json.loads(line)
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, "a process that lets others die has died itself; see above"


def _work_off(
    jobs: list[Any], work: Callable[[Any, int], dict[str, Any]], worker: int, following: Any, writer: int
) -> None:
    """Do one job after the other until none is left, and end this process."""
    try:
        while True:
            with following.get_lock():
                i = following.value
                following.value += 1
            if i >= len(jobs):
                os._exit(0)
            os.write(writer, _line(work(jobs[i], worker)))
    except BaseException:  # noqa: BLE001 - it must not unwind the stack of the process that it was forked from
        traceback.print_exc()
        os._exit(1)


def _line(result: dict[str, Any]) -> bytes:
    line = json.dumps(result).encode() + b"\n"
    if len(line) > 4096:  # PIPE_BUF
        result["problems"] = result["problems"][:5]
        line = json.dumps(result).encode() + b"\n"
    return line
