"""``subspace doctor``: is this computer ready, and what to do where it is not.

Every check looks at one thing and says what it found; nothing is changed, and nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import dask
import psutil
import typer
from distributed.system import MEMORY_LIMIT
from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from jobs.cluster.client import shared_folder
from jobs.cluster.profiles import SlurmJob, SlurmProfile, find_job, find_profile, load_settings
from jobs.cluster.scripts import job_options
from jobs.cluster.site import advise, allowed_combinations, check_scheduler_options
from jobs.cluster.slurm import slurm_output
from jobs.cluster.trial import try_node
from jobs.cluster.versions import differences, versions
from pipeline.correlate.resources import compiled_kernels, is_compiled
from pipeline.work.script import AsJson, ClusterFile, show, text_table, wide_console
from pipeline.work.workers import n_cpus
from storage import free_space
from storage.errors import InputError, SubspaceError

State = Literal["ok", "note", "problem"]

DISTRIBUTION = "semantic-subspace-matching"
#: What each extra is for.
EXTRAS = {
    "models": "harvesting activations from models",
    "cluster": "workers on Slurm",
    "gpu": "correlating on GPUs",
    "demo": "`subspace demo`",
}
HUB = "https://huggingface.co"
#: Seconds that the model hub, and Slurm, may take to answer.
PATIENCE = 5.0
#: Seconds that a test job may wait in the queue of a profile that waits without limit.
PATIENCE_QUEUE = 600
#: Less free disk or memory than this is worth a word, in bytes.
LITTLE_DISK, LITTLE_MEMORY = 10 * 10**9, 4 * 10**9
#: Fewer open files than this are soon used up by a scheduler with many workers.
FEW_FILES = 4096
#: File systems where spilled data and lock files make trouble.
NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "fuse.sshfs", "cephfs")
MARKS = {"ok": ("✓", "green"), "note": ("•", "yellow"), "problem": ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do.

    The state is ``ok``; ``note``: some things will not work, or not well; or ``problem``: nothing will.
    """

    check: str
    state: State
    found: str
    remedy: str = ""


def examine(cluster_file: Path | None = None) -> list[Finding]:
    """Look at everything, `cluster_file` being your own ``cluster.yaml``, if there is one."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _packages,
        _extras,
        _processors,
        _kernels,
        _disk,
        _limits,
        lambda: _profiles(cluster_file),
        _slurm,
        _gpu,
        _hub,
    )
    return [finding for check in checks for finding in check()]


def _finding(check: str, value: str, remedy: str = "", state: State = "note") -> Finding:
    """Return what a check found: all is well where there is no remedy."""
    return Finding(check, state if remedy else "ok", value, remedy)


def _packages() -> Iterator[Finding]:
    """Compare the installed versions with those that this package declares."""
    wrong = [line for line in (_unmet(Requirement(text)) for text in _requirements()) if line]
    version = f"Python {platform.python_version()}, {DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    remedy = f"pip install --upgrade {DISTRIBUTION}" if wrong else ""
    yield _finding("packages", "; ".join(wrong) or f"{version}; all that it needs is there", remedy, "problem")


def _requirements() -> list[str]:
    return importlib.metadata.requires(DISTRIBUTION) or []


def _unmet(requirement: Requirement, extra: str = "") -> str:
    """Return what is wrong with a requirement that applies; an empty string where nothing is."""
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        return ""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{requirement.name} is {version}, needed is {requirement.specifier}"


def _extras() -> Iterator[Finding]:
    for extra, purpose in EXTRAS.items():
        required = [Requirement(text) for text in _requirements()]
        relevant = [need for need in required if need.marker is not None and need.marker.evaluate({"extra": extra})]
        wrong = [line for line in (_unmet(need, extra) for need in relevant) if line]
        remedy = f"for {purpose}: pip install '{DISTRIBUTION}[{extra}]'" if wrong else ""
        yield _finding(f"extra {extra}", "; ".join(wrong) or f"{purpose}: all there", remedy)


def _processors() -> Iterator[Finding]:
    allowed, total = n_cpus(), os.cpu_count() or 1
    free = min(psutil.virtual_memory().available, MEMORY_LIMIT)
    text = f"{allowed} of {total} processors, {free / 1e9:.1f} of {MEMORY_LIMIT / 1e9:.1f} GB of memory free"
    remedy = "budgets are half of what is free: end other programs, or ask Slurm for more (--mem)"
    yield _finding("processors and memory", text, remedy if free < LITTLE_MEMORY else "")


def _kernels() -> Iterator[Finding]:
    folder = compiled_kernels()
    if folder is None:
        remedy = "each process compiles them, in a minute or so; set NUMBA_CACHE_DIR to a folder of yours"
        yield _finding("compiled kernels", "cannot be kept: no folder can be written to", remedy, "problem")
    else:
        remedy = "" if is_compiled() else "the first run compiles them, in a minute or so"
        yield _finding("compiled kernels", f"{'none ' if remedy else ''}in {folder}", remedy)


def _disk() -> Iterator[Finding]:
    """Look at the current folder, and at where Dask's workers spill."""
    scratch = dask.config.get("temporary-directory", None) or "."
    for what, path in {"disk here": Path.cwd(), "scratch of workers": Path(str(scratch)).absolute()}.items():
        free, folder = free_space(path)
        kind = _file_system(folder)
        remedy = ""
        if what != "disk here" and kind in NETWORK:
            remedy = "a network disk is slow to spill to: set local-directory in cluster.yaml to the node's own disk"
        elif free < LITTLE_DISK:
            remedy = "`subspace plan EXPERIMENT.yaml` estimates how much a run needs"
        yield _finding(what, f"{free / 1e9:.1f} GB free in {folder} ({kind})", remedy)


