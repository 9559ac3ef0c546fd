"""Are p-values what they claim to be? Experiments without any effect, and how often they look significant.

::

    python -m benchmarks.calibration | tail -n 1 > benchmarks/results/compare/calibration.json
    python -m benchmarks.calibration --experiments 500 --activations 0 --metrics svcca rsa
    python -m benchmarks.calibration --intervals 400     # of scores: how often they hold the truth; 10 minutes
    python -m benchmarks.calibration --grid 500          # of the best of a grid of sites; its last line is the result
    python -m benchmarks.calibration --table             # the tables of docs/statistics.md, from the stored results

Every experiment is seeded and has a true null by construction:

======================  ================================================================================
``shuffled``            rows of A and B drawn apart from each other
``random_features``     the compared rows are drawn, and paired, at random from all rows of either side
``random_pairs``        the compared pairs are drawn at random from a pool of pairs that are related
``random_dictionary``   the rows of the control are of the same kind as the compared ones
``permuted_documents``  activations of unrelated documents of unlike lengths: neighbours are alike, and every document
                        begins alike
``shifted_blocks``      unrelated series in which neighbours are alike, of which no documents are known
======================  ================================================================================

Rows are clumped, heavy-tailed and of unequal lengths, as decoder rows are whose features fire on one word; activations
are heavy-tailed, or sparse with documents that differ. p ≤ 0.05 may be no more frequent than 0.05: an exact binomial
test from above, with Holm's correction over all lines. Where a null has a p for any score, p must be uniform on (0, 1],
too: Kolmogorov and Smirnov's test; ties and the steps of p are broken by seeded chance, which leaves a uniform p
uniform. A grid has sites of B that resemble each other, to which a site of A is matched nearly alike, and directions of
A that have nothing to do with B's; or sites of A that resemble each other as well, whose features have other numbers.
Families of two experiments are corrected by Holm's method; with 39 runs, exactly 0.0494 of them should have a corrected
p of at most 0.05, and not more may, but for sampling error. Intervals are those of `compare --intervals`, for
pairs of two spaces that share some directions; the truth is the mean over all experiments. ``shuffled tokens`` is what
``permuted_documents`` would be were single tokens shuffled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from distributed import Client
from scipy.signal import lfilter
from scipy.stats import binomtest, kstest

import storage
from benchmarks.table import RESULTS, ROOT, insert
from pipeline.compare import engine
from pipeline.compare.activations import compare_activations
from pipeline.compare.arrays import compare_rows
from pipeline.compare.base import families
from pipeline.compare.intervals import pair_intervals
from pipeline.compare.nulls import Draws
from pipeline.compare.statistics import LEVEL, TIE, calibrated, holm, max_p, p_value
from pipeline.settings.compare import parse_metric, parse_metrics
from pipeline.settings.registries import METRICS, NULLS
from pipeline.work.workers import ensure_client

PAIRS, BANK, DIMENSIONS = 30, 90, (5, 7)
#: Of rows: members of a clump, degrees of freedom of the noise, and the standard deviation of the log of their lengths.
CLUMP, FREEDOM, UNEQUAL = 6, 3, 0.5
FAMILY = 2
#: Of unrelated texts: mean rows of a document, how much of a row its successor keeps, and rows without documents.
DOCUMENT, KEEP, SERIES = 20, 0.95, 9000
#: How many documents, and of which values.
TEXTS = {"160 documents": (160, False), "40 documents": (40, False), "160 documents, sparse": (160, True)}
#: How much of a row its successor keeps in series of which no documents are known.
KEPT = (0.0, 0.8, 0.95, 0.99)
#: How much more the first row of a document is than others, and for how many rows.
BEGINNING, FADES = 4.0, 2.0
#: Of sparse values: how many features, how often they fire, and standard deviations of the effect of the document on
#: the log odds of that, and of the log of the values.
SPARSE, FIRING, EFFECT, TAIL = (8, 8), 0.05, 1.0, 0.6
ACTIVATION_METRICS = ("svcca", "cka", "procrustes")

#: Of intervals: pairs, dimensions, of which so many shared, shuffles for the null's mean, and where figures are kept.
NUMBERS, SPACES, SHARED, SHUFFLES = (60, 300), (8, 10), 4, 10
RESULT, PAGE, COVERAGE = RESULTS / "compare" / "intervals.json", ROOT / "docs" / "statistics.md", "score-intervals"
LEVELS, LEVELS_MARK = RESULTS / "compare" / "calibration.json", "calibration"

#: Of grids: features of a site, sites, how much of a site's directions is its own, the share of features that a pair of
#: sites matches at least, and the share of partners that are its own.
FEATURES, GRID_SITES, SITE, MATCHED, OWN = 36, (2, 3), 0.3, 0.7, 0.2
GRID_METRICS, GRID_RUNS = ("svcca", "rsa", "procrustes"), 39
GRID, GRID_MARK = RESULTS / "compare" / "grid.json", "grid-calibration"
#: Whose sites of a grid resemble each other.
ALIKE = ("sites of B", "sites of A and of B")
#: p of the best score of a grid, by what it is called in the table.
BEST = {"p_max": "`p_max`", "apart": "`p_max`, draws of each pair of sites apart", "p_holm": "`p_holm`", "p": "`p`"}

#: What the data are, the null, and the metric → of every experiment the score and those of the null.
Scores = dict[tuple[str, str, str], list[tuple[float, np.ndarray]]]


def clumped_rows(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return rows in clumps, with heavy tails and unequal lengths, (n, d)."""
    centres = 1.5 * rng.normal(size=(n // CLUMP, d))
    rows = centres[rng.integers(len(centres), size=n)] + rng.standard_t(FREEDOM, size=(n, d))
    return np.asarray(rows * rng.lognormal(0, UNEQUAL, size=(n, 1)))


def experiment(seed: int, metrics: Sequence[str], null_runs: int, client: Client) -> Iterator[xr.Dataset]:
    """Yield the comparison of rows that have nothing to do with each other, and of pairs drawn from a pool."""
    rng = np.random.default_rng([seed, 0])
    sides = [clumped_rows(rng, BANK, d) for d in DIMENSIONS]
    chosen = [side[rng.permutation(BANK)[:PAIRS]] for side in sides]
    control = [clumped_rows(rng, BANK, d) for d in DIMENSIONS]
    yield compare_rows(
        *chosen, metrics=metrics, nulls=["shuffled", "random_features", "random_dictionary"],
        features=(sides[0], sides[1]), control=(control[0], control[1]), null_runs=null_runs, seed=seed, client=client,
    )  # fmt: skip
    pool = sides[0], sides[0] @ rng.normal(size=DIMENSIONS) + rng.normal(size=(BANK, DIMENSIONS[1]))
    drawn = rng.permutation(BANK)[:PAIRS]
    yield compare_rows(
        pool[0][drawn], pool[1][drawn], metrics=metrics, nulls=["random_pairs"], pool=pool, null_runs=null_runs,
        seed=seed, client=client,
    )  # fmt: skip


def documents(rng: np.random.Generator, lengths: np.ndarray, d: int) -> np.ndarray:
    """Return independent documents whose rows keep a part of the row before, (token, d) float32; all begin alike."""
    parts = []
    for length in lengths:
        noise = rng.standard_t(4, size=(length, d))
        noise[1:] *= np.sqrt(1 - KEEP**2)
        parts.append(lfilter([1.0], [1.0, -KEEP], noise, axis=0) + beginning(length)[:, None])
    return np.concatenate(parts).astype(np.float32)


def sparse_documents(rng: np.random.Generator, lengths: np.ndarray, d: int) -> np.ndarray:
    """Return values that are mostly 0, and not so seldom in some documents, (token, d) float32; all begin alike."""
    effect = np.repeat(rng.normal(0, EFFECT, (len(lengths), d)), lengths, axis=0)
    start = np.concatenate([beginning(length) for length in lengths])[:, None]
    odds = FIRING / (1 - FIRING) * np.exp(effect + start)
    fires = rng.random(effect.shape) < odds / (1 + odds)
    return np.where(fires, rng.lognormal(0, TAIL, effect.shape) * np.exp(0.4 * effect), 0).astype(np.float32)


def beginning(length: int) -> np.ndarray:
    """Return what the first rows of every document have more than others, (token,)."""
    return np.asarray(BEGINNING * np.exp(-np.arange(length) / FADES))


def text_experiment(seed: int, text: str, folder: Path, null_runs: int, client: Client) -> list[xr.Dataset]:
    """Compare two unrelated texts by documents; and by shuffled tokens, as a warning."""
    n, sparse = TEXTS[text]
    rng = np.random.default_rng([seed, 1, list(TEXTS).index(text)])
    lengths = rng.integers(DOCUMENT // 2, 3 * DOCUMENT // 2, n)
    draw, dimensions = (sparse_documents, SPARSE) if sparse else (documents, DIMENSIONS)
    sides = [draw(rng, lengths, d) for d in dimensions]
    place = np.arange(lengths.sum())
    tokens = {"document": np.repeat(np.arange(n), lengths), "char_start": place, "char_end": place + 1}
    by_documents = _compare_stores(folder, sides, seed, null_runs, client, tokens=tokens)
    by_tokens = compare_rows(*sides, metrics=ACTIVATION_METRICS, null_runs=null_runs, seed=seed, client=client)
    return [by_documents, by_tokens]


def series_experiment(seed: int, keep: float, folder: Path, null_runs: int, client: Client) -> xr.Dataset:
    """Compare two unrelated series of which no documents are known, by blocks."""
    rng = np.random.default_rng([seed, 2, KEPT.index(keep)])
    noise = [rng.normal(size=(SERIES, d)) for d in DIMENSIONS]
    sides = [np.asarray(lfilter([1.0], [1.0, -keep], side, axis=0), np.float32) for side in noise]
    return _compare_stores(folder, sides, seed, null_runs, client)


def _compare_stores(
    folder: Path, sides: Sequence[np.ndarray], seed: int, null_runs: int, client: Client, **written: Any
) -> xr.Dataset:
    paths = [folder / f"{name}.zarr" for name in "ab"]
    for path, values in zip(paths, sides, strict=True):
        storage.write_activations(path, values, overwrite=True, **written)
    return compare_activations(*paths, metrics=ACTIVATION_METRICS, null_runs=null_runs, seed=seed, client=client)


def _scores_of(data: str, found: xr.Dataset) -> Scores:
    """Return the scores of a comparison; none where the null was refused."""
    return {
        (data, str(null), str(metric)): [
            (float(found.score.sel(metric=metric)), found.null_score.sel(metric=metric, null=null).values)
        ]
        for null in found.null.values
        for metric in found.metric.values
        if null != "none"
    }


def spaces(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of rows of two spaces that share some heavy-tailed directions."""
    rng = np.random.default_rng([seed, n])
    mixing = np.random.default_rng(0).normal(size=(SHARED, sum(SPACES)))
    both = rng.standard_t(6, size=(n, SHARED)) @ mixing + 2 * rng.normal(size=(n, sum(SPACES)))
    return both[:, : SPACES[0]], both[:, SPACES[0] :]


def judge_intervals(n: int, experiments: int, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return of each metric how often intervals hold the mean score, and less the null's mean the mean difference."""
    parsed = {parse_metric(metric): metric for metric in metrics}
    groups = families(parsed)
    names = [parsed[metric] for family in groups for metric in family.metrics]
    scores, nulls, ends = (np.empty((experiments, len(names), *more)) for more in ((), (), (2,)))
    for seed in range(experiments):
        x, y = spaces(seed, n)
        rng = np.random.default_rng(seed)
        states = [(family, family.prepare(x, y)) for family in groups]
        scores[seed] = [s for family, state in states for s in family.scores(state, np.arange(n))]
        shuffled = [rng.permutation(n) for _ in range(SHUFFLES)]
        nulls[seed] = np.mean(
            [[s for f, state in states for s in f.scores(state, order)] for order in shuffled], axis=0
        )
        ends[seed] = [interval[:2] for interval in pair_intervals(x, y, groups).values()]
    given = np.isfinite(ends[..., 0])
    lines = []
    for i, name in enumerate(names):
        of_score, of_difference = (
            _holds(ends[given[:, i], i] - less[given[:, i], i, None], (scores[:, i] - less[:, i]).mean())
            for less in (np.zeros_like(nulls), nulls)
        )
        means = {"score": scores[:, i].mean(), "null": nulls[:, i].mean(), "given": given[:, i].mean()}
        coverage = {"covered": of_score, "difference_covered": of_difference}
        figures = {key: round(float(value), 4) for key, value in (means | coverage).items()}
        lines.append({"metric": name, "pairs": n, "experiments": experiments, **figures})
    return lines


def _holds(ends: np.ndarray, truth: float) -> float:
    return float(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])))


def render_intervals(lines: Sequence[dict[str, Any]]) -> str:
    """Return the coverage of intervals of scores as a table in Markdown."""
    head = [
        "| metric | pairs | mean score | null | interval given | coverage | of the difference |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [
        f"| {line['metric']} | {line['pairs']} | {line['score']:.2f} | {line['null']:.2f} | {line['given']:.2f} "
        f"| {line['covered']:.3f} | {line['difference_covered']:.3f} |"
        for line in lines
    ])  # fmt: skip


