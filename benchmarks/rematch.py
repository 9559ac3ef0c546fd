"""What one draw of `rematch` costs, next to the bare work of a correlation.

::

    python -m benchmarks.rematch | tail -n 1 > benchmarks/results/documents/rematch.json

A draw writes a permuted copy of B, correlates it, and matches. :mod:`benchmarks.bare_loop` looks at the same pairs in
memory, and reads and writes nothing. Both take all cores, in turns, in one process. ``ratios`` are those of the medians
of the time, and of the processor time, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bare_loop import bare_loop
from benchmarks.calibration import _peak_gb as peak_gb
from benchmarks.contexts import write_store
from pipeline.correlate.run import correlate
from pipeline.match.run import match
from pipeline.rematch.permuted import write_permuted
from storage.files import remove_folder

KEEP_ABOVE = 0.2


def benchmark(rows: int, features: int, active: int, repeats: int) -> dict[str, Any]:
    """Run both and return the figures.

    Parameters
    ----------
    rows, features, active
        Of either store; `active` features fire in each row.
    repeats
        Timed runs of each.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-rematch-") as temporary:
        folder = Path(temporary)
        a, b = (folder / f"{side}.zarr" for side in "ab")
        for seed, path in enumerate((a, b)):
            write_store(path, rows, features, active, seed)
        drawn, bare = [], []
        for run in range(repeats + 1):
            order = np.random.default_rng(run).permutation(rows)
            start, used = time.perf_counter(), time.process_time()
            write_permuted(b, order, folder / "permuted.zarr", memory=2**30)
            found = correlate(a, folder / "permuted.zarr", out=folder / "cor.zarr", top_k=1, keep_above=KEEP_ABOVE)
            match(found, min_correlation=KEEP_ABOVE)
            drawn.append((time.perf_counter() - start, time.process_time() - used))
            for made in ("permuted.zarr", "cor.zarr"):
                remove_folder(folder / made)
            loop = bare_loop(str(a), str(b), len(os.sched_getaffinity(0)), KEEP_ABOVE)
            bare.append((loop["seconds"], loop["loop_cpu_seconds"]))
    ours, theirs = (
        np.array([statistics.median(times) for times in zip(*runs[1:], strict=True)]) for runs in (drawn, bare)
    )
    return {
        "name": "rematch",
        "command": f"python -m benchmarks.rematch --rows {rows} --features {features} --active {active} "
        f"--repeats {repeats}",
        "seconds": float(ours[0]),
        "peak_gb": peak_gb(),
        "ratios": dict(zip(("bare_loop", "bare_loop_cpu"), (ours / theirs).tolist(), strict=True)),
    }


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=16_384)
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(json.dumps(benchmark(given.rows, given.features, given.active, given.repeats)))


if __name__ == "__main__":
    main()
