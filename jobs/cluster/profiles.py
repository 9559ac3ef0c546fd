"""What ``cluster.yaml`` may say: the profiles, the Slurm job of each, and how both are read and checked.

``cluster.yaml`` is an ordinary Dask configuration file. Three places are read, later ones winning: the file shipped
with the package, what Dask itself has read (``DASK_CONFIG``, ``~/.config/dask``, ``DASK_…`` variables), and the file
given as ``--cluster-file``. :func:`render_keys` makes the tables of ``docs/cluster.md`` from the models.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
import os
import re
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import dask
import yaml
from dask.utils import parse_timedelta
from pydantic import AfterValidator, ConfigDict, Field, PositiveInt, field_validator, model_validator

from pipeline.settings.base import Section, known
from pipeline.work.profiler import PROFILER
from storage.bounds import parse_size
from storage.errors import InputError, MissingInputError, shown
from storage.yaml_files import read_yaml

logger = logging.getLogger(__name__)

#: dask-jobqueue's names of keys → ours; both may stand in a file.
SYNONYMS = {"queue": "partition", "local-directory": "scratch"}
#: dask-jobqueue's older names of its keys, which administrators' files may have.
FORMER = {
    "header-skip": "job-directives-skip",
    "env-extra": "job-script-prologue",
    "job-extra": "job-extra-directives",
    "extra": "worker-extra-args",
    "project": "account",
}
#: Lists of which the site's part comes first and the profile's is added.
JOINED = ("job-directives-skip", "job-script-prologue", "job-extra-directives", "worker-extra-args", "modules")
CUDA_WORKER = "dask cuda worker"
#: A size as Slurm reads it: of megabytes, where there is no letter.
SLURM_SIZE = r"\d+[KMGTkmgt]?"
#: Less memory than this, in bytes, is no worker's: a unit was left out.
LEAST_MEMORY = 100 * 10**6
#: More jobs than this no Slurm takes by default, nor does a job have more cores.
MOST = 10_000
#: Where the dashboard of a scheduler listens if nothing is said: Dask's own default is open to all hosts.
DASHBOARD = {"dashboard_address": "127.0.0.1:8787"}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def walltime_seconds(walltime: str | int) -> float | None:
    """Return a walltime of Slurm in seconds; None if it is unlimited, InputError if Slurm would not take it.

    Examples
    --------
    >>> [walltime_seconds(w) for w in (90, "90:30", "01:00:00", "2-12", "2-12:30", "UNLIMITED")]
    [5400.0, 5430.0, 3600.0, 216000.0, 217800.0, None]
    """
    text = str(walltime).strip()
    if text.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise InputError(f"walltime {walltime!r} is none that Slurm reads; write it as HH:MM:SS or D-HH:MM:SS, quoted")
    days, first, second, third = match.groups()
    parts = [float(part) for part in (first, second, third) if part is not None]
    # without days or hours, minutes come first
    unit = 3600.0 if days is not None or len(parts) == 3 else 60.0
    return 86400.0 * float(days or 0) + sum(part * unit / 60**i for i, part in enumerate(parts))


def _check_limit(limit: str) -> None:
    """Accept what Dask does: a size, a share of the memory, or 0 for no limit."""
    if not (limit in ("auto", "0") or re.fullmatch(r"0?\.\d+|1(\.0)?", limit)):
        parse_size(limit, "it")


def _check_memory(size: str) -> None:
    if parse_size(size, "it") < LEAST_MEMORY:
        raise InputError(f"{size!r} is less than 100 MB; write the unit, as '8GB'")


def _check_slurm_size(size: str) -> None:
    """Accept what Slurm reads, 0 being all of a node, besides sizes as Dask reads them."""
    if size == "0":
        return
    if not re.fullmatch(SLURM_SIZE, size):
        _check_memory(size)
    elif parse_size(f"{size}iB" if size[-1].isalpha() else f"{size}MiB") < LEAST_MEMORY:
        raise InputError(f"{size!r} is less than 100 MB to Slurm; write the unit, as '8G'")


def _check_duration(duration: str) -> None:
    try:
        parse_timedelta(duration)
    except (ValueError, KeyError, OverflowError) as error:
        raise InputError("it must be a time, as '50m' or '1h'") from error


def _check_word(text: str) -> None:
    if not re.fullmatch(r"""(?!-)[^\s"'`\\#]+""", text):
        raise InputError(
            f"{text!r} is not a name that Slurm has: leave out spaces, quotes, #, \\ and a - at its beginning, or set "
            "it to null"
        )


