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

from jobs.cluster.slurm import UNKNOWN, Job
from jobs.cluster.submission import submitted_jobs
from jobs.watch.recorder import FINISHED, read_sessions
from storage.errors import InputError

#: Seconds between two looks.
LOOK = 2.0
#: A session that has written nothing for so many seconds, and has no job, was killed.
SILENT = 60.0


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
        parts.extend([f"jobs: {', '.join(f'{n} {state}' for state, n in counts.items())}"] if counts else [])
        return " · ".join(part for part in parts if part)

    def is_over(self, now: dt.datetime) -> bool:
        """Return whether nothing of the run goes on."""
        if any(job.active for job in self.jobs):
            return False
        if self.session is None or self.session["ended"] is not None:
            return True
        last = dt.datetime.fromisoformat(self.session["begun"]) + dt.timedelta(seconds=self.session["seconds"])
        return (now - last).total_seconds() > SILENT

    @property
    def succeeded(self) -> bool:
        """Whether a run that is over did all it was to do: the job behind the others says so, or else the session.

        What a task of an array fails to do, the job behind it does.
        """
        last = max(self.jobs, key=lambda job: int(job.id.split("_")[0]), default=None)
        if last is not None and last.state != UNKNOWN:
            return last.state == "COMPLETED"
        return self.session is not None and bool(self.session["ended"] == FINISHED)


def progress_of(folder: Path) -> Progress:
    """Return where the run in a directory is."""
    sessions = read_sessions(folder)
    return Progress(sessions[-1] if sessions else None, submitted_jobs(folder))


def follow(folder: Path) -> Iterator[Progress]:
    """Yield how a run gets on, whenever that has changed, until it is over.

    Raises
    ------
    InputError
        If nothing was started in the directory.
    """
    progress, last = progress_of(folder), ""
    if progress.session is None and not progress.jobs:
        raise InputError(f"Nothing was run or submitted in {folder}; `subspace run` or `subspace submit` does")
    while True:
        if str(progress) != last:
            last = str(progress)
            yield progress
        if progress.is_over(dt.datetime.now(dt.UTC)):
            return
        time.sleep(LOOK)
        progress = progress_of(folder)