def _file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[parent] for parent in (folder, *folder.parents) if parent in mounts), "unknown")


def _limits() -> Iterator[Finding]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = f"a scheduler with many workers needs more: ulimit -n {most}" if files < FEW_FILES else ""
    yield _finding("open files", f"at most {files:,}", remedy)


def _profiles(cluster_file: Path | None) -> Iterator[Finding]:
    """Validate every profile of cluster.yaml."""
    try:
        settings = load_settings(cluster_file)
        profiles = settings["subspace"]["profiles"]
        for name in profiles:
            find_profile(name, settings)
    except SubspaceError as error:
        remedy = "see the comments in the file that comes with the package"
        yield _finding("cluster.yaml", str(error), remedy, "problem")
    else:
        yield _finding("cluster.yaml", f"profiles: {', '.join(sorted(profiles))}")


def _slurm() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield _finding("Slurm", "no sbatch on PATH", "for slurm-… profiles: run this on a login node of the cluster")
        return
    try:
        answer = slurm_output("sinfo", "--noheader", "--format=%P %a %D nodes", timeout=PATIENCE)
    except SubspaceError as error:
        yield _finding("Slurm", f"sinfo does not answer: {error}", "is its controller up? ask your site")
        return
    partitions = "; ".join(line.strip() for line in answer.splitlines() if line.strip())
    yield _finding("Slurm", partitions or "no partition is open to you")


# --- a profile of a cluster -------------------------------------------------------------------------------------------


def examine_profile(name: str, cluster_file: Path | None = None, *, submit: bool = True) -> Iterator[Finding]:
    """Look at what a Slurm profile needs here, and, by a job of the same kind as a worker's, on a node.

    Nothing is left behind, and without `submit` nothing is submitted.
    """
    settings = load_settings(cluster_file)
    profile = find_profile(name, settings)
    if not isinstance(profile, SlurmProfile):
        raise InputError(f"Profile {name!r} is of kind {profile.kind!r}; only those of kind 'slurm' can be tried")
    job = find_job(name, settings)
    yield from _allowed(name, job)
    try:
        check_scheduler_options(job, f"jobqueue.{name}")
        job_options(name, job, Path())
        with shared_folder(job, f"doctor-{uuid.uuid4().hex[:8]}") as folder:
            yield _finding("scheduler", f"interface and port are free; keys and settings can go to {folder.parent}")
            if submit:
                yield from _node(job, folder, profile.wait or PATIENCE_QUEUE)
    except (SubspaceError, OSError) as error:
        yield _finding("profile", str(error), "change what it names", "problem")


def _allowed(name: str, job: SlurmJob) -> Iterator[Finding]:
    """Compare what a job asks for with what this user may use."""
    asked = ", ".join(f"{key}: {getattr(job, key) or 'default'}" for key in ("partition", "account", "qos"))
    try:
        combinations = allowed_combinations()
    except SubspaceError as error:
        yield _finding("account, partition, QOS", str(error), "run this on a login node of the cluster", "problem")
        return
    remedy = "" if any(each.suits(job) for each in combinations) else advise(combinations, f"jobqueue.{name}")
    yield _finding("account, partition, QOS", asked, remedy, "problem")


