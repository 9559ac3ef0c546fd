r"""SVCCA on activations: 300,000 tokens, 512 against 768 dimensions, from stores on disk.

::

    python -m benchmarks.compare_activations
    python -m benchmarks.compare_activations --null-runs 1000 --intervals 200
    python -m benchmarks.compare_activations --rows 20000 --dimensions 1000 1000 --null-runs 1000
    python -m benchmarks.compare_activations --rows 20000 --dimensions 1000 1000 --null-runs 1000 \
        --stop-after 10 --unrelated

The study that this work starts from stopped such a comparison after 20 minutes. Ours reads both stores once and makes
every metric from second moments. Beside it, in the same run: the plain NumPy way, all activations in float64 and two
singular value decompositions, at ``--plain-rows`` (it takes minutes at the full size), with ours at that size as well:
``ratios`` are our seconds ÷ its seconds, ``memory_ratios`` the same for peak memory. ``max_error`` is the difference
of the two scores. ``with_null`` has the figures of all metrics with their null; with ``--unrelated`` the sides share
nothing, so that a null may end early. Each runs in a fresh process; what is timed begins after the imports, and ours
includes starting and closing the cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import storage
from benchmarks.measure import run_measured

DIMENSIONS = 512, 768
#: Part of the variance of either side that both share.
SHARED = 0.05
SLAB = 16_384
METRICS = ["svcca", "cka", "procrustes"]

OURS = """
import time
from pipeline.compare.activations import compare_activations
start = time.perf_counter()
found = compare_activations(**arguments)
figures["seconds"] = time.perf_counter() - start
figures["score"] = float(found.score.sel(metric="svcca"))
if arguments["null_runs"]:
    figures["null_mean"] = float(found.null_mean.sel(metric="svcca")[0])
    figures["p"] = dict(zip(found.metric.values.tolist(), found.p.values[0].tolist()))
    figures["p_runs"] = dict(zip(found.metric.values.tolist(), found.p_runs.values[0].tolist()))
"""

#: What one would write: centre, decompose, keep 99 %, decompose the product.
PLAIN = """
import time
import numpy as np
import storage
start = time.perf_counter()
kept = []
for path in (arguments["a"], arguments["b"]):
    x = storage.read_dense(path, slice(0, arguments["rows"])).astype(np.float64)
    x -= x.mean(axis=0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    kept.append(u[:, : np.searchsorted(share, 0.99) + 1])
figures["score"] = float(np.linalg.svd(kept[0].T @ kept[1], compute_uv=False).mean())
figures["seconds"] = time.perf_counter() - start
"""


def write_related_stores(folder: Path, rows: int, d_a: int, d_b: int, seed: int = 0, *, shared: float = SHARED) -> None:
    """Write ``a.zarr`` and ``b.zarr``: dense rows that share a part, with variances that fall off as real ones do."""
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(64, d)).astype(np.float32) for d in (d_a, d_b)]
    for side, (name, d) in enumerate((("a", d_a), ("b", d_b))):
        storage.write_activations(
            folder / f"{name}.zarr",
            _slabs(rows, d, shared * maps[side], seed, side),
            attrs={"kind": "raw"},
            overwrite=True,
        )


def _slabs(rows: int, d: int, mapping: np.ndarray, seed: int, side: int) -> Iterator[np.ndarray]:
    scale = (1.0 / np.sqrt(1.0 + np.arange(d))).astype(np.float32)
    for i, start in enumerate(range(0, rows, SLAB)):
        n = min(SLAB, rows - start)
        shared = np.random.default_rng([seed, i]).standard_normal((n, 64), dtype=np.float32)
        own = np.random.default_rng([seed, i, side + 1]).standard_normal((n, d), dtype=np.float32)
        yield shared @ mapping + scale * own


def benchmark(
    rows: int,
    plain_rows: int,
    dimensions: tuple[int, int],
    null: dict[str, Any],
    *,
    unrelated: bool = False,
) -> dict[str, Any]:
    """Run ours at both sizes and the plain way at the smaller one.

    Parameters
    ----------
    rows, plain_rows
        Tokens of the two sizes.
    dimensions
        Columns of either side.
    null
        Settings of ours with a null, at the larger size; none is asked for if all are 0.
    unrelated
        Whether the sides share nothing.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-activations-") as temporary:
        large, small = Path(temporary) / "large", Path(temporary) / "small"
        for folder, n in ((large, rows), (small, plain_rows)):
            folder.mkdir()
            write_related_stores(folder, n, *dimensions, shared=0.0 if unrelated else SHARED)
        paths = {folder: {side: str(folder / f"{side}.zarr") for side in "ab"} for folder in (large, small)}
        ours = run_measured(OURS, {**paths[large], "metrics": ["svcca"], "null_runs": 0})
        beside = run_measured(OURS, {**paths[small], "metrics": ["svcca"], "null_runs": 0})
        plain = run_measured(PLAIN, {**paths[small], "rows": plain_rows})
        settings = {"metrics": METRICS, **null}
        whole = run_measured(OURS, {**paths[large], **settings}) if any(null.values()) else None
    name = f"NumPy, two SVDs, {plain_rows:,} tokens"
    return {
        "name": "compare_activations",
        "command": f"python -m benchmarks.compare_activations --rows {rows} --plain-rows {plain_rows}",
        "rows": rows,
        "dimensions": dimensions,
        "seconds": ours["seconds"],
        "peak_gb": ours["peak_gb"],
        "score": ours["score"],
        "max_error": abs(beside["score"] - plain["score"]),
        "ratios": {name: beside["seconds"] / plain["seconds"]},
        "memory_ratios": {name: beside["peak_gb"] / plain["peak_gb"]},
        "small": {"ours": beside, "plain": plain},
        "with_null": None if whole is None else {**settings, **whole},
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--plain-rows", type=int, default=60_000)
    parser.add_argument("--null-runs", type=int, default=0)
    parser.add_argument("--intervals", type=int, default=0)
    parser.add_argument("--stop-after", type=int, default=0)
    parser.add_argument("--dimensions", type=int, nargs=2, default=DIMENSIONS)
    parser.add_argument("--unrelated", action="store_true")
    given = parser.parse_args()
    null = {name: getattr(given, name) for name in ("null_runs", "intervals", "stop_after")}
    print(json.dumps(benchmark(given.rows, given.plain_rows, tuple(given.dimensions), null, unrelated=given.unrelated)))


if __name__ == "__main__":
    main()
