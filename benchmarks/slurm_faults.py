"""Faults while a run goes on, on a private Slurm of two nodes: what each costs, and whether the bytes are the same.

::

    python -m benchmarks.slurm_faults

Runs ``tests/slurm/test_faults.py`` (which says what is done; it needs root and Debian's ``slurm-wlm``) and prints its
table: fault, seconds undisturbed, seconds with it, seconds lost as the run's own record has them, bytes identical. The
last two faults start their workers anew, imports included; the others hit workers that had done the work before. The
last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests" / "slurm" / "test_faults.py"


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


def main() -> int:
    """Run, print; return the tests' exit status."""
    with tempfile.TemporaryDirectory(prefix="benchmark-slurm-faults-") as folder:
        table = Path(folder) / "table.json"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slurm", str(TESTS)]
        ended = subprocess.run(command, cwd=ROOT, env={**os.environ, "SUBSPACE_FAULT_TABLE": str(table)}, check=False)
        rows: list[dict[str, Any]] = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else []
    print(render(rows))
    print(json.dumps({"name": "slurm-faults", "command": "python -m benchmarks.slurm_faults", "faults": rows}))
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
