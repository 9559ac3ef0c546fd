"""Keeping the workers that were asked for: lost Slurm jobs are replaced, and what they last wrote is found.

What happens to a job, and who replaces it:

=====================================================  =================================================================
retired before its walltime, cancelled, preempted      one worker a job: Dask's adaptive scaling, whose minimum is
                                                       its maximum by default, once the worker is missed
                                                       (`lost-worker-timeout`)
the same, with several workers a job                   the watcher here: Dask takes such a job for alive for ever
                                                       (distributed#9102)
died before a worker of it came                        the watcher: Dask never hears of it. It waits longer each time
                                                       that happens, so that a broken profile does not flood Slurm
refused by ``sbatch``, which was away perhaps          the watcher, every :data:`PATIENCE` seconds
requeued by Slurm, so waiting again under its number   nobody: it is not lost
=====================================================  =================================================================

The watcher asks ``squeue`` which jobs there are, every :data:`POLL_SECONDS`.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import shutil
import threading
import time
import weakref
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cluster.schedulers import listed_jobs
from jobs.cluster.site import AWAY, explain_refusal, waits_in_vain
from jobs.cluster.versions import UNREACHABLE
from storage.errors import InputError, SubspaceError, WorkerLostError

logger = logging.getLogger(__name__)

#: Seconds between two looks at Slurm's queue: a job that died is to be reported within ten.
POLL_SECONDS = 8.0
#: Seconds until the first look, which finds jobs that wait in vain.
FIRST_LOOK = 3.0
#: Seconds that Slurm's queue may take to answer.
ANSWERING = 60.0
#: Seconds that Dask gets to replace a lost job itself, where it can.
PATIENCE = 90.0
#: Seconds that the watcher waits before it replaces a job whose worker never came; doubled each time, up to the second.
BACKOFF = (5.0, 600.0)
#: Jobs, besides those asked for, that may die in a row before the first worker came, until starting is given up.
SPARE_JOBS = 2
#: Lines of a log that an error shows, and bytes of one that are copied.
TAIL_LINES, TAIL_BYTES = 25, 1_000_000


@dataclass(frozen=True)
class LostJob:
    """A job that ended `after` so many seconds of the watch while it was wanted, and whether it had had a worker."""

    name: str
    job: str
    after: float
    had_worker: bool


_keepers: weakref.WeakKeyDictionary[Any, Keeper] = weakref.WeakKeyDictionary()


class Keeper:
    """Watches the jobs of one ``SLURMCluster``; ``lost`` has those that were lost. See :func:`keep_jobs`."""

    def __init__(self, cluster: Any, jobs: int, minimum: int | None = None) -> None:
        self.cluster = cluster
        self.jobs = jobs
        self.minimum = jobs if minimum is None else minimum
        self.lost: list[LostJob] = []
        self._scheduler = cluster.job_cls.scheduler
        self._grouped = cluster._dummy_job.worker_processes > 1
        if self._grouped and self.minimum != jobs:
            raise InputError("Jobs of several workers do not come and go with the work: leave `minimum` out")
        written = re.findall(r"^#SBATCH -[eo] (.+)$", cluster.job_script(), re.MULTILINE)
        self._patterns = [shlex.split(pattern)[0] for pattern in written]
        self._numbers: dict[str, list[str]] = {}
        self._seen: set[str] = set()
        self._told: set[str] = set()
        self._gone: dict[str, float] = {}
        self._refused: dict[str, float] = {}
        self._waiting: dict[str, str] = {}
        self._stillborn = 0
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="job-watcher", daemon=True)

    def start(self) -> None:
        """Ask for the jobs, and begin to watch them."""
        if self._grouped:
            self.cluster.scale(jobs=self.jobs)
        else:
            self.cluster.adapt(minimum_jobs=self.minimum, maximum_jobs=self.jobs)
        self._thread.start()

    def stop(self) -> None:
        """End the watch; the cluster's own end is somebody else's."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = min(FIRST_LOOK, POLL_SECONDS)
        while not self._stop.wait(pause):
            pause = POLL_SECONDS
            try:
                self.look()
            except (OSError, RuntimeError) as error:  # sbatch that fails is a RuntimeError
                logger.warning("Looking after the Slurm jobs failed, and is tried again: %s", error)

    def look(self) -> None:
        """Compare the jobs that were asked for with Slurm's queue once, and have the lost ones replaced."""
        asked = dict(self.cluster.workers)
        self._resubmit(str(name) for name, job in asked.items() if not job.job_id)
        wanted = {str(name): str(job.job_id) for name, job in asked.items() if job.job_id}
        present = {str(worker["name"]) for worker in dict(self.cluster.scheduler_info["workers"]).values()}
        for name, job in wanted.items():
            if job not in self._numbers.setdefault(name, []):
                self._numbers[name].append(job)
            if any(_is_of(worker, name) for worker in present):
                self._seen.add(job)
                self._stillborn = 0
        queued = queued_jobs(self._scheduler, wanted.values())
        if queued is None:
            return
        self._waiting = {job: said for job, said in queued.items() if said.startswith("PENDING")}
        for line in self._unreachable(set(queued) - self._seen):
            if line not in self._told:
                self._told.add(line)
                logger.warning("%s", line)
        now = time.monotonic()
        for name, job in wanted.items():
            if job not in queued:
                self._miss(name, job, now)

    def _miss(self, name: str, job: str, now: float) -> None:
        """Note that a job is gone, and replace it when it is time to."""
        if job not in self._gone:
            self._gone[job] = now
            self._stillborn += job not in self._seen
            self.lost.append(LostJob(name, job, now - self._start, job in self._seen))
            why = "" if job in self._seen else f" before a worker of it came{self._quoted(job)}"
            logger.warning("Slurm job %s (%s) is gone%s", job, name, why)
        if now - self._gone[job] >= self._delay(job):
            logger.info("Replacing Slurm job %s", job)
            self._replace(name)

    def _replace(self, name: str) -> None:
        self.cluster.sync(self.cluster.scale_down, [name])
        if self._grouped:
            self.cluster.scale(jobs=self.jobs)

    def _resubmit(self, names: Iterable[str]) -> None:
        """Ask again for jobs that Slurm has not taken for a while: Dask does not notice when ``sbatch`` fails."""
        now = time.monotonic()
        self._refused = {name: self._refused.get(name, now) for name in names}
        for name, since in list(self._refused.items()):
            if now - since >= PATIENCE:
                del self._refused[name]
                logger.warning("Slurm did not take the job of %s: asking again", name)
                self._replace(name)

    def _delay(self, job: str) -> float:
        """Return how long a job that is gone waits for its replacement."""
        if job in self._seen:
            return 0.0 if self._grouped else PATIENCE
        return min(BACKOFF[0] * 2.0 ** (self._stillborn - 1), BACKOFF[1])

    def check_start(self) -> None:
        """Raise a SubspaceError where no worker is going to come: all jobs refused, in vain, or dead one by one."""
        refusals, dead, accepted = self.cluster.job_cls.refusals, self._stillborn_jobs(), self._accepted()
        if refusals and not accepted and not dead and not AWAY.search(refusals[-1]):
            raise SubspaceError(f"The jobs are refused: {explain_refusal(refusals[-1])}")
        in_vain = {job: remedy for job in accepted if (remedy := waits_in_vain(self._waiting.get(job, "")))}
        if in_vain and len(in_vain) == len(accepted):
            job, remedy = next(iter(in_vain.items()))
            raise SubspaceError(f"Slurm job {job} waits in vain: it is {self._waiting[job]}. What to do: {remedy}")
        if len(dead) >= self.jobs + SPARE_JOBS:
            raise SubspaceError(
                f"{len(dead)} Slurm jobs died, one after the other, before a worker came. Look at what the last "
                f"one, {dead[-1].job}, wrote, and mend the profile{self._quoted(dead[-1].job)}"
            )

    def _stillborn_jobs(self) -> list[LostJob]:
        return [loss for loss in self.lost if not loss.had_worker]

    def _accepted(self) -> list[str]:
        return [str(job.job_id) for job in dict(self.cluster.workers).values() if job.job_id]

    def why(self) -> str:
        """Return why there is no worker: what Slurm says of the jobs, and the log of the last one that died."""
        jobs, dead = self._accepted(), self._stillborn_jobs()
        last = self._quoted(dead[-1].job) if dead else ""
        if not jobs:
            refusals = self.cluster.job_cls.refusals
            return f"No job was accepted{': ' + refusals[-1] if refusals else ' yet'}{last}"
        try:
            listed = listed_jobs(self._scheduler, jobs, ANSWERING)
            lines = [f"{job} {said}" for job, said in listed.items()]
        except SubspaceError as error:
            listed, lines = {}, [str(error)]
        return "\n".join(["The queue:", *lines, *self._unreachable(listed)]) + last

    def _unreachable(self, jobs: Iterable[str]) -> list[str]:
        """Return what the logs of jobs say of workers that cannot reach the scheduler; each line once."""
        logs = [tail(file) for job in jobs for file in self.log_files(job)]
        return list(dict.fromkeys(line for log in logs for line in log.splitlines() if UNREACHABLE in line))

    def log_files(self, job: str) -> list[Path]:
        """Return the files that a job wrote, those that are there."""
        if self._scheduler != "slurm":  # they choose the names themselves
            folder = self.cluster._dummy_job.log_directory
            return sorted(Path(folder).glob(f"*{job}*")) if folder is not None else []
        patterns = self._patterns or ["slurm-%J.out"]
        names = {re.sub("%[Jj%]", lambda match: "%" if match[0] == "%%" else job, pattern) for pattern in patterns}
        return sorted(Path(name) for name in names if Path(name).is_file())

    def _quoted(self, job: str) -> str:
        files = [file for file in self.log_files(job) if file.stat().st_size]
        return "".join(f"\n--- {file}\n{tail(file)}" for file in files)

    def explained(self, error: WorkerLostError) -> WorkerLostError:
        """Return the error with the end of the last worker's log."""
        numbers = next((jobs for name, jobs in self._numbers.items() if _is_of(error.worker, name)), [])
        logs = "".join(self._quoted(job) for job in numbers[-1:])
        return WorkerLostError(f"{error}{logs}", worker=error.worker)

    def copy_logs(self, folder: Path) -> list[Path]:
        """Copy the logs of all jobs so far, or their ends, into a folder; return the copies."""
        jobs = {job for jobs in self._numbers.values() for job in jobs} | {loss.job for loss in self.lost}
        copied = []
        for file in (file for job in sorted(jobs) for file in self.log_files(job)):
            folder.mkdir(parents=True, exist_ok=True)
            copied.append(folder / file.name)
            if file.stat().st_size <= TAIL_BYTES:
                shutil.copyfile(file, copied[-1])
            else:
                copied[-1].write_bytes(last_bytes(file))
        return copied


