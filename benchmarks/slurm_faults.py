"""Faults while a run goes on, on a private Slurm of two nodes: what each costs, and whether the bytes are the same.

::

    python -m benchmarks.slurm_faults
    python -m benchmarks.slurm_faults --messages    # seconds from a fault of the site to its report: docs/cluster.md
    python -m benchmarks.slurm_faults --table       # that table alone, from the stored result

Runs ``tests/slurm/test_faults.py`` (which says what is done; it needs root and Debian's ``slurm-wlm``) and prints its
table: fault, seconds undisturbed, seconds with it, seconds lost as the run's own record has them, bytes identical. The
last two faults start their workers anew, imports included; the others hit workers that had done the work before. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.table import RESULTS, ROOT, insert, update

TESTS = ROOT / "tests" / "slurm" / "test_faults.py"
MESSAGES = ROOT / "tests" / "slurm" / "test_messages.py"
PAGE = ROOT / "docs" / "cluster.md"
RESULT = RESULTS / "cluster" / "messages.json"


def render(rows: list[dict[str, Any]]) -> str:
    """Return the table in Markdown.

    >>> row = {"fault": "x", "seconds_undisturbed": 9.1, "seconds": 12.0, "seconds_lost_as_recorded": 2.0}
    >>> print(render([{**row, "identical": True}]).splitlines()[-1])
    | x | 9.1 | 12.0 | 2.0 | yes |
    """
    lines = ["| fault | undisturbed, s | with it, s | lost, as recorded, s | same bytes |", "|---|---|---|---|---|"]
    return "\n".join(
        lines
        + [
            f"| {row['fault']} | {row['seconds_undisturbed']} | {row['seconds']} | {row['seconds_lost_as_recorded']} | "
            f"{'yes' if row['identical'] else 'NO'} |"
            for row in rows
        ]
    )


def render_messages(page: str, result: dict[str, Any]) -> str:
    """Return a page with the table of the seconds from a fault to its report."""
    lines = ["| fault | reported after, s |", "|---|---|"]
    lines += [f"| {row['fault']} | {row['seconds']} |" for row in result["faults"]]
    return insert(page, "messages", "\n".join(lines))


def run_tests(tests: Path, variable: str) -> tuple[int, list[dict[str, Any]]]:
    """Run a file of tests; return its exit status and the rows that it writes to the file which `variable` names."""
    with tempfile.TemporaryDirectory(prefix="benchmark-slurm-faults-") as folder:
        table = Path(folder) / "table.json"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slurm", str(tests)]
        ended = subprocess.run(command, cwd=ROOT, env={**os.environ, variable: str(table)}, check=False)
        rows: list[dict[str, Any]] = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else []
    return ended.returncode, rows


def main() -> int:
    """Run, print; return the tests' exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", action="store_true", help="measure how soon faults are reported, and keep it")
    parser.add_argument("--table", action="store_true", help="make the table of docs/cluster.md again")
    given = parser.parse_args()
    if given.table:
        update(PAGE, RESULT, render_messages)
        return 0
    tests, variable = (MESSAGES, "SUBSPACE_MESSAGE_TABLE") if given.messages else (TESTS, "SUBSPACE_FAULT_TABLE")
    status, rows = run_tests(tests, variable)
    command = "python -m benchmarks.slurm_faults"
    if not given.messages:
        print(render(rows))
        print(json.dumps({"name": "slurm-faults", "command": command, "faults": rows}))
    elif status == 0:
        result = {"name": "slurm-messages", "command": f"{command} --messages", "faults": rows}
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        update(PAGE, RESULT, render_messages)
    return status


if __name__ == "__main__":
    sys.exit(main())