def _check_interface(name: str) -> None:
    # it is part of the worker's command line
    if not re.fullmatch(r"[\w][\w.:@-]*", name):
        raise InputError(f"{name!r} is not the name of a network interface, as ib0")


def _check_job_name(name: str) -> None:
    # it is part of a file's name, and of lists with commas between
    if not re.fullmatch(r"[\w.+-]+", name):
        raise InputError(f"{name!r} must be letters, digits, '_', '.', '+' and '-'")


def _check_shebang(line: str) -> None:
    if not line.startswith("#!/"):
        raise InputError(f"{line!r} is not the first line of a script, as '#!/bin/bash -l'")


def _check_directive(line: str) -> None:
    if not line.startswith("-"):
        raise InputError(f"{line!r} is not an option, as '--mail-type=FAIL'; what comes before it in a script is added")


Word = Annotated[str, known(_check_word)]
Interface = Annotated[str, known(_check_interface)]
JobName = Annotated[str, known(_check_job_name)]
Shebang = Annotated[str, known(_check_shebang)]
Directive = Annotated[str, known(_check_directive)]
Size = Annotated[str, known(_check_memory)]
MemoryLimit = Annotated[str, known(_check_limit)]
SlurmSize = Annotated[str, known(_check_slurm_size)]
Walltime = Annotated[str, known(walltime_seconds)]
Duration = Annotated[str, known(_check_duration)]
#: YAML's `true` and 1e9 are no numbers of things.
Count = Annotated[int, Field(strict=True, gt=0, le=MOST)]
#: A path of the host that submits, where variables and ~ are replaced.
Here = Annotated[str, AfterValidator(lambda path: str(Path(os.path.expandvars(path)).expanduser()))]


class _Keys(Section):
    model_config = ConfigDict(alias_generator=_dashed, populate_by_name=True)

    def given(self) -> dict[str, Any]:
        """Return the keys that have a value, by the names of the file."""
        return self.model_dump(by_alias=True, exclude_none=True)


class Gpu(_Keys):
    """How a worker uses the memory of its GPU."""

    device_memory_limit: str | float | None = Field(
        None, description="task outputs on the GPU beyond this are moved to host memory; a size, or a share of the GPU"
    )
    rmm_pool_size: str | float | None = Field(
        None, description="GPU memory that RMM takes at the start; a size, or a share of the GPU"
    )
    rmm_maximum_pool_size: str | float | None = Field(None, description="most that the pool may grow to")
    rmm_async: bool = Field(False, description="CUDA's own asynchronous pool in place of RMM's")
    rmm_libraries: list[Literal["cupy", "torch"]] = Field(
        [], description="libraries that allocate from the same pool, so that one does not starve the other"
    )

    @model_validator(mode="after")
    def _one_pool(self) -> Gpu:
        if self.rmm_async and self.rmm_pool_size is not None:
            raise ValueError("rmm-async and rmm-pool-size exclude each other; set rmm-pool-size to null")
        return self


class LocalProfile(_Keys):
    """Threads of the calling process: starts in 0.1 s, works from any script, shares memory. The default."""

    kind: Literal["local"]
    workers: Count = Field(1, description="workers in this process")
    threads: Count | None = Field(
        None, description="threads per worker; by default the CPUs that this process may use, divided among the workers"
    )


