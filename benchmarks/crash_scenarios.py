"""What :mod:`benchmarks.crash` lets die: every stage and verb that writes, on small data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

import storage
from benchmarks.crash import Action, Scenario
from benchmarks.toy import make_inputs
from jobs.cli import app


def verb(*words: str) -> Action:
    """Return an action that runs the ``subspace`` command."""

    def run() -> int:
        try:
            app(list(words))
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def then(*actions: Action) -> Action:
    """Return an action that runs some, one after the other."""
    return lambda: next((status for action in actions if (status := action())), 0)


# --- stores -----------------------------------------------------------------------------------------------------------

ROWS, FEATURES = 150, {"a": 90, "b": 70}


def values(side: str, *, sparse: bool, scale: float = 1.0) -> Any:
    """Return (token, feature) activations of a side."""
    draw = np.random.default_rng(ord(side))
    dense = draw.normal(size=(ROWS, FEATURES[side])).astype("f4") * np.float32(scale)
    return scipy.sparse.csr_array(np.maximum(dense - 1.2 * scale, 0)) if sparse else dense


def tokens() -> dict[str, Any]:
    """Return the coordinates of the rows: 15 documents."""
    place = np.arange(ROWS)
    return {"document": place // 10, "position": place % 10, "char_start": place, "char_end": place + 1,
            "token_id": place % 23}  # fmt: skip


def write_store(path: str, side: str, *, sparse: bool, scale: float = 1.0) -> Action:
    """Return an action that writes a store at once."""

    def run() -> int:
        decoder = np.random.default_rng(0).normal(size=(FEATURES[side], 8))
        storage.write_activations(
            path, values(side, sparse=sparse, scale=scale), tokens=tokens(), decoder=decoder,
            attrs={"kind": "post", "model": side}, shard_rows=64, chunk=(32, 16),
        )  # fmt: skip
        return 0

    return run


def piecewise(scale: float) -> Action:
    """Return an action that writes a store shard by shard, and goes on with one that was begun."""

    def run() -> int:
        data = values("a", sparse=True, scale=scale)
        manifest = storage.new_manifest("harvest", {}, {"scale": scale})
        if storage.is_current("a.zarr", manifest):
            return 0
        writer = storage.ActivationWriter.create(
            "a.zarr", n_tokens=ROWS, n_features=FEATURES["a"], tokens=tokens(), attrs={"kind": "post"},
            shard_rows=64, chunk=(32, 16), manifest=manifest,
        )  # fmt: skip
        for i in writer.missing():
            writer.write_shard(i, data[writer.shard_slice(i)], np.arange(len(range(ROWS)[writer.shard_slice(i)])) == 3)
        writer.finalise()
        return 0

    return run


def corpus(n: int) -> Action:
    """Return an action that writes a corpus."""

    def run() -> int:
        storage.write_corpus("corpus.zarr", (f"document {i}" for i in range(n)), names=map(str, range(n)))
        return 0

    return run


# --- what they begin with ---------------------------------------------------------------------------------------------


def nothing() -> int:
    """Leave the folder empty."""
    return 0


def toy() -> int:
    """Make the models and the text of the toy experiment."""
    make_inputs(Path("input"))
    return 0


SPARSE = then(write_store("a.zarr", "a", sparse=True), write_store("b.zarr", "b", sparse=True))
DENSE = then(write_store("a.zarr", "a", sparse=False), write_store("b.zarr", "b", sparse=False))
CORRELATE = ("correlate", "a.zarr", "b.zarr", "--out", "c.zarr", "--top-k", "4", "--memory", "4GB")

#: Name → the folder that it is made from, and how.
STARTS: dict[str, tuple[str | None, Action]] = {
    "nothing": (None, nothing),
    "sparse": (None, SPARSE),
    "dense": (None, DENSE),
    "correlated": ("sparse", verb(*CORRELATE)),
    "matched": ("correlated", verb("match", "c.zarr", "--out", "pairs.zarr")),
    "toy": (None, toy),
}

SCENARIOS: list[Scenario] = [
    Scenario("write_activations, csr", "nothing", write_store("a.zarr", "a", sparse=True), ("a.zarr",),
             write_store("a.zarr", "a", sparse=True, scale=2)),
    Scenario("write_activations, dense", "nothing", write_store("a.zarr", "a", sparse=False), ("a.zarr",),
             write_store("a.zarr", "a", sparse=False, scale=2)),
    Scenario("ActivationWriter", "nothing", piecewise(1), ("a.zarr",), piecewise(2)),
    Scenario("write_corpus", "nothing", corpus(9), ("corpus.zarr",), corpus(7)),
    Scenario("correlate", "sparse", verb(*CORRELATE), ("c.zarr",), verb(*CORRELATE, "--keep-above", "0.2")),
    Scenario("match, csv", "correlated", verb("match", "c.zarr", "--out", "pairs.zarr", "--csv", "pairs.csv"),
             ("pairs.zarr", "pairs.csv"),
             verb("match", "c.zarr", "--out", "pairs.zarr", "--csv", "pairs.csv", "--method", "mutual")),
]  # fmt: skip
