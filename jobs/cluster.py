"""From a named profile of ``cluster.yaml`` to a Dask client.

``cluster.yaml`` is an ordinary Dask configuration file. Three places are read, later ones winning: the file shipped
with the package, what Dask itself has read (``DASK_CONFIG``, ``~/.config/dask``), and the file given as
``--cluster-file``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import dask
import yaml
from distributed import Client, LocalCluster
from distributed.security import Security
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from jobs.watcher import careful, keep_jobs
from pipeline.workers import closing, dashboard_url, local_client
from storage.errors import InputError, MissingDependencyError, MissingInputError

logger = logging.getLogger(__name__)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class _Profile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=_dashed, populate_by_name=True)


class LocalProfile(_Profile):
    """Workers that are threads of the calling process."""

    kind: Literal["local"]
    workers: PositiveInt = 1
    threads: PositiveInt | None = None


class ProcessesProfile(_Profile):
    """Workers that are processes of this machine."""

    kind: Literal["processes"]
    workers: PositiveInt = 2
    threads: PositiveInt = 1
    memory: str | None = "auto"


class SlurmProfile(_Profile):
    """Workers that are Slurm jobs; the job is described under ``jobqueue.PROFILE``."""

    kind: Literal["slurm"]
    jobs: PositiveInt = 2
    wait: PositiveInt = 600


class SchedulerProfile(_Profile):
    """A scheduler that somebody else started."""

    kind: Literal["scheduler"]
    address: str | None = None
    scheduler_file: str | None = None


Profile = Annotated[LocalProfile | ProcessesProfile | SlurmProfile | SchedulerProfile, Field(discriminator="kind")]


def shipped_cluster_file() -> Path:
    """Return the ``cluster.yaml`` that came with this installation."""
    here = Path(__file__).parent
    # a wheel carries the file inside the package; a checkout has it at the top
    return next(path for path in (here / "cluster.yaml", here.parent / "cluster.yaml") if path.is_file())


def load_settings(cluster_file: Path | None = None) -> dict[str, Any]:
    """Merge the shipped file, Dask's own configuration and `cluster_file` into one Dask configuration.

    Parameters
    ----------
    cluster_file
        A YAML file like the shipped ``cluster.yaml``; only what differs needs to stand in it.

    Returns
    -------
    dict

    Raises
    ------
    MissingInputError
        If `cluster_file` does not exist.
    InputError
        If it is no YAML mapping.

    Examples
    --------
    >>> sorted(load_settings()["subspace"]["profiles"])
    ['local', 'processes', 'scheduler', 'slurm-cpu']
    """
    # dask.config.config alone would let the defaults of Dask's libraries win over the shipped file
    layers = [dask.config.config, _read(shipped_cluster_file()), dask.config.collect()]
    if cluster_file is not None:
        layers.append(_read(cluster_file))
    return dask.config.merge(*layers)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingInputError(f"No cluster file at {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping, as a Dask configuration file does")
    return content


def find_profile(name: str, settings: dict[str, Any]) -> Profile:
    """Return the validated profile `name`.

    Raises
    ------
    InputError
        If there is no such profile (the message lists those there are) or a key of it is wrong.
    """
    profiles = settings.get("subspace", {}).get("profiles", {})
    if name not in profiles:
        raise InputError(f"No cluster profile {name!r}; cluster.yaml has: {', '.join(sorted(profiles))}")
    try:
        return TypeAdapter[Any](Profile).validate_python(profiles[name])
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        raise InputError(f"Cluster profile {name!r} is wrong: {wrong}") from error


@contextlib.contextmanager
def connect(profile: str = "local", cluster_file: Path | None = None) -> Iterator[Client]:
    """Start or join the cluster that `profile` describes, and leave it when the block ends.

    Parameters
    ----------
    profile
        A name under ``subspace.profiles``, or the address of a running scheduler (``tcp://…``, ``tls://…``).
    cluster_file
        See :func:`load_settings`.

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
    if "://" in profile:
        chosen: Profile = SchedulerProfile(kind="scheduler", address=profile)
    else:
        chosen = find_profile(profile, settings)
    if isinstance(chosen, SlurmProfile):
        _import_jobqueue()  # adds its defaults to Dask's configuration, so the layers are merged again
        settings = load_settings(cluster_file)
    with dask.config.set(settings):
        logger.debug("Cluster profile %s: %s", profile, chosen.model_dump())
        with _start(profile, chosen) as client:
            yield client


@contextlib.contextmanager
def _start(name: str, profile: Profile) -> Iterator[Client]:
    match profile:
        case LocalProfile():
            with local_client(profile.workers, profile.threads) as client:
                yield client
            return
        case ProcessesProfile():
            start = _processes(profile)
        case SlurmProfile():
            start = _slurm(name, profile)
        case SchedulerProfile():
            start = _scheduler(profile)
    with start as client:
        logger.info("Dashboard: %s", dashboard_url(client))
        yield client


@contextlib.contextmanager
def _processes(profile: ProcessesProfile) -> Iterator[Client]:
    # TLS on one host too: login nodes are shared, and any user of the host could connect otherwise.
    with (
        closing(
            LocalCluster(
                n_workers=profile.workers,
                threads_per_worker=profile.threads,
                memory_limit=profile.memory,
                security=Security.temporary(),
                protocol="tls://",
                dashboard_address="127.0.0.1:0",
            )
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


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
    try:
        client = Client(**target)
    except (OSError, TimeoutError) as error:
        raise InputError(f"No Dask scheduler answers at {next(iter(target.values()))}: {error}") from error
    with client:
        yield client


def _import_jobqueue() -> Any:
    try:
        import dask_jobqueue  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependencyError(
            "Slurm profiles need dask-jobqueue: pip install 'semantic-subspace-matching[cluster]'"
        ) from error
    return dask_jobqueue


def slurm_cluster(name: str, **overrides: Any) -> Any:
    """Make the ``dask_jobqueue.SLURMCluster`` of profile `name`, with no job submitted yet.

    Workers and scheduler authenticate each other by TLS keys that live in a 0600 file in the shared folder.

    Parameters
    ----------
    name
        The key under ``jobqueue``; what it leaves out is taken from ``jobqueue.slurm``.
    **overrides
        Further arguments of ``SLURMCluster``.

    Returns
    -------
    dask_jobqueue.SLURMCluster
    """
    cluster_class = _import_jobqueue().SLURMCluster
    job = dask.config.merge(dask.config.get("jobqueue.slurm"), dask.config.get(f"jobqueue.{name}", {}))
    if job["log-directory"] is not None and not Path(job["log-directory"]).is_dir():
        raise MissingInputError(
            f"log-directory {job['log-directory']} of profile {name!r} does not exist; Slurm would drop the jobs "
            "without a word. Make it, on a file system that all nodes see"
        )
    job = careful(job)
    # jobs read their configuration again whenever one is replaced, so it has to outlive this call
    dask.config.set({f"jobqueue.{name}": job})
    folder = job["shared-temp-directory"] or str(Path.cwd())
    return cluster_class(config_name=name, security=True, shared_temp_directory=folder, **overrides)


@contextlib.contextmanager
def _slurm(name: str, profile: SlurmProfile) -> Iterator[Client]:
    with (
        closing(slurm_cluster(name)) as cluster,
        Client(cluster) as client,
        keep_jobs(cluster, profile.jobs) as keeper,
    ):
        logger.debug("Job script:\n%s", cluster.job_script())
        logger.info("Waiting for a worker (%d Slurm jobs)", profile.jobs)
        keeper.first_worker(client, profile.wait)
        yield client
