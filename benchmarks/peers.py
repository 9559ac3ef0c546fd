"""The same work by what one could pick instead: every pair of features correlated, the best partners of each kept.

::

    python -m benchmarks.peers
    python -m benchmarks.peers --rows 60000 --features 6000 --active 32 --small-rows 20000 --small-features 3000

All read the same two stores on disk. Each runs in a fresh process; what is timed begins after its imports and ends
with the best partners in memory (ours: with the whole result on disk, Dask cluster started and stopped). We rank
partners for the features of both sides, count the histogram and keep the pairs above 0.1; the peers only rank, for
one side. Peers that cannot do the larger size are run at the smaller one, beside us at that size: every ratio is of
two figures from the same run and size. Kernels are compiled before (once for a machine).

The last line is one JSON object. ``ratios`` are our seconds ÷ the peer's, ``memory_ratios`` our peak memory ÷ the
peer's, ``differences`` the largest difference between the peer's r and ours, and ``max_error`` that against
``numpy.corrcoef``, which computes in float64.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.correlate import write_random_store
from benchmarks.measure import run_measured

OURS = "subspace"
ORACLE = "numpy.corrcoef"

#: Ours: from the stores to the result on disk.
SUBSPACE = """
import time
import numpy as np
from pipeline.correlate.run import correlate
start = time.perf_counter()
out = arguments["out"] + ".zarr"
ds = correlate(arguments["a"], arguments["b"], top_k=arguments["top_k"], select="all", memory="3GB", out=out)
figures["seconds"] = time.perf_counter() - start
np.savez(arguments["out"], b=ds["r_b"].values, a=ds["r_a"].values)
"""

#: Around every peer's program: it leaves r of the best partners, best first, in ``top`` (feature, k).
PEER = """
import time
import numpy as np
import storage
{imports}
a, b, k = arguments["a"], arguments["b"], arguments["top_k"]
start = time.perf_counter()
{program}
figures["seconds"] = time.perf_counter() - start
np.savez(arguments["out"], **{{{side!r}: np.asarray(top)}})
"""

NUMPY = """
x, y = storage.read_dense(a), storage.read_dense(b)
r = np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :]
partner = np.argpartition(-r, k, axis=1)[:, :k]
top = np.sort(np.take_along_axis(r, partner, axis=1), axis=1)[:, ::-1]
"""

# As in the study that this work starts from: z-scores, blocks of 100 B features, the best A features of each.
TORCH = """
def z_scores(path):
    x = torch.from_numpy(storage.read_dense(path))
    return x.sub_(x.mean(0)).div_(x.std(0, correction=0))
x, y = z_scores(a), z_scores(b)
best = [torch.topk(x.T @ y[:, at : at + 100] / len(x), k, dim=0) for at in range(0, y.shape[1], 100)]
top, partner = torch.cat([one.values.T for one in best]), torch.cat([one.indices.T for one in best])
"""

DASK = """
def z_scores(path):
    x = storage.open_activations(path)["activation"].data
    return (x - x.mean(0)) / x.std(0)
x, y = z_scores(a), z_scores(b)
r = x.T @ y / x.shape[0]
top, partner = dask.compute(da.topk(r, k, axis=1), da.argtopk(r, k, axis=1), scheduler="threads")
"""

SKLEARN = """
def centred(path):
    x = storage.read_dense(path)
    x -= x.mean(0)
    return x.T
def best(distance, first):
    partner = np.argpartition(distance, k, axis=1)[:, :k]
    return np.sort(1 - np.take_along_axis(distance, partner, axis=1), axis=1)[:, ::-1]
chunks = pairwise_distances_chunked(centred(a), centred(b), metric="cosine", reduce_func=best)
top = np.concatenate(list(chunks))
"""

SCIPY = """
x, y = (storage.read_csr(path).astype(np.float64) for path in (a, b))
n = x.shape[0]
mean = [np.asarray(side.mean(axis=0)).ravel() for side in (x, y)]
std = [np.sqrt(np.asarray(side.multiply(side).mean(axis=0)).ravel() - m * m) for side, m in zip((x, y), mean)]
columns, best = x.tocsc(), []
for at in range(0, x.shape[1], 1024):
    part = slice(at, at + 1024)
    r = (columns[:, part].T.tocsr() @ y).toarray() / n - np.outer(mean[0][part], mean[1])
    r /= np.outer(std[0][part], std[1])
    partner = np.argpartition(-r, k, axis=1)[:, :k]
    best.append(np.sort(np.take_along_axis(r, partner, axis=1), axis=1)[:, ::-1])
