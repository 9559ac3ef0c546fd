"""One builder for the scripts of all jobs: workers, the driver, and the tasks of ``subspace submit --array``.

A job is described by :class:`jobs.cluster.profiles.SlurmJob`, which :func:`jobs.cluster.profiles.find_job` joins from
the site's section, the profile's and the defaults. :func:`header` and :func:`prologue` turn it into text and quote all
values. dask-jobqueue submits the workers' scripts (:func:`worker_class`), ``sbatch`` the others (:func:`fill`).
Directives are spelled as dask-jobqueue spells them, since that is how a site's ``job-directives-skip`` names them.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import dask
from dask.utils import parse_bytes
from distributed.core import Status

from jobs.cluster.certificates import FILES
from jobs.cluster.profiles import SLURM_SIZE, Driver, Share, SlurmJob, jobqueue_defaults, walltime_seconds
from jobs.cluster.schedulers import batch_options, number_pattern
from jobs.cluster.slurm import job_number, long_option, slurm_environment
from jobs.cluster.versions import PRELOAD
from pipeline.work.workers import deferred_interrupt
from storage.errors import InputError, MissingInputError, SubspaceError
from storage.extras import need

logger = logging.getLogger(__name__)

Script = Literal["driver", "share"]
#: File with the settings of a cluster, in its folder.
SETTINGS = "settings.yaml"
#: Share of the walltime that a worker leaves unused, with its bounds in seconds, and share over which workers spread
#: their end: without it all would be gone at once.
MARGIN, MARGIN_SECONDS, STAGGER = 0.05, (15.0, 600.0), 0.1
#: Bytes of a job that are not promised to its workers: the process which restarts them lives there too, and Slurm
#: would kill the whole job before a worker that grows reaches its limit. At most a tenth.
NANNY_BYTES = 250_000_000
#: Lines of the scripts of driver and shares that stay as they are; the others are replaced by the site's.
LASTING = ("--job-name", "--requeue", "--open-mode")

# --- any job ----------------------------------------------------------------------------------------------------------


def header(job: SlurmJob, *, name: str | None = None, logs: Mapping[str, str] | None = None) -> Iterator[str]:
    r"""Yield the ``#SBATCH`` lines of a job.

    Parameters
    ----------
    job
        What to ask for. Its ``job-directives-skip`` applies to all lines but its own ``job-extra-directives``.
    name
        Name of the job.
    logs
        For ``-o`` and ``-e``, a path with Slurm's placeholders; see :func:`log_pattern`.

    Examples
    --------
    >>> print(*header(SlurmJob(cores=4, memory="8GB", qos="short", job_directives_skip=["--mem"])), sep="\n")
    #SBATCH -n 1
    #SBATCH --cpus-per-task=4
    #SBATCH --qos=short
    """
    for line in _directives(job, name, logs or {}):
        if not is_skipped(line, job.job_directives_skip):
            yield f"#SBATCH {line}"
    yield from (f"#SBATCH {line}" for line in job.job_extra_directives)


def _directives(job: SlurmJob, name: str | None, logs: Mapping[str, str]) -> Iterator[str]:
    memory = job.job_mem or job.memory
    short = {"-J": name, **logs, "-p": job.partition, "-A": job.account}
    yield from (f"{option} {shlex.quote(value)}" for option, value in short.items() if value is not None)
    yield "-n 1"
    yield f"--cpus-per-task={job.job_cpu or job.cores or 1}"
    if memory is not None:
        yield f"--mem={slurm_memory(memory)}"
    if job.walltime is not None:
        yield f"-t {job.walltime}"
    for key in ("qos", "constraint", "reservation"):
        if (value := getattr(job, key)) is not None:
            yield f"--{key}={shlex.quote(value)}"
    if job.gpus is not None:
        wanted = f"{job.gpu_type}:{job.gpus}" if job.gpu_type else str(job.gpus)
        yield f"--gpus-per-node={wanted}" if job.gpu_request == "gpus-per-node" else f"--gres=gpu:{wanted}"
    if job.exclusive:
        yield "--exclusive"


def is_skipped(line: str, skips: Sequence[str]) -> bool:
    """Say whether ``job-directives-skip`` names an option, in its short or its long spelling.

    Examples
    --------
    >>> [is_skipped("-t 01:00:00", [skip]) for skip in ("-t", "--time", "#SBATCH -t", "time", "--mem")]
    [True, True, True, True, False]
    >>> [is_skipped(f"--{line}", [skip]) for line, skip in [("cpus-per-task=4", "-c"), ("gpus-per-node=1", "-G")]]
    [True, True]
    """
    spelling = long_option(line).lstrip("-")
    wanted = [long_option(skip.removeprefix("#SBATCH").strip()).lstrip("-") for skip in skips]
    return any(spelling.startswith(skip) for skip in wanted if skip)


def slurm_memory(size: str) -> str:
    """Return a size as Slurm reads it, rounded up: what Slurm reads by itself stays, as ``8G`` and ``0``.

    Examples
    --------
    >>> [slurm_memory(size) for size in ("8GB", "2GiB", "1GB", "8G", "0")]
    ['8G', '2G', '954M', '8G', '0']
    """
    if re.fullmatch(SLURM_SIZE, size):
        return size
    whole = parse_bytes(size)
    return f"{math.ceil(whole / 2**30)}G" if whole >= 2**30 else f"{math.ceil(whole / 2**20)}M"


def log_pattern(folder: Path, name: str) -> str:
    """Return the path of a log for Slurm: `name` has its placeholders, `folder` is taken literally.

    >>> log_pattern(Path("/scratch/100%"), "%x-%j.log")
    '/scratch/100%%/%x-%j.log'
    """
    return f"{str(folder).replace('%', '%%')}/{name}"


def shell_word(text: str) -> str:
    r"""Quote a path for a node's shell, which replaces variables in it, as ``$TMPDIR``, and ``~`` at its beginning.

    >>> print(shell_word("$TMPDIR/a b"), shell_word("/tmp"), shell_word('a"b'), shell_word("$(reboot)"))
    "$TMPDIR/a b" /tmp "a\"b" "\$(reboot)"
    >>> print(shell_word("~/a b"), shell_word("~ada/x"), shell_word("~a b"))
    ~/"a b" ~ada/x "~a b"
    """
    # within quotes, ~ would be the name of a folder
    match = re.fullmatch(r"(~[\w.-]*(?:/|$))?(.*)", text)
    home, rest = match.groups() if match else (None, text)
    if not re.fullmatch(r"[\w@%+=:,./-]*", rest):
        escaped = re.sub(r'[\\"`]|\$(?!\w|\{\w+\})', lambda found: f"\\{found[0]}", rest)
        rest = f'"{escaped}"'
    return f"{home or ''}{rest}"


def prologue(job: SlurmJob, exports: Mapping[str, str]) -> Iterator[str]:
    """Yield the commands before a job's own: modules, variables, whose values are quoted already, the site's own."""
    for module in job.modules:
        yield f"module load {shlex.quote(module)}"
    yield from (f"export {name}={value}" for name, value in exports.items())
    yield from job.job_script_prologue


# --- driver and shares ------------------------------------------------------------------------------------------------


def overlaid(job: SlurmJob, *sections: Driver | Share) -> SlurmJob:
    """Return the job of a driver, or of a share: as the workers', but for what its sections say, later ones winning.

    GPUs, whole nodes and several processes are the workers' own.
    """
    given = {key: value for section in sections for key, value in section if value is not None}
    workers_own = {"gpus": None, "exclusive": False, "processes": 1, "job_cpu": None, "job_mem": None}
    return job.model_copy(update=workers_own | given)


def read_script(name: Script) -> str:
    """Return a script as it comes with the package."""
    return (Path(__file__).parent / f"{name}.sbatch").read_text(encoding="utf-8")


def fill(script: str, job: SlurmJob, log: str) -> str:
    """Return a script with the ``#SBATCH`` lines, prologue and interpreter of a job."""
    lines = script.splitlines()
    shipped = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    lasting = [line for line in shipped if line.startswith(LASTING) and not is_skipped(line, job.job_directives_skip)]
    rest = [line for line in lines[1:] if not line.startswith("#SBATCH ")]
    commands = rest.index("set -euo pipefail")
    before = prologue(job, {"SUBSPACE_PYTHON": shell_word(job.python or sys.executable)})
    directives = [*(f"#SBATCH {line}" for line in lasting), *header(job, logs={"-o": log})]
    filled = [job.shebang or lines[0], *directives, *rest[:commands], *before, *rest[commands:]]
    return "\n".join(filled) + "\n"


