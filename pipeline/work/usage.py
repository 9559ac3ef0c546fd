"""What each stage of a run took: its time, and the memory of its worker processes against what was planned.

The kernel keeps the most that a process ever held (``VmHWM`` in ``/proc/self/status``; writing 5 to
``/proc/self/clear_refs`` resets it, see proc(5)). Every worker is asked before and after a stage, so that no peak
is missed, however short, and nothing is sampled. Below the run directory, ``usage/`` holds one JSON file for each
session that ran stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import itertools
import json
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import Client

from pipeline.work.workers import Event, Planned, listening
from storage.errors import InputError
from storage.files import write_text
from storage.json_files import read_json_object

logger = logging.getLogger(__name__)

#: How a stage or a session ends that did all it was to do.
FINISHED = "finished"

#: Under this key, Dask's configuration holds the name of the cluster profile, where there is one.
CLUSTER_KEY = "subspace.cluster"
#: Seconds below which a stage is taken to have found its work done, if another session worked longer on it.
IDLE_SECONDS = 1.0
#: Seconds that all workers together may take to say what they hold.
ANSWERING_SECONDS = 20.0
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_numbers = itertools.count()


@dataclass(frozen=True)
class StageUsage:
    """What one stage took in one session.

    Attributes
    ----------
    stage, begun, seconds, ended
        The stage; when it began (UTC) and how long it took; ``finished``, or what stopped it.
    cluster
        The profile, or what kind of cluster it was.
    processes, threads
        Worker processes, and threads of all of them.
    gone
        Of the processes, those that were gone at the end: what they held is not known.
    planned
        Bytes that a worker process was to hold at most: what it held already, and what the stage meant to add; None
        where the stage makes no plan.
    peak, peak_sum
        Bytes that the fullest worker process held at most, and the sum of what each held at most; None where they
        could not be measured.
    peak_driver
        The same of the process that ran the stages; None where that is the workers' own.
    since_start
        Whether peaks are of the whole life of a process, since its system does not reset them.
    """

    stage: str
    begun: str
    seconds: float
    cluster: str
    ended: str = FINISHED
    processes: int = 0
    threads: int = 0
    gone: int = 0
    planned: float | None = None
    peak: int | None = None
    peak_sum: int | None = None
    peak_driver: int | None = None
    since_start: bool = False


@dataclass(frozen=True)
class Memory:
    """What a process holds, and held at most, in bytes; and how many threads of workers it has."""

    now: int
    peak: int
    since_start: bool
    threads: int = 0


#: Host and number of a process.
Process = tuple[str, int]


class UsageLog:
    """Measures the stages of one session and keeps what they took.

    Parameters
    ----------
    folder
        The run directory's ``usage``.
    client
        Whose workers are asked.

    Examples
    --------
    >>> import tempfile
    >>> from pipeline.work.workers import local_client
    >>> folder = Path(tempfile.mkdtemp())
    >>> with local_client() as client, UsageLog(folder, client).stage("match"):
    ...     pass
    >>> [(one.stage, one.processes) for one in read_usage(folder)]
    [('match', 1)]
    """

    def __init__(self, folder: Path, client: Client) -> None:
        self.client = client
        now = dt.datetime.now(dt.UTC)
        self._file = folder / f"{now:%Y%m%dT%H%M%S%f}-{socket.gethostname()}-{os.getpid()}-{next(_numbers)}.json"
        self._stages: list[StageUsage] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done in the block, and write it down at its end, also where it fails."""
        begun, start, ended = dt.datetime.now(dt.UTC), time.monotonic(), FINISHED
        limits: list[float] = []
        before = self._look(reset=True)
        _measure(reset=True)  # this process is none of the workers' where those are processes

        def on_event(event: Event) -> None:
            if isinstance(event, Planned):
                memory = self._look(reset=False).values()
                if not limits:  # what a stage takes before it plans is no matter of its plan
                    limits.append(max((process.peak for process in memory), default=0.0))
                limits.append(event.limit(max((process.now for process in memory), default=0)))

        try:
            with listening(on_event):
                yield
        except BaseException as error:
            ended = f"stopped by {type(error).__name__}"
            raise
        finally:
            after = self._look(reset=False)
            process, memory = _measure(reset=False)
            peaks = [other.peak for other in after.values()]
            self._write(
                StageUsage(
                    stage=name,
                    begun=begun.isoformat(timespec="milliseconds"),
                    seconds=round(time.monotonic() - start, 3),
                    cluster=_cluster_name(self.client),
                    ended=ended,
                    processes=len(before.keys() | after.keys()),
                    threads=sum(other.threads for other in after.values()),
                    gone=len(before.keys() - after.keys()),
                    planned=max(limits, default=None),
                    peak=max(peaks, default=None),
                    peak_sum=sum(peaks) if peaks else None,
                    peak_driver=None if process in after else memory.peak,
                    since_start=any(other.since_start for other in before.values()),
                )
            )

    def _look(self, *, reset: bool) -> dict[Process, Memory]:
        """Return what each worker process holds; nothing where workers cannot be asked."""
        if self.client.status != "running":
            logger.warning("The memory of the workers was not measured: the client is %s", self.client.status)
            return {}
        try:
            # as client.run, which has no limit: a host that does not answer must not hold the run up
            answers = self.client.sync(
                self.client._run, _measure, reset=reset, on_error="ignore", callback_timeout=ANSWERING_SECONDS
            ).values()
        except (OSError, TimeoutError, RuntimeError, ValueError) as error:  # a scheduler that is closing or gone
            logger.warning("The memory of the workers was not measured: %s", error or type(error).__name__)
            return {}
        processes: dict[Process, Memory] = {}
        for process, memory in (answer for answer in answers if isinstance(answer, tuple)):
            # workers that are threads of one process share its memory
            threads = memory.threads + (processes[process].threads if process in processes else 0)
            processes[process] = dataclasses.replace(memory, threads=threads)
        return processes

    def _write(self, usage: StageUsage) -> None:
        self._stages.append(usage)
        try:
            content = {"stages": [dataclasses.asdict(usage) for usage in self._stages]}
            write_text(self._file, json.dumps(content, indent=2) + "\n")
        except OSError as error:  # what the stage itself has done does not depend on it
            logger.warning("What %s took is not kept: %s", usage.stage, error)


