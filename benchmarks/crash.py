"""Every stage and verb dies after every single file operation, and is run again: what is on disk then?

::

    python -m benchmarks.crash                          all scenarios, all deaths
    python -m benchmarks.crash --only match compare     these scenarios
    python -m benchmarks.crash --quick                  what the tests run

``crash.c`` beside this file is compiled and preloaded. It counts the operations below one folder that change a file
system (open to write, write, rename, unlink, mkdir, …), from all threads, and kills the process by SIGKILL right after
the n-th of them, or in the middle of a write. A process that has imported everything and holds all compiled kernels,
and that runs no thread, forks a child for every death. For each *n*:

``death``   the stage dies after operation n in a fresh copy of its inputs; the same stage is run again
``torn``    the same, but it dies in the middle of a write, with half of the bytes written
``other``   the second run has other settings
``older``   a finished result of other settings is at the target before; between the two runs a reader opens it

Each time the second run must end well and leave the same files with the same bytes as a run that nothing disturbed,
nothing else beside them, and nothing that :func:`storage.verify` objects to. What a reader opens between the two is
the old result, the new one, or refused with a sentence. :data:`VOLATILE` lists what may differ.

``--pairs`` starts two processes at once on one target, twenty times for each scenario: one result, and each process
has succeeded or was refused with a sentence. ``--kills`` kills driver, worker, or all processes of a run of a whole
experiment on worker processes, at random moments. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".c")
#: Environment variable with the path of the preloaded library.
LIBRARY = "SUBSPACE_CRASH_LIBRARY"
#: Seconds that one run may take.
LIMIT = 120
MODES = ("death", "torn", "other", "older")
#: Names that unfinished or doomed work has.
LEFTOVERS = re.compile(r"\.(partial|old|lock|tmp)\b|\.[0-9a-f]{32}\b")

#: What may differ between two runs. Files and folders that record when and how fast a run was:
VOLATILE_FILES = re.compile(r"(^|/)(usage|watch|logs)/|(^|/)watch\.(html|json)$")
#: text in ``zarr.json`` that holds a moment, the hash of all attributes, which has it among them, and of all times of
#: modification:
VOLATILE_KEYS = ("created", "attributes", "stamp")
#: moments on pages:
VOLATILE_TEXT = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?([.]\d+)?([+]\d\d:\d\d)?")
VOLATILE = {"files": VOLATILE_FILES.pattern, "attributes": VOLATILE_KEYS, "text": VOLATILE_TEXT.pattern.decode()}

#: Runs something in the current folder, and returns the exit status. Its argument says whether a finished result that
#: came from other inputs or settings may be replaced.
Action = Callable[[bool], int]
#: Path below the folder → digest of the content; folders end in a slash.
Tree = dict[str, str]


@dataclass(frozen=True)
class Scenario:
    """A stage or verb that writes, and with which files it begins.

    Attributes
    ----------
    name
        Of the table's row.
    start
        Name of the folder that it begins with; see :data:`benchmarks.crash_scenarios.STARTS`.
    act
        Runs it.
    targets
        What it writes, below that folder.
    other
        The same with other settings; absent where it has none.
    step
        It dies at every operation whose number is a multiple: 1 but for what takes too long.
    """

    name: str
    start: str
    act: Action
    targets: tuple[str, ...]
    other: Action | None = None
    step: int = 1


# --- the preloaded library --------------------------------------------------------------------------------------------


def preload(module: str) -> ctypes.CDLL:
    """Return the library; where it is not loaded yet, build it and start this program again with it."""
    path = os.environ.get(LIBRARY)
    if path is None:
        folder = tempfile.mkdtemp(prefix="crash-library-")
        path = f"{folder}/crash.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", path, str(SOURCE), "-ldl", "-lpthread"], check=True)
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        variables = {LIBRARY: path, "LD_PRELOAD": path, "TOKENIZERS_PARALLELISM": "false", **one_thread}
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | variables)
    return ctypes.CDLL(path)


def arm(library: ctypes.CDLL, root: Path, log: Path, *, die_after: int = 0, torn: bool = False) -> None:
    """Count operations below `root` from now on, each a line of `log`; die after one of them."""
    descriptor = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    library.crash_arm(os.fsencode(root), ctypes.c_long(die_after), int(torn), descriptor)


# --- what is on disk --------------------------------------------------------------------------------------------------


def tree(root: Path) -> Tree:
    """Return all files and folders below `root`, without what may differ."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if VOLATILE_FILES.search(name + "/" if path.is_dir() else name):
            continue
        if path.is_dir():
            found[name + "/"] = ""
        else:
            found[name] = hashlib.sha256(plain(path, root)).hexdigest()
    return found