class ProcessesProfile(_Keys):
    """Processes of this machine: for code that does not release the interpreter lock."""

    kind: Literal["processes"]
    workers: Count = Field(2, description="worker processes")
    threads: Count = Field(1, description="threads of each")
    memory: MemoryLimit | None = Field(
        "auto", description="memory limit of each; a worker beyond it is restarted, not the run"
    )


class LocalCudaProfile(Gpu):
    """One worker process for each GPU of this machine."""

    kind: Literal["local-cuda"]
    devices: list[int] | None = Field(None, description="which GPUs; all that are visible by default")
    threads: Count = Field(1, description="threads of each worker")
    memory: MemoryLimit | None = Field("auto", description="host memory limit of each worker")


class Driver(_Keys):
    """The job that ``subspace submit`` makes for the driver; what is null is as for the workers."""

    partition: Word | None = Field(
        None, description="partition of the driver: many sites have one for long, small jobs"
    )
    account: Word | None = Field(None, description="account that the driver is charged to")
    qos: Word | None = Field(None, description="quality of service of the driver")
    constraint: Word | None = Field(None, description="features that the driver's node must have")
    walltime: Walltime = Field("1-00:00:00", description="how long the driver may run; submitted again, a run resumes")
    cores: Count = Field(2, description="CPUs of the driver")
    memory: Size = Field("8GB", description="memory of the driver")


class Share(_Keys):
    """A task of ``subspace submit --array``; what is null is as for the driver."""

    partition: Word | None = Field(None, description="partition of the tasks")
    account: Word | None = Field(None, description="account that the tasks are charged to")
    qos: Word | None = Field(None, description="quality of service of the tasks")
    constraint: Word | None = Field(None, description="features that the tasks' nodes must have")
    walltime: Walltime | None = Field(None, description="how long a task may run; what it leaves, the next job does")
    cores: Count | None = Field(None, description="CPUs of a task")
    memory: Size | None = Field(None, description="memory of a task")
    gpus: Count | None = Field(None, description="GPUs of a task, asked for as those of the workers are")


class JobsProfile(_Keys):
    """Workers that are jobs."""

    kind: str
    jobs: Count = Field(
        2, description="how many; kept at this number: a job that is cancelled or reaches its walltime is replaced"
    )
    minimum: Annotated[int, Field(strict=True, ge=0)] | None = Field(
        None, description="fewest jobs: with it, jobs come and go with the work, and there are at most `jobs`"
    )
    wait: PositiveInt | None = Field(
        600,
        description="seconds without any worker, at the start or later, before giving up with the reason",
    )

    @model_validator(mode="after")
    def _bounds(self) -> JobsProfile:
        if self.minimum is not None and self.minimum > self.jobs:
            raise ValueError(f"minimum ({self.minimum}) must be at most jobs ({self.jobs})")
        return self


class SlurmProfile(JobsProfile):
    """Workers that are Slurm jobs; a job is described under ``jobqueue.PROFILE``."""

    kind: Literal["slurm"]
    driver: Driver = Field(Driver(), description="the job of the driver, for `subspace submit`")
    share: Share = Field(Share(), description="a task of `subspace submit --array`")


class PbsProfile(JobsProfile):
    """Workers that are jobs of PBS (OpenPBS, Torque)."""

    kind: Literal["pbs"]


class SgeProfile(JobsProfile):
    """Workers that are jobs of Grid Engine."""

    kind: Literal["sge"]


class LsfProfile(JobsProfile):
    """Workers that are jobs of LSF."""

    kind: Literal["lsf"]


class AllocationProfile(_Keys):
    """Workers that `srun` starts on all nodes of the job that the command runs in: no job submits another."""

    kind: Literal["slurm-allocation"]
    wait: PositiveInt | None = Field(600, description="seconds without any worker before giving up; null: no limit")


class SchedulerProfile(_Keys):
    """A scheduler that somebody else started."""

    kind: Literal["scheduler"]
    address: str | None = Field(None, description="tls://HOST:PORT, or tcp://HOST:PORT for one without encryption")
    wait: PositiveInt | None = Field(600, description="seconds without any worker before giving up; null: no limit")
    scheduler_file: Here | None = Field(None, description="the file that `dask scheduler --scheduler-file` writes")
    certificates: Here | None = Field(
        None, description="folder with ca.pem, cert.pem and key.pem; by default Dask's own `distributed.comm.tls`"
    )


