"""How many of the pairs are right? Pairs of synthetic dictionaries of which it is known what they share.

::

    python -m benchmarks.truth | tail -n 1 > benchmarks/results/truth.json      # 15 minutes
    python -m benchmarks.truth --table                                          # the tables of docs/ground-truth.md

Two worlds:

``documents``
    Concepts fire in bursts, more often in documents on their topic, or on one token; frequencies span a factor of 200,
    values are heavy-tailed. Some fire only where another one does. Of what A and B share, B splits some features into
    two or four, and some of B's general features are silent where a special one fires (absorption). Some features of
    either side are dead. Whatever A and B do not share still reads the same documents.
``SyntheticModel``
    Rows of :class:`sae_lens.synthetic.SyntheticModel`, drawn one by one, with Zipf's firing probabilities, low-rank
    correlations between features, and a hierarchy.

B sees a shared concept with noise: it misses some firings, fires elsewhere as often, and its values differ. A pair is
``right`` if both stand for the same concept (the parts of a split feature are), ``kin`` if one fires only where the
other does, and wrong otherwise. Recall is of the shared concepts that fire at least so often in the rows that choose,
in both dictionaries.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import xarray as xr
from sae_lens.synthetic import (
    HierarchyConfig,
    LowRankCorrelationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from scipy.optimize import linear_sum_assignment

from benchmarks.table import RESULTS, ROOT, insert, update
from pipeline import correlate, match
from pipeline.correlate.rows import half_of
from pipeline.settings.correlate import CorrelateSettings
from pipeline.settings.match import MatchSettings
from pipeline.settings.registries import METHODS
from pipeline.work.workers import ensure_client
from storage import write_activations

RESULT = RESULTS / "truth" / "truth.json"
PAGE = ROOT / "docs" / "ground-truth.md"
WORLDS = ("documents", "SyntheticModel")
OVERLAPS = (0, 10, 25, 50, 75, 100)
ROWS = (5_000, 20_000, 60_000)
#: Rows and overlaps of the tables that vary one setting.
MIDDLE, HALF = 20_000, 50
NOISE, NOISES = 0.1, (0.1, 0.3, 0.5, 0.7)
FEATURES = 1_500
#: Firings in the rows that choose, from which recall is counted.
FIRINGS = (10, 30, 100)
#: The recall that the tables show, but for the one that decides.
FOUND = "recall_30"
#: What people do.
PEERS = ("best r, no test", "linear_sum_assignment")
MIN_R = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
MIN_FIRING = (0, 10, 20, 30, 50)
MEASURES = ("pearson", "spearman", "cosine", "phi", "jaccard")

#: Of documents: rows of one, topics, and the shape of the gamma distribution of a topic's weight in a document.
DOCUMENT_ROWS, TOPICS, WEIGHT = 150, 40, 0.5
#: Of firing: lowest and highest probability, the chance that a firing goes on for another row, and the standard
#: deviation of the log of values.
RAREST, MOST, BURST, TAIL = 3e-4, 6e-2, 0.3, 0.6
#: Shares of concepts: on one token, that fire only where another does, and dead features.
ON_TOKEN, CHILDREN, DEAD = 0.2, 0.1, 0.05
TOKENS = 4_000
#: Shares of shared concepts that B splits into so many, and of shared children that silence their parent in B.
SPLITS, ABSORBED = {2: 0.06, 4: 0.04}, 0.5
#: Standard deviation of the log of how much B's value differs from A's, for each unit of noise.
VALUE_NOISE = 3.0


NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


class Pair(NamedTuple):
    """Two dictionaries' activations, (row, feature), the document of each row, and which pairs are right and kin."""

    a: sp.csr_array
    b: sp.csr_array
    document: np.ndarray
    right: np.ndarray
    kin: np.ndarray


class Firings(NamedTuple):
    """Where concepts fire, by rising concept: the row and value of each firing."""

    concept: np.ndarray
    row: np.ndarray
    value: np.ndarray


