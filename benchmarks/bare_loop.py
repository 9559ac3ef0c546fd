"""The bare work of a sparse correlation that looks at every pair, in memory, on all cores.

Products, r, the best partner of either side, and a count of pairs above a threshold, over all rows: no halves, no
lists, no histogram, nothing read or written. ``python -m benchmarks.correlate`` compares itself with it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

import storage

Array = NDArray[Any]

#: Pairs that are looked at, at most, and pieces that threads take in turn.
MOST_PAIRS, PIECES = 2**31, 16


def bare_loop(a: str, b: str, threads: int, keep_above: float) -> dict[str, Any]:
    """Time the loop over two stores.

    Returns
    -------
    dict
        ``seconds`` and ``loop_cpu_seconds`` for all A features, ``share`` of them that were worked on, and ``n_kept``,
        the pairs above the threshold among these.
    """
    side_a, side_b = (storage.read_csr(path) for path in (a, b))
    n_rows, n_features = side_a.shape
    part = min(n_features, max(PIECES, MOST_PAIRS // side_b.shape[1]))
    statistics = _mean_and_scale(side_a), _mean_and_scale(side_b)
    best_a, best_b = np.full(n_features, -2.0), np.full((PIECES, side_b.shape[1]), -2.0)

    def run(first: int, last: int, piece: int) -> int:
        columns, rows = (side.indptr, side.indices, side.data), (side_b.indptr, side_b.indices, side_b.data)
        found: int = _loop(columns, rows, *statistics, n_rows, keep_above, (first, last), best_a, best_b[piece])
        return found

    side = side_a[:, :2].tocsc()
    run(0, 1, 0)  # compiles
    start, used = time.perf_counter(), time.process_time()
    side = side_a.tocsc()
    turned, turned_cpu = time.perf_counter() - start, time.process_time() - used
    cuts = np.linspace(0, part, PIECES + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        n_kept = sum(pool.map(run, cuts[:-1], cuts[1:], range(PIECES)))
    best_b.max(axis=0)
    share = part / n_features
    seconds, cpu = time.perf_counter() - start - turned, time.process_time() - used - turned_cpu
    return {
        "seconds": turned + seconds / share,
        "loop_cpu_seconds": turned_cpu + cpu / share,
        "share": share,
        "n_kept": n_kept,
    }


def _mean_and_scale(side: scipy.sparse.csr_array) -> tuple[Array, Array]:
    """Return the mean of each feature, and 1 / standard deviation."""
    n = side.shape[0]
    mean, square = (np.asarray(part.sum(axis=0), np.float64).ravel() / n for part in (side, side.multiply(side)))
    return mean, 1 / np.sqrt(np.maximum(square - mean**2, 1e-300))


@numba.njit(nogil=True)
def _loop(  # noqa: PLR0917 - compiled
    columns: Any, rows: Any, a: Any, b: Any, n: int, keep: float, part: Any, best_a: Array, best_b: Array
) -> int:
    mean_b, scale_b = b
    sums, n_kept = np.zeros(mean_b.size), 0
    for i in range(part[0], part[1]):
        sums[:] = 0.0
        for at in range(columns[0][i], columns[0][i + 1]):
            row, value = columns[1][at], np.float64(columns[2][at])
            for j in range(rows[0][row], rows[0][row + 1]):
                sums[rows[1][j]] += value * rows[2][j]
        best = -2.0
        for j in range(sums.size):
            r = (sums[j] / n - a[0][i] * mean_b[j]) * a[1][i] * scale_b[j]
            best = max(best, r)
            best_b[j] = max(best_b[j], r)
            n_kept += r >= keep
        best_a[i] = best
    return n_kept