def _is_of(worker: str, name: str) -> bool:
    """Say whether a worker is of the job `name`: several workers of one job have its name and a number."""
    return worker == name or worker.startswith(f"{name}-")


def last_bytes(file: Path) -> bytes:
    """Return the last :data:`TAIL_BYTES` of a file."""
    with file.open("rb") as stream:
        stream.seek(-min(TAIL_BYTES, file.stat().st_size), 2)
        return stream.read()


def tail(file: Path) -> str:
    r"""Return the last lines of a worker's log that say something: not what workers tell as a matter of course.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkstemp()[1])
    >>> lines = ["t - distributed.nanny - INFO - Worker process 7 was killed by signal 9", "MemoryError"]
    >>> _ = file.write_text("\n".join(["t - distributed.worker - INFO - Threads: 1", *lines]))
    >>> tail(file).splitlines() == lines
    True
    """
    lines = last_bytes(file).decode("utf-8", "replace").splitlines()
    telling = [line for line in lines if " - INFO - " not in line or "distributed.nanny" in line]
    return "\n".join(telling[-TAIL_LINES:])


def queued_jobs(scheduler: str, jobs: Collection[str]) -> dict[str, str] | None:
    """Return which of these jobs wait or run, and what is said of each; None if the scheduler does not answer."""
    try:
        return listed_jobs(scheduler, jobs, ANSWERING)
    except SubspaceError as error:
        logger.warning("The queue is not known: %s", error)
        return None


def keeper_of(cluster: Any) -> Keeper | None:
    """Return who watches a cluster's jobs, or None if nobody does."""
    return None if cluster is None else _keepers.get(cluster)


@contextlib.contextmanager
def keep_jobs(cluster: Any, jobs: int, minimum: int | None = None) -> Iterator[Keeper]:
    """Submit Slurm jobs and keep their number for as long as the block lasts, whatever ends them.

    With a `minimum`, their number follows the work, between that and `jobs`.

    An error of the block that is about lost workers leaves it with the end of the last one's log.

    Examples
    --------
    >>> with slurm_cluster("slurm-cpu") as cluster, keep_jobs(cluster, 4) as keeper:  # doctest: +SKIP
    ...     keeper.check_start()
    """
    keeper = _keepers[cluster] = Keeper(cluster, jobs, minimum)
    keeper.start()
    try:
        yield keeper
    except WorkerLostError as error:
        keeper.look()
        raise keeper.explained(error) from error
    finally:
        keeper.stop()