def fire(rng: np.random.Generator, n_concepts: int, n_documents: int) -> tuple[Firings, np.ndarray]:
    """Return where concepts fire in a text, and for each the concept in which it is contained (-1: in none)."""
    n_rows = n_documents * DOCUMENT_ROWS
    weights = rng.gamma(WEIGHT, 1 / WEIGHT, (n_documents, TOPICS))
    rates = np.exp(rng.uniform(np.log(RAREST), np.log(MOST), n_concepts))
    expected = rates * (1 - BURST) * DOCUMENT_ROWS * weights[:, rng.integers(0, TOPICS, n_concepts)]
    document, concept = np.divmod(np.repeat(np.arange(expected.size), rng.poisson(expected).ravel()), n_concepts)
    length = rng.geometric(1 - BURST, len(concept))
    start = rng.integers(0, DOCUMENT_ROWS, len(concept))
    concept, document = np.repeat(concept, length), np.repeat(document, length)
    place = np.repeat(start, length) + _within(length)
    inside = place < DOCUMENT_ROWS
    concept, row = concept[inside], (document * DOCUMENT_ROWS + place)[inside]

    on_token = rng.permutation(n_concepts)[: int(ON_TOKEN * n_concepts)]
    frequency = 1 / (np.arange(TOKENS) + 10.0)
    text = rng.choice(TOKENS, n_rows, p=frequency / frequency.sum())
    token_of = np.full(TOKENS, -1)
    token_of[: len(on_token)] = on_token
    at = np.flatnonzero((token_of[text] >= 0) & (rng.random(n_rows) < 0.9))
    spread = ~np.isin(concept, on_token)
    concept = np.concatenate([concept[spread], token_of[text[at]]])
    row = np.concatenate([row[spread], at])

    parent = np.full(n_concepts, -1)
    children = rng.permutation(np.setdiff1d(np.arange(n_concepts), on_token))[: int(CHILDREN * n_concepts)]
    parent[children] = rng.choice(np.setdiff1d(np.arange(n_concepts), children), len(children), replace=False)
    child_of = np.full(n_concepts, -1)
    child_of[parent[children]] = children
    keep = parent[concept] < 0
    concept, row = concept[keep], row[keep]
    below = (child_of[concept] >= 0) & (rng.random(len(concept)) < 0.5)
    concept, row = np.concatenate([concept, child_of[concept[below]]]), np.concatenate([row, row[below]])

    key = np.unique(concept.astype(np.int64) * n_rows + row)
    return Firings(*np.divmod(key, n_rows), np.exp(rng.normal(0, TAIL, len(key)))), parent


