"""Are p-values what they claim to be? Experiments without any effect, and how often they look significant.

::

    python -m benchmarks.calibration
    python -m benchmarks.calibration --experiments 500 --activations 0 --metrics svcca rsa
    python -m benchmarks.calibration --intervals 400     # of scores: how often they hold the truth; 10 minutes
    python -m benchmarks.calibration --table             # its table in docs/statistics.md, from the stored result

Every experiment is seeded and has a true null by construction:

==================  ====================================================================================
``shuffled``         rows of A and B drawn apart from each other
``random_features``  the compared rows are drawn, and paired, at random from all rows of either side
``random_pairs``     the compared pairs are drawn at random from a pool of pairs that are related
``random_dictionary``  the rows of the control are of the same kind as the compared ones
``permuted_documents``  activations of unrelated documents of unlike lengths: heavy-tailed, neighbours are alike, and
                     every document begins alike
``shifted_blocks``   unrelated series in which neighbours are alike, of which no documents are known
==================  ====================================================================================

p must be uniform on (0, 1]: Kolmogorov and Smirnov's test over the experiments, for each metric and null; ties and the
steps of p are broken by seeded chance, which leaves a uniform p uniform. Families of two experiments are corrected by
Holm's method; with 39 runs, exactly 0.0494 of them should have a corrected p of at most 0.05, and not more may, but for
sampling error. Intervals are those of `compare --intervals`, for pairs of two spaces that share some directions; the
truth is the mean over all experiments. ``shuffled tokens`` is what ``permuted_documents`` would be were single tokens
shuffled.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter
from scipy.stats import kstest

import storage
from benchmarks.table import RESULTS, ROOT, insert
from pipeline.compare import engine
from pipeline.compare.activations import compare_activations
from pipeline.compare.arrays import compare_rows
from pipeline.compare.base import families
from pipeline.compare.intervals import pair_intervals
from pipeline.compare.statistics import LEVEL, TIE, holm
from pipeline.settings.compare import parse_metric
from pipeline.settings.registries import METRICS
from pipeline.work.workers import ensure_client

PAIRS, BANK, DIMENSIONS = 30, 90, (5, 7)
FAMILY = 2
#: Of unrelated texts: documents, mean rows of one, how much of a row its successor keeps, and rows without documents.
DOCUMENTS, DOCUMENT, KEEP, SERIES = 160, 20, 0.95, 9000
#: How much more the first row of a document is than others, and for how many rows.
BEGINNING, FADES = 4.0, 2.0
ACTIVATION_METRICS = ("svcca", "cka")

#: Of intervals: pairs, dimensions, of which so many shared, shuffles for the null's mean, and where figures are kept.
NUMBERS, SPACES, SHARED, SHUFFLES = (60, 300), (8, 10), 4, 10
RESULT, PAGE, COVERAGE = RESULTS / "compare" / "intervals.json", ROOT / "docs" / "statistics.md", "score-intervals"

Scores = dict[tuple[str, str], list[tuple[float, np.ndarray]]]


def experiment(seed: int, metrics: Sequence[str], null_runs: int, client: Client) -> Iterator[xr.Dataset]:
    """Yield the comparison of rows that have nothing to do with each other, and of pairs drawn from a pool."""
    rng = np.random.default_rng([seed, 0])
    sides = [rng.normal(size=(BANK, d)) for d in DIMENSIONS]
    chosen = [side[rng.permutation(BANK)[:PAIRS]] for side in sides]
    control = [rng.normal(size=(BANK, d)) for d in DIMENSIONS]
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
        start = BEGINNING * np.exp(-np.arange(length) / FADES)
        parts.append(lfilter([1.0], [1.0, -KEEP], noise, axis=0) + start[:, None])
    return np.concatenate(parts).astype(np.float32)


def activation_experiment(seed: int, folder: Path, null_runs: int, client: Client) -> tuple[xr.Dataset, xr.Dataset]:
    """Compare two unrelated texts by documents; and by shuffled tokens, as a warning."""
    rng = np.random.default_rng([seed, 1])
    lengths = rng.integers(DOCUMENT // 2, 3 * DOCUMENT // 2, DOCUMENTS)
    sides = [documents(rng, lengths, d) for d in DIMENSIONS]
    place = np.arange(lengths.sum())
    tokens = {"document": np.repeat(np.arange(DOCUMENTS), lengths), "char_start": place, "char_end": place + 1}
    found = _compare_stores(folder, sides, seed, null_runs, client, tokens=tokens)
    return found, compare_rows(*sides, metrics=ACTIVATION_METRICS, null_runs=null_runs, seed=seed, client=client)


def series_experiment(seed: int, folder: Path, null_runs: int, client: Client) -> xr.Dataset:
    """Compare two unrelated series of which no documents are known, by blocks."""
    rng = np.random.default_rng([seed, 2])
    noise = [rng.normal(size=(SERIES, d)) for d in DIMENSIONS]
    sides = [np.asarray(lfilter([1.0], [1.0, -KEEP], side, axis=0), np.float32) for side in noise]
    return _compare_stores(folder, sides, seed, null_runs, client)


def _compare_stores(
    folder: Path, sides: Sequence[np.ndarray], seed: int, null_runs: int, client: Client, **written: Any
) -> xr.Dataset:
    paths = [folder / f"{name}.zarr" for name in "ab"]
    for path, values in zip(paths, sides, strict=True):
        storage.write_activations(path, values, overwrite=True, **written)
    return compare_activations(*paths, metrics=ACTIVATION_METRICS, null_runs=null_runs, seed=seed, client=client)


def _scores_of(found: xr.Dataset) -> Scores:
    return {
        (str(null), str(metric)): [
            (float(found.score.sel(metric=metric)), found.null_score.sel(metric=metric, null=null).values)
        ]
        for null in found.null.values
        for metric in found.metric.values
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


def uniform_p(score: float, null: np.ndarray, rng: np.random.Generator) -> float:
    """Return p with ties and steps broken by chance: uniform on (0, 1) if the score is one of N + 1 like it.

    >>> 0 < uniform_p(0.5, np.array([0.1, 0.2, 0.3]), np.random.default_rng(0)) < 0.25
    True
    """
    above = np.count_nonzero(null > score + TIE)
    ties = np.count_nonzero(np.abs(null - score) <= TIE)
    return float((above + rng.random() * (ties + 1)) / (len(null) + 1))


def judge(null: str, metric: str, scores: list[tuple[float, np.ndarray]]) -> dict[str, Any]:
    """Return how far p-values of one metric and null are from uniform, and the family-wise error under Holm."""
    rng = np.random.default_rng(0)
    smooth = np.array([uniform_p(score, values, rng) for score, values in scores])
    p = np.array([(np.count_nonzero(values >= score - TIE) + 1) / (len(values) + 1) for score, values in scores])
    families = p[: len(p) // FAMILY * FAMILY].reshape(-1, FAMILY)
    wrong = np.array([(holm(family) <= LEVEL).any() for family in families])
    return {
        "null": null,
        "metric": metric,
        "experiments": len(p),
        "ks_p": float(kstest(smooth, "uniform").pvalue),
        "below_level": float(np.mean(p <= LEVEL)),
        "family_wise_error": float(wrong.mean()),
        "families": len(wrong),
    }


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
    tokens_shuffled: list[tuple[float, np.ndarray]] = []
    with ensure_client(None) as client, tempfile.TemporaryDirectory(prefix="benchmark-calibration-") as temporary:
        for seed in range(n_experiments):
            for found in experiment(seed, metrics, null_runs, client):
                _extend(scores, _scores_of(found))
        for seed in range(n_activations):
            found, shuffled = activation_experiment(seed, Path(temporary), null_runs, client)
            _extend(scores, _scores_of(found))
            tokens_shuffled += _scores_of(shuffled)["shuffled", ACTIVATION_METRICS[0]]
            _extend(scores, _scores_of(series_experiment(seed, Path(temporary), null_runs, client)))
    lines = [judge(*key, values) for key, values in scores.items()]
    n_families = sum(line["families"] for line in lines)
    error = sum(line["family_wise_error"] * line["families"] for line in lines) / n_families
    worst = min(line["ks_p"] for line in lines)
    warning = judge("shuffled tokens", ACTIVATION_METRICS[0], tokens_shuffled) if tokens_shuffled else None
    return {
        "name": "calibration",
        "command": f"python -m benchmarks.calibration --experiments {n_experiments} --activations {n_activations} "
        f"--null-runs {null_runs} --metrics {' '.join(metrics)}",
        "seconds": time.perf_counter() - start,
        "peak_gb": _peak_gb(),
        "ratios": {},
        "smallest_ks_p": worst,
        "uniform": worst > LEVEL / len(lines),
        "family_wise_error": error,
        "families": n_families,
        "family_wise_error_is_kept": all(
            line["family_wise_error"] <= sampled_limit(line["families"]) for line in lines
        ),
        "lines": lines,
        "shuffled_tokens": warning,
    }


def _extend(scores: Scores, found: Scores) -> None:
    for key, values in found.items():
        scores.setdefault(key, []).extend(values)


def _peak_gb() -> float:
    """Return the largest memory that this process ever had."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return 1024 * int(status["VmHWM"].split()[0]) / 1e9