Profile = (
    LocalProfile
    | ProcessesProfile
    | LocalCudaProfile
    | SlurmProfile
    | AllocationProfile
    | SchedulerProfile
    | PbsProfile
    | SgeProfile
    | LsfProfile
)
KINDS: dict[str, type[Profile]] = {
    get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(Profile)
}


class SlurmJob(Gpu):
    """One worker job. Other options of ``dask_jobqueue.SLURMCluster`` that these do not cover do not exist here."""

    scheduler: ClassVar[str] = "slurm"

    name: JobName = Field("subspace", description="what the jobs' names begin with")
    partition: Word | None = Field(None, description="partition; `queue` is the same")
    account: Word | None = Field(None, description="account that the jobs are charged to")
    qos: Word | None = Field(None, description="quality of service")
    constraint: Word | None = Field(None, description="features that a node must have, as `icelake` or `a100&nvlink`")
    reservation: Word | None = Field(None, description="reservation")
    exclusive: bool = Field(False, description="whole nodes")
    walltime: Walltime | None = Field(None, description="longest time of a job: MINUTES, HH:MM:SS or D-HH:MM:SS")
    cores: Count | None = Field(None, description="threads of all workers of a job together")
    processes: Count = Field(
        1, description="workers of a job. With 1, lost jobs are replaced by Dask itself; for whole GPU nodes, the GPUs"
    )
    memory: Size | None = Field(None, description="memory of a job, divided among its workers")
    job_cpu: Count | None = Field(None, description="CPUs to ask of Slurm, if not as many as `cores`")
    job_mem: SlurmSize | None = Field(None, description="memory to ask of Slurm, if not `memory`")
    gpus: Count | None = Field(None, description="GPUs of a job")
    gpu_type: Word | None = Field(None, description="their type, as `a100`")
    gpu_request: Literal["gpus-per-node", "gres"] = Field(
        "gpus-per-node", description="how the site wants GPUs asked for: --gpus-per-node=N or --gres=gpu:N"
    )
    modules: list[str] = Field([], description="modules to load before the worker starts")
    scratch: str | None = Field(
        None, description="node-local folder for spilling, as /tmp or $TMPDIR; `local-directory` is the same"
    )
    interface: Interface | None = Field(
        None, description="network interface of workers and scheduler, as ib0; see scheduler-options for another one"
    )
    lifetime: Duration | None = Field(
        None, description="time after which a worker retires and hands on its data; by default before the walltime ends"
    )
    lifetime_stagger: Duration | None = Field(
        None, description="random spread of the lifetime, so that not all workers retire at once"
    )
    death_timeout: PositiveInt | None = Field(None, description="seconds without scheduler after which a worker ends")
    log_directory: Here | None = Field(
        None, description="an existing folder for the jobs' logs; by default RUN/logs, where all nodes see it"
    )
    shared_temp_directory: Here | None = Field(
        None, description="where the folder with keys and settings goes; all nodes see it; default ~/.local/state"
    )
    python: str | None = Field(None, description="interpreter on the nodes; by default the one that submits")
    shebang: Shebang | None = Field(None, description="first line of the script, as `#!/bin/bash -l` for a login shell")
    worker_command: str | None = Field(None, description=f"module that is a worker: `{CUDA_WORKER}` on GPUs")
    worker_extra_args: list[str] = Field([], description="further arguments of it, as the shell reads them")
    job_extra_directives: list[Directive] = Field([], description="further #SBATCH lines, as `--mail-type=FAIL`")
    job_directives_skip: list[str] = Field([], description="#SBATCH options that are left out, as `--mem`")
    job_script_prologue: list[str] = Field([], description="further commands before the worker starts")
    scheduler_options: Annotated[dict[str, Any], AfterValidator(lambda given: DASHBOARD | given)] = Field(
        DASHBOARD, description="of the scheduler, as {interface: eth0}"
    )

    @field_validator("walltime", mode="before")
    @classmethod
    def _minutes(cls, walltime: Any) -> Any:
        # YAML reads 01:00:00 without quotes as seconds in base 60
        if isinstance(walltime, int):
            message = f"write it in quotes, as '01:00:00'; YAML reads it as the number {walltime}"
            raise ValueError(message)  # noqa: TRY004 - pydantic wants this one
        return walltime

    @model_validator(mode="after")
    def _consistent(self) -> SlurmJob:
        if self.is_cuda and self.gpus != self.processes:
            raise ValueError(
                f"`{CUDA_WORKER}` starts one worker for each GPU of a job: set processes ({self.processes}) to gpus "
                f"({self.gpus})"
            )
        if self.cores is not None and self.cores % self.processes:
            raise ValueError(f"cores ({self.cores}) must be a multiple of processes ({self.processes})")
        of_gpus = [_dashed(key) for key in Gpu.model_fields if getattr(self, key)]
        if of_gpus and not self.is_cuda:
            raise ValueError(f"{', '.join(of_gpus)} are of workers with a GPU: set worker-command to {CUDA_WORKER!r}")
        return self

    @property
    def is_cuda(self) -> bool:
        """Whether the workers are Dask-CUDA's."""
        return self.worker_command in (CUDA_WORKER, "dask_cuda.cli")