def _within(lengths: np.ndarray) -> np.ndarray:
    """Return 0, 1, … within each of the runs of these lengths."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def sample(rng: np.random.Generator, n_concepts: int, n_rows: int) -> tuple[Firings, np.ndarray]:
    """Return where the features of a :class:`sae_lens.synthetic.SyntheticModel` fire, and their parents."""
    seed = int(rng.integers(2**31))
    torch.manual_seed(seed)
    roots = max(1, int(CHILDREN * n_concepts / 2))
    config = SyntheticModelConfig(
        num_features=n_concepts, hidden_dim=8, seed=seed, std_firing_magnitudes=0.4, bias=False,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=MOST, min_prob=RAREST),
        correlation=LowRankCorrelationConfig(rank=16, correlation_scale=0.1),
        hierarchy=HierarchyConfig(total_root_nodes=roots, branching_factor=2, max_depth=1),
    )  # fmt: skip
    model = SyntheticModel(config)
    blocks = []
    for first in range(0, n_rows, 1_000):
        _, values = model.sample_with_features(min(1_000, n_rows - first))
        blocks.append(sp.csr_array(values.numpy()))
    found = sp.csc_array(sp.vstack(blocks, format="csc"))
    concept = np.repeat(np.arange(n_concepts), np.diff(found.indptr))
    parent = np.full(n_concepts, -1)
    for root in model.hierarchy.roots if model.hierarchy is not None else []:
        for child in root.children:
            parent[child.feature_index] = root.feature_index
    return Firings(concept, found.indices.astype(np.int64), found.data.astype(float)), parent


def draw(world: str, *, seed: tuple[int, ...], n_rows: int, overlap: int, noise: float = NOISE) -> Pair:
    """Return two dictionaries that share `overlap` per cent of their concepts."""
    rng = np.random.default_rng(seed)
    shared = round(FEATURES * overlap / 100)
    n_documents = n_rows // DOCUMENT_ROWS
    n_rows = n_documents * DOCUMENT_ROWS
    n_concepts = 2 * FEATURES - shared
    firings, parent = fire(rng, n_concepts, n_documents) if world == "documents" else sample(rng, n_concepts, n_rows)
    of_a, of_b, is_shared = _deal(rng, parent, shared)
    column_a = np.full(n_concepts, -1)
    column_a[of_a] = np.arange(FEATURES)

    concept_b, row_b, value_b = _noisy(rng, firings, is_shared, noise=noise, n_rows=n_rows)
    absorbed = is_shared & (parent >= 0) & (rng.random(n_concepts) < ABSORBED)
    absorbed &= is_shared[np.maximum(parent, 0)]
    fires = sp.csr_array((np.ones(len(row_b)), (concept_b, row_b)), shape=(n_concepts, n_rows))
    for child in np.flatnonzero(absorbed):
        silent = (concept_b == parent[child]) & np.isin(row_b, fires[[child]].indices)
        concept_b, row_b, value_b = concept_b[~silent], row_b[~silent], value_b[~silent]

    part_of = _split(rng, of_b, is_shared)
    first_part = np.searchsorted(part_of, np.arange(n_concepts))
    parts = np.bincount(part_of, minlength=n_concepts)
    here_b = parts[concept_b] > 0
    concept_b, row_b, value_b = concept_b[here_b], row_b[here_b], value_b[here_b]
    column_b = first_part[concept_b] + rng.integers(0, parts[concept_b])
    here_a = column_a[firings.concept] >= 0
    a = sp.csr_array(
        (firings.value[here_a], (firings.row[here_a], column_a[firings.concept[here_a]])), (n_rows, FEATURES)
    )
    b = sp.csr_array((value_b, (row_b, column_b)), (n_rows, len(part_of)))

    right = of_a[:, None] == part_of[None, :]
    kin = (parent[of_a][:, None] == part_of[None, :]) | (parent[part_of][None, :] == of_a[:, None])
    shuffled = rng.permutation(len(part_of))
    b, right, kin = sp.csr_array(b[:, shuffled]), right[:, shuffled], kin[:, shuffled]
    for side in (a, b):
        _kill(rng, side)
    document = np.repeat(np.arange(n_documents), DOCUMENT_ROWS)
    return Pair(a, b, document, right, kin)


def _deal(rng: np.random.Generator, parent: np.ndarray, shared: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the concepts of A and of B, in random order, and which concepts both have; families stay together."""
    family = np.where(parent >= 0, parent, np.arange(len(parent)))
    order = np.argsort(rng.permutation(len(parent))[family], kind="stable")
    is_shared = np.zeros(len(parent), bool)
    is_shared[order[:shared]] = True
    last = shared + (len(parent) - shared) // 2
    of_a, of_b = order[:last], np.concatenate([order[:shared], order[last:]])
    return rng.permutation(of_a), rng.permutation(of_b), is_shared


def _noisy(rng: np.random.Generator, firings: Firings, shared: np.ndarray, *, noise: float, n_rows: int) -> Firings:
    """Return the firings as B sees them: of shared concepts some are missed, and as many are elsewhere."""
    lost = shared[firings.concept] & (rng.random(len(firings.row)) < noise)
    rows = np.where(lost, rng.integers(0, n_rows, len(firings.row)), firings.row)
    key, at = np.unique(firings.concept.astype(np.int64) * n_rows + rows, return_index=True)
    value = firings.value[at] * np.exp(rng.normal(0, VALUE_NOISE * noise, len(at)))
    return Firings(*np.divmod(key, n_rows), value)