# --- workers ----------------------------------------------------------------------------------------------------------


def job_options(name: str, job: SlurmJob, folder: Path) -> dict[str, Any]:
    """Return the options of ``dask_jobqueue`` for the job of profile `name`.

    `folder`, which all nodes see, is where the settings and certificates are that the workers are to have.
    """
    if job.log_directory is not None and not Path(job.log_directory).is_dir():
        raise MissingInputError(
            f"log-directory {job.log_directory} of profile {name!r} does not exist; Slurm would drop the jobs "
            "without a word. Make it, on a file system that all nodes see"
        )
    for key in ("cores", "memory"):
        if getattr(job, key) is None:
            raise InputError(f"jobqueue.{name} says nothing of {key}; set it in your cluster file")
    arguments = retiring(job.walltime, [*worker_arguments(job, folder)])
    exports = {"DASK_CONFIG": shlex.quote(str(folder / SETTINGS))}
    if job.is_cuda:
        arguments, of_lifetime = _in_environment(arguments)
        exports |= of_lifetime
    given = {
        "name": job.name, "walltime": job.walltime, "cores": job.cores, "processes": job.processes,
        "memory": memory_of_workers(job), "interface": job.interface, "log-directory": job.log_directory,
        "local-directory": None if job.scratch is None else shell_word(job.scratch),
        "death-timeout": job.death_timeout, "python": shell_word(job.python or sys.executable),
        "shebang": job.shebang, "worker-command": job.worker_command, "scheduler-options": job.scheduler_options,
        "job-script-prologue": [*prologue(job, exports)], "worker-extra-args": arguments,
    }  # fmt: skip
    given |= batch_options(job)
    given = {key: value for key, value in given.items() if value is not None}
    import_jobqueue()  # refuses where it is missing
    return copy.deepcopy(dict(jobqueue_defaults(job.scheduler))) | given