class BatchJob(SlurmJob):
    """One worker job of PBS, Grid Engine or LSF: the keys of a Slurm job, but for those that only Slurm has."""

    resource_spec: str | None = Field(
        None, description="what else to ask for: `-l` of PBS and Grid Engine, `-R` of LSF, as `h_vmem=8G`"
    )

    @model_validator(mode="after")
    def _not_of_slurm(self) -> BatchJob:
        given = [_dashed(key) for key in ONLY_SLURM if getattr(self, key) != SlurmJob.model_fields[key].default]
        if given:
            raise ValueError(f"only Slurm has {', '.join(given)}; use resource-spec or job-extra-directives")
        return self


class AllocationJob(SlurmJob):
    """A worker in a job that is there already, as `srun` starts it: the keys of a Slurm job that ask Slurm for nothing.

    By default it has the CPUs and the memory of its task.
    """

    @model_validator(mode="after")
    def _asks_for_nothing(self) -> AllocationJob:
        given = [_dashed(key) for key in ASKED if getattr(self, key) != SlurmJob.model_fields[key].default]
        if given:
            raise ValueError(f"the job is there already: ask for {', '.join(given)} in its own script")
        return self


class PbsJob(BatchJob):
    """One worker job of PBS."""

    scheduler: ClassVar[str] = "pbs"


class SgeJob(BatchJob):
    """One worker job of Grid Engine."""

    scheduler: ClassVar[str] = "sge"


class LsfJob(BatchJob):
    """One worker job of LSF."""

    scheduler: ClassVar[str] = "lsf"

    @field_validator("resource_spec")
    @classmethod
    def _without_quotes(cls, text: str | None) -> str | None:
        if text is not None and '"' in text:
            raise ValueError(f"it is written between double quotes: leave out those in {text!r}, or use single ones")
        return text


#: Keys of :class:`SlurmJob` that no other scheduler has here.
ONLY_SLURM = (
    "qos", "constraint", "reservation", "exclusive", "job_cpu", "job_mem", "gpus", "gpu_type", "gpu_request",
    "worker_command", *Gpu.model_fields,
)  # fmt: skip
#: Keys of :class:`SlurmJob` that ask Slurm for something, or say what its jobs are called.
ASKED = (
    *ONLY_SLURM, "name", "partition", "account", "walltime", "processes", "shebang", "job_extra_directives",
    "job_directives_skip", "lifetime", "lifetime_stagger",
)  # fmt: skip
JOBS: dict[str, type[SlurmJob]] = {model.scheduler: model for model in (SlurmJob, PbsJob, SgeJob, LsfJob)}
JOBS["slurm-allocation"] = AllocationJob


