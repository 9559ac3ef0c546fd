"""Match kept pairs of realistic shape, from the result on disk to the pairs on disk.

::

    python -m benchmarks.match --features 32768
    python -m benchmarks.match --features 32768 --correlation demo-run/correlation/layers.10--encoder.layer.3.zarr

Without ``--correlation`` the demo is run first (some minutes), for a correlation of real models. Its kept pairs are
tiled: permuted, damped copies fill a matrix of the size that is asked for, with a tenth of the features dead.

``greedy_seconds`` and ``optimal_seconds`` are for the tiled matrix. ``ratios`` are our time (``memory_ratios``: our
peak memory) ÷ that of a peer on the real matrix itself, made dense: SciPy's dense assignment, lapx, and the best-first
matching that sorts the whole matrix; and again, with the size in the name, on the real matrix tiled to 4,096².
``max_error`` is the largest difference between our totals and theirs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr

import storage
from benchmarks.measure import run_measured

KEEP_ABOVE = 0.1
#: Kept pairs that a matrix of 32,768² is to have; as many for each entry of a smaller one.
TARGET_SHARE = 3e6 / 32_768**2
DEAD_SHARE = 0.1
SHARD_ROWS = 1024
DEMO_SITES = "layers.10--encoder.layer.3.zarr"

OURS = """
import time
from pipeline.match.run import match
start = time.perf_counter()
pairs = match(
    arguments["correlation"], method=arguments["method"], min_correlation=arguments["minimum"], out=arguments["out"]
)
figures["seconds"] = time.perf_counter() - start
figures["total"] = float(pairs["r"].sum())
figures["pairs"] = pairs.sizes["pair"]
"""

LINEAR_SUM_ASSIGNMENT = """
import time
import numpy as np
from scipy.optimize import linear_sum_assignment
start = time.perf_counter()
r = np.load(arguments["dense"])
figures["total"] = float(r[linear_sum_assignment(r, maximize=True)].sum())
figures["seconds"] = time.perf_counter() - start
"""

LAPX = """
import time
import lap
import numpy as np
start = time.perf_counter()
r = np.load(arguments["dense"])
columns = lap.lapjv(1.0 - r, extend_cost=True)[1][: len(r)]
found = np.flatnonzero(columns >= 0)
figures["total"] = float(r[found, columns[found]].sum())
figures["seconds"] = time.perf_counter() - start
"""

# what the original study did: sort all pairs, then walk down the list
FULL_SORT_GREEDY = """
import time
import numpy as np
start = time.perf_counter()
r = np.load(arguments["dense"])
order = np.argsort(-r, axis=None, kind="stable")
rows, columns = np.unravel_index(order, r.shape)
free_rows, free_columns, total = set(range(r.shape[0])), set(range(r.shape[1])), 0.0
for i, j in zip(rows.tolist(), columns.tolist()):
    if i in free_rows and j in free_columns:
        free_rows.discard(i)
        free_columns.discard(j)
        total += r[i, j]
    if not free_rows or not free_columns:
        break
