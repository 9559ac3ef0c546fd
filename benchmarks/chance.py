"""What SVCCA scores by chance: independent random unit rows, 512 against 768 dimensions, 99 % of the variance.

::

    python -m benchmarks.chance

The study that this work starts from published SVCCA of some thousand and of some dozen pairs side by side. Without
any relation between the two sides, SVCCA of 24 pairs is 1. The expected values are those of a run of their definition
apart from this code; ours are means over shuffled pairings of seeded rows. ``max_error`` is the largest difference,
to be held against ``tolerance``: half a unit of the last published digit, and four standard errors of either figure.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import run_measured

#: Number of pairs, and the mean of SVCCA's null to two decimals.
EXPECTED = {24: 1.00, 239: 0.97, 1000: 0.77, 3152: 0.45, 7553: 0.29}
DIMENSIONS = 512, 768
#: Half a unit of the last digit of the expected values.
ROUNDING = 0.005

PROGRAM = """
import time
import numpy as np
from benchmarks.chance import unit_rows
from pipeline.compare.arrays import compare_rows
from pipeline.work.workers import ensure_client
figures["lines"] = []
with ensure_client(None) as client:
    for n in arguments["sizes"]:
        rows = [unit_rows(n, d, seed=n + d) for d in arguments["dimensions"]]
        start = time.perf_counter()
        found = compare_rows(*rows, metrics=["svcca"], null_runs=arguments["runs"], client=client)
        one = found.sel(metric="svcca", null="shuffled")
        figures["lines"].append({
            "n": n, "mean": float(one.null_mean), "std": float(one.null_std), "score": float(one.score),
            "p": float(one.p), "seconds": time.perf_counter() - start, "note": str(one.note.item()),
        })
"""


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    """Return n random directions in d dimensions, float64 (n, d)."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def tolerance(std: float, runs: int) -> float:
    """Return by how much a mean of `runs` shuffles may differ from the expected one: rounding and sampling of both.

    >>> round(tolerance(0.001, 16), 4)
    0.0064
    """
    return float(ROUNDING + 4 * np.sqrt(2) * std / np.sqrt(runs))


def benchmark(sizes: list[int], runs: int) -> dict[str, Any]:
    """Return our null means beside the expected ones.

    Parameters
    ----------
    sizes
        Numbers of pairs, of :data:`EXPECTED`.
    runs
        Shuffled pairings of each.
    """
    start = time.perf_counter()
    figures = run_measured(PROGRAM, {"sizes": sizes, "dimensions": DIMENSIONS, "runs": runs})
    lines = figures["lines"]
    for line in lines:
        line |= {"expected": EXPECTED[line["n"]], "tolerance": tolerance(line["std"], runs)}
        line["difference"] = abs(line["mean"] - line["expected"])
        line["reproduced"] = line["difference"] <= line["tolerance"]
    return {
        "name": "chance",
        "command": f"python -m benchmarks.chance --runs {runs}",
        "seconds": time.perf_counter() - start,
        "peak_gb": figures["peak_gb"],
        "max_error": max(line["difference"] for line in lines),
        "reproduced": all(line["reproduced"] for line in lines),
        "ratios": {},
        "lines": lines,
    }


def table(lines: list[dict[str, Any]]) -> Table:
    """Return the chance table."""
    shown = Table(title=f"SVCCA of independent unit rows, {DIMENSIONS[0]} against {DIMENSIONS[1]} dimensions")
    for name in ("pairs", "expected", "null mean", "null sd", "one unpaired score", "p", "seconds", "reproduced"):
        shown.add_column(name, justify="right")
    for line in lines:
        shown.add_row(
            f"{line['n']:,}", f"{line['expected']:.2f}", f"{line['mean']:.4f}", f"{line['std']:.4f}",
            f"{line['score']:.4f}", f"{line['p']:.2f}", f"{line['seconds']:.1f}", "yes" if line["reproduced"] else "NO",
        )  # fmt: skip
    return shown


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(EXPECTED), choices=list(EXPECTED))
    parser.add_argument("--runs", type=int, default=50)
    given = parser.parse_args()
    result = benchmark(given.sizes, given.runs)
    Console(width=140).print(table(result["lines"]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