# --- checking ---------------------------------------------------------------------------------------------------------

#: Of Unicode: control characters, those that separate lines and paragraphs, and bytes of a path that are not UTF-8.
CONTROL = ("Cc", "Zl", "Zp", "Cs")
#: Characters of a wrong value that are shown before and behind the place.
SHOWN = 20


def refuse_control_characters(value: Any, place: str) -> None:
    """Refuse a setting in which a text has a line break, or another control character.

    In a job script, what follows a line break would be a line of its own; in a log, it would look like one. `place` is
    what the setting is called; of what is in a mapping or list, the message adds the key or number.

    Examples
    --------
    >>> refuse_control_characters({"qos": "short", "gpus": 2}, "jobqueue.mine")
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            refuse_control_characters(str(key), f"a key of {place}")
            refuse_control_characters(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            refuse_control_characters(inner, f"{place}.{number}")
    elif isinstance(value, str):
        at = next((i for i, letter in enumerate(value) if unicodedata.category(letter) in CONTROL), None)
        if at is not None:
            shown = value[max(0, at - SHOWN) : at + SHOWN]
            raise InputError(
                f"{place} is {shown!r}, with the control character {value[at]!r}: it would be a line of a job script "
                "or of a log. Remove it; of a list, write each line as an item"
            )


# --- reading ----------------------------------------------------------------------------------------------------------


def shipped_cluster_file() -> Path:
    """Return the ``cluster.yaml`` that came with this installation."""
    here = Path(__file__).parent.parent  # jobs
    # a wheel carries the file inside the package; a checkout has it at the top
    path = next((path for path in (here / "cluster.yaml", here.parent / "cluster.yaml") if path.is_file()), None)
    if path is None:
        raise MissingInputError(f"This installation lacks {here / 'cluster.yaml'}: install it again")
    return path


def load_settings(cluster_file: Path | None = None) -> dict[str, Any]:
    """Merge the shipped file, Dask's own configuration and `cluster_file` into one Dask configuration.

    Of `cluster_file`, a YAML file like the shipped ``cluster.yaml``, only what differs needs to be there.

    Examples
    --------
    >>> sorted(load_settings()["subspace"]["profiles"])
    ['local', 'local-cuda', 'lsf-cpu', 'pbs-cpu', 'processes', 'scheduler', 'sge-cpu', 'slurm-allocation', ...]
    """
    # The shipped file comes twice: first for the names of keys, which variables spell with `_` only, and again since
    # dask.config.config has the defaults of Dask's libraries, which are not to win over it.
    shipped = read_cluster_file(shipped_cluster_file())
    defaults = dask.config.merge(shipped, _without_jobqueue_defaults(dask.config.config), shipped)
    dask.config.set(PROFILER, config=defaults)
    layers = [defaults, dask.config.collect()]
    if cluster_file is not None:
        layers.append(read_cluster_file(cluster_file))
    return dask.config.merge(*layers)


def _without_jobqueue_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the defaults that dask-jobqueue puts in a site's sections when it is imported.

    A site that says the same is heard: what it says is read from its files again.
    """
    kept = _section(config, "jobqueue")
    for name in {model.scheduler for model in JOBS.values()} & kept.keys():
        defaults = jobqueue_defaults(name)
        section = _section(config, "jobqueue", name)
        kept[name] = {key: value for key, value in section.items() if key not in defaults or value != defaults[key]}
    return {**config, "jobqueue": kept}


def read_cluster_file(path: Path) -> dict[str, Any]:
    """Return the mapping in a Dask configuration file."""
    content = read_yaml(path, f"No cluster file at {path}")
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping, as a Dask configuration file does")
    _check_sections(path, content, dask.config.config)
    return content


