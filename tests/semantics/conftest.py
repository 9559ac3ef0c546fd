"""Two models that share one meaning out of three: stores, contexts, correlation and pairs with a known answer.

Every feature fires on a word of its own. Three groups of words are concepts:

* ``weather``: A's and B's features fire on the same words, and B's decoder rows are A's, rotated, with noise;
* ``law``: only A has features for it;
* ``sport``: both have features that fire alike, but which of B's decoder rows belongs to which word is shuffled: the
  sets match and the arrangement does not.

The other words are filler, in both models, with unrelated decoder rows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import xarray as xr

import storage
from pipeline.correlate.run import correlate
from pipeline.harvest.contexts import contexts
from pipeline.match.run import match
from pipeline.semantics.concepts import load_concepts
from pipeline.semantics.membership import concept_features
from pipeline.semantics.run import Site, semantics
from pipeline.settings.semantics import SubspaceSettings
from storage.rundir import RunDirectory

SETTINGS = SubspaceSettings(metrics=["svcca:k=4", "rsa", "svcca"], null_runs=199)
N_WORDS = 16
D_A, D_B = 24, 20


def _words(name: str, n: int) -> list[str]:
    """Return made-up words without a common root, the same every time."""
    draw = random.Random(name)
    return [
        "".join(draw.choices("bdfgklmnprst", k=1) + draw.choices("aeiou", k=1) + draw.choices("bdfgklmnprst", k=4))
        for _ in range(n)
    ]


GROUPS = {name: _words(name, N_WORDS) for name in ("weather", "law", "sport")}
FILLER = _words("filler", 60)
YAML = "".join(f"{name}: {{keywords: [{', '.join(words)}]}}\n" for name, words in GROUPS.items())


@dataclass(frozen=True)
class Planted:
    """The files of the planted run."""

    run: RunDirectory
    sites: tuple[Site, Site]
    concepts: Path

    @property
    def pairs(self) -> Path:
        return self.run.pairs("s", "s")

    @property
    def correlation(self) -> Path:
        return self.run.correlation("s", "s")


def write_planted(folder: Path, client: object, seed: int = 0) -> Planted:
    """Write the planted run below `folder`."""
    rng = np.random.default_rng(seed)
    run = RunDirectory(folder)
    (folder / "concepts.yaml").write_text(YAML)
    tokens, rows, texts = _text(rng)
    storage.write_corpus(run.corpus, texts, overwrite=True)
    words_a = [*GROUPS["weather"], *GROUPS["law"], *GROUPS["sport"], *FILLER]
    words_b = [*GROUPS["weather"], *GROUPS["sport"], *FILLER]
    decoder_a = rng.normal(size=(len(words_a), D_A))
    _store(run.activations("a", "s"), tokens, rows, words_a, decoder_a, rng)
    _store(run.activations("b", "s"), tokens, rows, words_b, _decoder_b(decoder_a, words_a, words_b, rng), rng)
    stores = run.activations("a", "s"), run.activations("b", "s")
    correlate(
        *stores, top_k=4, keep_above=0.05, select="all", memory="1GB", out=run.correlation("s", "s"), client=client
    )
    match(run.correlation("s", "s"), min_correlation=0.1, out=run.pairs("s", "s"))
    sites = tuple(_site(run, side, folder / "concepts.yaml", client) for side in ("a", "b"))
    return Planted(run, (sites[0], sites[1]), folder / "concepts.yaml")


def _text(rng: np.random.Generator) -> tuple[list[str], dict[str, np.ndarray], list[str]]:
    vocabulary = [*FILLER, *(word for words in GROUPS.values() for word in words)]
    documents = [rng.choice(vocabulary, 80).tolist() for _ in range(60)]
    tokens, spans = [], []
    for number, words in enumerate(documents):
        at = 0
        for word in words:
            spans.append((number, at, at + len(word)))
            tokens.append(word)
            at += len(word) + 1
    document, start, end = np.array(spans).T
    rows = {"document": document.astype(np.int32), "char_start": start, "char_end": end}
    return tokens, rows, [" ".join(words) for words in documents]


def _decoder_b(decoder_a: np.ndarray, words_a: list[str], words_b: list[str], rng: np.random.Generator) -> np.ndarray:
    rotation = np.linalg.qr(rng.normal(size=(D_A, D_A)))[0][:, :D_B]
    decoder = rng.normal(size=(len(words_b), D_B))
    place = {word: i for i, word in enumerate(words_b)}
    for name in ("weather", "sport"):
        rows = np.array([decoder_a[words_a.index(word)] for word in GROUPS[name]]) @ rotation
        order = np.roll(np.arange(N_WORDS), N_WORDS // 2) if name == "sport" else np.arange(N_WORDS)
        for word, row in zip(GROUPS[name], rows[order], strict=True):
            decoder[place[word]] = row + rng.normal(0, 0.15, D_B)
    return decoder


def _store(
    path: Path, tokens: list[str], rows: dict, words: list[str], decoder: np.ndarray, rng: np.random.Generator
) -> None:
    place = {word: i for i, word in enumerate(words)}
    columns = np.array([place.get(token, -1) for token in tokens])
    fires = np.flatnonzero(columns >= 0)
    values = rng.uniform(2, 4, len(fires))
    dense = sp.csr_array((values, (fires, columns[fires])), shape=(len(tokens), len(words))).astype(np.float32)
    noise = sp.random_array(dense.shape, density=0.002, rng=rng, data_sampler=lambda size: rng.uniform(0.1, 1, size))
    writer = storage.ActivationWriter.create(
        path, n_tokens=dense.shape[0], n_features=dense.shape[1], tokens=rows, decoder=decoder,
        attrs={"model": f"toy/{path.parent.name}", "site": "s", "kind": "post"}, shard_rows=1024, chunk=(512, 32),
    )  # fmt: skip
    active = sp.csr_array(dense + noise.astype(np.float32))
    for i in range(writer.n_shards):
        writer.write_shard(i, active[writer.shard_slice(i)])
    writer.finalise()


def _site(run: RunDirectory, side: str, concepts: Path, client: object) -> Site:
    store, tops, own = run.activations(side, "s"), run.contexts(side, "s"), run.concepts(side, "s")
    contexts(store, tops, client=client)
    concept_features(tops, store, run.corpus, load_concepts(concepts), out=own, client=client)
    return Site(store, tops, own)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory, client: Any) -> Planted:
    """The files of the planted run."""
    return write_planted(tmp_path_factory.mktemp("planted"), client)


@pytest.fixture(scope="session")
def settings() -> SubspaceSettings:
    """How the planted run is tested."""
    return SETTINGS


@pytest.fixture(scope="session")
def found(planted: Planted, settings: SubspaceSettings, client: Any) -> xr.Dataset:
    """The semantics result of the planted run, kept in its run directory."""
    paths = planted.pairs, planted.correlation, planted.sites, planted.run.corpus
    return semantics(*paths, settings, out=planted.run.semantics("s", "s"), client=client).load()