def worker_class(key: str, job: SlurmJob, options: dict[str, Any]) -> Any:
    """Return a class of dask-jobqueue's jobs that have these options, and the header of `job`, for good.

    Its list `refusals` has what the scheduler said of each job that it did not take.

    dask-jobqueue reads Dask's configuration again, at `key`, whenever a job is replaced; that is one for the whole
    process, and another cluster, of the same profile perhaps, may have changed it since.
    """

    class OwnJob(cluster_class(job.scheduler).job_cls):  # type: ignore[misc]
        refusals: ClassVar[list[str]] = []
        scheduler: ClassVar[str] = job.scheduler
        if job.scheduler == "slurm":
            submit_command = "sbatch --parsable"

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            # the paths of the certificates are among the arguments already, quoted
            with dask.config.set({f"jobqueue.{key}": options}):
                super().__init__(*arguments, **{**keywords, "security": None})
            if job.scheduler != "slurm":
                return
            log = None if self.log_directory is None else f"{self.job_name}-%J"
            files = {
                option: log_pattern(Path(self.log_directory), f"{log}.{end}")
                for option, end in (("-e", "err"), ("-o", "out"))
                if log is not None
            }
            self.job_header = "\n".join(header(job, name=self.job_name, logs=files))

        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, OSError, ValueError, SubspaceError) as error:
                # of the lines of dask-jobqueue's message, the last are what Slurm said; Dask itself drops them
                said = str(error).rpartition("stderr:\n")[2].strip() or str(error)
                if isinstance(error, FileNotFoundError):
                    said = f"there is no {error.filename} on PATH; run this on a host from which jobs are submitted"
                if said not in self.refusals[-1:]:
                    logger.warning("A job was refused: %s", said)
                self.refusals.append(said)
                self.status = Status.running  # without a number; the keeper asks again

        @classmethod
        async def _call(cls, command: list[str], **keywords: Any) -> str:
            """Run a scheduler's command without what the user set for other calls of it."""
            script = Path(command[-1]) if command[0] == "sbatch" else None
            environment = slurm_environment(script.read_text(encoding="utf-8") if script is not None else "")
            return str(await super()._call(command, env=environment, **keywords))

        def _job_id_from_submit_output(self, printed: str) -> str:
            return job_number(printed, number_pattern(job.scheduler))

    return OwnJob