def _node(job: SlurmJob, folder: Path, seconds: float) -> Iterator[Finding]:
    """Look at a node through a test job."""
    node = try_node(job, folder, seconds)
    yield _finding("shared folder", f"{node.host} reads and writes {folder.parent}")
    different = differences(node.versions, versions())
    remedy = f"set jobqueue's python to the interpreter of the same environment: {sys.executable}" if different else ""
    alike = ", ".join(f"{package} {found}" for package, found in node.versions.items())
    yield _finding("packages of the node", "; ".join(different) or alike, remedy, "problem")
    remedy = "set scratch to a folder of the node that you may write to" if node.scratch_error else ""
    found = node.scratch_error or f"{node.scratch_free / 1e9:.1f} GB free in {node.scratch}"
    yield _finding("scratch of the node", found, remedy, "problem")
    remedy = "export NUMBA_CACHE_DIR in job-script-prologue" if node.cache_error else ""
    yield _finding("cache of the node", node.cache_error or "can be written to", remedy)
    missing = job.interface is not None and job.interface not in node.interfaces
    remedy = f"set interface to one of {', '.join(node.interfaces)}" if missing else ""
    yield _finding("interface of the node", job.interface or "the default one", remedy, "problem")


def _gpu() -> Iterator[Finding]:
    if shutil.which("nvidia-smi") is None:
        yield _finding("GPU", "no nvidia-smi on PATH", "none is needed: everything runs on CPUs too")
        return
    try:
        names = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").split("\n")
    except (subprocess.SubprocessError, OSError) as error:
        yield _finding("GPU", f"nvidia-smi fails: {_reason(error)}", "is the driver loaded on this node?")
        return
    remedy = "" if importlib.util.find_spec("cupy") else f"CuPy is missing: pip install '{DISTRIBUTION}[gpu]'"
    yield _finding("GPU", "; ".join(filter(None, names)), remedy)


def _reason(error: Exception) -> str:
    """Return what a program that failed wrote on standard error, or else what Python says of it."""
    return str(getattr(error, "stderr", None) or error).strip()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)  # noqa: S603
    return done.stdout.strip()


def _hub() -> Iterator[Finding]:
    """Ask whether the model hub answers; the token, if there is one, is not sent."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield _finding("model hub", "HF_HUB_OFFLINE is set", "models and dictionaries are taken from the cache")
        return
    token = "a token is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN in the environment"
    address = os.environ.get("HF_ENDPOINT", HUB)
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()  # noqa: S310
    except (urllib.error.URLError, OSError, ValueError) as error:
        remedy = "give local folders as models and dictionaries, or download where there is a network and set HF_HOME"
        yield _finding("model hub", f"{address} does not answer ({error})", remedy)
    else:
        yield _finding("model hub", f"{address} answers; {token}")


def command(
    cluster: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="Also check a Slurm profile by running a test job on a node.")
    ] = None,
    cluster_file: ClusterFile = None,
    no_job: Annotated[bool, typer.Option("--no-job", help="With --cluster: do not submit a test job.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine: packages, memory, disk, Slurm, GPU, model hub; and suggest how to fix problems.

    With `--cluster`, also show which accounts, partitions and QOS you may use, and submit a test job like a worker's
    that checks Python, packages, scratch and the shared folder on its node.

    The exit status is 1 if nothing would run; what is missing for some uses only is reported as a note.
    """
    findings, console = examine(cluster_file), wide_console(150)
    if not as_json:
        console.print(table_of(findings))
    if cluster is not None:
        for finding in examine_profile(cluster, cluster_file, submit=not no_job):
            findings.append(finding)
            if not as_json:  # as it comes: the test job may wait for long
                console.print(line_of(finding), soft_wrap=True)
    if as_json:
        show({"findings": [dataclasses.asdict(finding) for finding in findings]}, as_json=True)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def line_of(finding: Finding) -> Text:
    """Return a finding by itself."""
    remedy = f"\n  → {finding.remedy}" if finding.remedy else ""
    return Text.assemble(MARKS[finding.state], f" {finding.check}: {finding.found}{remedy}")


def table_of(findings: list[Finding]) -> Table:
    """Return a table with a line for each finding."""
    rows = [(Text(*MARKS[finding.state]), finding.check, finding.found, finding.remedy) for finding in findings]
    return text_table(("", "check", "found", "what to do"), rows)