def plain(path: Path, root: Path) -> bytes:
    """Return the content of a file without what may differ."""
    data = path.read_bytes()
    if path.name == "zarr.json":
        with contextlib.suppress(ValueError):
            data = json.dumps(blanked(json.loads(data))).encode()
    elif path.suffix in (".html", ".json", ".svg", ".csv", ".tex"):
        data = VOLATILE_TEXT.sub(b"MOMENT", data)
    elif path.suffix == ".npz":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = json.dumps([(one.filename, one.CRC, one.file_size) for one in archive.infolist()]).encode()
    return data.replace(os.fsencode(root), b"ROOT")


def blanked(value: Any) -> Any:
    """Return JSON values without the attributes that may differ."""
    if isinstance(value, dict):
        volatile = {key for key in VOLATILE_KEYS if isinstance(value.get(key), str)}
        return {key: "" if key in volatile else blanked(item) for key, item in value.items()}
    return [blanked(item) for item in value] if isinstance(value, list) else value


def differences(found: Tree, expected: Tree) -> Iterator[str]:
    """Yield what is not as it should be; of a folder that is too many or missing, only the folder."""
    yield from (f"left behind: {name}" for name in topmost(found.keys() - expected.keys()))
    yield from (f"missing: {name}" for name in topmost(expected.keys() - found.keys()))
    for name in sorted(found.keys() & expected.keys()):
        if found[name] != expected[name]:
            yield f"other bytes: {name}"


def topmost(names: Iterable[str]) -> Iterator[str]:
    """Yield names, but not what is in a folder that is among them."""
    last = None
    for name in sorted(names):
        if last is None or not name.startswith(last):
            yield name
            last = name if name.endswith("/") else last


def part(whole: Tree, target: str) -> Tree:
    """Return what a tree holds of one target."""
    return {name: digest for name, digest in whole.items() if name == target or name.startswith(f"{target}/")}


def read_between(root: Path, targets: Iterable[str], old: Tree, new: Tree) -> Iterator[str]:
    """Yield what is wrong with what a reader finds between the two runs: neither the old, nor the new, nor refused."""
    now = tree(root)
    for target in sorted({one for name in old | new for one in units(name, targets)}):
        found = part(now, target)
        if found in (part(old, target), part(new, target)) and found:
            yield from could_not_open(root / target)
        elif found and opens(root / target):
            yield f"a reader opens neither the old nor the new {target}"


def units(name: str, targets: Iterable[str]) -> Iterator[str]:
    """Yield what a path of a tree belongs to, of that which is read as a whole: the target, or of a folder a part."""
    for target in targets:
        if name == target or (name.startswith(f"{target}/") and target.endswith(".zarr")):
            yield target
        elif name.startswith(f"{target}/"):
            store = re.match(r".*?\.zarr(?=/)", name)
            if store or not name.endswith("/"):
                yield store[0] if store else name


def could_not_open(path: Path) -> Iterator[str]:
    """Yield why a whole target cannot be opened."""
    if path.suffix == ".zarr" and not opens(path):
        yield f"a whole target is refused: {path.name}"


def opens(path: Path) -> bool:
    """Say whether the public readers open a path; an error other than a sentence is passed on."""
    import storage  # noqa: PLC0415

    if not path.is_dir():
        return path.exists()
    for reader in (storage.open_activations, storage.open_corpus, storage.open_result):
        try:
            opened: Any = reader(path)
        except storage.SubspaceError:
            continue
        if hasattr(opened, "load"):
            opened.load()
        return True
    return False