def table(result: dict[str, Any]) -> Table:
    """Return the figures as a table."""
    shown = Table(title="p-values where there is no effect")
    for name in ("null", "metric", "experiments", "uniform: KS p", f"share p ≤ {LEVEL}", "family-wise error (Holm)"):
        shown.add_column(name, justify="left" if name in ("null", "metric") else "right")
    warning = result["shuffled_tokens"]
    for line in [*result["lines"], *([warning] if warning else [])]:
        shown.add_row(
            line["null"], line["metric"], str(line["experiments"]), f"{line['ks_p']:.3f}",
            f"{line['below_level']:.3f}", f"{line['family_wise_error']:.3f}",
        )  # fmt: skip
    return shown


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=500)
    parser.add_argument("--activations", type=int, default=200)
    parser.add_argument("--null-runs", type=int, default=39)
    parser.add_argument("--metrics", nargs="+", default=list(METRICS))
    parser.add_argument("--intervals", type=int, default=0, help="experiments on intervals of scores, and nothing else")
    parser.add_argument("--table", action="store_true", help="make the table of the page from the stored result")
    given = parser.parse_args()
    if given.table:
        lines = json.loads(RESULT.read_text(encoding="utf-8"))["lines"]
        page = insert(PAGE.read_text(encoding="utf-8"), COVERAGE, render_intervals(lines))
        PAGE.write_text(page, encoding="utf-8")
        return
    if given.intervals:
        lines = [line for n in NUMBERS for line in judge_intervals(n, given.intervals, [*given.metrics, "svcca:k=4"])]
        print(render_intervals(lines))
        command = f"python -m benchmarks.calibration --intervals {given.intervals}"
        print(json.dumps({"command": command, "lines": lines}))
        return
    result = benchmark(given.experiments, given.activations, given.null_runs, given.metrics)
    Console(width=140).print(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
