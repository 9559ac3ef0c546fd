"""``python -m benchmarks.hostile``."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.hostile.cases import FAULTS, GROUPS, Case, Outcome, faults_of, import_everything, run_all
from benchmarks.hostile.damages import damage_cases, make_run, unchanged, with_expected
from benchmarks.hostile.imports import import_cases, make_imports
from benchmarks.hostile.settings import setting_cases
from benchmarks.table import insert

#: Cases of each group; damages are each read by several verbs.
COUNTS = {"settings": 420, "imports": 320, "damages": 300}


def in_child(make: Callable[[Path], None], folder: Path) -> None:
    """Make files in a process of its own, so that no thread is started in the one that forks the cases."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            make(folder)
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("The files that cases damage could not be made")


def all_cases(
    seed: int, share: float, groups: Sequence[str], folder: Path, processes: int
) -> tuple[list[Case], list[str]]:
    """Return the cases of some groups, a share of each, and verbs whose outputs cannot be compared."""
    cases: list[Case] = []
    varying: list[str] = []
    draw = random.Random(seed)  # noqa: S311 - no secret
    if "settings" in groups:
        cases += _sample(setting_cases(seed, COUNTS["settings"]), share, draw)
    if "imports" in groups:
        in_child(make_imports, folder / "imports")
        cases += _sample(import_cases(seed, COUNTS["imports"], folder / "imports"), share, draw)
    if "damages" in groups:
        in_child(make_run, folder / "good")
        found = damage_cases(seed, max(1, round(share * COUNTS["damages"])), folder / "good")
        found, varying = with_expected(found, folder / "good", folder, processes)
        cases += found
    return cases, varying


def _sample(cases: list[Case], share: float, draw: random.Random) -> list[Case]:
    return cases if share >= 1 else draw.sample(cases, max(1, round(share * len(cases))))


ROOT = Path(__file__).parents[2]
#: The page that shows the counts, and the result from which it is made.
PAGE = ROOT / "docs" / "faults.md"
RESULT = ROOT / "benchmarks" / "results" / "hostile" / "hostile.json"
WHAT = {
    "settings": "settings: experiment, cluster and concept files",
    "imports": "imports, decoders, token tables",
    "damages": "damage to a run's files, by verb that reads them",
}


def render(result: dict[str, Any]) -> str:
    """Return the table of counts in Markdown.

    >>> counts = {"cases": 12, "traceback": 0, "silently_wrong": 1, "hang": 0, "memory": 0}
    >>> print(render({"groups": {"imports": counts}}).splitlines()[-1])
    | imports, decoders, token tables | 12 | 0 | 1 | 0 | 0 |
    """
    lines = ["| what | cases | traceback | silently wrong | hangs | above 1 GB |", "|---|---|---|---|---|---|"]
    for group, counts in result["groups"].items():
        lines.append(f"| {WHAT[group]} | {' | '.join(f'{counts[name]:,}' for name in ('cases', *FAULTS))} |")
    return "\n".join(lines)


Report = Callable[[Case, Outcome, list[str]], None]


def benchmark(*, seed: int, share: float, groups: Sequence[str], processes: int, report: Report) -> dict[str, Any]:
    """Run cases, and count what is wrong with them.

    Parameters
    ----------
    seed
        Of all draws: the same seed gives the same cases.
    share
        Of each group's cases.
    groups
        Which groups.
    processes
        Cases at a time.
    report
        Is told of each outcome.
    """
    folder = Path(tempfile.mkdtemp(prefix="benchmark-hostile-"))
    start = time.perf_counter()
    try:
        import_everything()
        cases, varying = all_cases(seed, share, groups, folder, processes)
        before = [*unchanged(folder / "good")]
        counts = {group: dict.fromkeys(("cases", *FAULTS), 0) for group in groups}
        statuses: dict[str, Counter[str]] = {group: Counter() for group in groups}
        peak, wrong = 0, []
        for case, found in run_all(cases, folder, processes):
            faults = faults_of(case, found)
            report(case, found, faults)
            counts[case.group]["cases"] += 1
            statuses[case.group][str(found.status)] += 1
            for fault in faults:
                counts[case.group][fault] += 1
            wrong += [{"case": case.name, "faults": faults, "command": " ".join(case.arguments)}] if faults else []
            peak = max(peak, found.peak)
        if before != [*unchanged(folder / "good")]:
            raise RuntimeError("A case has changed the files that all cases share")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "name": "hostile",
        "seed": seed,
        "seconds": time.perf_counter() - start,
        "peak_gb": peak / 1e9,
        "groups": counts,
        "statuses": {group: dict(sorted(counter.items())) for group, counter in statuses.items()},
        "not_compared": varying,
        "wrong": wrong,
    }


def main() -> int:
    """Read the command line, run, print; the status says whether anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of each group's cases")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--processes", type=int, default=2, help="cases at a time")
    parser.add_argument(
        "--markdown", action="store_true", help="only make the table of the page from the stored result"
    )
    parser.add_argument("--all", action="store_true", help="print every outcome, not only those that are wrong")
    given = parser.parse_args()
    if given.markdown:
        result = json.loads(RESULT.read_text(encoding="utf-8"))
        PAGE.write_text(insert(PAGE.read_text(encoding="utf-8"), "hostile", render(result)), encoding="utf-8")
        return 0

    def report(case: Case, found: Outcome, faults: list[str]) -> None:
        if faults or given.all:
            last = found.errors.strip().splitlines()[-1:] or found.output.strip().splitlines()[-1:]
            what = ", ".join(faults) or "right"
            ended = f"status {found.status}, {found.seconds:.1f} s: {''.join(last)[:600]}"
            print(f"{what}: {case.group} / {case.name}: {ended}", flush=True)

    settings = {"seed": given.seed, "share": given.share, "groups": given.groups, "processes": given.processes}
    result = benchmark(report=report, **settings)
    share = f" --share {given.share:g}" if given.share < 1 else ""
    print(json.dumps({**result, "command": f"python -m benchmarks.hostile{share}"}))
    return int(bool(result["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
