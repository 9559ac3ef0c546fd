"""A case, how it runs in a process of its own, and what counts as wrong about its outcome."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

#: Seconds that a case may take.
PATIENCE = 10.0
#: Bytes that a case may hold at its peak, imports included.
MOST_MEMORY = 10**9
#: Address space of a case: what goes wrong is to end there, not with the machine.
ADDRESS_SPACE = 16 * 2**30
GROUPS = ("settings", "imports", "damages")
FAULTS = ("traceback", "silently_wrong", "hang", "memory")
#: Statuses that the documentation knows, besides those of a bug and of Ctrl-C.
STATUSES = {0, 1, 2, 3, 4, 5}
BUG = 70
#: Status of a case whose files could not be made.
NOT_PREPARED = 99

Prepare = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One command over what `prepare` puts into an empty folder, in which it runs.

    Attributes
    ----------
    group, name
        What is tried.
    arguments
        Of ``subspace``.
    prepare
        Puts the files there.
    refuse
        Whether the status of success is wrong, whatever the output.
    expect
        Output and results of the same command over undamaged files; None where there is nothing to compare.
    record
        Where to note what was compiled.
    """

    group: str
    name: str
    arguments: tuple[str, ...]
    prepare: Prepare = field(repr=False)
    refuse: bool = False
    expect: str | None = field(default=None, repr=False)
    record: Path | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    status: int
    seconds: float
    peak: int
    output: str
    errors: str
    digest: str
    hangs: bool = False


def import_everything() -> None:
    """Import what the command may need, so that no case waits for it; no thread is started."""
    import anndata  # noqa: F401, PLC0415
    import datasets  # noqa: F401, PLC0415
    import h5py  # noqa: F401, PLC0415
    import matplotlib.pyplot  # noqa: F401, ICN001, PLC0415
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401, PLC0415
    import safetensors  # noqa: F401, PLC0415
    from typer.main import get_command  # noqa: PLC0415

    from jobs.cli import app  # noqa: PLC0415

    get_command(app)


def patience() -> float:
    """Return the seconds that a case may take: more where the machine has more to do than it has cores."""
    return PATIENCE * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def compiled() -> dict[tuple[str, str], list[Any]]:
    """Return the signatures for which functions of this project are compiled in this process."""
    return {
        (name, one): list(function.signatures)
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in ("storage", "pipeline")
        for one, function in vars(module).items()
        if hasattr(function, "nopython_signatures") and function.signatures
    }


def warm_up(cases: Iterable[Case], folder: Path) -> None:
    """Load what the verbs compile, by running each once: else every forked process would load it again."""
    for number, case in enumerate(cases):
        here = folder / f"warm{number}"
        pid = start_case(replace(case, record=folder / "signatures"), here)
        os.wait4(pid, 0)
        shutil.rmtree(here, ignore_errors=True)
        if (folder / "signatures").is_file():
            for (module, name), signatures in pickle.loads((folder / "signatures").read_bytes()).items():  # noqa: S301
                for signature in signatures:
                    getattr(importlib.import_module(module), name).compile(signature)


def run_case(case: Case, folder: Path) -> Outcome:
    """Run one case to its end."""
    pid, start = start_case(case, folder), time.monotonic()
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return outcome(case, folder, status, time.monotonic() - start, usage.ru_maxrss)
        if time.monotonic() - start > patience():
            os.kill(pid, signal.SIGKILL)
            os.wait4(pid, 0)
            return replace(outcome(case, folder, signal.SIGKILL, time.monotonic() - start, 0), hangs=True)
        time.sleep(0.002)


