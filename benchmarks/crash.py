"""Every stage and verb dies after every single file operation, and is run again; the files are compared.

::

    python -m benchmarks.crash                            all scenarios, all deaths, all pairs; hours
    python -m benchmarks.crash --only match compare       these scenarios
    python -m benchmarks.crash --quick                    what the tests run
    python -m benchmarks.crash --kills 200 --only         processes of a whole run, killed at random moments
    python -m benchmarks.crash --keep …                   keep what is found, scenario by scenario
    python -m benchmarks.crash --markdown                 write the tables of docs/faults.md from what was kept

``crash.c`` beside this file is compiled (``cc``) and preloaded. It counts the operations below one folder that change
a file system (open to write, write, rename, unlink, mkdir, …), from all threads, and kills the process by SIGKILL right
after the n-th of them, or in the middle of a write. A process that has imported everything and holds all compiled
kernels, and that runs no thread, forks a child for every death. For each *n*:

``death``   the stage dies after operation n in a fresh copy of its inputs; the same stage is run again
``torn``    the same, but it dies in the middle of a write, with half of the bytes written
``other``   the second run has other settings
``older``   a finished result of other settings is at the target before; between the two runs a reader opens it

Each time the second run must end well and leave the same files with the same bytes as a run that nothing disturbed,
nothing else beside them, and nothing that :func:`storage.verify` objects to. What a reader opens between the two is
the old result, the new one, or refused with a sentence. :mod:`benchmarks.crash_disk` lists what may differ.

``--pairs N`` starts two processes on one target, half of the times at once, else the second while the first is at work:
one result, whole, and each process has succeeded or was refused with a sentence. ``--kills N`` kills the driver, a
worker, or all processes of an experiment on worker processes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.crash_processes import LIBRARY, Child, Ended, arm, fork, last_words, load, preload, spread
from benchmarks.table import RESULTS, insert

if TYPE_CHECKING:
    from benchmarks.crash_scenarios import Action, Scenario

MODES = ("death", "torn", "other", "older")
KEPT = RESULTS / "crash" / "crash.json"
PAGE = Path(__file__).parent.parent / "docs" / "faults.md"
#: The mark of the tables in the page.
MARK = "crash"
#: Scenarios and steps of ``--quick``.
QUICK = {"export, npy": 1, "export, npz": 6, "labels": 2, "ActivationWriter": 20, "correlate": 150}


@dataclass
class Prepared:
    """What is known of one scenario in one mode before it dies.

    Attributes
    ----------
    scenario, mode
        Which.
    start
        The folder that it begins with.
    operations
        Those of an undisturbed run, as the library logs them.
    expected
        What must be on disk after the second run.
    old
        What was there before the first.
    repeated
        Exit status where a finished scenario is run again: what knows its inputs by their content alone is refused.
    seconds
        Of an undisturbed run.
    """

    scenario: Scenario
    mode: str
    start: Path
    operations: list[str]
    expected: dict[str, str]
    old: dict[str, str] = field(default_factory=dict)
    repeated: int = 0
    seconds: float = 0.0

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
        """Return a folder with a fresh copy of the files to begin with."""
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

    def undisturbed(self, folder: Path, act: Action, *, overwrite: bool = False) -> list[str]:
        """Run an action in a folder to its end, and import here what it has imported; return the operations."""
        from benchmarks.crash_scenarios import acted  # noqa: PLC0415

        log = folder.with_suffix(".operations")

        def run() -> list[str]:
            arm(self.library, folder, log)
            if status := acted(act, overwrite=overwrite):
                raise RuntimeError(f"An undisturbed run ends with {status}")
            return sorted(sys.modules)

        ended = fork(run, folder)
        if ended.status:
            raise RuntimeError(f"The undisturbed run in {folder} failed:\n{ended.printed}")
        load(ended.returned)
        return log.read_text(encoding="utf-8", errors="replace").splitlines()

    def prepare(self, scenario: Scenario, modes: Iterable[str]) -> Iterator[Prepared]:
        """Run a scenario undisturbed in each mode."""
        from benchmarks.crash_disk import LEFTOVERS, tree  # noqa: PLC0415
        from benchmarks.crash_scenarios import acted  # noqa: PLC0415

        start = self.start(scenario.start)
        self.undisturbed(self.slot("undisturbed", start), scenario.act)  # imports and compiles
        slot, begun = self.slot("undisturbed", start), time.perf_counter()
        operations = self.undisturbed(slot, scenario.act)
        seconds = time.perf_counter() - begun
        expected = tree(slot)
        if left := [name for name in expected if LEFTOVERS.search(name)]:
            print(f"{scenario.name}: an undisturbed run leaves {', '.join(left[:5])}", file=sys.stderr)
        repeated = int(fork(lambda: [str(acted(scenario.act, overwrite=False))], slot).returned[0])
        prepared = Prepared(scenario, "death", start, operations, expected, repeated=repeated, seconds=seconds)
        for mode in modes:
            if mode in ("death", "torn"):
                prepared.mode = mode
                yield Prepared(**vars(prepared))
            elif scenario.other is not None:
                yield self._with_other(prepared, scenario.other, mode)

    def _with_other(self, prepared: Prepared, other: Action, mode: str) -> Prepared:
        """Return what is known of a mode in which a result of other settings is made, too."""
        from benchmarks.crash_disk import differences, tree  # noqa: PLC0415

        scenario, start = prepared.scenario, prepared.start
        old = self.base / "starts" / f"{scenario.name}, other"
        if not old.exists():
            shutil.copytree(start, old)
            self.undisturbed(old, other)
        if mode == "other":
            return Prepared(scenario, mode, start, prepared.operations, tree(old))
        slot = self.slot("undisturbed", old)
        operations = self.undisturbed(slot, scenario.act, overwrite=True)
        for difference in differences(tree(slot), prepared.expected):
            print(f"{scenario.name}, an older result replaced, undisturbed: {difference}", file=sys.stderr)
        return Prepared(scenario, mode, old, operations, prepared.expected, tree(old))

    def die(self, prepared: Prepared, moment: int, worker: int) -> dict[str, Any]:
        """Let a scenario die once, and run it again; return what was wrong."""
        from benchmarks.crash_disk import read_between  # noqa: PLC0415
        from benchmarks.crash_scenarios import acted  # noqa: PLC0415

        scenario, mode = prepared.scenario, prepared.mode
        slot = self.slot(worker, prepared.start)
        log = slot.with_suffix(".operations")

        def first() -> list[str]:
            arm(self.library, slot, log, die_after=moment, torn=mode == "torn")
            return [str(acted(scenario.act, overwrite=mode == "older"))]

        def again() -> list[str]:
            between: list[str] = []
            if mode == "older":
                between += read_between(slot, scenario.targets, prepared.old, prepared.expected)
            status = acted(prepared.second, overwrite=mode in ("other", "older"))
            return [*between, *self._judge(prepared, slot, status)]

        died = fork(first, slot)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        told: dict[str, Any] = {"mode": mode, "n": moment, "at": lines[-1] if lines else ""}
        if died.status == 0 and died.returned == ["0"]:  # a run of fewer operations than the one that was counted
            return told | {"died": False, "problems": []}
        if died.status != -signal.SIGKILL:
            return told | {"died": False, "problems": [f"the first run failed: {last_words(died.printed)}"]}
        second = fork(again, slot)
        return told | {"died": True, "problems": problems_of(second)}

    def _judge(self, prepared: Prepared, slot: Path, status: int) -> list[str]:
        """Return what is wrong after the last run: its exit status, and what is on disk."""
        from benchmarks.crash_disk import differences, faults, tree  # noqa: PLC0415

        problems = [*differences(tree(slot), prepared.expected), *faults(prepared.scenario.targets)]
        refused_as_ever = status and status == prepared.repeated and not problems
        return [f"the second run ends with {status}", *problems] if status and not refused_as_ever else problems

    def pair(self, prepared: Prepared, i: int, worker: int) -> dict[str, Any]:
        """Run a scenario in two processes on one target; return what was wrong."""
        slot = self.slot(worker, prepared.start)
        draw = random.Random(i)  # noqa: S311 - no secret
        delay = 0.0 if i % 2 == 0 else draw.uniform(0, prepared.seconds)
        reader, writer = os.pipe()

        def run(pause: float) -> list[str]:
            from benchmarks.crash_scenarios import acted  # noqa: PLC0415

            os.close(writer)
            os.read(reader, 1)  # until both are there
            time.sleep(pause)
            return [str(acted(prepared.scenario.act, overwrite=False))]

        children = [Child(lambda: run(0.0), slot, "-first"), Child(lambda: run(delay), slot, "-second")]
        os.close(writer)
        os.close(reader)
        ended = [child.wait() for child in children]
        problems = [problem for one in ended for problem in impolite(one)]
        status = min(int(one.returned[0]) if one.returned else 1 for one in ended)
        problems += problems_of(fork(lambda: self._judge(prepared, slot, status), slot))
        refused = sum(one.returned not in ([], ["0"]) for one in ended)
        return {"mode": "pairs", "n": i, "at": f" {delay:.2f} s apart", "refused": refused, "problems": problems}


def problems_of(ended: Ended) -> list[str]:
    """Return the problems that a child has found, and its own end if that was not well."""
    if ended.status:
        return [f"the second run breaks: {last_words(ended.printed)}"]
    said = [f"said: {last_words(ended.printed)}"] if any("ends with" in one for one in ended.returned) else []
    return said + ended.returned


def impolite(ended: Ended) -> Iterator[str]:
    """Yield why the end of one of two processes is none that a user should see."""
    if ended.status:
        yield f"one of two breaks: {last_words(ended.printed)}"
    elif ended.returned != ["0"] and ("Traceback" in ended.printed or "Error: " not in ended.printed):
        yield f"one of two says: {last_words(ended.printed)}"


# --- rows -------------------------------------------------------------------------------------------------------------


def examine(workshop: Workshop, scenario: Scenario, options: argparse.Namespace) -> dict[str, Any]:
    """Let a scenario die and run in pairs; return its row of the table."""
    start = time.perf_counter()
    every = list(workshop.prepare(scenario, options.modes))
    step = options.step * scenario.step * (QUICK.get(scenario.name, 1) if options.quick else 1)
    steps = {mode: step * (1 if mode == "death" else options.step_others) for mode in MODES}
    jobs = [(one, n) for one in every for n in one.moments[:: steps[one.mode]]]
    results = list(spread(jobs, lambda job, worker: workshop.die(job[0], job[1], worker), options.workers))
    if options.pairs:
        first = next(iter(every), None) or next(workshop.prepare(scenario, ["death"]))
        both = list(range(options.pairs))
        results += spread(both, lambda i, worker: workshop.pair(first, i, worker), options.workers)
    row = row_of(scenario, every, results)
    return row | {"steps": steps, "seconds": round(time.perf_counter() - start, 1)}


def row_of(scenario: Scenario, every: list[Prepared], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a scenario: deaths in each mode, how many of them came out well, and what went wrong."""
    died = [one for one in results if one.get("died")]
    pairs = [one for one in results if one["mode"] == "pairs"]
    return {
        "scenario": scenario.name,
        "operations": len(every[0].operations) if every else 0,
        "deaths": {mode: sum(one["mode"] == mode for one in died) for mode in MODES},
        "same": {mode: sum(one["mode"] == mode and not one["problems"] for one in died) for mode in MODES},
        "pairs": len(pairs),
        "pairs_well": sum(not one["problems"] for one in pairs),
        "refused": sum(one["refused"] for one in pairs),
        "problems": list(grouped(results)),
    }


