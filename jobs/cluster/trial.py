"""A test job: what a worker of a profile finds on its node. ``python -m jobs.cluster.trial FOLDER`` runs there.

The folder is where a cluster's settings and certificates would be. The job reads what was written there before it was
submitted, and what it writes is read here, so that the file system is tried both ways.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.cluster.profiles import SlurmJob
from jobs.cluster.scripts import header, log_pattern, prologue, shell_word
from jobs.cluster.site import submit_explained, waits_in_vain
from jobs.cluster.slurm import SHOWN_LINES, Job, cancel, jobs_numbered
from jobs.cluster.versions import versions
from jobs.cluster.workers import Absence
from storage import free_space
from storage.errors import SubspaceError
from storage.files import write_atomically
from storage.json_files import read_json_object

logger = logging.getLogger(__name__)

NAME = "subspace-doctor"
#: Files by which the two sides tell each other something.
REQUEST, ANSWER = "request.json", "answer.json"
#: Seconds between two looks, and for which a file may take to be seen on another host.
LOOK, DELAY = 0.5, 30.0


@dataclass(frozen=True)
class Node:
    """What a job found on its node; see :func:`look_around`."""

    host: str
    versions: dict[str, str]
    token: str
    scratch: str
    scratch_free: int
    scratch_error: str
    cache_error: str
    interfaces: list[str]


def look_around(folder: Path) -> Node:
    """Return what this host, the node of the job, has for a worker whose settings are in `folder`."""
    request = read_json_object(folder / REQUEST, f"{folder / REQUEST} is not seen on this node", "submit it again")
    scratch = Path(os.path.expandvars(request["scratch"] or tempfile.gettempdir())).expanduser()
    cache = Path(os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Node(
        host=socket.gethostname(),
        versions=versions(),
        token=request["token"],
        scratch=str(scratch),
        scratch_free=free_space(scratch)[0],
        scratch_error=_write_error(scratch),
        cache_error=_write_error(cache),
        interfaces=sorted(psutil.net_if_addrs()),
    )


def _write_error(folder: Path) -> str:
    """Return why a folder cannot be written to; an empty text if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return str(error)
    return ""


def trial_script(job: SlurmJob, folder: Path) -> str:
    """Return the script of the test job, which asks for what a worker asks for."""
    lines = [
        job.shebang or "#!/usr/bin/env bash",
        *header(job, name=NAME, logs={"-o": log_pattern(folder, "job.log")}),
        *prologue(job, {}),
        f"exec {shell_word(job.python or sys.executable)} -m jobs.cluster.trial {shlex.quote(str(folder))}",
    ]
    return "\n".join(lines) + "\n"


def try_node(job: SlurmJob, folder: Path, seconds: float) -> Node:
    """Submit a test job and return what it found.

    Lines are logged while it waits. SubspaceError if it is refused, waits in vain, does not start in time, or fails.
    """
    token = os.urandom(8).hex()
    write_atomically(folder / REQUEST, [json.dumps({"token": token, "scratch": job.scratch}).encode()])
    script = folder / "job.sbatch"
    write_atomically(script, [trial_script(job, folder).encode()])
    number = submit_explained(script, (), ())
    try:
        _wait_for(folder / ANSWER, number, seconds)
    finally:
        try:
            cancel(_listed(number))
        except SubspaceError as error:
            logger.warning("Job %s may be left: %s", number, error)
    answer: dict[str, Any] = read_json_object(folder / ANSWER, f"no answer in {folder}", "try again")
    try:
        node = Node(**answer)
    except TypeError as error:
        raise SubspaceError(
            f"The node has another version of Subspace, whose answer is another ({error}): set jobqueue's python to "
            f"{sys.executable}, or install the same versions there"
        ) from error
    if node.token != token:
        raise SubspaceError(f"{node.host} reads an older {folder / REQUEST} than was written here: caches of the disk")
    return node


def _wait_for(answer: Path, number: str, seconds: float) -> None:
    listed: list[Job] = []
    over_since: float | None = None
    unasked: SubspaceError | None = None

    def state() -> str:
        if unasked is not None:
            return str(unasked)
        if not listed:
            return f"Job {number} is not known to Slurm"
        reason = listed[0].reason
        return f"Job {number} is {listed[0].state}" + ("" if reason in ("", "None") else f" ({reason})")

    absence = Absence(seconds, state, "answer of the test job")
    while not answer.is_file():
        now = time.monotonic()
        try:
            listed, unasked = _listed(number), None
        except SubspaceError as error:  # it may answer again
            unasked = error
        active = [job for job in listed if job.active]
        over_since = None if active or unasked is not None else over_since or now
        if over_since is not None and now - over_since > (DELAY if not listed else LOOK):
            where = f" on {listed[0].node}" if listed and listed[0].node else ""
            raise SubspaceError(f"{state()}{where}, and wrote nothing here. {_log(answer.parent)}")
        if active and (remedy := waits_in_vain(active[0].reason)):
            raise SubspaceError(f"{state()}, and would wait in vain: {remedy}")
        if absence.look(present=False):
            raise absence.error()
        time.sleep(LOOK)


def _listed(number: str) -> list[Job]:
    return [job for job in jobs_numbered([number]) if job.id == number]


def _log(folder: Path) -> str:
    """Return the end of the job's log, or that this host sees none."""
    file = folder / "job.log"
    if not file.is_file():
        return f"There is no {file} either: does the node see this folder?"
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join([f"The end of {file}:", *lines[-SHOWN_LINES:]])


def main() -> None:
    """Answer the request in the folder that is the first argument."""
    folder = Path(sys.argv[1])
    write_atomically(folder / ANSWER, [json.dumps(vars(look_around(folder))).encode()])


if __name__ == "__main__":
    main()