def grid_of_sites(seed: int, alike: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield of each pair of sites the features of A, and the rows of A and B."""
    rng = np.random.default_rng([seed, 3])
    b = _resembling(rng, GRID_SITES[1], DIMENSIONS[1])
    a, partner = _resembling(rng, GRID_SITES[0], DIMENSIONS[0]), rng.permutation(FEATURES)
    for i in range(GRID_SITES[0]):
        if alike == "sites of B":
            (a_i,), partner = _resembling(rng, 1, DIMENSIONS[0]), rng.permutation(FEATURES)
        else:
            a_i = a[i]
        number = rng.permutation(FEATURES)
        for j in range(GRID_SITES[1]):
            features = np.flatnonzero(rng.random(FEATURES) < rng.uniform(MATCHED, 1))
            partners = partner[features]
            own = np.flatnonzero(rng.random(len(features)) < OWN)
            partners[own] = partners[rng.permutation(own)]
            yield number[features], a_i[features], b[j][partners]


def _resembling(rng: np.random.Generator, sites: int, d: int) -> list[np.ndarray]:
    """Return the directions of all features at some sites, (feature, d) each: their own in part."""
    common = clumped_rows(rng, FEATURES, d)
    return [common + SITE * common.std() * rng.normal(size=common.shape) for _ in range(sites)]


def best_of_grid(seed: int, alike: str, *, apart: bool = False) -> pd.DataFrame:
    """Return p of the best score of each metric over a grid without an effect: alone, after Holm, of the maximum.

    With `apart`, each pair of sites has draws of its own.
    """
    parsed = parse_metrics(GRID_METRICS)
    groups = families(parsed.values())
    outcomes = []
    for n, (ids, x, y) in enumerate(grid_of_sites(seed, alike)):
        draws = Draws(NULLS["shuffled"], len(x), (len(x),) * 2, GRID_RUNS, 100 * seed + apart * (n + 1), ids=ids)
        outcomes.append(engine.score_rows([x, y], len(x), groups, [draws]))
    lines = []
    for text, metric in parsed.items():
        scores = np.array([of_pair[metric].score for of_pair in outcomes])
        null = np.stack([of_pair[metric].null["shuffled"] for of_pair in outcomes])
        best = int(np.nanargmax(calibrated(scores, null)))
        p = np.array([p_value(score, runs) for score, runs in zip(scores, null, strict=True)])
        lines.append({"metric": text, "p": p[best], "p_holm": holm(p)[best], "p_max": max_p(scores, null)[best]})
    return pd.DataFrame(lines).assign(alike=alike, apart=apart)


def grids(seeds: range) -> pd.DataFrame:
    """Return the lines of :func:`best_of_grid` of some experiments, of all kinds."""
    return pd.concat([
        best_of_grid(seed, alike, apart=apart)
        for seed in seeds
        for alike, apart in ((ALIKE[0], False), (ALIKE[0], True), (ALIKE[1], False))
    ])  # fmt: skip


def judge_grids(best: pd.DataFrame) -> list[dict[str, Any]]:
    """Return how often p of the best score of a grid is small, and how far it is from uniform."""
    rng, lines = np.random.default_rng(0), []
    for alike, kind, metric in itertools.product(ALIKE, BEST, GRID_METRICS):
        at = (best["alike"] == alike) & (best["metric"] == metric) & (best["apart"] == (kind == "apart"))
        if not at.any():
            continue
        p = best.loc[at, "p_max" if kind == "apart" else kind].to_numpy()
        below = int(np.count_nonzero(p <= LEVEL))
        lines.append({
            "alike": alike, "kind": kind, "metric": metric, "experiments": len(p), "below_level": below / len(p),
            "p_binomial": float(binomtest(below, len(p), LEVEL, alternative="greater").pvalue),
            "ks_p": float(kstest(p - rng.random(len(p)) / (GRID_RUNS + 1), "uniform").pvalue),
        })  # fmt: skip
    return lines


def render_grids(lines: Sequence[dict[str, Any]]) -> str:
    """Return a line for each p of the best score, in Markdown."""
    metrics = "".join(f" `{metric}` |" for metric in GRID_METRICS)
    text = [
        f"| alike | p of the best pair of sites | p ≤ .05:{metrics} KS p:{metrics}",
        "|---|---" + "|---" * 2 * len(GRID_METRICS) + "|",
    ]
    for (alike, kind), group in itertools.groupby(lines, key=lambda line: (line["alike"], line["kind"])):
        of_metric = list(group)
        below = " | ".join(f"{line['below_level']:.3f}" for line in of_metric)
        uniform = " | ".join(f"{line['ks_p']:.2g}" for line in of_metric)
        text.append(f"| {alike} | {BEST[kind]} | {below} | {uniform} |")
    return "\n".join(text)


def uniform_p(score: float, null: np.ndarray, rng: np.random.Generator) -> float:
    """Return p with ties and steps broken by chance: uniform on (0, 1) if the score is one of N + 1 like it.

    >>> 0 < uniform_p(0.5, np.array([0.1, 0.2, 0.3]), np.random.default_rng(0)) < 0.25
    True
    """
    above = np.count_nonzero(null > score + TIE)
    ties = np.count_nonzero(np.abs(null - score) <= TIE)
    return float((above + rng.random() * (ties + 1)) / (len(null) + 1))


def judge(data: str, null: str, metric: str, scores: list[tuple[float, np.ndarray]]) -> dict[str, Any]:
    """Return how often p is small, how far p is from uniform, and the family-wise error under Holm."""
    rng = np.random.default_rng(0)
    smooth = np.array([uniform_p(score, values, rng) for score, values in scores])
    p = np.array([(np.count_nonzero(values >= score - TIE) + 1) / (len(values) + 1) for score, values in scores])
    families = p[: len(p) // FAMILY * FAMILY].reshape(-1, FAMILY)
    wrong = np.array([(holm(family) <= LEVEL).any() for family in families])
    below = int(np.count_nonzero(p <= LEVEL))
    return {
        "data": data,
        "null": null,
        "metric": metric,
        "experiments": len(p),
        "ks_p": float(kstest(smooth, "uniform").pvalue),
        "below_level": below / len(p),
        "p_binomial": float(binomtest(below, len(p), LEVEL, alternative="greater").pvalue),
        "family_wise_error": float(wrong.mean()),
        "families": len(wrong),
    }


def add_holm(lines: Sequence[dict[str, Any]]) -> None:
    """Add to each line its ``p_binomial`` after Holm's correction over all of them."""
    for line, corrected in zip(lines, holm([line["p_binomial"] for line in lines]), strict=True):
        line["p_holm"] = float(corrected)


def sampled_limit(n: int, errors: float = 3.0) -> float:
    """Return the share of `n` tests that may fall below the level by sampling alone.

    >>> round(sampled_limit(500), 3)
    0.079
    """
    return float(LEVEL + errors * np.sqrt(LEVEL * (1 - LEVEL) / n))


def benchmark(n_experiments: int, n_activations: int, null_runs: int, metrics: Sequence[str]) -> dict[str, Any]:
    """Run all experiments and return the figures.

    Parameters
    ----------
    n_experiments, n_activations
        Experiments on rows, and on activations.
    null_runs
        Runs of each null.
    metrics
        On rows.
    """
    start = time.perf_counter()
    engine.RUNS_PER_TASK = null_runs  # experiments are small: one task for all pairings, which changes no result
    scores: Scores = {}
    warnings: Scores = {}
    refused: Counter[str] = Counter()
    with ensure_client(None) as client, tempfile.TemporaryDirectory(prefix="benchmark-calibration-") as temporary:
        folder = Path(temporary)
        for seed in range(n_experiments):
            for found in experiment(seed, metrics, null_runs, client):
                _extend(scores, _scores_of("clumped rows", found))
        for seed, text in itertools.product(range(n_activations), TEXTS):
            by_documents, by_tokens = text_experiment(seed, text, folder, null_runs, client)
            _extend(scores, _scores_of(text, by_documents))
            _extend(warnings, _scores_of(text, by_tokens))
        for seed, keep in itertools.product(range(n_activations), KEPT):
            found, data = (
                series_experiment(seed, keep, folder, null_runs, client),
                f"series that keep {keep:g} of a row",
            )
            refused[data] += "none" in found.null.values
            _extend(scores, _scores_of(data, found))
    lines = [judge(*key, values) for key, values in scores.items()]
    add_holm(lines)
    n_families = sum(line["families"] for line in lines)
    error = sum(line["family_wise_error"] * line["families"] for line in lines) / n_families
    worst = min(line["ks_p"] for line in lines)
    return {
        "name": "calibration",
        "command": f"python -m benchmarks.calibration --experiments {n_experiments} --activations {n_activations} "
        f"--null-runs {null_runs} --metrics {' '.join(metrics)}",
        "seconds": time.perf_counter() - start,
        "peak_gb": _peak_gb(),
        "ratios": {},
        "level_is_held": all(line["p_holm"] > LEVEL for line in lines),
        "smallest_ks_p": worst,
        "uniform": worst > LEVEL / len(lines),
        "family_wise_error": error,
        "families": n_families,
        "family_wise_error_is_kept": all(
            line["family_wise_error"] <= sampled_limit(line["families"]) for line in lines
        ),
        "lines": lines,
        "refused": {data: n / n_activations for data, n in refused.items() if n},
        "shuffled_tokens": [judge(*key, values) for key, values in warnings.items()],
    }


def _extend(scores: Scores, found: Scores) -> None:
    for key, values in found.items():
        scores.setdefault(key, []).extend(values)


def _peak_gb() -> float:
    """Return the largest memory that this process ever had."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return 1024 * int(status["VmHWM"].split()[0]) / 1e9


def render_levels(result: dict[str, Any]) -> str:
    """Return a line for all metrics of the same data and null, in Markdown."""
    head = [
        "| data without an effect | null | metrics | experiments of each | p ≤ .05, all | most often | by | p of that "
        "| smallest KS p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    body = []
    for (data, null), group in itertools.groupby(result["lines"], key=lambda line: (line["data"], line["null"])):
        lines = list(group)
        most = max(lines, key=lambda line: line["below_level"])
        below = np.mean([line["below_level"] for line in lines])
        body.append(
            f"| {data} | `{null}` | {len(lines)} | {most['experiments']} | {below:.3f} | {most['below_level']:.3f} "
            f"| `{most['metric']}` | {most['p_binomial']:.2g} | {min(line['ks_p'] for line in lines):.2g} |"
        )
    body += [f"| {data} | none: refused in {share:.0%} | | | | | | | |" for data, share in result["refused"].items()]
    return "\n".join(head + body)


def page_with_tables(page: str) -> str:
    """Return a page with all tables, of the stored results."""
    lines = json.loads(RESULT.read_text(encoding="utf-8"))["lines"]
    page = insert(page, COVERAGE, render_intervals(lines))
    page = insert(page, GRID_MARK, render_grids(json.loads(GRID.read_text(encoding="utf-8"))["lines"]))
    return insert(page, LEVELS_MARK, render_levels(json.loads(LEVELS.read_text(encoding="utf-8"))))


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=500)
    parser.add_argument("--activations", type=int, default=500)
    parser.add_argument("--null-runs", type=int, default=39)
    parser.add_argument("--metrics", nargs="+", default=list(METRICS))
    parser.add_argument("--intervals", type=int, default=0, help="experiments on intervals of scores, and nothing else")
    parser.add_argument("--grid", type=int, default=0, help="experiments on the best of a grid, and nothing else")
    parser.add_argument("--table", action="store_true", help="make the tables of the page from the stored results")
    given = parser.parse_args()
    if given.table:
        PAGE.write_text(page_with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if given.intervals:
        lines = [line for n in NUMBERS for line in judge_intervals(n, given.intervals, [*given.metrics, "svcca:k=4"])]
        print(render_intervals(lines))
        command = f"python -m benchmarks.calibration --intervals {given.intervals}"
        print(json.dumps({"command": command, "lines": lines}))
        return
    if given.grid:
        lines = judge_grids(grids(range(given.grid)))
        print(render_grids(lines))
        print(json.dumps({"command": f"python -m benchmarks.calibration --grid {given.grid}", "lines": lines}))
        return
    result = benchmark(given.experiments, given.activations, given.null_runs, given.metrics)
    print(render_levels(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