def grouped(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield each problem once, with how often it came, and after which operations."""
    from benchmarks.crash_disk import nameless  # noqa: PLC0415

    problems: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for one in results:
        for problem in one["problems"]:
            problems[one["mode"], nameless(problem)].append((one["n"], nameless(one["at"].split(" ", 1)[-1])))
    for (mode, problem), moments in sorted(problems.items(), key=lambda item: (item[0][0], min(item[1]))):
        first, last = min(moments), max(moments)
        span = f"n = {first[0]} ({first[1]})" + (f" to {last[0]} ({last[1]})" if last != first else "")
        yield f"{mode}, {len(moments)} times, {span}: {problem}"


def line_of(row: dict[str, Any]) -> str:
    """Return a row for people."""
    died, same = sum(row["deaths"].values()), sum(row["same"].values())
    pairs = f", {row['pairs_well']} of {row['pairs']} pairs well" if row["pairs"] else ""
    return (
        f"{row['scenario']:<26}{row['operations']:>6} operations, {same:>5} of {died:>5} deaths with the same bytes"
        f"{pairs}{row['seconds']:>8.1f} s"
    )


def render(result: dict[str, Any]) -> str:
    """Return the tables of the page.

    >>> counts = {"death": 7, "torn": 2, "other": 0, "older": 0}
    >>> row = {"scenario": "x", "operations": 7, "deaths": counts, "same": counts, "pairs": 20, "pairs_well": 20}
    >>> row["steps"] = {"death": 1, "torn": 3, "other": 1, "older": 1}
    >>> print(render({"rows": [row], "kills": []}).splitlines()[-1])
    | x | 7 | 7 | 2 (every 3rd) |  |  | 9 of 9 | 20 of 20 |
    """
    lines = [
        "| | operations | deaths | torn writes | other settings | an older result | same bytes | pairs well |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        deaths = [_counted(row["deaths"][mode], row["steps"][mode]) for mode in MODES]
        same = f"{sum(row['same'].values()):,} of {sum(row['deaths'].values()):,}"
        pairs = f"{row['pairs_well']} of {row['pairs']}" if row["pairs"] else ""
        lines.append(f"| {' | '.join([row['scenario'], str(row['operations']), *deaths, same, pairs])} |")
    if result["kills"]:
        lines += ["", render_kills(result["kills"])]
    return "\n".join(lines)


def _counted(deaths: int, step: int) -> str:
    """Return how many deaths there were, and of how many operations each was the first."""
    ordinal = {2: "2nd", 3: "3rd"}.get(step, f"{step}th")
    return "" if not deaths else f"{deaths} (every {ordinal})" if step > 1 else str(deaths)


def render_kills(kills: list[dict[str, Any]]) -> str:
    """Return the table of processes that were killed at random moments."""
    lines = ["| killed at a random moment | times | same bytes |", "|---|---|---|"]
    for victim in dict.fromkeys(one["victim"] for one in kills):
        times = [one for one in kills if one["victim"] == victim]
        lines.append(f"| {victim} | {len(times)} | {sum(not one['problems'] for one in times)} |")
    return "\n".join(lines)


def keep(result: dict[str, Any]) -> None:
    """Put new rows and kills in the place of those that are kept."""
    from benchmarks.crash_scenarios import SCENARIOS  # noqa: PLC0415

    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {"rows": [], "kills": []}
    rows = {row["scenario"]: row for row in [*kept["rows"], *result.get("rows", [])]}
    order = [scenario.name for scenario in SCENARIOS if scenario.name in rows]
    content = {"rows": [rows[name] for name in order], "kills": result.get("kills", kept["kills"])}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_page() -> None:
    """Write the tables of the page from what was kept."""
    result = json.loads(KEPT.read_text(encoding="utf-8"))
    PAGE.write_text(insert(PAGE.read_text(encoding="utf-8"), MARK, render(result)), encoding="utf-8")


def run(options: argparse.Namespace, library: ctypes.CDLL, base: Path) -> dict[str, Any]:
    """Do what the command line asks for; return the result."""
    from benchmarks.crash_kills import kills  # noqa: PLC0415
    from benchmarks.crash_scenarios import CONTROL, INPUTS, SCENARIOS, labelling  # noqa: PLC0415

    for name in ("slots", "starts"):
        (base / name).mkdir()
    os.environ[INPUTS] = str(base / "inputs")
    workshop, start, rows = Workshop(library, base), time.perf_counter(), []
    wanted = QUICK if options.quick else options.only
    with labelling():
        control = examine(
            workshop, CONTROL, argparse.Namespace(**vars(options) | {"modes": ["death", "torn"], "step": 1, "pairs": 0})
        )
        assert control["problems"], "deaths are not noticed"
        for scenario in [one for one in SCENARIOS if wanted is None or one.name in wanted]:
            rows.append(examine(workshop, scenario, options))
            print(line_of(rows[-1]), *rows[-1]["problems"], sep="\n    ", file=sys.stderr, flush=True)
            if options.keep:
                keep({"rows": rows[-1:]})
        killed = kills(workshop, options.kills, options.seed, options.workers)
        if options.keep and killed:
            keep({"kills": killed})
    seconds = round(time.perf_counter() - start, 1)
    command = " ".join(["python -m benchmarks.crash", *sys.argv[1:]])
    return {"name": "crash", "command": command, "seconds": seconds, "control": control, "rows": rows, "kills": killed}


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="scenarios; all by default")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--step", type=int, default=1, help="die only at every STEP-th operation")
    parser.add_argument(
        "--step-others", type=int, default=1, help="the same in all modes but `death`, on top of --step"
    )
    parser.add_argument("--pairs", type=int, default=20, help="pairs of processes for each scenario")
    parser.add_argument("--kills", type=int, default=0, help="kills of processes of a whole run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--workers", type=int, default=2, help="deaths at a time")
    parser.add_argument("--folder", type=Path, help="where to work; a new folder in memory by default")
    parser.add_argument("--keep", action="store_true", help=f"keep each row in {KEPT.name} as soon as it is known")
    parser.add_argument("--quick", action="store_true", help="a few scenarios, the larger ones in steps")
    parser.add_argument("--markdown", action="store_true", help="only write the tables of docs/faults.md")
    options = parser.parse_args()
    if options.markdown:
        write_page()
        return
    library = preload("benchmarks.crash")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a new folder below it
    base = Path(tempfile.mkdtemp(prefix="crash-", dir=options.folder or memory)).resolve()
    try:
        print(json.dumps(run(options, library, base)))
    finally:
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(Path(os.environ[LIBRARY]).parent, ignore_errors=True)


if __name__ == "__main__":
    main()