def _cluster_name(client: Client) -> str:
    """Return the name of the profile, or else what kind of cluster it is."""
    name = dask.config.get(CLUSTER_KEY, None)
    return str(name or (type(client.cluster).__name__ if client.cluster else "a running scheduler"))


def _measure(*, reset: bool, dask_worker: Any = None) -> tuple[Process, Memory]:
    """Return what this process holds and held at most; on request, reset the latter."""
    fresh = not reset or _reset()
    now, threads = psutil.Process().memory_info().rss, dask_worker.state.nthreads if dask_worker else 0
    return (socket.gethostname(), os.getpid()), Memory(now, _peak(), not fresh, threads)


def _reset() -> bool:
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak() -> int:
    if STATUS.is_file():
        fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines() if ":" in line)
        if "VmHWM" in fields:
            return 1024 * int(fields["VmHWM"].split()[0])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def read_usage(folder: Path) -> list[StageUsage]:
    """Return what the stages of a run took, session after session; a damaged record is left out, and said.

    Parameters
    ----------
    folder
        The run directory's ``usage``.
    """
    usages: list[StageUsage] = []
    for file in sorted(folder.glob("*.json")):
        try:
            usages += [StageUsage(**usage) for usage in read_json_object(file, "", "")["stages"]]
        except (InputError, KeyError, TypeError) as error:
            logger.warning("%s is damaged, and is left out: %s", file, error)
    return sorted(usages, key=lambda usage: usage.begun)


def worth_showing(usages: list[StageUsage]) -> list[StageUsage]:
    """Return the records of stages without those of sessions that found the work of a stage done."""
    longest = {usage.stage: max(other.seconds for other in usages if other.stage == usage.stage) for usage in usages}
    shown, seen = [], set()
    for usage in usages:
        first = usage.seconds == longest[usage.stage] and usage.stage not in seen
        if first or usage.seconds >= IDLE_SECONDS:
            shown.append(usage)
        seen |= {usage.stage} if first else set()
    return shown
