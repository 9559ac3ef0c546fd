"""A small synthetic run: two models whose features fire on words, with planted pairs, written through ``storage``.

Correlation and matching are the real stages; the scores are made up unless a test asks for real ones, so that reports
of any outcome can be tested.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import xarray as xr

import storage
from pipeline.compare.run import compare
from pipeline.correlate.run import correlate
from pipeline.harvest.contexts import contexts
from pipeline.match.run import match
from storage.rundir import RunDirectory

TOPICS = {
    "weather": ["rain", "storm", "wind", "flood", "snow", "drought", "cloud", "thunder"],
    "court": ["judge", "trial", "court", "lawyer", "verdict", "appeal", "sentence", "jury"],
    "sport": ["match", "goal", "coach", "cricket", "team", "wicket", "season", "striker"],
    "money": ["bank", "market", "shares", "profit", "price", "tax", "dollar", "budget"],
    "war": ["troops", "attack", "border", "army", "soldiers", "missile", "ceasefire", "rebels"],
    "health": ["hospital", "doctor", "vaccine", "patient", "virus", "nurse", "disease", "clinic"],
}
GLUE = [
    "the",
    "of",
    "a",
    "and",
    "in",
    "on",
    "said",
    "that",
    "was",
    "for",
    "has",
    "by",
    "with",
    "at",
    "it",
    "is",
    "as",
    "from",
    "will",
]
HOSTILE = (
    '<script>alert("pwned")</script> <img src=x onerror=alert(1)> </textarea></style> "quoted" & <b>bold</b>\n'
    "http://evil.example/pixel.png javascript:alert(2) {{ 7*7 }} \x00 \u202e reversed"
)
SITES = {"a": ["layers.6", "layers.12"], "b": ["encoder.layer.2", "encoder.layer.10"]}
WIDTHS = {"a": 72, "b": 64}
METRICS = ("svcca", "rsa", "svcca_pc1")


def write_texts(rng: np.random.Generator, n_documents: int) -> list[str]:
    """Make short news items about one topic each, and one document full of markup."""
    texts = []
    for _ in range(n_documents - 1):
        topic = TOPICS[rng.choice(list(TOPICS))]
        words = [rng.choice(topic) if rng.random() < 0.25 else rng.choice(GLUE) for _ in range(90)]
        sentences = [" ".join(words[i : i + 15]).capitalize() + "." for i in range(0, 90, 15)]
        texts.append(" ".join(sentences[:3]) + "\n" + " ".join(sentences[3:]))
    return [*texts, HOSTILE]


def tokenize(texts: list[str]) -> dict[str, np.ndarray]:
    """Make every word and every sign a row."""
    spans = [
        (d, result.start(), result.end())
        for d, text in enumerate(texts)
        for result in re.finditer(r"\w+|[^\w\s]", text)
    ]
    document, start, end = np.array(spans).T
    return {
        "document": document.astype(np.int32),
        "char_start": start.astype(np.int64),
        "char_end": end.astype(np.int64),
    }


def activate(rng: np.random.Generator, tokens: list[str], width: int, noise: float) -> sp.csr_array:
    """Let feature i fire on a fixed small set of words, more or less strongly, and now and then at random."""
    vocabulary = sorted(set(tokens))
    chooser = np.random.default_rng(7)
    names = [*[w for words in TOPICS.values() for w in words], "script", "alert", "img", "b", *vocabulary]
    firing = np.zeros((len(tokens), width), dtype=np.float32)
    for feature in range(width - 2):
        words = {names[feature % len(names)]} | set(chooser.choice(vocabulary, 1 if feature % 3 else 0))
        hit = np.array([token.lower() in words for token in tokens])
        firing[hit, feature] = rng.uniform(2, 6, hit.sum())
    firing += (rng.random(firing.shape) < noise) * rng.uniform(0.2, 2, firing.shape)
    firing[:, -2:] = 0
    return sp.csr_array(firing.astype(np.float32))


@dataclass
class SyntheticRun:
    """What the synthetic run is to look like; scores are made up around `score`, and really computed if it is None."""

    n_documents: int = 24
    sites: dict[str, list[str]] = field(default_factory=lambda: SITES)
    heldout: bool = True
    score: float | None = 0.4
    null_runs: int = 200
    min_correlation: float = 0.2
    filters: list[dict[str, Any]] = field(default_factory=list)
    noise: float = 0.002
    seed: int = 0
    name: str = "toy-a-vs-toy-b"

    def write(self, root: Path, client: Any) -> RunDirectory:
        """Write every stage's result below `root`."""
        run = RunDirectory(root)
        rng = np.random.default_rng(self.seed)
        texts = write_texts(rng, self.n_documents)
        run.write_experiment(self._experiment())
        storage.write_corpus(run.corpus, texts, overwrite=True)
        rows = tokenize(texts)
        storage.write_result(
            xr.Dataset({name: ("token", values) for name, values in rows.items()}),
            run.rows,
            storage.new_manifest("rows", {}, {"max_length": 64}),
            overwrite=True,
        )
        words = [texts[d][s:e] for d, s, e in zip(*rows.values(), strict=True)]
        for side, sites in self.sites.items():
            for depth, site in enumerate(sites):
                active = activate(rng, words, WIDTHS[side], self.noise + 0.01 * depth)
                self._store(run.activations(side, site), side, site, active, rows, rng)
                contexts(run.activations(side, site), run.contexts(side, site), client=client)
        for a in self.sites["a"]:
            for b in self.sites["b"]:
                self._pair(run, a, b, rng, client)
        return run

    def _experiment(self) -> dict[str, Any]:
        model = {"dictionary": "toy/{site}"}
        return {
            "name": self.name,
            "corpus": {"path": "texts.jsonl"},
            "a": {"model": "toy/model-a", "sites": self.sites["a"], **model},
            "b": {"model": "toy/model-b", "sites": self.sites["b"], **model},
            "match": {"min_correlation": self.min_correlation, "filters": self.filters},
        }

    def _store(self, path: Path, side: str, site: str, active: sp.csr_array, rows: dict, rng: Any) -> None:
        writer = storage.ActivationWriter.create(
            path,
            n_tokens=active.shape[0],
            n_features=active.shape[1],
            tokens=rows,
            decoder=rng.standard_normal((active.shape[1], 16)),
            attrs={
                "model": f"toy/model-{side}",
                "site": site,
                "dictionary": f"toy/{site}",
                "kind": "post",
                "calibration": {"n_rows": 500, "n_sinks": 2, "fvu": 0.21, "fvu_with_sinks": 0.48, "l0": 3.1},
            },
            shard_rows=512,
            chunk=(256, 32),
        )
        for i in range(writer.n_shards):
            part = writer.shard_slice(i)
            writer.write_shard(i, active[part], sink=np.arange(part.start, part.stop) % 997 == 0)
        writer.finalise()

    def _pair(self, run: RunDirectory, a: str, b: str, rng: np.random.Generator, client: Any) -> None:
        stores = run.activations("a", a), run.activations("b", b)
        select = "half" if self.heldout else "all"
        correlate(*stores, top_k=4, select=select, min_firing=0, memory="1GB", out=run.correlation(a, b), client=client)
        settings = {"min_correlation": self.min_correlation, "filters": self.filters}
        pairs = match(run.correlation(a, b), **settings, out=run.pairs(a, b))
        if self.score is None:
            text = {"contexts": (run.contexts("a", a), run.contexts("b", b)), "corpus": run.corpus}
            nulls = ["shuffled", "shuffled_words"]
            compare(pairs, *stores, nulls=nulls, null_runs=self.null_runs, **text, out=run.scores(a, b), client=client)
        else:
            scores = self._scores(pairs.sizes["pair"], rng)
            storage.write_result(
                scores, run.scores(a, b), storage.new_manifest("compare", {}, {"seed": self.seed}), overwrite=True
            )

    def _scores(self, n_pairs: int, rng: np.random.Generator) -> xr.Dataset:
        null = rng.normal([[0.21], [0.0], [0.1]], [[0.02], [0.03], [0.05]], (3, self.null_runs))
        score = np.array([self.score, self.score / 3, self.score / 2]) + rng.normal(0, 0.02, 3)
        columns = {
            "null_mean": null.mean(1),
            "null_std": null.std(1),
            "null_q05": np.quantile(null, 0.05, 1),
            "null_q95": np.quantile(null, 0.95, 1),
            "difference": score - null.mean(1),
            "z": (score - null.mean(1)) / null.std(1),
            "p": ((null >= score[:, None]).sum(1) + 1) / (self.null_runs + 1),
        }
        note = np.array([f"saturated: {n_pairs} pairs, not more than the 60 + 60 components kept", "", ""], object)
        return xr.Dataset(
            {
                **{name: (("null", "metric"), values[None]) for name, values in columns.items()},
                **{name: ("metric", values) for name, values in (("score", score), ("low", score), ("high", score))},
                "null_score": (("null", "metric", "run"), null[None]),
                "note": ("metric", note),
                "n_pairs": ((), n_pairs),
            },
            coords={"metric": np.array(METRICS, object), "null": np.array(["shuffled"], object)},
        )


@pytest.fixture(scope="session")
def write_run(client) -> Callable[..., RunDirectory]:
    """Return a function that writes a synthetic run."""

    def write(root: Path, **settings: Any) -> RunDirectory:
        return SyntheticRun(**settings).write(root, client)

    return write
