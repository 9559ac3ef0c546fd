"""What the excess of all pairs beyond their tokens costs, next to the correlation of the same stores.

::

    python -m benchmarks.token_identity --rows 300000 --features 8192

Two random stores on one text with Zipf's frequencies of tokens; every feature of A is paired with that of B of the same
number. Both are run in turns, in one process, after one run that compiles; ``ratios`` has the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from benchmarks.calibration import _peak_gb as peak_gb
from benchmarks.contexts import write_store
from pipeline.correlate.run import correlate
from pipeline.match.identity import token_identity


def benchmark(rows: int, features: int, active: int, repeats: int) -> dict[str, Any]:
    """Run both and return the figures.

    Parameters
    ----------
    rows, features, active
        Of either store; `active` features fire in each row.
    repeats
        Timed runs of each.
    """
    pairs = xr.Dataset({f"feature_{side}": ("pair", np.arange(features)) for side in "ab"})
    with tempfile.TemporaryDirectory(prefix="benchmark-token-identity-") as temporary:
        a, b = (Path(temporary) / f"{side}.zarr" for side in "ab")
        for seed, path in enumerate((a, b)):
            write_store(path, rows, features, active, seed)
        seconds: dict[str, list[float]] = {"correlate": [], "token_identity": []}
        for run in range(repeats + 1):
            out = Path(temporary) / f"correlation-{run}.zarr"
            for name, action in (
                ("correlate", lambda out=out: correlate(a, b, out=out)),
                ("token_identity", lambda: token_identity(pairs, a, b)),
            ):
                seconds[name].append(timed(action))
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {
        "name": "token-identity",
        "command": f"python -m benchmarks.token_identity --rows {rows} --features {features} --active {active} "
        f"--repeats {repeats}",
        "seconds": median["token_identity"],
        "peak_gb": peak_gb(),
        "ratios": {"correlate": median["token_identity"] / median["correlate"]},
    }


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(json.dumps(benchmark(given.rows, given.features, given.active, given.repeats)))


if __name__ == "__main__":
    main()
