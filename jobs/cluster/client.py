"""From a named profile of ``cluster.yaml``, or the name of a running cluster, to a Dask client."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import logging
import os
import signal
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import yaml
from dask.utils import parse_timedelta
from distributed import Client, LocalCluster, Worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.security import Security

from jobs.cluster.allocation import Allocation, scheduler_cluster, tasks, worker_script
from jobs.cluster.certificates import (
    has_certificates,
    make_certificates,
    read_certificates,
    write_private,
)
from jobs.cluster.keeper import keep_jobs
from jobs.cluster.profiles import (
    AllocationProfile,
    Gpu,
    JobsProfile,
    LocalCudaProfile,
    LocalProfile,
    ProcessesProfile,
    Profile,
    SchedulerProfile,
    SlurmJob,
    find_job,
    find_profile,
    load_settings,
    profile_names,
)
from jobs.cluster.running import find_cluster, known_names, state_folder
from jobs.cluster.scripts import SETTINGS, cluster_class, import_jobqueue, job_options, worker_class
from jobs.cluster.site import check_scheduler_options
from jobs.cluster.slurm import cancel, jobs_named
from jobs.cluster.versions import check_workers, demanding_versions
from jobs.cluster.workers import FIRST_LINE, watching_workers
from pipeline.work.boundary import is_no_failed_task
from pipeline.work.usage import CLUSTER_KEY
from pipeline.work.workers import closing, dashboard_url, local_client
from storage.errors import InputError, MissingInputError, SubspaceError
from storage.extras import need
from storage.files import private_folder, remove_folder

logger = logging.getLogger(__name__)

#: What else than a scheduler may be meant.
LISTENERS = (
    "The address is what a scheduler logs as 'Scheduler at:', not that of its dashboard; one with TLS needs tls:// and "
    "certificates"
)
#: Parts of Dask's configuration that a cluster's workers need.
OF_WORKERS = ("distributed", "jobqueue", "subspace")


@contextlib.contextmanager
def connect(profile: str = "local", cluster_file: Path | None = None, logs: Path | None = None) -> Iterator[Client]:
    """Start or join the cluster that `profile` describes, and leave it when the block ends.

    Parameters
    ----------
    profile
        A name under ``subspace.profiles``, the name of a cluster that ``subspace cluster up`` started, or the address
        of a running scheduler (``tcp://…``, ``tls://…``).
    cluster_file
        See :func:`jobs.cluster.profiles.load_settings`.
    logs
        Folder for the logs of Slurm jobs, where the profile names none.

    Yields
    ------
    distributed.Client
        With at least one worker.

    Examples
    --------
    >>> with connect("local") as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    settings = load_settings(cluster_file)
    chosen = _choose(profile, settings)
    if isinstance(chosen, JobsProfile):
        import_jobqueue()  # first imported within the block, it would lose its defaults with the block's settings
    with dask.config.set(settings), dask.config.set({CLUSTER_KEY: profile}):
        log_effective(profile, chosen, settings)
        with _ended_by_sigterm(), _start(profile, chosen, settings, logs) as client:
            yield client


@dataclasses.dataclass(frozen=True)
class _Interrupt:
    """Handles SIGTERM, by which Slurm ends a job: does first what cannot wait, then goes on as Ctrl-C does."""

    first: Callable[[], None]

    def __call__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        self.first()
        raise KeyboardInterrupt


@contextlib.contextmanager
def _ended_by_sigterm(first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Have SIGTERM leave the block as Ctrl-C does: keys, and jobs of workers, would stay behind.

    Slurm kills the job half a minute later, so the run may not get as far as to its end; `first` is done at once.
    """
    before = signal.getsignal(signal.SIGTERM)
    here = threading.current_thread() is threading.main_thread()
    if not here or not (before is signal.SIG_DFL or isinstance(before, _Interrupt)):
        yield
        return
    signal.signal(signal.SIGTERM, _Interrupt(first))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _choose(name: str, settings: dict[str, Any]) -> Profile:
    """Return the profile of that name, or one that joins the scheduler of that name or address."""
    if "://" in name:
        return SchedulerProfile(kind="scheduler", address=name)
    if name not in profile_names(settings) and (running := find_cluster(name)) is not None:
        return SchedulerProfile(kind="scheduler", address=running.address(), certificates=str(running.folder))
    try:
        return find_profile(name, settings)
    except InputError as error:
        if name not in profile_names(settings) and (names := known_names()):
            raise InputError(f"{error}. Clusters that were started: {', '.join(names)}") from error
        raise


def log_effective(name: str, profile: Profile, settings: dict[str, Any]) -> None:
    """Log what a profile comes to, from all the files that have a say."""
    values = dict(profile.given())
    if isinstance(profile, JobsProfile):
        values |= {"job": find_job(name, settings).given()}
    level = logging.DEBUG if isinstance(profile, LocalProfile) else logging.INFO
    logger.log(
        level, "Cluster profile %s: %s", name, yaml.safe_dump(values, default_flow_style=True, width=10_000).strip()
    )


@contextlib.contextmanager
def _start(name: str, profile: Profile, settings: dict[str, Any], logs: Path | None) -> Iterator[Client]:
    match profile:
        case LocalProfile():
            with local_client(profile.workers, profile.threads) as client:
                yield client
            return
        case SchedulerProfile():
            start = _scheduler(profile)
        case JobsProfile():
            start = _jobs(name, profile, settings, logs)
        case AllocationProfile():
            start = _allocation(name, profile, settings, logs)
        case _:
            start = _on_this_host(name, profile)
    with start as client:
        logger.info("Dashboard: %s", where_to_look(dashboard_url(client), socket.gethostname()))
        yield client


class _QuietTasks(WorkerPlugin):
    """Keeps the tracebacks of failed tasks from the terminal, which worker processes of this host share."""

    def setup(self, worker: Worker) -> None:  # noqa: ARG002 - as Dask calls it
        logging.getLogger("distributed.worker").addFilter(is_no_failed_task)


@contextlib.contextmanager
def _on_this_host(name: str, profile: ProcessesProfile | LocalCudaProfile) -> Iterator[Client]:
    # TLS on one host too: login nodes are shared, and any user of the host could connect otherwise.
    with started(name, profile, Security.temporary()) as cluster, Client(cluster) as client:
        yield client


@contextlib.contextmanager
def started(name: str, profile: Profile, security: Security) -> Iterator[Any]:
    """Run the scheduler and workers of a profile that starts processes of its own, for as long as the block lasts."""
    common = {"security": security, "protocol": "tls://", "dashboard_address": "127.0.0.1:0"}
    match profile:
        case ProcessesProfile():
            cluster = LocalCluster(
                n_workers=profile.workers,
                threads_per_worker=profile.threads,
                memory_limit=profile.memory,
                plugins={_QuietTasks()},
                **common,
            )
        case LocalCudaProfile():
            cluster = _cuda_cluster(profile, common)
        case _:
            raise InputError(f"Profile {name!r} is of kind {profile.kind!r}, which starts no cluster of its own")
    with closing(cluster):
        yield cluster


def _cuda_cluster(profile: LocalCudaProfile, common: dict[str, Any]) -> Any:
    """Start one worker for each GPU of this machine."""
    cluster_class = need("dask_cuda", "gpu").LocalCUDACluster
    try:
        return cluster_class(
            CUDA_VISIBLE_DEVICES=profile.devices,
            threads_per_worker=profile.threads,
            memory_limit=profile.memory,
            **cuda_arguments(profile),
            **common,
        )
    except Exception as error:
        # what NVML raises where there is no driver is of no public class of dask-cuda's
        if type(error).__name__.startswith("NVMLError"):
            raise InputError(
                f"This machine has no GPU that NVIDIA's driver knows ({error}); use the profile local or processes"
            ) from error
        raise


def cuda_arguments(gpu: Gpu) -> dict[str, Any]:
    """Return the memory settings of a GPU as ``LocalCUDACluster`` names them."""
    arguments = gpu.model_dump(include=set(Gpu.model_fields), exclude_none=True)
    arguments["rmm_allocator_external_lib_list"] = arguments.pop("rmm_libraries") or None
    return arguments


@contextlib.contextmanager
def _scheduler(profile: SchedulerProfile) -> Iterator[Client]:
    if profile.scheduler_file is not None:
        file = Path(profile.scheduler_file)
        if not file.is_file():
            raise MissingInputError(f"No scheduler file at {file}; is `dask scheduler --scheduler-file` running?")
        target: dict[str, Any] = {"scheduler_file": str(file)}
    elif profile.address is not None:
        target = {"address": profile.address}
    else:
        raise InputError("The profile 'scheduler' needs an address or a scheduler-file; set one in your cluster file")
    with joined(Path(profile.certificates) if profile.certificates is not None else None, **target) as client:
        if client.scheduler.address.startswith("tcp://") and "127.0.0.1" not in client.scheduler.address:
            logger.warning(
                "%s is not encrypted: whoever reaches that port can run code as you. Start the scheduler with --tls-…",
                client.scheduler.address,
            )
        why = f"Start some: dask worker {client.scheduler.address}"
        with watching_workers(client, limit=profile.wait, why=lambda: why):
            check_workers(client)
            yield client


@contextlib.contextmanager
def joined(certificates: Path | None, **target: Any) -> Iterator[Client]:
    """Yield a client of a running scheduler, which `target` tells Dask where to find; InputError if none answers."""
    security = read_certificates(certificates) if certificates is not None else None
    where, limit = next(iter(target.values())), parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
    line = "No scheduler answers at %s yet; waiting at most %.0f s. Does it run? Is its port open?"
    timer = threading.Timer(FIRST_LINE, logger.warning, (line, where, target.get("timeout", limit)))
    timer.daemon = True
    timer.start()
    try:
        client = Client(**target, security=security)
    except (OSError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"No Dask scheduler answers at {where}: {reason}. {LISTENERS}") from error
    except (MemoryError, AssertionError, TypeError, ValueError, EOFError, struct.error) as error:
        # what is sent by something else was read as lengths of frames
        raise InputError(
            f"What answers at {where} is no Dask scheduler of this version ({type(error).__name__}). {LISTENERS}"
        ) from error
    finally:
        timer.cancel()
    with client:
        yield client


# --- jobs -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _jobs(name: str, profile: JobsProfile, settings: dict[str, Any], logs: Path | None) -> Iterator[Client]:
    label = uuid.uuid4().hex[:8]
    with (
        shared_folder(find_job(name, settings), f"{name}-{label}") as folder,
        slurm_cluster(name, settings, folder, label, logs) as cluster,
        Client(cluster) as client,
        _ended_by_sigterm(lambda: _cancel_left(cluster)),
        keep_jobs(cluster, profile.jobs, profile.minimum) as keeper,
    ):
        logger.debug("Job script:\n%s", cluster.job_script())
        logger.info("Waiting for a worker (%d jobs named %s)", profile.jobs, cluster.job_name)
        with watching_workers(
            client, limit=profile.wait, why=keeper.why, check=keeper.check_start, elastic=profile.minimum == 0
        ):
            yield client


@contextlib.contextmanager
def _allocation(name: str, profile: AllocationProfile, settings: dict[str, Any], logs: Path | None) -> Iterator[Client]:
    given, job = Allocation.of(os.environ), find_job(name, settings)
    check_scheduler_options(job, f"jobqueue.{name}")
    with shared_folder(job, f"{name}-{given.job}-{uuid.uuid4().hex[:8]}") as folder:
        place = Path(job.log_directory) if job.log_directory is not None else logs or folder
        place.mkdir(parents=True, exist_ok=True)
        write_private(folder / SETTINGS, yaml.safe_dump(settings_of_workers(settings)))
        with (
            closing(scheduler_cluster(job, make_certificates(folder))) as cluster,
            Client(cluster) as client,
            tasks(
                worker_script(job, given, cluster.scheduler_address, folder), given, folder, place.absolute()
            ) as workers,
            watching_workers(client, limit=profile.wait, why=workers.why, check=workers.check),
        ):
            yield client


@contextlib.contextmanager
def shared_folder(job: SlurmJob, name: str) -> Iterator[Path]:
    """Make a private folder that all nodes see, for as long as the block lasts."""
    parent = Path(job.shared_temp_directory) if job.shared_temp_directory is not None else state_folder("runs")
    try:
        folder = private_folder(parent / name, exist_ok=False).absolute()
    except OSError as error:  # no home, for instance
        raise InputError(
            f"The keys and settings of the cluster cannot go to {parent} ({error.strerror or error}): set "
            "shared-temp-directory to a folder that you may write to and all nodes see"
        ) from error
    try:
        yield folder
    finally:
        remove_folder(folder)


@contextlib.contextmanager
def slurm_cluster(
    name: str, settings: dict[str, Any], folder: Path, label: str, logs: Path | None = None
) -> Iterator[Any]:
    """Run the scheduler of profile `name`, with no job submitted yet; its jobs end with the block.

    `settings` are in force. `folder` is private and seen by all nodes: certificate and settings of the cluster are
    written to it, where they are not there yet. The names of the jobs end in
    `label`. `logs` is for the jobs' logs, where the profile names no folder.
    """
    job = find_job(name, settings)
    check_scheduler_options(job, f"jobqueue.{name}")
    options = job_options(name, job, folder)
    if options["log-directory"] is None and logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
        options["log-directory"] = str(logs.absolute())
    if job.scheduler != "slurm" and any(letter.isspace() for letter in options["log-directory"] or ""):
        raise InputError(f"{options['log-directory']}: {job.scheduler} takes no spaces in the folder of the logs")
    if not (folder / SETTINGS).is_file():
        write_private(folder / SETTINGS, yaml.safe_dump(settings_of_workers(settings)))
    security = read_certificates(folder) if has_certificates(folder) else make_certificates(folder)
    key = uuid.uuid4().hex
    with dask.config.set({f"jobqueue.{key}": options}):
        cluster = cluster_class(job.scheduler)(
            config_name=key,
            job_cls=worker_class(key, job, options),
            # without it, dask-jobqueue does not know the names of the workers of a job
            processes=options["processes"],
            job_name=f"{options['name']}-{label}",
            security=security,
            protocol="tls://",
        )
    try:
        with closing(cluster):
            yield cluster
    finally:
        _cancel_left(cluster)


def _cancel_left(cluster: Any) -> None:
    """Cancel the Slurm jobs of a cluster, by name: Dask may have forgotten one, or its `scancel` may have failed."""
    if cluster.job_cls.scheduler != "slurm":
        return
    try:
        cancel(jobs_named(cluster.job_name))
    except SubspaceError as error:
        logger.warning("Jobs named %s may be left, if any were submitted: %s", cluster.job_name, error)


def settings_of_workers(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a Dask configuration that the workers of a cluster need."""
    return demanding_versions({key: settings[key] for key in OF_WORKERS if key in settings})


# --- the dashboard ----------------------------------------------------------------------------------------------------


def where_to_look(url: str, host: str) -> str:
    """Return the address of a dashboard on `host`'s own port, with the tunnel that leads to it from elsewhere.

    >>> where_to_look("http://127.0.0.1:8787/status", "node7").split(" (")[0]
    'http://127.0.0.1:8787/status'
    """
    return f"{url} (from your own machine, first: {tunnel(url, host)})"


def tunnel(url: str, host: str) -> str:
    """Return the ``ssh`` command that brings a dashboard on `host` to one's own machine.

    Inside a Slurm job, the way leads over the host that the job was submitted from.
    """
    port = url.rsplit("://", maxsplit=1)[-1].partition("/")[0].rpartition(":")[2]
    user, login = getpass.getuser(), os.environ.get("SLURM_SUBMIT_HOST")
    over = f"-J {user}@{login} " if login and login.split(".")[0] != host.split(".", maxsplit=1)[0] else ""
    return f"ssh -N -L {port}:127.0.0.1:{port} {over}{user}@{host}"
