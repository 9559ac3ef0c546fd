"""What a run leaves about itself: live charts, Dask's performance report and task stream, and the time that was lost.

Below the run directory:

==============================================  =====================================================================
``watch.html``                                  rows and bytes a second, tasks done, memory against plan; loads itself
                                                again while the run goes on
``watch.json``                                  one record a session (a run that was stopped has several)
``watch/N/performance-report.html``             Dask's report of session N, also where the run failed
``watch/N/task-stream.html``                    which task ran where and when
``watch/N/logs/``                               what the Slurm jobs of the session wrote
==============================================  =====================================================================
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import math
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask.utils import key_split
from distributed import Client

from jobs.cluster.keeper import keeper_of
from jobs.watch.page import Sample, StageView, watch_page
from pipeline.work.script import with_prefix
from pipeline.work.usage import FINISHED
from pipeline.work.workers import Advanced, Event, Planned, Staged, listening
from storage.errors import InputError
from storage.files import write_text
from storage.json_files import read_json_object

logger = logging.getLogger(__name__)

#: Seconds between two samples, on few workers; each hundred workers add as much.
SAMPLE_SECONDS = 2.0
#: Samples that are kept; beyond, every other one is dropped and they are taken half as often.
MOST_SAMPLES = 1200
#: Seconds between two versions of the page.
PAGE_SECONDS = 10.0
#: Seconds that the scheduler may take to make its report, and tasks that the saved stream holds at most.
REPORT_SECONDS, STREAM_TASKS = 120, 20_000


@dataclass
class Record:
    """One session of a run, as ``watch.json`` holds it.

    It begins at a time (UTC); its state says which stage it is at, and how far. It is ``finished``, or says what
    stopped it; None: it goes on, or was killed. Threads are those of all workers at most; memory is that of the fullest
    worker process, in bytes, and at most as planned: what it held when a stage was planned, and what the stage may add.

    Time is lost in three ways: work waits for workers (the missing share of the threads, over time), tasks that lost
    their worker are done twice (at most their mean duration each, over all threads), and nothing is done between the
    end of a session that had not finished and the next one.
    """

    begun: str
    state: str = "starting"
    seconds: float = 0.0
    ended: str | None = None
    threads: int = 0
    tasks: int = 0
    rows: float = 0.0
    peak_memory: float = 0.0
    planned_memory: float = 0.0
    workers_lost: int = 0
    tasks_restarted: int = 0
    seconds_short: float = 0.0
    seconds_twice: float = 0.0
    seconds_between: float = 0.0

    @property
    def seconds_lost(self) -> float:
        """How much sooner the run would have been done without faults, about."""
        return self.seconds_short + self.seconds_twice + self.seconds_between

    def to_json(self) -> dict[str, Any]:
        """Return what is written."""
        return {**self.__dict__, "seconds_lost": self.seconds_lost}


@dataclass
class Begun:
    """A stage of the session: when it began, by the session's clock, and the tasks that it is at, with their clock."""

    name: str
    seconds: float
    label: str = ""
    label_seconds: float = 0.0
    done: int = 0
    total: int = 0

    def advance(self, event: Advanced, now: float) -> None:
        """Take in how far the stage is; tasks of another label are counted anew."""
        if event.label != self.label:
            self.label, self.label_seconds = event.label, now
        self.done, self.total = event.done, event.total

    def note(self, now: float) -> str:
        """Return how far its tasks are, and about how long they will take."""
        if not self.total:
            return "at work"
        spent = now - self.label_seconds
        left = f", about {spent / self.done * (self.total - self.done):.0f} s left" if spent and self.done else ""
        return f"{self.label}: {self.done} of {self.total}{left if self.done < self.total else ''}"


