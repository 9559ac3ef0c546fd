"""A cluster that outlives the command which started it: ``subspace cluster up|down|status``.

``up`` makes the cluster's folder (:mod:`jobs.cluster.running`) with certificate and settings, and starts
``python -m jobs.cluster.service FOLDER`` in a session of its own. That process runs the scheduler, submits
worker jobs or starts worker processes, keeps their number, and ends with all of them when it is told to (SIGTERM) or
the scheduler is shut down.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import psutil
import yaml
from distributed import Client

from jobs.cluster.certificates import make_certificates, read_certificates, write_private
from jobs.cluster.client import joined, settings_of_workers, slurm_cluster, started, tunnel
from jobs.cluster.keeper import keep_jobs, tail
from jobs.cluster.profiles import (
    LocalCudaProfile,
    ProcessesProfile,
    SlurmProfile,
    find_job,
    find_profile,
    load_settings,
    profile_names,
    read_cluster_file,
)
from jobs.cluster.running import TOKEN_VARIABLE, ClusterState, Service, cluster_of
from jobs.cluster.scripts import SETTINGS, import_jobqueue
from jobs.cluster.slurm import Job, cancel, jobs_named
from storage.errors import InputError, SubspaceError
from storage.files import private_folder, remove_folder

logger = logging.getLogger(__name__)

LOG = "service.log"
#: Seconds that a scheduler may take to start, that a cluster may take to end, and that a scheduler may take to answer.
STARTING, ENDING, ANSWERING = 120.0, 60.0, 5.0
#: Seconds between two looks at something that is waited for.
LOOK = 0.1

# --- the process that runs it -----------------------------------------------------------------------------------------


def serve(folder: Path) -> None:
    """Run the scheduler of the cluster in `folder`, and keep its workers, until SIGTERM or the scheduler's end."""
    state, ended = ClusterState(folder), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    settings, profile_name = read_cluster_file(folder / SETTINGS), state.about["profile"]
    profile = find_profile(profile_name, settings)
    with dask.config.set(settings), _cluster(state, profile, settings) as cluster:
        process = psutil.Process()
        job = cluster._dummy_job if isinstance(profile, SlurmProfile) else None
        port = cluster.scheduler_info["services"].get("dashboard")
        state.announce(
            Service(
                host=socket.gethostname(),
                pid=process.pid,
                created=process.create_time(),
                address=cluster.scheduler_address,
                dashboard=f"http://127.0.0.1:{port}/status",
                job_name=job and job.job_name,
                logs=job and job.log_directory,
            )
        )
        logger.info("Running at %s", cluster.scheduler_address)
        while not ended.wait(1.0) and cluster.scheduler.status.name == "running":
            pass
        logger.info("Ending")
    remove_folder(folder)


@contextlib.contextmanager
def _cluster(state: ClusterState, profile: Any, settings: dict[str, Any]) -> Iterator[Any]:
    name, folder = state.about["profile"], state.folder
    if isinstance(profile, SlurmProfile):
        with (
            slurm_cluster(name, settings, folder, _label(state), private_folder(folder / "logs")) as cluster,
            keep_jobs(cluster, profile.jobs, profile.minimum),
        ):
            yield cluster
    else:
        with started(name, profile, read_certificates(folder)) as cluster:
            yield cluster


def _label(state: ClusterState) -> str:
    """Return what ends the names of a cluster's Slurm jobs: another cluster may have had the same name."""
    return f"{state.name}-{state.about['token'][:8]}"


# --- up ---------------------------------------------------------------------------------------------------------------


def up(name: str, profile_name: str, cluster_file: Path | None = None) -> ClusterState:
    """Start a cluster that outlives this process, from a profile that starts processes or jobs.

    `cluster_file` is read now, and not again. On return the scheduler runs; workers may still wait in Slurm's queue.
    """
    settings = load_settings(cluster_file)
    profile = find_profile(profile_name, settings)
    if not isinstance(profile, ProcessesProfile | LocalCudaProfile | SlurmProfile):
        raise InputError(
            f"Profile {profile_name!r} is of kind {profile.kind!r}: it has no processes that could keep running"
        )
    if name in profile_names(settings):
        raise InputError(f"{name!r} is the name of a profile; --cluster {name} would mean either. Choose another name")
    if isinstance(profile, SlurmProfile):
        import_jobqueue()  # said here if it is missing, or a key is wrong, rather than by the process that is started
        find_job(profile_name, settings)
    state = cluster_of(name)
    _make_place(state)
    state.begin(profile=profile_name, token=uuid.uuid4().hex)
    write_private(state.folder / SETTINGS, yaml.safe_dump(settings_of_workers(settings)))
    make_certificates(state.folder)
    process = _launch(state)
    _wait_for(lambda: state.service is not None or process.poll() is not None, STARTING)
    if state.service is None or process.poll() is not None:
        log = tail(state.folder / LOG)
        down(name)
        raise SubspaceError(f"The cluster {name!r} did not start:\n{log}")
    return state


def _make_place(state: ClusterState) -> None:
    try:
        private_folder(state.folder, exist_ok=False)
    except FileExistsError:
        gone = state.gone() if (state.folder / "cluster.json").is_file() else None
        if gone is None:
            raise InputError(f"There is a cluster {state.name!r}; see `subspace cluster status {state.name}`") from None
        raise InputError(
            f"A cluster {state.name!r} was started and does not run: {gone}. `subspace cluster down {state.name}` "
            "clears what is left of it"
        ) from None
    except OSError as error:  # no home, for instance
        raise InputError(
            f"The cluster cannot be written down in {state.folder} ({error.strerror or error}): set SUBSPACE_STATE to "
            "a folder that you may write to and all hosts see"
        ) from error


