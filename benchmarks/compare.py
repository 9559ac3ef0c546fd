"""Score matched decoder rows by four metrics with their shuffled nulls, beside plain NumPy and SciPy.

::

    python -m benchmarks.compare
    python -m benchmarks.compare --pairs 600 --d-a 64 --d-b 96 --null-runs 40

Rows are random directions of unit length, a part of which both sides share. ``seconds`` is one call of
:func:`pipeline.compare_rows`: svcca, rsa, cka and procrustes of the real pairing and of all shuffled ones, from arrays
in memory, start of the workers included. Beside it, in the same run, each metric is evaluated once from the rows by
plain code, as it is usually written, with all cores for BLAS: ``evaluation_seconds``. ``ratios`` are ``seconds`` ÷
(runs + 1) × the sum of those. ``max_error`` is the largest difference between the two, over the real pairing and one
shuffled one.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import run_measured

#: What both ways are held against each other by.
KEYS = ("score", "first_null")
METRICS = ("svcca", "rsa", "cka", "procrustes")

OURS = """
import time
import numpy as np
from pipeline import compare_rows
x, y = np.load(arguments["x"]), np.load(arguments["y"])
# compiled code comes from a cache; a first installation fills it once
compare_rows(x[:50], y[:50], metrics=arguments["metrics"], null_runs=2)
start = time.perf_counter()
scores = compare_rows(x, y, metrics=arguments["metrics"], null_runs=arguments["runs"], seed=0)
figures["seconds"] = time.perf_counter() - start
figures["score"] = scores["score"].values.tolist()
figures["first_null"] = scores["null_score"].isel(null=0, run=0).values.tolist()
figures["null_mean"] = scores["null_mean"].isel(null=0).values.tolist()
figures["p"] = scores["p"].isel(null=0).values.tolist()
"""

# one evaluation of each from the rows, as the metrics are usually written
PLAIN = """
import time
import numpy as np
from scipy.linalg import orthogonal_procrustes
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import cosine_similarity


def svcca(x, y):
    reduced = []
    for side in (x, y):
        u, s, _ = np.linalg.svd(side - side.mean(axis=0), full_matrices=False)
        k = np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.99) + 1
        reduced.append(u[:, :k] * s[:k])
    whitened = []
    for side in reduced:
        values, vectors = np.linalg.eigh(side.T @ side)
        whitened.append(side @ (vectors / np.sqrt(values)))
    return np.linalg.svd(whitened[0].T @ whitened[1], compute_uv=False).mean()


def rsa(x, y):
    upper = np.triu_indices(len(x), 1)
    return spearmanr(cosine_similarity(x)[upper], cosine_similarity(y)[upper]).statistic


def cka(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def procrustes(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    x = np.pad(x, ((0, 0), (0, max(0, y.shape[1] - x.shape[1]))))
    y = np.pad(y, ((0, 0), (0, max(0, x.shape[1] - y.shape[1]))))
    return orthogonal_procrustes(x / np.linalg.norm(x), y / np.linalg.norm(y))[1]


x, y = np.load(arguments["x"]), np.load(arguments["y"])
order = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0,))).permutation(len(x))
metrics = [globals()[name] for name in arguments["metrics"]]
figures["evaluation_seconds"], figures["score"] = {}, []
for metric in metrics:
    start = time.perf_counter()
    figures["score"].append(float(metric(x, y)))
    figures["evaluation_seconds"][metric.__name__] = time.perf_counter() - start
figures["first_null"] = [float(metric(x, y[order])) for metric in metrics]
"""


def make_rows(n: int, d_a: int, d_b: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return directions of unit length, float64, a fifth of whose variance both sides share."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d_a))
    shared = x @ rng.normal(size=(d_a, d_b)) / np.sqrt(d_a)
    y = np.sqrt(0.2) * shared + np.sqrt(0.8) * rng.normal(size=(n, d_b))
    a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))
    return a, b


def compare_ways(n: int, d_a: int, d_b: int, runs: int, folder: Path) -> dict[str, Any]:
    """Return the figures of both ways of scoring the same rows."""
    files = {"x": str(folder / "x.npy"), "y": str(folder / "y.npy")}
    for name, rows in zip(files, make_rows(n, d_a, d_b), strict=True):
        np.save(files[name], rows)
    given = {**files, "metrics": list(METRICS), "runs": runs}
    ours, plain = run_measured(OURS, given), run_measured(PLAIN, given)
    once = sum(plain["evaluation_seconds"].values())
    return {
        "seconds": ours["seconds"],
        "peak_gb": ours["peak_gb"],
        "max_error": float(np.max(np.abs(np.subtract([ours[k] for k in KEYS], [plain[k] for k in KEYS])))),
        "ratios": {"plain NumPy and SciPy": ours["seconds"] / ((runs + 1) * once)},
        "memory_ratios": {"plain NumPy and SciPy": ours["peak_gb"] / plain["peak_gb"]},
        "evaluation_seconds": plain["evaluation_seconds"],
        "scores": dict(zip(METRICS, ours["score"], strict=True)),
        "null_means": dict(zip(METRICS, ours["null_mean"], strict=True)),
        "p": dict(zip(METRICS, ours["p"], strict=True)),
    }


def main() -> None:
    """Run both ways and print the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4793)
    parser.add_argument("--d-a", type=int, default=512)
    parser.add_argument("--d-b", type=int, default=768)
    parser.add_argument("--null-runs", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare_ways(options.pairs, options.d_a, options.d_b, options.null_runs, Path(folder))
    size = f"--pairs {options.pairs} --d-a {options.d_a} --d-b {options.d_b} --null-runs {options.null_runs}"
    result = {
        "name": "compare",
        "command": f"python -m benchmarks.compare {size}",
        "size": f"{options.pairs:,} pairs, {options.d_a} vs {options.d_b} dimensions, {options.null_runs:,} runs",
        "cores": os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count(),
        **found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
