"""``subspace status --follow``: a line whenever a run gets on, until it ends.

All is read from the run directory, and asked of Slurm, so that it works over ssh on any host that sees the directory.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cluster.slurm import NOT_ASKED, UNKNOWN, Job
from jobs.cluster.submission import RECORD, submitted_jobs
from jobs.watch.recorder import read_sessions
from pipeline.work.usage import FINISHED
from storage.errors import InputError, SubspaceError

#: Seconds between two looks.
LOOK = 2.0
#: A session that has written nothing for so many seconds, and has no job, was killed.
SILENT = 60.0
#: Seconds after which a run is followed no more if it does not get on and Slurm does not answer either.
PATIENCE = 600.0


@dataclass(frozen=True)
class Progress:
    """Where a run is: its last session (see :class:`jobs.watch.recorder.Record`), if one began, and its jobs."""

    session: dict[str, Any] | None
    jobs: list[Job]

    def __str__(self) -> str:
        parts = []
        if self.session is not None:
            ended, seconds = self.session["ended"], self.session["seconds"]
            parts.append(self.session.get("state", "") if ended is None else f"{ended} after {seconds:.0f} s")
            parts.append(f"{self.session['rows']:,.0f} rows, {self.session['tasks']:,} tasks")
            parts.append(f"{self.session['threads']} threads")
            if self.session["workers_lost"]:
                parts.append(f"{self.session['workers_lost']} workers lost")
        counts = Counter(job.state for job in self.jobs)
        if self.is_unasked:
            parts.append(self.jobs[0].reason)
        elif counts:
            parts.append(f"jobs: {', '.join(f'{n} {state}' for state, n in counts.items())}")
        return " · ".join(part for part in parts if part)

    @property
    def is_unasked(self) -> bool:
        """Whether there are jobs, and Slurm could not be asked about them."""
        return any(job.state == NOT_ASKED for job in self.jobs)

    def is_over(self, now: dt.datetime) -> bool:
        """Return whether nothing of the run goes on."""
        if any(job.active for job in self.jobs):
            return False
        if self.is_unasked and (self.session is None or len(self.jobs) > 1):
            return False  # the job may wait still, or one behind it
        if self.session is None or self.session["ended"] is not None:
            return True
        return (now - _last_sign(self.session)).total_seconds() > SILENT

    @property
    def succeeded(self) -> bool:
        """Whether a run that is over did all it was to do: the job behind the others says so, or else the session.

        What a task of an array fails to do, the job behind it does.
        """
        last = max(self.jobs, key=lambda job: int(job.id.split("_")[0]), default=None)
        if last is not None and last.state not in (UNKNOWN, NOT_ASKED):
            return last.state == "COMPLETED"
        return self.session is not None and bool(self.session["ended"] == FINISHED)


def _last_sign(session: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(session["begun"]) + dt.timedelta(seconds=session["seconds"])


def progress_of(folder: Path) -> Progress:
    """Return where the run in a directory is; a session that ended before the jobs were submitted is not theirs."""
    sessions, jobs = read_sessions(folder), submitted_jobs(folder)
    session = sessions[-1] if sessions else None
    if session is not None and jobs:
        submitted = dt.datetime.fromtimestamp((folder / "jobs" / RECORD).stat().st_mtime, dt.UTC)
        session = None if _last_sign(session) < submitted else session
    return Progress(session, jobs)


def follow(folder: Path) -> Iterator[Progress]:
    """Yield how a run gets on, whenever that has changed, until it is over.

    Raises
    ------
    InputError
        If nothing was started in the directory.
    SubspaceError
        If it is not known for long whether the run goes on, since Slurm cannot be asked.
    """
    progress, last, changed = progress_of(folder), "", time.monotonic()
    if progress.session is None and not progress.jobs:
        raise InputError(f"Nothing was run or submitted in {folder}; `subspace run` or `subspace submit` does")
    while True:
        if str(progress) != last:
            last, changed = str(progress), time.monotonic()
            yield progress
        if progress.is_over(dt.datetime.now(dt.UTC)):
            return
        if progress.is_unasked and time.monotonic() - changed > PATIENCE:
            raise SubspaceError(
                f"Whether the run goes on is not known: it wrote nothing for {PATIENCE:g} s. {progress.jobs[0].reason}"
            )
        time.sleep(LOOK)
        progress = progress_of(folder)