figures["total"] = float(total)
figures["seconds"] = time.perf_counter() - start
"""

PEERS = {
    "linear_sum_assignment": (LINEAR_SUM_ASSIGNMENT, "optimal"),
    "lapx": (LAPX, "optimal"),
    "full_sort_greedy": (FULL_SORT_GREEDY, "greedy"),
}


def tile(real: scipy.sparse.csr_array, features: int, seed: int = 0) -> scipy.sparse.csr_array:
    """Return a (features, features) matrix of permuted, damped copies of `real`, a tenth of rows and columns empty.

    Copies on the diagonal are not damped, as a feature has its own partner; the others are damped by one factor, such
    that the density is that of 3 million pairs in 32,768². Entries below :data:`KEEP_ABOVE` are gone.
    """
    rng = np.random.default_rng(seed)
    side = min(real.shape)
    n_copies = -(-features // side)
    damping = _damping(real.data, n_copies, side)
    blocks = [[_copy(real, side, 1.0 if i == j else damping, rng) for j in range(n_copies)] for i in range(n_copies)]
    whole = scipy.sparse.coo_array(scipy.sparse.block_array(blocks)).tocsr()[:features, :features].tocoo()
    alive = [rng.random(features) >= DEAD_SHARE for _ in range(2)]
    kept = alive[0][whole.row] & alive[1][whole.col]
    return scipy.sparse.csr_array((whole.data[kept], (whole.row[kept], whole.col[kept])), shape=(features, features))


def _damping(values: np.ndarray, n_copies: int, side: int) -> float:
    """Return the factor that leaves as many entries of the copies off the diagonal as the density asks for."""
    if n_copies == 1:
        return 1.0
    wanted = TARGET_SHARE * (n_copies * side) ** 2 / (1 - DEAD_SHARE) ** 2 - n_copies * len(values)
    share = np.clip(wanted / (n_copies * (n_copies - 1) * len(values)), 0.001, 1.0)
    return float(min(1.0, KEEP_ABOVE / np.quantile(values, 1 - share)))


def _copy(real: scipy.sparse.csr_array, side: int, damping: float, rng: np.random.Generator) -> scipy.sparse.csr_array:
    copy = real[rng.permutation(real.shape[0])[:side]][:, rng.permutation(real.shape[1])[:side]].tocoo()
    values = copy.data * damping
    kept = values >= KEEP_ABOVE
    return scipy.sparse.csr_array((values[kept], (copy.row[kept], copy.col[kept])), shape=(side, side))


def write_correlation(path: Path, kept: scipy.sparse.csr_array) -> None:
    """Write kept pairs as `correlate` does; features without any are dead."""
    manifest = storage.new_manifest("correlate", {}, {"keep_above": KEEP_ABOVE, "nnz": kept.nnz})
    with storage.claim(path, manifest) as target:
        _write(target.begin(), kept)
        target.finish()


def _write(partial: Path, kept: scipy.sparse.csr_array) -> None:
    n_a, n_b = kept.shape
    by_row, by_column = np.diff(kept.indptr) > 0, np.bincount(kept.indices, minlength=n_b) > 0
    features = xr.Dataset(
        {
            "defined_a": ("feature_a", by_row),
            "defined_b": ("feature_b", by_column),
            "n_active_a": ("feature_a", 100 * by_row),
            "n_active_b": ("feature_b", 100 * by_column),
        },
        attrs={"keep_above": KEEP_ABOVE, "select": "half"},
    )
    storage.add_variables(features, partial)
    for name, damping in (("r", 1.0), ("r_heldout", 0.95)):
        dims = ("feature_a", "feature_b")
        storage.create_sparse_array(partial, name, kept.shape, "f8", dims=dims, shard_rows=SHARD_ROWS)
        for i, start in enumerate(range(0, n_a, SHARD_ROWS)):
            storage.write_sparse_shard(partial, name, i, kept[start : start + SHARD_ROWS] * damping)


def real_correlation(given: Path | None, folder: Path) -> Path:
    """Return the correlation of two real models: the one that is given, or that of the demo, which is then run."""
    if given is not None:
        return given
    command = [sys.executable, "-m", "jobs.cli", "demo", "--run-dir", str(folder / "demo")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "demo" / "correlation" / DEMO_SITES


def _matched(correlation: Path, method: str, folder: Path) -> dict[str, Any]:
    arguments = {
        "correlation": str(correlation),
        "method": method,
        "minimum": KEEP_ABOVE,
        "out": str(folder / f"{correlation.stem}-{method}.zarr"),
    }
    return run_measured(OURS, arguments)


@dataclass
class Comparison:
    """How we do against every peer on one correlation result."""

    ratios: dict[str, float] = field(default_factory=dict)
    memory_ratios: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    max_error: float = 0.0


def compare_with_peers(correlation: Path, folder: Path) -> Comparison:
    """Return our time and memory ÷ every peer's, everyone's seconds, and the largest difference of totals."""
    kept = storage.read_csr(correlation, name="r")
    dense = folder / "dense.npy"
    np.save(dense, np.where(kept.toarray() >= KEEP_ABOVE, kept.toarray(), 0.0))
    ours = {method: _matched(correlation, method, folder) for method in ("greedy", "optimal")}
    found = Comparison(seconds={method: ours[method]["seconds"] for method in ours})
    for name, (code, method) in PEERS.items():
        theirs = run_measured(code, {"dense": str(dense)})
        found.seconds[name] = theirs["seconds"]
        found.ratios[name] = ours[method]["seconds"] / theirs["seconds"]
        found.memory_ratios[name] = ours[method]["peak_gb"] / theirs["peak_gb"]
        found.max_error = max(found.max_error, abs(ours[method]["total"] - theirs["total"]))
    return found


def _renamed(ratios: dict[str, float], size: int) -> dict[str, float]:
    return {f"{name}_{size}": ratio for name, ratio in ratios.items()}


def benchmark(features: int, correlation: Path | None, peer_features: int) -> dict[str, Any]:
    """Run the benchmark and return its figures.

    Parameters
    ----------
    features
        Features of either side of the tiled matrix.
    correlation
        A real correlation result; the demo's if None.
    peer_features
        Features of the second, tiled matrix that the peers get too.
    """
    folder = Path(tempfile.mkdtemp(prefix="benchmark-match-"))
    try:
        real = real_correlation(correlation, folder)
        kept = storage.read_csr(real, name="r")
        write_correlation(folder / "peers.zarr", tile(kept, peer_features))
        small = compare_with_peers(real, folder)
        larger = compare_with_peers(folder / "peers.zarr", folder)
        tiled = tile(kept, features)
        write_correlation(folder / "tiled.zarr", tiled)
        ours = {method: _matched(folder / "tiled.zarr", method, folder) for method in ("greedy", "optimal")}
        return {
            "name": "match",
            "command": f"python -m benchmarks.match --features {features}",
            "features": features,
            "kept_pairs": int(tiled.nnz),
            "seconds": ours["optimal"]["seconds"],
            "greedy_seconds": ours["greedy"]["seconds"],
            "optimal_seconds": ours["optimal"]["seconds"],
            "greedy_pairs": ours["greedy"]["pairs"],
            "optimal_pairs": ours["optimal"]["pairs"],
            "greedy_total": ours["greedy"]["total"],
            "optimal_total": ours["optimal"]["total"],
            "greedy_peak_gb": ours["greedy"]["peak_gb"],
            "peak_gb": max(one["peak_gb"] for one in ours.values()),
            "max_error": max(small.max_error, larger.max_error),
            "real_shape": list(kept.shape),
            "real_kept": int(kept.nnz),
            "real_seconds": small.seconds,
            f"seconds_{peer_features}": larger.seconds,
            "ratios": small.ratios | _renamed(larger.ratios, peer_features),
            "memory_ratios": small.memory_ratios | _renamed(larger.memory_ratios, peer_features),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--correlation", type=Path, help="a finished correlation of real models; the demo's if absent")
    parser.add_argument("--peer-features", type=int, default=4096, help="size of the tiled matrix that peers get too")
    given = parser.parse_args()
    print(json.dumps(benchmark(given.features, given.correlation, given.peer_features)))


if __name__ == "__main__":
    main()
