"""An experiment on worker processes whose processes are killed at random moments, for :mod:`benchmarks.crash`."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client, LocalCluster, Worker

import pipeline
from benchmarks.crash_disk import differences, faults, tree
from benchmarks.crash_processes import Child, fork, last_words, spread
from benchmarks.crash_scenarios import inputs, run_until
from pipeline.work.workers import closing

if TYPE_CHECKING:
    from benchmarks.crash import Workshop

#: Up to where the experiment is run: all stages that have tasks for workers.
UNTIL = "compare"
VICTIMS = ("driver", "worker", "all")
N_WORKERS = 2
PATIENCE = 100.0


class Session:
    """A driver with the scheduler, and workers, each a process of its own."""

    def __init__(self, slot: Path, number: int) -> None:
        self.slot = slot
        self.address = slot.with_name(f"{slot.name}-{number}.address")
        self.address.unlink(missing_ok=True)
        self.number = number
        self.driver = Child(self._drive, slot, f"-driver-{number}")
        self.workers: list[Child] = []
        for _ in range(N_WORKERS):
            self.add_worker()

    def add_worker(self) -> None:
        """Start another worker."""
        self.workers.append(Child(self._work, self.slot, f"-worker-{self.number}-{len(self.workers)}"))

    def _drive(self) -> list[str]:
        cluster = LocalCluster(n_workers=0, processes=True, host="127.0.0.1", dashboard_address=":0")
        with closing(cluster), Client(cluster) as client:
            temporary = self.address.with_suffix(".new")
            temporary.write_text(cluster.scheduler_address, encoding="utf-8")
            temporary.replace(self.address)
            client.wait_for_workers(N_WORKERS, timeout=PATIENCE)
            pipeline.run(inputs() / "small.yaml", run_dir="run", until=UNTIL, client=client)
        return []

    def _work(self) -> list[str]:
        end = time.monotonic() + PATIENCE
        while not self.address.is_file() and time.monotonic() < end:
            time.sleep(0.02)

        async def work() -> None:
            scratch = str(self.slot.with_name("scratch"))
            address = self.address.read_text(encoding="utf-8")
            async with Worker(address, nthreads=1, local_directory=scratch, dashboard_address=":0") as worker:
                await worker.finished()

        asyncio.run(work())
        return []

    def kill(self, victim: str) -> None:
        """Kill the driver, the first worker, or all processes. A worker that was killed is replaced."""
        if victim in ("driver", "all"):
            self.driver.kill(signal.SIGKILL)
        for worker in self.workers[: {"driver": 0, "worker": 1, "all": N_WORKERS}[victim]]:
            worker.kill(signal.SIGKILL)
        if victim == "worker":
            self.add_worker()

    def bury(self) -> None:
        """Kill whatever is left, and wait for its end."""
        for child in (self.driver, *self.workers):
            child.kill(signal.SIGKILL)
            child.wait()


def kill_once(
    workshop: Workshop, expected: dict[str, str], moment: tuple[int, str, float], worker: int
) -> dict[str, Any]:
    """Run the experiment, kill a victim after some seconds, let it be finished; return what was wrong."""
    number, victim, seconds = moment
    slot = workshop.slot(worker, workshop.starts["toy"])
    sessions = [Session(slot, 1)]
    end = time.monotonic() + seconds
    while time.monotonic() < end and not sessions[0].driver.ended():
        time.sleep(0.005)
    in_time = not sessions[0].driver.ended()
    sessions[0].kill(victim)
    if victim != "worker":
        wait_for(sessions[0].driver.ended)  # until then its locks are held, which may take a second on a busy machine
        sessions.append(Session(slot, 2))  # workers that lost their driver may still be at work
    wait_for(sessions[-1].driver.ended)
    finished = sessions[-1].driver.ended()
    for session in sessions:
        session.bury()
    ended = _how(sessions[-1], finished)
    problems = ended + fork(lambda: [*differences(tree(slot), expected), *faults(["run"])], slot).returned
    return {"n": number, "victim": victim, "after": seconds, "in_time": in_time, "problems": problems}


def _how(session: Session, finished: bool) -> list[str]:
    printed = session.driver.output.read_text(encoding="utf-8", errors="replace")
    if not finished:
        return [f"the run does not end within {PATIENCE:.0f} s"]
    return [f"the run breaks: {last_words(printed)}"] if "Traceback" in printed else []


def wait_for(true: Callable[[], bool]) -> None:
    """Wait until something is true, but not for ever."""
    end = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < end:
        time.sleep(0.02)


def kills(workshop: Workshop, count: int, seed: int, at_a_time: int) -> list[dict[str, Any]]:
    """Kill so many processes of so many runs; return what came of each."""
    if not count:
        return []
    start = workshop.start("toy")
    workshop.undisturbed(workshop.slot("undisturbed", start), run_until(UNTIL))
    expected = tree(workshop.base / "slots" / "undisturbed")
    begun = time.monotonic()
    session = Session(workshop.slot("undisturbed", start), 0)
    wait_for(session.driver.ended)
    seconds = time.monotonic() - begun
    session.bury()
    for difference in differences(tree(workshop.base / "slots" / "undisturbed"), expected):
        print(f"on worker processes, undisturbed: {difference}", file=sys.stderr)
    draw = random.Random(seed)  # noqa: S311 - no secret
    moments = [(i, VICTIMS[i % len(VICTIMS)], round(draw.uniform(0, seconds), 3)) for i in range(count)]
    results = []
    for result in spread(moments, lambda moment, worker: kill_once(workshop, expected, moment, worker), at_a_time):
        results.append(result)
        if result["problems"]:
            print(f"kill {result}", file=sys.stderr, flush=True)
    well = sum(not one["problems"] for one in results)
    print(f"{well} of {len(results)} kills with the same bytes; a run takes {seconds:.1f} s", file=sys.stderr)
    return sorted(results, key=lambda one: int(one["n"]))