@dataclass
class Recorder:
    """Takes the samples of one session and writes what is known of it."""

    client: Client
    folder: Path
    record: Record
    earlier: list[dict[str, Any]]
    samples: list[Sample] = field(default_factory=list)
    planned: Planned | None = None
    limit: float = math.nan
    title: str = ""
    stages: list[Begun] = field(default_factory=list)
    stages_of_run: tuple[str, ...] = ()
    start: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.time)
    every: float = SAMPLE_SECONDS
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def number(self) -> int:
        """The number of the session, from 1."""
        return len(self.earlier) + 1

    @property
    def own_folder(self) -> Path:
        """The session's folder."""
        return self.folder / "watch" / str(self.number)

    def on_event(self, event: Event) -> None:
        """Take in what a run and its stages say."""
        now = time.monotonic() - self.start
        if isinstance(event, Staged):
            self.stages.append(Begun(event.name, now))
            self.stages_of_run = event.names
            self.planned, self.limit = None, math.nan  # its plan, if it makes one, comes later
        elif isinstance(event, Planned):
            self.planned = event
            self.limit = event.limit(self.samples[-1].memory if self.samples else 0.0)
            self.record.planned_memory = max(self.record.planned_memory, self.limit)
        else:
            self.record.tasks += 1
            self.record.rows += event.rows
            self.record.state = f"{event.label}: {event.done} of {event.total}"
            if self.stages:
                self.stages[-1].advance(event, now)

    def watch(self) -> None:
        """Sample until told to stop; runs in a thread of its own."""
        page_due = 0.0
        while not self.stopped.wait(self.every):
            try:
                self.sample()
                self.write_record()  # after a SIGKILL it tells when
                if time.monotonic() >= page_due:
                    page_due = time.monotonic() + PAGE_SECONDS
                    self.write_page()
            except (OSError, TimeoutError, RuntimeError) as error:  # a scheduler that is busy or closing
                logger.debug("No sample: %s", error)

    def sample(self) -> None:
        """Ask the scheduler how its workers are."""
        workers = list(self.client.scheduler_info(n_workers=-1)["workers"].values())
        now = time.monotonic() - self.start
        metrics = [worker["metrics"] for worker in workers if worker.get("metrics")]
        threads = sum(worker["nthreads"] for worker in workers)
        self._count_missing(now, threads)
        memory = max((worker["memory"] for worker in metrics), default=0)
        self.record.peak_memory = max(self.record.peak_memory, memory)
        self.record.seconds = now
        self.samples.append(
            Sample(
                seconds=now,
                rows=self.record.rows,
                tasks=self.record.tasks,
                moved=sum(_moved(worker) for worker in {worker["host"]: worker for worker in workers}.values()),
                memory=memory,
                planned=self.limit,
                threads=threads,
            )
        )
        if len(self.samples) > MOST_SAMPLES:
            del self.samples[1::2]
            self.every *= 2
        self.every = max(self.every, SAMPLE_SECONDS * (1 + len(workers) // 100))

    def _count_missing(self, now: float, threads: int) -> None:
        """Add the time since the last sample, as far as there were fewer threads than at best."""
        if self.record.threads and self.samples:
            missing = max(0, self.record.threads - threads) / self.record.threads
            self.record.seconds_short += missing * (now - self.samples[-1].seconds)
        self.record.threads = max(self.record.threads, threads)

    def write_record(self) -> None:
        """Write the records of all sessions as they are now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sessions = [*self.earlier, self.record.to_json()]
        content = {"seconds_lost": sum(session["seconds_lost"] for session in sessions), "sessions": sessions}
        write_text(self.folder / "watch.json", json.dumps(content, indent=2) + "\n")

    def write_page(self) -> None:
        """Write the page as it is now."""
        going_on = self.record.ended is None
        page = watch_page(
            self.title or self.folder.name,
            self._state() if going_on else f"{self.record.ended} after {self.record.seconds:.0f} s",
            self.samples,
            self._figures(),
            stages=list(self._stage_views()),
            refresh=int(PAGE_SECONDS) if going_on else 0,
        )
        write_text(self.folder / "watch.html", page)

    def _state(self) -> str:
        """Return how far the run is."""
        if not self.stages:
            return self.record.state
        return f"Stage {len(self.stages)} of {len(self.stages_of_run)}; {self.record.seconds:.0f} s so far"

    def _stage_views(self) -> Iterator[StageView]:
        """Yield all stages of the run: those done with their time, the one at work, and those to come."""
        ends = [*(stage.seconds for stage in self.stages[1:]), self.record.seconds][: len(self.stages)]
        last = len(self.stages) - 1
        for i, (stage, end) in enumerate(zip(self.stages, ends, strict=True)):
            if i < last or self.record.ended == FINISHED:
                yield StageView(stage.name, 1.0, f"{end - stage.seconds:.0f} s")
            else:
                yield StageView(stage.name, stage.done / max(stage.total, 1), stage.note(end))
        for name in self.stages_of_run[len(self.stages) :]:
            yield StageView(name, 0.0)

    def _figures(self) -> dict[str, str]:
        record = self.record
        planned = f"{self.planned.what}: {with_prefix(self.limit)}B" if self.planned else "nothing yet"
        return {
            "session": str(self.number),
            "rows read": f"{record.rows:,.0f}",
            "tasks done": f"{record.tasks:,}",
            "peak memory of a worker process": f"{with_prefix(record.peak_memory)}B (planned maximum: {planned})",
            "workers lost": f"{record.workers_lost} ({record.tasks_restarted} tasks restarted)",
            "time lost": f"{record.seconds_lost:.1f} s (waiting for workers {record.seconds_short:.1f}, "
            f"repeated work {record.seconds_twice:.1f}, between sessions {record.seconds_between:.1f})",
        }

    def finish(self, ended: str, last_count: int) -> None:
        """Write everything that is known at the end."""
        self.record.seconds = time.monotonic() - self.start
        self.record.ended = ended
        if self.client.status == "running":
            self._save_reports(last_count)
        else:
            logger.warning("The scheduler is gone: no performance report of this session")
        keeper = keeper_of(self.client.cluster)
        if keeper is not None:
            keeper.copy_logs(self.own_folder / "logs")
        self.write_record()
        self.write_page()
        if self.record.seconds_lost >= 0.5:
            logger.info(
                "About %.1f s were lost: %.1f waiting for workers (%d lost), %.1f repeated work (%d tasks), %.1f "
                "between sessions",
                self.record.seconds_lost, self.record.seconds_short, self.record.workers_lost,
                self.record.seconds_twice, self.record.tasks_restarted, self.record.seconds_between,
            )  # fmt: skip

    def _save_reports(self, last_count: int) -> None:
        """Save what the scheduler knows of the session; a scheduler that does not answer costs its reports only."""
        from bokeh.resources import INLINE  # noqa: PLC0415 - slow to import, and only these pages need it

        self.own_folder.mkdir(parents=True, exist_ok=True)
        try:
            stream, _ = self.client.get_task_stream(
                start=self.began,
                count=STREAM_TASKS,
                plot="save",
                filename=str(self.own_folder / "task-stream.html"),
                bokeh_resources=INLINE,
            )
            self._count_faults(stream, self.client.get_events("all"))
            report = self.client.sync(
                self.client.scheduler.performance_report,
                start=self.began,
                last_count=last_count,
                code=" ".join(sys.argv),
                mode="inline",
                callback_timeout=REPORT_SECONDS,
            )
            write_text(self.own_folder / "performance-report.html", report)
        except (OSError, TimeoutError, RuntimeError) as error:
            logger.warning("No performance report of this session: %s", error or type(error).__name__)

    def _count_faults(self, stream: Any, events: Any) -> None:
        """Count workers that were lost, and the work that was done twice for it."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for task in stream:
            total = totals[key_split(task["key"])]
            total[0] += sum(part["stop"] - part["start"] for part in task["startstops"] if part["action"] == "compute")
            total[1] += 1
        for when, event in events:
            if when < self.began or event.get("action") != "remove-worker":
                continue
            begun = list(event["processing-tasks"])
            self.record.workers_lost += 1
            self.record.tasks_restarted += len(begun)
            for key in begun:
                seconds, count = totals[key_split(key)]
                self.record.seconds_twice += seconds / max(count, 1) / max(self.record.threads, 1)


def _moved(worker: dict[str, Any]) -> float:
    """Return bytes a second of disk and network of a worker's host."""
    metrics = worker.get("metrics") or {}
    return sum(sum(metrics.get(name, {}).values()) for name in ("host_disk_io", "host_net_io"))


def read_sessions(folder: str | Path) -> list[dict[str, Any]]:
    """Return the records of all sessions of a run so far; see :class:`Record`."""
    file = Path(folder) / "watch.json"
    if not file.is_file():
        return []
    try:
        sessions: list[dict[str, Any]] = read_json_object(file, "", "")["sessions"]
    except (InputError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and is started again: %s", file, error)
        return []
    return sessions


def _begin(folder: Path) -> tuple[Record, list[dict[str, Any]]]:
    """Return the record of a new session, and those of the ones before."""
    earlier, now = read_sessions(folder), dt.datetime.now(dt.UTC)
    record = Record(now.isoformat(timespec="milliseconds"))
    if earlier and earlier[-1]["ended"] is None:  # killed: its record is as old as its last sample
        last = dt.datetime.fromisoformat(earlier[-1]["begun"])
        last += dt.timedelta(seconds=earlier[-1]["seconds"])
        record.seconds_between = max(0.0, (now - last).total_seconds())
    return record, earlier


@contextlib.contextmanager
def recorded(client: Client, folder: str | Path, title: str = "") -> Iterator[Recorder]:
    """Record what `client`'s workers do in the block, below a run directory; see the module for the files.

    Parameters
    ----------
    client
        Its scheduler is asked, every two seconds or more seldom.
    folder
        The run directory.
    title
        Heading of the page, such as the name of the experiment; the folder's name by default.

    Yields
    ------
    Recorder

    Examples
    --------
    >>> with recorded(client, "runs/toy"):  # doctest: +SKIP
    ...     pipeline.run("toy.yaml", run_dir="runs/toy", client=client)
    """
    client.get_task_stream(start=0, stop=0)  # from now on the scheduler remembers
    last_count = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.monitor.count)
    record, earlier = _begin(Path(folder))
    recorder = Recorder(client, Path(folder).absolute(), record, earlier, title=title)
    thread = threading.Thread(target=recorder.watch, name="run-watcher", daemon=True)
    thread.start()
    ended = FINISHED
    try:
        with listening(recorder.on_event):
            yield recorder
    except BaseException as error:
        ended = f"stopped by {type(error).__name__}"
        raise
    finally:
        recorder.stopped.set()
        thread.join()
        try:
            recorder.finish(ended, last_count)
        except OSError as error:  # a full disk, say: what the run itself has done does not depend on it
            logger.warning("The record of this session is not complete: %s", error)
