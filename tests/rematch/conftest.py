"""Two models on the same text: what their features share is planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import xarray as xr

import storage
from pipeline.correlate.run import correlate
from pipeline.match.run import match
from pipeline.rematch.run import rematch

WORDS = [f"word{i}" for i in range(12)]


@dataclass(frozen=True)
class Planted:
    """Stores of both sides, their correlation and pairs, in a folder with the corpus."""

    folder: Path
    n_features: int

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.zarr"

    @property
    def stores(self) -> tuple[Path, Path]:
        return self.path("a"), self.path("b")

    def pairs(self, **options: Any) -> Path:
        cor = correlate(*self.stores, out=self.path("cor"), keep_above=0.1)
        match(cor, out=self.path("pairs"), **{"min_correlation": 0.2, **options}, overwrite=True)
        return self.path("pairs")

    def rematch(self, name: str = "rematched", **options: Any) -> xr.Dataset:
        if not self.path("pairs").exists():
            self.pairs()
        given = {"corpus": self.path("corpus"), "metrics": [], "draws": 5, **options}
        return rematch(self.path("pairs"), self.path("cor"), *self.stores, out=self.path(name), **given)


def plant(
    folder: Path, *, shared_sense: bool, n_documents: int = 40, rows: int = 50, seed: int = 0, layout: str = "csr"
) -> Planted:
    """Write two stores whose features fire on words; where senses are shared, in the same of two senses too.

    A word has two senses, which alternate at random from row to row. A's feature of a word fires in one sense. B's
    fires in the same one, or in one of its own that has nothing to do with A's.
    """
    rng = np.random.default_rng(seed)
    word = rng.integers(0, len(WORDS), (n_documents, rows))
    storage.write_corpus(folder / "corpus.zarr", (" ".join(WORDS[w] for w in line) for line in word))
    ends = np.cumsum([[len(WORDS[w]) + 1 for w in line] for line in word], axis=1) - 1
    lengths = np.array([[len(WORDS[w]) for w in line] for line in word])
    tokens = {
        "document": np.repeat(np.arange(n_documents), rows),
        "char_start": (ends - lengths).ravel(),
        "char_end": ends.ravel(),
        "position": np.tile(np.arange(rows), n_documents),
    }
    n = word.size
    sense = {"a": rng.random(n) < 0.5, "b": rng.random(n) < 0.5}
    if shared_sense:
        sense["b"] = np.where(rng.random(n) < 0.9, sense["a"], sense["b"])
    decoder = rng.normal(size=(len(WORDS), 8))
    for side in "ab":
        noise = rng.exponential(0.3, (n, len(WORDS))) * (rng.random((n, len(WORDS))) < 0.05)
        fires = (word.ravel()[:, None] == np.arange(len(WORDS))) & sense[side][:, None]
        values = (fires * rng.uniform(0.8, 1.2, fires.shape) + noise).astype("f4")
        storage.write_activations(
            folder / f"{side}.zarr",
            sp.csr_array(values) if layout == "csr" else values,
            tokens=tokens,
            decoder=decoder,
            attrs={"corpus_hash": storage.open_corpus(folder / "corpus.zarr").hash, "kind": "post"},
            layout=layout,
            shard_rows=256,
        )
    return Planted(folder, len(WORDS))


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., Planted]:
    def make(**options: Any) -> Planted:
        return plant(tmp_path, **options)

    return make