def _check_sections(path: Path, content: Mapping[Any, Any], known: Mapping[str, Any], place: str = "") -> None:
    """Refuse keys that are no text, and values where Dask and its libraries have a section."""
    for key, value in content.items():
        if not isinstance(key, str):
            raise InputError(
                f"{path}: {place}{shown(key)} is not the name of a setting; names are text, in quotes if need be"
            )
        section = known.get(dask.config.canonical_name(key, known))
        if isinstance(value, dict):
            _check_sections(path, value, section if isinstance(section, dict) else {}, f"{place}{key}.")
        elif isinstance(section, dict) and section:
            raise InputError(f"{path}: {place}{key} is a section with keys of its own, not {shown(value)}")


def profile_names(settings: dict[str, Any]) -> list[str]:
    """Return the names of all profiles."""
    return sorted(_section(settings, "subspace", "profiles"))


def _section(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return a part of the settings, which may be absent or null, but nothing else than a mapping."""
    part: Any = settings
    for i, name in enumerate(names):
        part = part.get(name)
        if part is None:
            return {}
        if not isinstance(part, dict):
            raise InputError(f"{'.'.join(names[: i + 1])} in the cluster file must be a mapping, not {shown(part)}")
    return dict(part)


def find_profile(name: str, settings: dict[str, Any]) -> Profile:
    """Return the validated profile `name`."""
    refuse_control_characters(name, "the name of a cluster profile")
    if name not in profile_names(settings):
        near = _hint(name, profile_names(settings))
        raise InputError(
            f"No cluster profile {shown(name)}{near}; cluster.yaml has: {', '.join(profile_names(settings))}"
        )
    keys = _with_models(name, settings, "profiles")
    kind = keys.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise InputError(
            f"Cluster profile {name!r} is of kind {shown(kind)}; it must be one of: {', '.join(sorted(KINDS))}"
        )
    return _validate(model, keys, f"Cluster profile {name!r}")


def find_job(name: str, settings: dict[str, Any]) -> SlurmJob:
    """Return the validated job of profile `name`: ``jobqueue.NAME``, laid over the site's section, ``jobqueue.slurm``.

    Null stands for "as the site says". The lists :data:`JOINED` have the site's items first, then the profile's.
    """
    kind = _with_models(name, settings, "profiles").get("kind")
    model = JOBS.get(kind, SlurmJob) if isinstance(kind, str) else SlurmJob
    site = {} if name == model.scheduler else _site_keys(settings, model)
    given = _without_synonyms(_with_models(name, settings, "jobqueue"), f"jobqueue.{name}")
    joined: dict[str, Any] = {key: [*site[key], *given[key]] for key in JOINED if key in site and _is_list(given, key)}
    options = "scheduler-options"
    if isinstance(site.get(options), dict) and isinstance(given.get(options), dict):
        joined[options] = site[options] | given[options]
    where = f"jobqueue.{name}"
    return _validate(model, site | given | joined, f"{where}, with jobqueue.{model.scheduler}," if site else where)


def _site_keys(settings: Mapping[str, Any], model: type[SlurmJob]) -> dict[str, Any]:
    """Return what a site's administrators say of all jobs, where dask-jobqueue looks for it, by the names used here."""
    site = f"jobqueue.{model.scheduler}"
    section = {_dashed(key): value for key, value in _section(settings, "jobqueue", model.scheduler).items()}
    refuse_control_characters(section, site)
    said = {key: value for key, value in section.items() if value not in (None, [])}
    renamed = {FORMER.get(key, key): value for key, value in said.items()}
    keys = _without_synonyms(renamed | {key: said[key] for key in said if key in JOINED}, site)
    for key in JOINED:
        if key in keys and not _is_list(keys, key):
            raise InputError(f"{site}.{key} is {shown(keys[key])}; it must be a list, as [{shown(keys[key])}]")
    valid = {_dashed(key) for key in model.model_fields}
    if unused := sorted(keys.keys() - valid):
        logger.warning("%s has keys that are not used here: %s", site, ", ".join(unused))
    unasked = {_dashed(key) for key in ASKED} if model is AllocationJob else ()
    return {key: value for key, value in keys.items() if key in valid and key not in unasked}


@functools.cache
def jobqueue_defaults(scheduler: str) -> Mapping[str, Any]:
    """Return dask-jobqueue's own defaults for a scheduler; none where it is not installed.

    It puts them into Dask's configuration only once, as it is imported.
    """
    spec = importlib.util.find_spec("dask_jobqueue")
    if spec is None or spec.origin is None:
        return {}
    text = Path(spec.origin).with_name("jobqueue.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text)["jobqueue"][scheduler])


def _without_synonyms(keys: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the keys that have a value, by our names for those that have two."""
    given = {key: value for key, value in keys.items() if value is not None}
    for theirs, ours in SYNONYMS.items():
        value = given.pop(theirs, None)
        if value is None:
            continue
        if given.get(ours) not in (None, value):
            raise InputError(
                f"{where} has {ours}: {given[ours]!r} and {theirs}: {value!r}, which is the same; keep one"
            )
        given[ours] = value
    return given


def _is_list(keys: Mapping[str, Any], key: str) -> bool:
    return isinstance(keys.get(key), list)


def _with_models(name: str, settings: dict[str, Any], part: Literal["profiles", "jobqueue"]) -> dict[str, Any]:
    """Return the keys of a profile, or of its job, laid over those of the profile that it is `like`."""
    profiles = _section(settings, "subspace", "profiles")
    layers: list[dict[str, Any]] = []
    chain: list[str] = []
    current: str | None = name
    while current is not None:
        if current in chain:
            raise InputError(f"Cluster profiles are like each other in a circle: {' → '.join([*chain, current])}")
        if not isinstance(current, str) or current not in profiles:
            raise InputError(f"Cluster profile {shown(chain[-1])} is like {shown(current)}, which is not there")
        chain.append(current)
        profile = _section(settings, "subspace", "profiles", current)
        keys = profile if part == "profiles" else _section(settings, "jobqueue", current)
        layers.append({_dashed(key): value for key, value in keys.items() if key != "like"})
        current = profile.get("like")
    merged: dict[str, Any] = dask.config.merge(*reversed(layers))
    refuse_control_characters(merged, f"subspace.profiles.{name}" if part == "profiles" else f"jobqueue.{name}")
    return merged


def _validate(model: type[Any], keys: dict[str, Any], where: str) -> Any:
    try:
        return model.make(**keys)
    except InputError as error:
        raise InputError(f"{where} is wrong: {error}") from error


def _hint(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# --- documentation ----------------------------------------------------------------------------------------------------


def render_keys() -> str:
    """Return the tables of ``docs/cluster.md``: every key of every kind of profile, its default, and what it does."""
    parts = [_table(f"`kind: {kind}`", model) for kind, model in KINDS.items()]
    parts.insert(4, _table("`driver:` of `kind: slurm`", Driver))
    parts.insert(5, _table("`share:` of `kind: slurm`", Share))
    parts.insert(6, _table("`jobqueue.PROFILE`, the job of `kind: slurm`", SlurmJob))
    title = "`jobqueue.PROFILE`, the job of `kind: pbs`, `sge` and `lsf`: besides keys of Slurm's"
    parts.append(_table(title, BatchJob, SlurmJob.model_fields))
    return "\n\n".join(parts)


def _table(title: str, model: type[_Keys], omitted: Collection[str] = ()) -> str:
    lines = [
        f"### {title}",
        "",
        str(model.__doc__).split("\n\n")[0],
        "",
        "| key | default | what it does |",
        "|---|---|---|",
    ]
    # what is inherited comes last
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] in Gpu.model_fields):
        if name not in ("kind", "driver", "share", *omitted):
            lines.append(f"| `{_dashed(name)}` | {_shown(field.default)} | {field.description} |")
    return "\n".join(lines)


def _shown(default: Any) -> str:
    if default is None:
        return ""
    return f"`{yaml.safe_dump(default, default_flow_style=True).removesuffix('...' + chr(10)).strip()}`"


if __name__ == "__main__":
    print(render_keys())  # noqa: T201