def _split(rng: np.random.Generator, of_b: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Return the concept of each of B's features, ascending: some shared concepts have several."""
    parts = np.ones(len(shared), int)
    candidates = rng.permutation(np.flatnonzero(shared))
    first = 0
    for n, share in SPLITS.items():
        last = first + int(share * len(candidates))
        parts[candidates[first:last]] = n
        first = last
    return np.sort(np.repeat(of_b, parts[of_b]))


def _kill(rng: np.random.Generator, side: sp.csr_array) -> None:
    """Let some features never fire, in place."""
    dead = rng.random(side.shape[1]) < DEAD
    side.data[dead[side.indices]] = 0
    side.eliminate_zeros()


def write(folder: Path, pair: Pair) -> tuple[Path, Path]:
    """Write both sides as stores."""
    paths = folder / "a.zarr", folder / "b.zarr"
    place = np.arange(len(pair.document)) % DOCUMENT_ROWS
    tokens = {"document": pair.document, "char_start": place, "char_end": place + 1}
    for path, side in zip(paths, (pair.a, pair.b), strict=True):
        write_activations(path, side.astype(np.float32), tokens=tokens)
    return paths


def judge(pair: Pair, ids_a: np.ndarray, ids_b: np.ndarray, firing: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Return how many features are paired, how many pairs are right, and how many of the right ones are there."""
    right, kin = pair.right[ids_a, ids_b], pair.kin[ids_a, ids_b]
    n = max(len(ids_a), 1)
    figures: dict[str, Any] = {
        "pairs": len(ids_a),
        "paired": len(np.unique(ids_a)) / max(int(np.count_nonzero(firing[0])), 1),
        "precision": float(right.sum() / n) if len(ids_a) else None,
        "kin": float((kin & ~right).sum() / n) if len(ids_a) else None,
    }
    rows, columns = pair.right.nonzero()
    for least in FIRINGS:
        # a concept counts where A's feature and any of B's parts of it fire often enough
        possible = np.unique(rows[(firing[0][rows] >= least) & (firing[1][columns] >= least)])
        got = np.intersect1d(np.unique(ids_a[right]), possible)
        figures[f"recall_{least}"] = len(got) / len(possible) if len(possible) else None
    return figures


def firing_of(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Return in how many of the rows that choose each feature fires."""
    choosing = half_of(pair.document, 0) == 0
    a, b = (np.bincount(side[choosing].indices, minlength=side.shape[1]) for side in (pair.a, pair.b))
    return a, b


def _matchings(
    pair: Pair, *, matched: Sequence[Mapping[str, Any]], correlated: Mapping[str, Any] = NO_SETTINGS
) -> Iterator[dict[str, Any]]:
    """Yield the figures of matchings of one correlation."""
    firing = firing_of(pair)
    with tempfile.TemporaryDirectory() as folder:
        cor = correlate(*write(Path(folder), pair), **correlated)
        yield from (_matched(pair, cor, firing, settings) for settings in matched)


def _matched(
    pair: Pair, cor: xr.Dataset, firing: tuple[np.ndarray, np.ndarray], settings: Mapping[str, Any]
) -> dict[str, Any]:
    pairs = match(cor, **settings)
    figures = judge(pair, pairs["feature_a"].values, pairs["feature_b"].values, firing)
    for key in ("r", "r_heldout"):
        mean = float(pairs[key].mean())
        figures[key] = mean if np.isfinite(mean) else None
    return figures


def peers(pair: Pair) -> dict[str, dict[str, Any]]:
    """Return the figures of what people do: best r without any test, and SciPy's assignment on the dense matrix."""
    firing = firing_of(pair)
    choosing = half_of(pair.document, 0) == 0
    r = np.nan_to_num(_dense_r(pair.a[choosing], pair.b[choosing]))
    alive = np.flatnonzero(firing[0] > 0)
    best = r[alive].argmax(axis=1)
    rows, columns = linear_sum_assignment(r, maximize=True)
    positive = r[rows, columns] > 0
    chosen = (alive, best), (rows[positive], columns[positive])
    return {way: judge(pair, *ids, firing) for way, ids in zip(PEERS, chosen, strict=True)}


def _dense_r(a: sp.csr_array, b: sp.csr_array) -> np.ndarray:
    """Return Pearson's r of all pairs, by its textbook formula in float64."""
    unit_a, unit_b = (_unit_columns(side.toarray().astype(float)) for side in (a, b))
    product: np.ndarray = unit_a.T @ unit_b
    return product


def _unit_columns(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=0)
    length = np.sqrt((centred * centred).sum(axis=0))
    return centred / np.where(length > 0, length, np.nan)


def measure_curve(seeds: int) -> list[dict[str, Any]]:
    """Return what the defaults pair, by world, rows and overlap."""
    cases = [(world, rows, overlap) for world in WORLDS for rows in ROWS for overlap in OVERLAPS]
    return [
        {"world": world, "rows": rows, "overlap": overlap}
        | _mean(
            next(_matchings(_drawn(world, rows, overlap, seed), matched=[{}])) for seed in range(seeds)
        )
        for world, rows, overlap in cases
    ]  # fmt: skip


def measure_choice(seeds: int) -> list[dict[str, Any]]:
    """Return what is paired of nothing shared, and found of all, by the lowest r and the fewest firings."""
    lines = []
    matched = [{"min_correlation": r} for r in MIN_R]
    for world, rows, least in [(world, rows, least) for world in WORLDS for rows in ROWS for least in MIN_FIRING]:
        found: dict[int, list[list[dict[str, Any]]]] = {overlap: [] for overlap in (0, 100)}
        for overlap, seed in [(overlap, seed) for overlap in found for seed in range(seeds)]:
            pair = _drawn(world, rows, overlap, seed)
            found[overlap].append(list(_matchings(pair, correlated={"min_firing": least}, matched=matched)))
        for i, r in enumerate(MIN_R):
            none, all_shared = (_mean(runs[i] for runs in found[overlap]) for overlap in found)
            lines.append(
                {"world": world, "rows": rows, "min_firing": least, "min_correlation": r, "paired": none["paired"]}
                | {f"recall_{n}": all_shared[f"recall_{n}"] for n in FIRINGS}
            )
    return lines


def measure_noise(seeds: int) -> list[dict[str, Any]]:
    """Return what is found of all by the lowest r, if B sees concepts with more and more noise."""
    matched = [{"min_correlation": r} for r in MIN_R]
    lines: list[dict[str, Any]] = []
    for noise in NOISES:
        pairs = [
            draw("documents", seed=(round(100 * noise), seed), n_rows=MIDDLE, overlap=100, noise=noise)
            for seed in range(seeds)
        ]
        runs = [list(_matchings(pair, matched=matched)) for pair in pairs]
        for i, r in enumerate(MIN_R):
            lines.append({"noise": noise, "min_correlation": r, **_mean(run[i] for run in runs)})
    return lines


def measure_ways(seeds: int) -> list[dict[str, Any]]:
    """Return what is paired where half is shared, by measure and by method or filter; and by what others do."""
    matched: dict[str, dict[str, Any]] = {name: {"method": name} for name in sorted(METHODS)}
    matched["greedy, min_heldout_r 0.1"] = {"filters": [{"name": "min_heldout_r", "value": 0.1}]}
    lines = []
    for overlap in (0, HALF, 100):
        pairs = [_drawn("documents", MIDDLE, overlap, seed) for seed in range(seeds)]
        for measure in MEASURES:
            runs = [
                list(_matchings(pair, correlated={"measure": measure}, matched=list(matched.values())))
                for pair in pairs
            ]
            lines += [
                {"overlap": overlap, "measure": measure, "way": way} | _mean(run[i] for run in runs)
                for i, way in enumerate(matched)
            ]
        others = [peers(pair) for pair in pairs]
        lines += [
            {"overlap": overlap, "measure": "pearson", "way": way} | _mean(other[way] for other in others)
            for way in others[0]
        ]
    return lines


def _drawn(world: str, rows: int, overlap: int, seed: int) -> Pair:
    return draw(world, seed=(WORLDS.index(world), rows, overlap, seed), n_rows=rows, overlap=overlap)


def _mean(figures: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of each figure over repetitions, where it is defined."""
    runs = list(figures)
    values = {key: [value for run in runs if (value := run.get(key)) is not None] for run in runs for key in run}
    return {key: float(np.mean(one)) if one else None for key, one in values.items()}


def benchmark(seeds: int) -> dict[str, Any]:
    """Return all tables' figures; each is the mean of `seeds` repetitions."""
    start = time.perf_counter()
    with ensure_client(None):
        tables = {
            "curve": measure_curve(seeds),
            "choice": measure_choice(seeds),
            "noise": measure_noise(seeds),
            "ways": measure_ways(seeds),
        }
    defaults = {"min_firing": CorrelateSettings().min_firing, "min_correlation": MatchSettings().min_correlation}
    command = "python -m benchmarks.truth"
    return {"command": command, "seeds": seeds, "defaults": defaults, **tables, "seconds": time.perf_counter() - start}


def render_verdict(result: Mapping[str, Any]) -> str:
    """Return the sentence that says what the defaults, and what others do, pair of nothing and find of all."""
    none = [line for line in result["curve"] if line["overlap"] == 0]
    whole = [line for line in result["curve"] if line["overlap"] == 100]
    others = {line["way"]: line for line in result["ways"] if line["overlap"] == 0 and line["way"] in PEERS}
    settings = " and ".join(f"`{name}: {value}`" for name, value in result["defaults"].items())
    listed = " and ".join(f"{_percent(line['paired'])} % ({way})" for way, line in others.items())
    most, least = max(line["paired"] for line in none), min(line[FOUND] for line in whole)
    return (
        f"With the defaults ({settings}), at most {_percent(most)} % of the features are paired where nothing is "
        f"shared, and at least {_percent(least)} % of the shared concepts that fire often enough are found where all "
        f"are, in both worlds, at {min(ROWS):,} to {max(ROWS):,} rows. Others pair {listed} of nothing."
    )


def render_curve(result: Mapping[str, Any]) -> str:
    """Return the table of what the defaults pair."""
    lines = [
        "| world | rows | shared, % | pairs | paired, % | right, % | kin, % | found, % | r | held out |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in result["curve"]:
        percents = [_percent(line.get(key)) for key in ("paired", "precision", "kin")]
        cells = [line["world"], f"{line['rows']:,}", line["overlap"], f"{line['pairs']:.0f}", *percents]
        lines.append(_row([*cells, _percent(line[FOUND]), *(_decimal(line.get(key)) for key in ("r", "r_heldout"))]))
    return "\n".join(lines)


def render_choice(result: Mapping[str, Any]) -> str:
    """Return the table that decides over the lowest r and the fewest firings."""
    lines = [
        f"| world | rows | min_firing | {' | '.join(f'r ≥ {r}' for r in MIN_R)} |",
        f"|---|---|---|{'---|' * len(MIN_R)}",
    ]
    cells = {
        (line["world"], line["rows"], line["min_firing"], line["min_correlation"]): line for line in result["choice"]
    }
    for world, rows, least in dict.fromkeys(key[:3] for key in cells):
        row = [cells[world, rows, least, r] for r in MIN_R]
        figures = [f"{_percent(line['paired'])} · {_percent(line[f'recall_{FIRINGS[0]}'])}" for line in row]
        lines.append(_row([world, f"{rows:,}", least, *figures]))
    return "\n".join(lines)


def render_noise(result: Mapping[str, Any]) -> str:
    """Return the table of what the lowest r costs where B's features are noisy."""
    lines = [f"| noise, % | mean r | {' | '.join(f'r ≥ {r}' for r in MIN_R)} |", f"|---|---|{'---|' * len(MIN_R)}"]
    cells = {(line["noise"], line["min_correlation"]): line for line in result["noise"]}
    for noise in dict.fromkeys(key[0] for key in cells):
        row = [cells[noise, r] for r in MIN_R]
        found = [_percent(line[FOUND]) for line in row]
        lines.append(_row([f"{100 * noise:.0f}", _decimal(row[0]["r"]), *found]))
    return "\n".join(lines)


def render_ways(result: Mapping[str, Any]) -> str:
    """Return the table of measures, methods, a filter, and what others do."""
    lines = [
        "| measure | way | paired of nothing shared, % | right of half, % | found of half, % | found of all, % |",
        "|---|---|---|---|---|---|",
    ]
    cells = {(line["measure"], line["way"], line["overlap"]): line for line in result["ways"]}
    for measure, way in dict.fromkeys(key[:2] for key in cells):
        none, half, whole = (cells[measure, way, overlap] for overlap in (0, HALF, 100))
        figures = [none["paired"], half.get("precision"), half[FOUND], whole[FOUND]]
        lines.append(_row([measure, way, *(_percent(value) for value in figures)]))
    return "\n".join(lines)


def _row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def render(page: str, result: Mapping[str, Any]) -> str:
    """Return the page with its tables renewed."""
    tables = {
        "verdict": render_verdict,
        "curve": render_curve,
        "choice": render_choice,
        "noise": render_noise,
        "ways": render_ways,
    }
    for name, table in tables.items():
        page = insert(page, f"truth-{name}", table(result))
    return page


def main() -> None:
    """Read the command line, run, print; or make the tables from the stored figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of each figure")
    parser.add_argument("--table", action="store_true", help="make the tables of the page from the stored result")
    given = parser.parse_args()
    if given.table:
        update(PAGE, RESULT, render)
        return
    print(json.dumps(benchmark(given.seeds)))


if __name__ == "__main__":
    main()
