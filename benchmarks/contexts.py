"""Contexts of all features of a random store: top rows, samples, histograms and tokens, from disk to disk.

::

    python -m benchmarks.contexts --rows 300000 --features 32768 --active 32

Activations are uniform in [0, 1), tokens follow Zipf's law, documents have 300 rows. ``ratios`` are our time for the
top rows alone (``memory_ratios``: our peak memory) ÷ that of a peer, from the same file: SciPy's CSC with a sort of
each column, and torch's ``topk`` on blocks of columns made dense. ``max_error`` is the largest difference from their
activations. ``all_ratio`` is our time for everything ÷ that of SciPy, which finds the top rows only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import storage
from benchmarks.correlate import SHARD_ROWS, random_slabs
from benchmarks.measure import run_measured

TOP_N = 8
DOCUMENT_ROWS = 300
VOCABULARY = 50_000

OURS = """
import time
import numpy as np
from pipeline.harvest.contexts import contexts
start = time.perf_counter()
found = contexts(arguments["store"], arguments["out"], arguments["top_n"], **arguments["kept"])
figures["seconds"] = time.perf_counter() - start
np.save(arguments["values"], found["value"].values)
"""

SCIPY = """
import time
import numpy as np
import storage
start = time.perf_counter()
matrix = storage.read_csr(arguments["store"]).tocsc()
top_n = arguments["top_n"]
values = np.full((matrix.shape[1], top_n), np.nan, np.float32)
rows = np.full(values.shape, -1)
for feature in range(matrix.shape[1]):
    part = slice(*matrix.indptr[feature : feature + 2])
    data, ids = matrix.data[part], matrix.indices[part]
    order = np.lexsort((ids, -data))[:top_n]
    values[feature, : len(order)], rows[feature, : len(order)] = data[order], ids[order]
figures["seconds"] = time.perf_counter() - start
np.save(arguments["values"], values)
"""

TORCH = """
import time
import numpy as np
import torch
import storage
start = time.perf_counter()
matrix = storage.read_csr(arguments["store"]).tocsc()
found = []
for feature in range(0, matrix.shape[1], 512):
    block = torch.from_numpy(matrix[:, feature : feature + 512].toarray())
    found.append(torch.topk(block, arguments["top_n"], dim=0).values.T)
figures["seconds"] = time.perf_counter() - start
np.save(arguments["values"], torch.cat(found).numpy())
"""

PEERS = {"scipy_csc": SCIPY, "torch_topk": TORCH}
NOTHING_ELSE: dict[str, Any] = {"quantiles": [], "bins": 0, "tokens": 0}


def write_store(path: Path, rows: int, features: int, active: int, seed: int = 1) -> None:
    """Write a random store with token coordinates; the same sizes and seed give the same store, on the same tokens."""
    rng = np.random.default_rng(7)
    row = np.arange(rows)
    place = row % DOCUMENT_ROWS
    ids = np.minimum(rng.zipf(1.3, rows), VOCABULARY)
    tokens = {"document": row // DOCUMENT_ROWS, "position": place, "char_start": 5 * place, "char_end": 5 * place + 4}
    slabs = random_slabs(rows, features, active, seed)
    storage.write_activations(
        path, slabs, layout="csr", shard_rows=SHARD_ROWS, tokens={**tokens, "token_id": ids}, overwrite=True
    )


def _ours(store: Path, folder: Path, kept: dict[str, Any]) -> dict[str, Any]:
    arguments = {
        "store": str(store),
        "out": str(folder / f"contexts-{store.stem}-{len(kept)}.zarr"),
        "values": str(folder / "ours.npy"),
        "top_n": TOP_N,
        "kept": kept,
    }
    return run_measured(OURS, arguments)


def compare_with_peers(store: Path, folder: Path, everything: dict[str, Any]) -> dict[str, Any]:
    """Return our time and memory ÷ every peer's, everyone's seconds, and the largest difference of activations."""
    ours = _ours(store, folder, NOTHING_ELSE)
    values = np.nan_to_num(np.load(folder / "ours.npy"))
    seconds, ratios, memory_ratios, error = {"ours": ours["seconds"]}, {}, {}, 0.0
    for name, code in PEERS.items():
        given = {"store": str(store), "values": str(folder / "theirs.npy"), "top_n": TOP_N}
        theirs = run_measured(code, given)
        seconds[name] = theirs["seconds"]
        ratios[name] = ours["seconds"] / theirs["seconds"]
        memory_ratios[name] = ours["peak_gb"] / theirs["peak_gb"]
        error = max(error, float(np.abs(values - np.nan_to_num(np.load(folder / "theirs.npy"))).max()))
    return {
        "seconds_top_only": seconds,
        "ratios": ratios,
        "memory_ratios": memory_ratios,
        "all_ratio": everything["seconds"] / seconds["scipy_csc"],
        "max_error": error,
    }


def benchmark(rows: int, features: int, active: int) -> dict[str, Any]:
    """Run the benchmark and return its figures.

    Parameters
    ----------
    rows, features, active
        Shape of the store, and active features a row.
    """
    folder = Path(tempfile.mkdtemp(prefix="benchmark-contexts-"))
    try:
        store = folder / "store.zarr"
        write_store(store, rows, features, active)
        everything = _ours(store, folder, {})
        return {
            "name": "contexts",
            "command": f"python -m benchmarks.contexts --rows {rows} --features {features} --active {active}",
            "rows": rows,
            "features": features,
            "active": active,
            "top_n": TOP_N,
            **everything,
            **compare_with_peers(store, folder, everything),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--active", type=int, default=32)
    given = parser.parse_args()
    print(json.dumps(benchmark(given.rows, given.features, given.active)))


if __name__ == "__main__":
    main()
