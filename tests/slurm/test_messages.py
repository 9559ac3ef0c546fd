"""How long a fault of the site takes to be reported: at most ten seconds, but for the limits that the user set.

``SUBSPACE_MESSAGE_TABLE=FILE`` keeps the times; ``python -m benchmarks.slurm_faults --messages`` does that.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import keeper
from jobs.cluster.client import connect
from storage.errors import SubspaceError

pytestmark = pytest.mark.slurm

SOON = 10.0

Note = Callable[[str, float, str], None]


@pytest.fixture(scope="module")
def note() -> Iterator[Note]:
    """Take a fault, the seconds until it was reported, and the line that reported it; it has to be in time."""
    rows: list[dict[str, Any]] = []

    def add(fault: str, seconds: float, line: str) -> None:
        rows.append({"fault": fault, "seconds": round(seconds, 1)})
        assert seconds <= SOON, line

    yield add
    if (file := os.environ.get("SUBSPACE_MESSAGE_TABLE")) is not None:
        Path(file).write_text(json.dumps(rows))


class Lines(logging.Handler):
    """What is logged, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.created, record.getMessage()))

    def wait_for(self, pattern: str, since: float) -> tuple[float, str]:
        """Return the seconds until a line that is like `pattern`, and the line."""
        while time.time() < since + 60:
            for moment, line in list(self.lines):
                if moment >= since and (match := re.search(f".*{pattern}.*", line)):
                    return moment - since, match[0]
            time.sleep(0.1)
        raise AssertionError(f"no line like {pattern} among {self.lines}")


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("jobs")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def port_in_use() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        yield listener.getsockname()[1]


def older_code(folder: Path) -> Path:
    """Copy the project as it may be installed on the nodes: the version is the same, a line is not."""
    root = Path(__file__).parents[2]
    for package in ("storage", "pipeline", "jobs"):
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "dictionaries"))
    with (folder / "pipeline" / "__init__.py").open("a") as file:
        file.write("# other code\n")
    return folder


FIREWALLED = """#!/bin/sh
for each; do
    shift
    case $each in tls://*:*) each=tls://127.0.0.1:1 ;; esac
    set -- "$@" "$each"
done
exec {python} "$@"
"""


def firewalled(folder: Path) -> Path:
    """Write an interpreter for workers, who are told another port than the scheduler's: one that is closed."""
    folder.mkdir()
    (folder / "python").write_text(FIREWALLED.format(python=sys.executable))
    (folder / "python").chmod(0o755)
    return folder / "python"


#: What a site has, from a port in use and a folder; and the line that reports it.
FAULTS: dict[str, tuple[Callable[[int, Path], dict[str, Any]], str]] = {
    "every `sbatch` is refused": (
        lambda *_: {"queue": "nowhere"},
        "The jobs are refused: .*invalid partition specified: nowhere",
    ),
    "the interface is missing on this host": (
        lambda *_: {"interface": "ib9"},
        "'ib9' is not a valid network interface",
    ),
    "the scheduler's port is in use": (
        lambda port, _: {"scheduler-options": {"port": port, "dashboard_address": "127.0.0.1:0"}},
        "cannot listen on port",
    ),
    "jobs die before a worker comes": (
        lambda *_: {"job-script-prologue": ["echo no such module: python/9 >&2", "exit 1"]},
        "no such module: python/9",
    ),
    "the nodes have another version of the code": (
        lambda _, folder: {"job-script-prologue": [f"export PYTHONPATH='{older_code(folder)}'"]},
        r"driver's versions: files of subspace \w+, not \w+\. It is",
    ),
    "jobs wait in vain": (
        lambda *_: {"queue": "short", "walltime": "01:00:00"},
        r"waits in vain: it is PENDING \(PartitionTimeLimit\)",
    ),
    "workers cannot reach the scheduler": (
        lambda _, folder: {"python": str(firewalled(folder))},
        "cannot reach the scheduler at tls://127.0.0.1:1 ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_cluster_that_cannot_start(
    fault: str,
    slurm: Path,
    make_cluster_file: Callable[..., Path],
    port_in_use: int,
    note: Note,
    lines: Lines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper, "SPARE_JOBS", 0)  # the start is given up at the first death, not at the third
    monkeypatch.chdir(tmp_path)  # Python looks for the code of jobs here first
    job, message = FAULTS[fault]
    profile = {"jobs": 1, "wait": 25 if "reach" in fault else 60}
    file = make_cluster_file(tmp_path, job=job(port_in_use, tmp_path / "old code"), profile=profile)
    since, over = [time.time()], threading.Event()

    def watch_logs() -> None:
        """Where a job fails, the fault is when it writes so, and not while it waits and starts."""
        while not over.wait(0.05):
            if any(re.search(message, log.read_text()) for log in (tmp_path / "logs").iterdir()):
                since.append(time.time())
                return

    thread = threading.Thread(target=watch_logs)
    thread.start()
    with pytest.raises(SubspaceError, match=message) as caught, connect("slurm-cpu", file):
        pass
    lines.lines.append((time.time(), str(caught.value)))
    over.set()
    thread.join()
    note(fault, *lines.wait_for(message, since[-1]))


def test_workers_that_do_not_come_or_are_lost(
    slurm: Path, slurmctl: Any, make_cluster_file: Callable[..., Path], note: Note, lines: Lines, tmp_path: Path
) -> None:
    def drain_all() -> None:
        for node in ("n1", "n2"):
            slurmctl.drain(node)

    def let_them_come() -> None:
        reports.append(lines.wait_for("No worker for", start))
        for node in ("n1", "n2"):
            slurmctl.resume(node)

    reports: list[tuple[float, str]] = []
    drain_all()
    file = make_cluster_file(tmp_path, profile={"jobs": 1})
    thread, start = threading.Thread(target=let_them_come), time.time()
    thread.start()
    with connect("slurm-cpu", file):
        thread.join()
        note("no node is free, so there is no worker", *reports[0])
        lines.wait_for("There are workers again", start)
        drain_all()
        lost = time.time()
        slurmctl.cancel(*slurmctl.running())
        note("all workers are lost", *lines.wait_for("No worker for", lost))
