"""Test the subspaces of many concepts against three nulls, beside plain NumPy and SciPy that draw one run at a time.

::

    python -m benchmarks.semantics
    python -m benchmarks.semantics --concepts 4 --site-pairs 1 --features 300 --null-runs 20 --peer-runs 2

Every concept has two subspaces (approaches) at every pair of sites, of 10 to 80 pairs whose decoder rows are in part
the same. ``seconds`` is :func:`pipeline.compare.subsets.compare_subsets` over all pairs of sites: SVCCA of 4
components, RSA and SVCCA of the first component, against shuffled pairs, random features and random pairs; stores
on disk, start of the workers included. The peer makes ``--peer-runs`` runs of each null for the subspaces of one pair
of sites, from rows in memory, and its time is scaled to as many runs and pairs of sites. ``max_error`` is the largest
difference of the scores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import storage
from benchmarks.measure import run_measured

METRICS = ("svcca:k=4", "rsa", "svcca_pc1")
NULLS = ("shuffled", "random_features", "random_pairs")
D_A, D_B = 576, 384

OURS = """
import time
import numpy as np
from pipeline.compare.subsets import compare_subsets
from pipeline.work.workers import local_client
subsets = {name: (np.array(ids), np.array(ids)) for name, ids in arguments["subsets"].items()}
pool = np.arange(arguments["features"])
some = {"warm": (pool[:12], pool[:12])}
given = {"pool": (pool, pool), "metrics": arguments["metrics"], "nulls": arguments["nulls"]}
# compiled code comes from a cache; a first installation fills it once
compare_subsets(some, arguments["a"], arguments["b"], **given, null_runs=2)
start = time.perf_counter()
with local_client() as client:
    for seed in range(arguments["site_pairs"]):
        found = compare_subsets(
            subsets, arguments["a"], arguments["b"], **given, null_runs=arguments["runs"], seed=seed, client=client
        )
figures["seconds"] = time.perf_counter() - start
figures["scores"] = found["score"].values.tolist()
"""

PLAIN = """
import time
import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr


def svcca(x, y, k):
    kept = [np.linalg.svd(side - side.mean(axis=0), full_matrices=False)[0][:, :k] for side in (x, y)]
    return np.linalg.svd(kept[0].T @ kept[1], compute_uv=False).mean()


def all_scores(x, y):
    return [svcca(x, y, 4), spearmanr(pdist(x, "cosine"), pdist(y, "cosine")).statistic, svcca(x, y, 1)]


import storage
x, y = (storage.open_activations(arguments[side])["decoder"].values.astype(np.float64) for side in "ab")
rng, n_all = np.random.default_rng(0), arguments["features"]
figures["scores"] = [all_scores(x[ids], y[ids]) for ids in arguments["subsets"].values()]
start = time.perf_counter()
for ids in arguments["subsets"].values():
    for run in range(arguments["peer_runs"]):
        one, other = rng.permutation(n_all)[: len(ids)], rng.permutation(n_all)[: len(ids)]
        all_scores(x[ids], y[rng.permutation(ids)])
        all_scores(x[one], y[other])
        all_scores(x[one], y[one])
figures["seconds"] = time.perf_counter() - start
"""


def write_stores(folder: Path, n_features: int) -> dict[str, str]:
    """Write two stores of decoder rows, a third of whose variance both share."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n_features, D_A))
    y = x @ rng.normal(size=(D_A, D_B)) / np.sqrt(2 * D_A) + rng.normal(size=(n_features, D_B))
    paths = {}
    for name, rows in {"a": x, "b": y}.items():
        storage.write_activations(folder / f"{name}.zarr", np.ones((2, n_features)), decoder=rows, overwrite=True)
        paths[name] = str(folder / f"{name}.zarr")
    return paths


def subsets_of(concepts: int, n_features: int) -> dict[str, list[int]]:
    """Return the features of two subspaces for each concept, of sizes spread over 10 to 80."""
    rng = np.random.default_rng(1)
    sizes = np.linspace(10, min(80, n_features // 2), 2 * concepts).round().astype(int).tolist()
    return {f"subspace {i}": np.sort(rng.permutation(n_features)[:size]).tolist() for i, size in enumerate(sizes)}


def compare_ways(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of both ways of testing the same subspaces."""
    given = {
        **write_stores(folder, options.features),
        "subsets": subsets_of(options.concepts, options.features),
        "features": options.features,
        "site_pairs": options.site_pairs,
        "metrics": list(METRICS),
        "nulls": list(NULLS),
        "runs": options.null_runs,
        "peer_runs": options.peer_runs,
    }
    ours, plain = run_measured(OURS, given), run_measured(PLAIN, given)
    scaled = plain["seconds"] * options.site_pairs * options.null_runs / options.peer_runs
    return {
        "seconds": ours["seconds"],
        "peak_gb": ours["peak_gb"],
        "max_error": float(np.max(np.abs(np.subtract(ours["scores"], plain["scores"])))),
        "ratios": {"plain NumPy and SciPy": ours["seconds"] / scaled},
        "peer_seconds_scaled": scaled,
    }


def main() -> None:
    """Run both ways and print the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=25)
    parser.add_argument("--site-pairs", type=int, default=4)
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--null-runs", type=int, default=1000)
    parser.add_argument("--peer-runs", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare_ways(options, Path(folder))
    size = f"--concepts {options.concepts} --site-pairs {options.site_pairs} --null-runs {options.null_runs}"
    result = {
        "name": "semantics",
        "command": f"python -m benchmarks.semantics {size}",
        "size": f"{options.concepts} concepts × {options.site_pairs} pairs of sites × 2 approaches × 3 nulls, "
        f"{options.null_runs:,} runs",
        "cores": os.cpu_count(),
        **found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