def worker_arguments(job: SlurmJob, folder: Path) -> Iterator[str]:
    """Yield the arguments of the worker that dask-jobqueue has no key for, quoted.

    >>> gpu = SlurmJob(gpus=1, cores=1, worker_command="dask cuda worker", rmm_pool_size=0.5, rmm_libraries=["cupy"])
    >>> " ".join(list(worker_arguments(gpu, Path("/state")))[:6])
    '--dashboard-address 127.0.0.1:0 --tls-ca-file /state/ca.pem --tls-cert /state/cert.pem'
    >>> " ".join(list(worker_arguments(gpu, Path("/state")))[8:])
    '--rmm-pool-size 0.5 --set-rmm-allocator-for-libs cupy'
    """
    yield from ("--dashboard-address", "127.0.0.1:0")
    if not job.is_cuda:
        yield from ("--preload-nanny", PRELOAD)
    for part, file in FILES.items():
        yield from (f"--tls-{part.replace('_', '-')}", shlex.quote(f"{folder}/{file}"))
    if job.is_cuda:
        for key in ("device_memory_limit", "rmm_pool_size", "rmm_maximum_pool_size"):
            if (value := getattr(job, key)) is not None:
                yield from (f"--{key.replace('_', '-')}", shlex.quote(str(value)))
        if job.rmm_async:
            yield "--rmm-async"
        if job.rmm_libraries:
            yield from ("--set-rmm-allocator-for-libs", ",".join(job.rmm_libraries))
    for option in ("lifetime", "lifetime_stagger"):
        if (value := getattr(job, option)) is not None:
            yield from (f"--{option.replace('_', '-')}", shlex.quote(value))
    yield from job.worker_extra_args


def memory_of_workers(job: SlurmJob) -> str | None:
    """Return the memory that the workers of a job may use together: they share it with what restarts them.

    >>> memory_of_workers(SlurmJob(memory="8GB")), memory_of_workers(SlurmJob(memory="8GB", job_mem="9G"))
    ('7750000000B', '8GB')
    """
    if job.job_mem is not None or job.memory is None:
        return job.memory
    whole = parse_bytes(job.memory)
    return f"{whole - min(NANNY_BYTES, whole // 10)}B"


def retiring(walltime: str | int | None, arguments: Sequence[str]) -> list[str]:
    """Return arguments of a worker with which it retires before its job's walltime; as they are if they say when.

    A worker that retires hands its results on and takes no more tasks; one that Slurm kills loses both. Ends are spread
    over ± a tenth of the walltime.

    Examples
    --------
    >>> retiring("1-00:00:00", ["--resources", "GPU=1"])
    ['--resources', 'GPU=1', '--lifetime', '77160s', '--lifetime-stagger', '8640s']
    >>> retiring("01:00:00", ["--lifetime", "10m"])
    ['--lifetime', '10m']
    """
    seconds = None if walltime is None else walltime_seconds(walltime)
    if seconds is None or any(str(argument).startswith("--lifetime") for argument in arguments):
        return list(arguments)
    margin = min(max(MARGIN * seconds, MARGIN_SECONDS[0]), MARGIN_SECONDS[1])
    lifetime = max(seconds - margin - STAGGER * seconds, 0.25 * seconds)
    return [*arguments, "--lifetime", f"{lifetime:.0f}s", "--lifetime-stagger", f"{STAGGER * seconds:.0f}s"]


def _in_environment(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return arguments without a lifetime, and variables that set it: `dask cuda worker` refuses ``--lifetime``."""
    left, exports = list(arguments), {}
    for option, key in (("--lifetime", "DURATION"), ("--lifetime-stagger", "STAGGER")):
        if option in left:
            at = left.index(option)
            exports[f"DASK_DISTRIBUTED__WORKER__LIFETIME__{key}"] = left[at + 1]
            del left[at : at + 2]
    return left, exports


def cluster_class(scheduler: str) -> Any:
    """Return dask-jobqueue's class of clusters on a scheduler."""
    return getattr(import_jobqueue(), f"{scheduler.upper()}Cluster")


def import_jobqueue() -> Any:
    """Import dask-jobqueue, which is an extra's; Ctrl-C stays what it was: the import has it exit with status 0."""
    with deferred_interrupt():
        return need("dask_jobqueue", "cluster")