def _launch(state: ClusterState) -> subprocess.Popen[bytes]:
    """Start the process, free of this one's terminal and session."""
    environment = {**os.environ, TOKEN_VARIABLE: state.about["token"], "DASK_CONFIG": str(state.folder / SETTINGS)}
    with os.fdopen(os.open(state.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as log:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "jobs.cluster.service", str(state.folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment,
        )  # fmt: skip


def _wait_for(done: Callable[[], bool], seconds: float) -> bool:
    """Wait until `done`, at most so long; say whether it is."""
    end = time.monotonic() + seconds
    while not (ready := done()) and time.monotonic() < end:
        time.sleep(LOOK)
    return ready


# --- down -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """What :func:`down` ended one by one: processes of this host, and Slurm jobs.

    `gone` is why the cluster did not run any more, if it did not; `elsewhere` is a host, if any, on which a process may
    be left that this host cannot reach.
    """

    gone: str | None
    processes: list[int] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    elsewhere: str | None = None


def down(name: str) -> Ended:
    """End a cluster: exactly the processes and jobs that it started, also where its own process has died."""
    state = known(name)
    gone, elsewhere = state.gone(), None
    if gone is None and state.about["host"] == socket.gethostname():
        _end_here(state)
    elif gone is None:
        elsewhere = _end_from_elsewhere(state)
    # where its process could end in order, nothing of it is left to be found
    left = (state.folder / "cluster.json").is_file()
    processes, jobs = (_end_processes(state), _leftover_jobs(state)) if left else ([], [])
    cancel(jobs)
    remove_folder(state.folder)
    return Ended(gone, processes, [job.id for job in jobs], elsewhere)


def known(name: str) -> ClusterState:
    """Return a cluster that was started; InputError if none of that name was."""
    state = cluster_of(name)
    if not (state.folder / "cluster.json").is_file():
        raise InputError(f"There is no cluster {name!r} in {state.folder.parent}; `subspace cluster status` lists them")
    return state


def _end_here(state: ClusterState) -> None:
    """Ask the process to end, and wait until it has."""
    service = state.service
    if service is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(service.pid)
        process.terminate()
        # what is left after this is ended one by one
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(ENDING)


def _end_from_elsewhere(state: ClusterState) -> str | None:
    """Shut the scheduler down over the network; return the host of its process if nobody answers."""
    service = state.service
    try:
        with answering(state) as client:
            client.shutdown()
    except InputError:
        return str(state.about["host"])
    if service is not None:
        _wait_for(lambda: not (state.folder / "cluster.json").is_file(), ENDING)
    return None


def _end_processes(state: ClusterState) -> list[int]:
    """End what carries the cluster's token on this host; return the numbers."""
    left = list(state.processes())
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=10)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return [process.pid for process in left]


def _leftover_jobs(state: ClusterState) -> list[Job]:
    """Return the jobs of a cluster that still wait or run."""
    job_name = job_name_of(state)
    return [] if job_name is None else [job for job in jobs_named(job_name) if job.active]


def job_name_of(state: ClusterState) -> str | None:
    """Return the name of a cluster's Slurm jobs, also where its process died before it wrote it down."""
    settings = read_cluster_file(state.folder / SETTINGS) if (state.folder / SETTINGS).is_file() else None
    if settings is None or not isinstance(find_profile(state.about["profile"], settings), SlurmProfile):
        return None
    return f"{find_job(state.about['profile'], settings).name}-{_label(state)}"


# --- status -----------------------------------------------------------------------------------------------------------


def answering(state: ClusterState) -> contextlib.AbstractContextManager[Client]:
    """Return a client of a running cluster, as a context; InputError if it does not run, or does not answer."""
    return joined(state.folder, address=state.address(), timeout=ANSWERING)


def status(state: ClusterState) -> dict[str, Any]:
    """Return what there is to know of a cluster.

    Returns
    -------
    dict
        ``name``, ``profile``, ``state`` (``running``, ``starting`` or ``gone``), ``why`` it is gone, ``host``,
        ``scheduler``, ``dashboard``, ``tunnel``, ``workers``, ``threads``, ``memory_bytes``, ``jobs`` (each with
        ``id``, ``state``, ``node``, ``reason``), ``jobs_unknown`` (why Slurm does not say), ``folder``, ``logs``.
    """
    about, service = state.about, state.service
    report: dict[str, Any] = {"name": state.name, "profile": about["profile"], "host": about["host"]}
    report |= {"folder": str(state.folder), "state": "starting", "jobs": []}
    if (gone := state.gone()) is not None:
        report |= {"state": "gone", "why": gone}
    elif service is not None:
        report |= _running(state, service)
    job_name = service.job_name if service is not None else job_name_of(state)
    if job_name is not None:
        try:
            report["jobs"] = [vars(job) for job in jobs_named(job_name)]
        except SubspaceError as error:
            report["jobs_unknown"] = str(error)
        report["logs"] = service.logs if service is not None else None
    return report


def _running(state: ClusterState, service: Service) -> dict[str, Any]:
    try:
        with answering(state) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
    except InputError as error:
        return {"state": "gone", "why": f"{error}. It runs on {state.about['host']}, if it does"}
    return {
        "state": "running",
        "scheduler": service.address,
        "dashboard": service.dashboard,
        "tunnel": tunnel(service.dashboard, service.host),
        "workers": len(workers),
        "threads": sum(worker["nthreads"] for worker in workers),
        "memory_bytes": sum(worker["memory_limit"] or 0 for worker in workers),
    }


def main() -> None:
    """Run the service of the folder that is the first argument."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    for name in ("pipeline", "storage", "jobs", __name__):
        logging.getLogger(name).setLevel(logging.INFO)
    serve(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