def start_case(case: Case, folder: Path) -> int:
    """Prepare the folder and run the command in a forked process; return its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = BUG
    try:
        status = _in_child(case, folder)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _in_child(case: Case, folder: Path) -> int:
    os.setpgid(0, 0)
    work = folder / "work"
    work.mkdir(parents=True)
    os.chdir(work)
    try:
        case.prepare(work)
    except Exception:  # noqa: BLE001 - a fault of the benchmark, not of the program
        traceback.print_exc()
        return NOT_PREPARED
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    os.environ.update(SUBSPACE_STATE=str(folder / "state"), COLUMNS="200", HF_HUB_OFFLINE="1")
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
    sys.argv = ["subspace", *case.arguments]
    from jobs.__main__ import main  # noqa: PLC0415

    try:
        main()
    except SystemExit as ending:
        if case.record is not None:
            case.record.write_bytes(pickle.dumps(compiled()))
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001 - what the interpreter does with it
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def outcome(case: Case, folder: Path, status: int, seconds: float, peak: int) -> Outcome:
    """Collect what a case left, and delete it."""
    texts = {}
    for name in ("stdout", "stderr"):
        file = folder / name
        texts[name] = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    results = digest_of(folder / "work" / "out") if case.group == "damages" else ""
    shutil.rmtree(folder, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    if code == NOT_PREPARED:
        raise RuntimeError(f"The files of {case.name} could not be made")
    said = _comparable(case.arguments[0], texts["stdout"])
    digest = hashlib.sha256(f"{said}\n{results}".encode()).hexdigest()
    return Outcome(code, seconds, 1024 * peak, texts["stdout"], texts["stderr"], digest)


#: Of what `inspect` says, sizes: of damaged files, others are right.
SIZES = (
    "bytes", "bytes_of_activations", "bytes_per_value", "ratio_to_dense", "complete", "missing", "missing_shards",
)  # fmt: skip


def _comparable(verb: str, output: str) -> str:
    """Return of an output what must be the same over undamaged files, if the status is that of success."""
    if verb == "status":  # says what is there: of damaged files, it ought to say something else
        return ""
    if verb == "inspect":
        return re.sub(rf'"({"|".join(SIZES)})": (\[[^]]*\]|{{[^}}]*}}|[^,}}]*)', "", output)
    return output


def digest_of(folder: Path) -> str:
    """Return a digest of the values in results: chunks, members of archives, tables; not of dates and versions."""
    sha = hashlib.sha256()
    for file in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if not file.is_file() or file.name == "zarr.json" or file.suffix in {".html", ".svg", ".png", ".js"}:
            continue
        sha.update(str(file.relative_to(folder)).encode())
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                sha.update(repr([(one.filename, one.CRC) for one in archive.infolist()]).encode())
        else:
            sha.update(file.read_bytes())
    return sha.hexdigest()


def faults_of(case: Case, found: Outcome) -> list[str]:
    """Return what is wrong with an outcome."""
    if found.hangs:
        return ["hang"]
    faults = []
    if "Traceback (most recent call last)" in found.errors + found.output or found.status not in STATUSES:
        faults.append("traceback")
    if found.status == 0 and (case.refuse or (case.expect is not None and case.expect != found.digest)):
        faults.append("silently_wrong")
    if found.peak > MOST_MEMORY:
        faults.append("memory")
    return faults


def run_all(cases: Sequence[Case], folder: Path, processes: int) -> Iterator[tuple[Case, Outcome]]:
    """Run all cases, some at a time; one that takes too long is tried once more alone before that counts."""
    waiting = list(enumerate(cases))[::-1]
    running: dict[int, tuple[int, Case, Path, float]] = {}
    slow: list[tuple[int, Case]] = []
    while waiting or running:
        while waiting and len(running) < processes:
            number, case = waiting.pop()
            here = folder / f"case{number}"
            running[start_case(case, here)] = number, case, here, time.monotonic()
        for pid, (number, case, here, start) in list(running.items()):
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                del running[pid]
                yield case, outcome(case, here, status, time.monotonic() - start, usage.ru_maxrss)
            elif time.monotonic() - start > patience():
                del running[pid]
                os.kill(pid, signal.SIGKILL)
                os.wait4(pid, 0)
                shutil.rmtree(here, ignore_errors=True)
                slow.append((number, case))
        time.sleep(0.002)
    for number, case in slow:
        yield case, run_case(case, folder / f"case{number}")