top = np.concatenate(best)
"""


@dataclass(frozen=True)
class Peer:
    """What one could pick instead.

    Attributes
    ----------
    name
        As the table calls it.
    program, imports
        What it runs, and what it imports before the clock starts.
    side
        Whose partners it ranks: ``b``, the partners of every A feature, or ``a``.
    large
        Whether it can do the larger size in a few gigabytes and about a minute.
    """

    name: str
    program: str
    imports: str = ""
    side: str = "b"
    large: bool = True

    @property
    def code(self) -> str:
        """The whole program of the measured process."""
        return PEER.format(imports=self.imports, program=self.program, side=self.side)


PEERS = (
    Peer("scipy sparse product", SCIPY),
    Peer("torch, blocked as in the study", TORCH, "import torch", side="a"),
    Peer("dask.array A.T @ B, topk", DASK, "import dask\nimport dask.array as da"),
    Peer(ORACLE, NUMPY, large=False),
    Peer(
        "sklearn pairwise_distances_chunked",
        SKLEARN,
        "from sklearn.metrics import pairwise_distances_chunked",
        large=False,
    ),
)


def measure_size(folder: Path, shape: tuple[int, int, int], top_k: int, peers: list[Peer]) -> list[dict[str, Any]]:
    """Run us and some peers on two random stores of one size.

    Parameters
    ----------
    folder
        An empty folder for stores and results.
    shape
        Rows, features, and active features a row.
    top_k
        Partners of each feature.
    peers
        Who runs beside us.

    Returns
    -------
    list of dict
        A line for each: ours first, then name, size, seconds, peak_gb, ratios and difference of every peer.
    """
    rows, features, active = shape
    paths = {side: str(folder / f"{side}.zarr") for side in "ab"}
    for seed, path in enumerate(paths.values(), start=1):
        write_random_store(path, rows, features, active, seed)
    size = f"{rows:,} × {features:,}, {active} active"
    arguments = {**paths, "top_k": top_k}
    ours = run_measured(SUBSPACE, arguments | {"out": str(folder / "ours.npz")})
    lines = [_line(OURS, size, ours, ours, None)]
    with np.load(folder / "ours.npz", allow_pickle=False) as top:
        own = dict(top)
    for number, peer in enumerate(peers):
        file = folder / f"{number}.npz"
        figures = run_measured(peer.code, arguments | {"out": str(file)})
        with np.load(file, allow_pickle=False) as found:
            difference = float(np.abs(found[peer.side] - own[peer.side]).max())
        lines.append(_line(peer.name, size, figures, ours, difference))
    return lines


def _line(
    name: str, size: str, figures: dict[str, Any], ours: dict[str, Any], difference: float | None
) -> dict[str, Any]:
    return {
        "peer": name,
        "size": size,
        "seconds": figures["seconds"],
        "cpu_seconds": figures["cpu_seconds"],
        "peak_gb": figures["peak_gb"],
        "ratio": ours["seconds"] / figures["seconds"],
        "memory_ratio": ours["peak_gb"] / figures["peak_gb"],
        "difference": difference,
    }


def benchmark(large: tuple[int, int, int], small: tuple[int, int, int], top_k: int) -> dict[str, Any]:
    """Run all peers and return the figures.

    Parameters
    ----------
    large, small
        Rows, features, and active features a row, of the two sizes.
    top_k
        Partners of each feature.
    """
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-peers-") as temporary:
        _warm_up(Path(temporary) / "warm")
        for name, shape in (("large", large), ("small", small)):
            folder = Path(temporary) / name
            folder.mkdir()
            lines += measure_size(folder, shape, top_k, [peer for peer in PEERS if peer.large == (name == "large")])
            shutil.rmtree(folder)
    theirs = [line for line in lines if line["peer"] != OURS]
    options = f"--rows {large[0]} --features {large[1]} --active {large[2]}"
    return {
        "name": "peers",
        "command": f"python -m benchmarks.peers {options} --small-rows {small[0]} --small-features {small[1]}",
        "seconds": lines[0]["seconds"],
        "peak_gb": lines[0]["peak_gb"],
        "max_error": next(line["difference"] for line in theirs if line["peer"] == ORACLE),
        "ratios": {line["peer"]: line["ratio"] for line in theirs},
        "memory_ratios": {line["peer"]: line["memory_ratio"] for line in theirs},
        "differences": {line["peer"]: line["difference"] for line in theirs},
        "ahead_in_all": all(line["ratio"] < 1 and line["memory_ratio"] < 1 for line in theirs),
        "load": os.getloadavg()[0],
        "lines": lines,
    }


def _warm_up(folder: Path) -> None:
    """Let our kernels be compiled and kept in Numba's cache, where no earlier run has left them."""
    folder.mkdir()
    for seed, side in enumerate("ab"):
        write_random_store(folder / side, 200, 50, 4, seed)
    run_measured(SUBSPACE, {"a": str(folder / "a"), "b": str(folder / "b"), "top_k": 2, "out": str(folder / "out.npz")})


def table(lines: list[dict[str, Any]]) -> Table:
    """Return the figures as a table: a line for each peer, and one of ours for each size."""
    shown = Table(title="All pairs of features: the same work by each")
    for name in ("who", "size", "seconds", "peak GB", "our time ÷", "our memory ÷", "max difference of r"):
        shown.add_column(name, justify="left" if name in ("who", "size") else "right", no_wrap=True)
    for line in lines:
        own = line["peer"] == OURS
        compared = ("", "", "") if own else (_ratio(line["ratio"]), _ratio(line["memory_ratio"]))
        difference = () if own else (f"{line['difference']:.0e}",)
        shown.add_row(
            line["peer"], line["size"], f"{line['seconds']:.2f}", f"{line['peak_gb']:.2f}", *compared, *difference
        )
    return shown


def _ratio(value: float) -> str:
    """Write a ratio as people say it.

    >>> _ratio(0.05), _ratio(1.5)
    ('1/20', '1.50')
    """
    return f"1/{1 / value:.3g}" if value < 1 else f"{value:.2f}"


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--features", type=int, default=6000)
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument("--small-rows", type=int, default=20_000)
    parser.add_argument("--small-features", type=int, default=3000)
    parser.add_argument("--top-k", type=int, default=16)
    given = parser.parse_args()
    large, small = (given.rows, given.features), (given.small_rows, given.small_features)
    result = benchmark((*large, given.active), (*small, given.active), given.top_k)
    Console(width=150).print(table(result["lines"]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