def faults(targets: Iterable[str]) -> Iterator[str]:
    """Yield what `verify` objects to."""
    import storage  # noqa: PLC0415
    from storage.verify import verify  # noqa: PLC0415

    ours = [one for one in targets if storage.read_manifest(one) is not None or Path(one, "experiment.json").is_file()]
    if ours:
        broken: dict[str, list[str]] = defaultdict(list)
        for fault in verify(*ours).faults:
            broken[fault.path].append(str(fault))
        yield from (f"verify has {len(found)} faults: {found[0]}" for found in broken.values())


# --- children ---------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a child ended: its exit status or the signal (negative), what it said, and what it printed."""

    status: int
    said: list[str]
    printed: str


def fork(function: Callable[[], list[str]], slot: Path) -> Ended:
    """Run a function in a child whose current folder is the slot's; return how it ended."""
    output = slot.with_suffix(".out")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_child(function, slot, output, writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return Ended(code, json.loads(said) if said else [], output.read_text(encoding="utf-8", errors="replace"))


def _be_child(function: Callable[[], list[str]], slot: Path, output: Path, writer: int) -> None:
    """Run the function and end the process, whatever happens."""
    status = 1
    try:
        descriptor = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115, PTH123
        faulthandler.dump_traceback_later(LIMIT, exit=True, file=2)
        os.chdir(slot)
        os.write(writer, json.dumps(function()).encode())
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is the child's end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def last_words(printed: str) -> str:
    """Return the last line of what a process printed, or the error of a traceback."""
    lines = [line for line in printed.strip().splitlines() if line.strip()]
    if "Timeout (" in printed:
        return "takes longer than it may: " + " < ".join(
            line.strip() for line in lines if "File" in line and ("storage" in line or "pipeline" in line)
        )[:300]
    traced = " (with a traceback)" if "Traceback" in printed else ""
    return (lines[-1][:300] if lines else "") + traced


# --- the deaths -------------------------------------------------------------------------------------------------------


@dataclass
class Prepared:
    """What is known of one scenario in one mode before it dies."""

    scenario: Scenario
    mode: str
    start: Path
    operations: list[str]
    expected: Tree
    old: Tree = field(default_factory=dict)

    @property
    def moments(self) -> list[int]:
        """The operations after which, or in which, it dies."""
        numbered = enumerate(self.operations, 1)
        return [i for i, line in numbered if self.mode != "torn" or line.split(" ", 2)[1] == "write"]

    @property
    def second(self) -> Action:
        """What is run after the death."""
        return self.scenario.other if self.mode == "other" and self.scenario.other else self.scenario.act


class Workshop:
    """Folders in which scenarios are prepared, die, and are run again."""

    def __init__(self, library: ctypes.CDLL, base: Path) -> None:
        self.library, self.base = library, base
        self.starts: dict[str, Path] = {}

    def slot(self, name: str | int, start: Path) -> Path:
        """Return a folder of its own with a fresh copy of the files to begin with."""
        slot = self.base / "slots" / str(name)
        shutil.rmtree(slot, ignore_errors=True)
        shutil.copytree(start, slot, symlinks=True)
        return slot

    def start(self, name: str) -> Path:
        """Return the folder that a scenario begins with; it is made when it is first asked for."""
        from benchmarks.crash_scenarios import STARTS  # noqa: PLC0415

        if name not in self.starts:
            folder = self.base / "starts" / name
            base, make = STARTS[name]
            if base is None:
                folder.mkdir(parents=True)
            else:
                shutil.copytree(self.start(base), folder)
            self.starts[name] = folder
            self.undisturbed(folder, make)
        return self.starts[name]

    def undisturbed(self, folder: Path, act: Action, *, count: bool = False, overwrite: bool = False) -> list[str]:
        """Run an action in a folder to its end; return the operations."""
        log = folder.with_suffix(".operations")

        def run() -> list[str]:
            arm(self.library, folder, log)
            status = act(overwrite)
            if status:
                raise RuntimeError(f"An undisturbed run ends with {status}")
            return sorted(sys.modules) if count else []

        ended = fork(run, folder)
        if ended.status:
            raise RuntimeError(f"The undisturbed run in {folder} failed:\n{ended.printed}")
        load(ended.said)
        return log.read_text(encoding="utf-8", errors="replace").splitlines()

    def prepare(self, scenario: Scenario, modes: Iterable[str]) -> Iterator[Prepared]:
        """Run a scenario undisturbed in each mode."""
        start = self.start(scenario.start)
        slot = self.slot("undisturbed", start)
        operations = self.undisturbed(slot, scenario.act, count=True)
        expected, left = tree(slot), [name for name in tree(slot) if LEFTOVERS.search(name)]
        if left:
            print(f"{scenario.name}: an undisturbed run leaves {', '.join(left[:5])}", file=sys.stderr)
        for mode in modes:
            if mode in ("death", "torn"):
                yield Prepared(scenario, mode, start, operations, expected)
            elif scenario.other is not None:
                yield self._with_other(scenario, mode, start, operations, expected)

    def _with_other(
        self, scenario: Scenario, mode: str, start: Path, operations: list[str], expected: Tree
    ) -> Prepared:
        assert scenario.other is not None
        old = self.base / "starts" / f"{scenario.name}-other"
        if not old.exists():
            shutil.copytree(start, old)
            self.undisturbed(old, scenario.other)
        if mode == "other":
            return Prepared(scenario, mode, start, operations, tree(old))
        slot = self.slot("undisturbed", old)
        operations = self.undisturbed(slot, scenario.act, overwrite=True)
        for difference in differences(tree(slot), expected):
            print(f"{scenario.name}, an older result replaced, undisturbed: {difference}", file=sys.stderr)
        return Prepared(scenario, mode, old, operations, expected, tree(old))

    def die(self, prepared: Prepared, moment: int, worker: int) -> dict[str, Any]:
        """Let a scenario die once, and run it again; return what was wrong."""
        scenario, mode = prepared.scenario, prepared.mode
        slot = self.slot(worker, prepared.start)
        log = slot.with_suffix(".operations")

        def first() -> list[str]:
            arm(self.library, slot, log, die_after=moment, torn=mode == "torn")
            return [str(scenario.act(mode == "older"))]

        def again() -> list[str]:
            problems = []
            if mode == "older":
                problems += read_between(slot, scenario.targets, prepared.old, prepared.expected)
            if status := prepared.second(mode in ("other", "older")):
                problems.append(f"the second run ends with {status}")
            return problems + list(differences(tree(slot), prepared.expected)) + list(faults(scenario.targets))

        died = fork(first, slot)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        told: dict[str, Any] = {"scenario": scenario.name, "mode": mode, "n": moment, "at": lines[-1] if lines else ""}
        if died.status == 0 and died.said == ["0"]:  # a run of fewer operations than the one that was counted
            return told | {"died": False, "problems": []}
        if died.status != -signal.SIGKILL:
            return told | {"died": False, "problems": [f"the first run failed: {last_words(died.printed)}"]}
        second = fork(again, slot)
        problems = list(second.said)
        if second.status:
            problems.append(f"the second run breaks: {last_words(second.printed)}")
        elif any("ends with" in problem for problem in problems):
            problems.insert(0, f"said: {last_words(second.printed)}")
        return told | {"died": True, "problems": problems}


def load(modules: Iterable[str]) -> None:
    """Import modules here, so that no child has to, and bring all kernels in that are compiled on disk."""
    for name in modules:
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(ImportError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
    from numba.core.registry import CPUDispatcher  # noqa: PLC0415

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").split(".")[0] in ("pipeline", "storage"):
            for value in list(vars(module).values()):
                if isinstance(value, CPUDispatcher):
                    _load_kernel(value)


def _load_kernel(kernel: Any) -> None:
    known = set(kernel.overloads)
    cache = getattr(kernel._cache, "_cache_file", None)
    for signature, *_ in cache._load_index() if cache is not None else ():
        if signature not in known:
            kernel.compile(signature)


def spread(jobs: list[Any], work: Callable[[Any, int], dict[str, Any]], workers: int) -> Iterator[dict[str, Any]]:
    """Do jobs in some forked processes, each the next that is left; yield their results as they come."""
    following = multiprocessing.get_context("fork").Value("l", 0)
    reader, writer = os.pipe()
    gc.collect()
    gc.freeze()
    children = []
    for worker in range(workers):
        child = os.fork()
        if child == 0:
            os.close(reader)
            while True:
                with following.get_lock():
                    i = following.value
                    following.value += 1
                if i >= len(jobs):
                    os._exit(0)
                line = json.dumps(work(jobs[i], worker))
                os.write(writer, (line + "\n").encode())
        children.append(child)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        for line in pipe:
            yield json.loads(line)
    for child in children:
        os.waitpid(child, 0)


def deaths(workshop: Workshop, scenarios: list[Scenario], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Let scenarios die; return a row of the table for each."""
    rows = []
    for scenario in scenarios:
        start = time.perf_counter()
        every = list(workshop.prepare(scenario, options.modes))
        jobs = [(one, n) for one in every for n in one.moments[:: options.step * scenario.step]]
        results = list(spread(jobs, lambda job, worker: workshop.die(*job, worker), options.workers))
        rows.append(row_of(scenario, every, results, time.perf_counter() - start))
        print(line_of(rows[-1]), file=sys.stderr, flush=True)
        if options.rows:
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        for problem in rows[-1]["problems"]:
            print(f"    {problem}", file=sys.stderr, flush=True)
    return rows


def row_of(scenario: Scenario, every: list[Prepared], results: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Return the row of a scenario: how many deaths in each mode, how many of them came out well, and what went wrong."""
    problems: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for one in results:
        for problem in one["problems"]:
            problems[one["mode"], nameless(problem)].append((one["n"], nameless(one["at"].split(" ", 1)[-1])))
    told = [
        f"{mode}, {problem}: {len(moments)} deaths, from n = {min(moments)[0]} ({min(moments)[1]}) "
        f"to {max(moments)[0]} ({max(moments)[1]})"
        for (mode, problem), moments in sorted(problems.items(), key=lambda item: (item[0][0], min(item[1])))
    ]
    died = [one for one in results if one["died"]]
    return {
        "scenario": scenario.name,
        "operations": len(every[0].operations),
        "deaths": {mode: sum(one["mode"] == mode for one in died) for mode in MODES},
        "same": {mode: sum(one["mode"] == mode and not one["problems"] for one in died) for mode in MODES},
        "seconds": round(seconds, 1),
        "problems": told,
    }


def nameless(text: str) -> str:
    """Return a text without random names and numbers of processes."""
    return re.sub(r"[0-9a-f]{32}", "*", re.sub(r"\.\d+\.partial", ".*.partial", text))


def line_of(row: dict[str, Any]) -> str:
    """Return a row for people."""
    died, same = sum(row["deaths"].values()), sum(row["same"].values())
    return (
        f"{row['scenario']:<28}{row['operations']:>6} operations {died:>6} deaths {same:>6} with the same bytes"
        f"{row['seconds']:>8.1f} s"
    )


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="scenarios; all by default")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--step", type=int, default=1, help="die only at every STEP-th operation")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work; a new folder in memory by default")
    parser.add_argument("--rows", type=Path, help="append each row to this file as soon as it is known")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    library = preload("benchmarks.crash")
    from benchmarks.crash_scenarios import INPUTS, SCENARIOS, labelling  # noqa: PLC0415

    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a new folder below it
    base = Path(tempfile.mkdtemp(prefix="crash-", dir=options.folder or memory)).resolve()
    (base / "slots").mkdir()
    (base / "starts").mkdir()
    os.environ[INPUTS] = str(base / "inputs")
    try:
        chosen = [one for one in SCENARIOS if not options.only or one.name in options.only]
        start = time.perf_counter()
        with labelling():
            rows = deaths(Workshop(library, base), chosen, options)
        assert threading.active_count() == 1
        print(json.dumps({"name": "crash", "seconds": time.perf_counter() - start, "rows": rows}))
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
