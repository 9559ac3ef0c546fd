"""Do estimates over documents hold their level? The excess of a pair beyond its token, and intervals of r.

::

    python -m benchmarks.document_calibration | tail -n 1 > benchmarks/results/documents/calibration.json
    python -m benchmarks.document_calibration --table

Texts are drawn with Zipf's frequencies of tokens, a fifth of each document from 15 words of its own, and unequal
lengths. Two features fire, with probabilities that the token and the document give, and heavy-tailed values: they know
the same tokens, but their document effects are independent. So there is no excess, and p ≤ .05 may be no more frequent
than .05: an exact binomial test, with Holm's correction over the rows of the table. A permutation of rows within tokens
is beside it, by its normal approximation. With power, A and B also know which of two senses a token has, in shares that
differ between documents.

For r, documents are drawn from a population of such documents, whose r is the truth; intervals must cover it, by the
number of drawn documents in which the pair fires. The percentile bootstrap over documents is beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from scipy.stats import binomtest, norm

from benchmarks.calibration import _peak_gb as peak_gb
from benchmarks.calibration import add_holm
from benchmarks.table import ROOT, insert, update
from pipeline.compare.statistics import LEVEL
from pipeline.correlate.documents import r_of_sums
from pipeline.correlate.influence import effective_number, fisher_interval
from pipeline.correlate.intervals import influence_on_r
from pipeline.match.excess import excess_of_pairs, make_cells

RESULT = ROOT / "benchmarks" / "results" / "documents" / "calibration.json"
PAGE = ROOT / "docs" / "statistics.md"
#: The marks in the page.
EXCESS, COVERAGE = "excess-calibration", "interval-coverage"

TOKENS, OWN_WORDS, MEAN_ROWS = 1500, 15, 150
KINDS = ("frequent word", "rare word", "30 words", "all words, seldom", "all words, often")
DOCUMENTS = (20, 60, 200)
#: Standard deviation of the document's effect on the log odds of firing, and of the log of the values.
EFFECT, TAIL = 0.7, 0.6
#: How much a sense changes the log odds of firing.
SENSE = 1.5
#: Of coverage: documents of a population and of a sample, populations of a kind, draws of the bootstrap.
POPULATION, SAMPLE, POPULATIONS, DRAWS = 3000, 98, 10, 200
#: Co-firing documents from which each row of the table is.
BINS = (1, 3, 6, 11, 21, 51)
LEAST_COVERAGE = 0.92

Array = np.ndarray


class Text(NamedTuple):
    """The document and token of each row, ascending documents."""

    document: Array
    token: Array


def draw_text(rng: np.random.Generator, n_documents: int) -> Text:
    """Return a text."""
    rows = np.maximum(20, MEAN_ROWS * rng.lognormal(-0.18, 0.6, n_documents)).astype(int)
    document = np.repeat(np.arange(n_documents), rows)
    frequency = 1 / np.arange(1, TOKENS + 1)
    token = rng.choice(TOKENS, len(document), p=frequency / frequency.sum())
    own = rng.integers(0, TOKENS, (n_documents, OWN_WORDS))
    topical = rng.random(len(document)) < 0.2
    token[topical] = own[document[topical], rng.integers(0, OWN_WORDS, np.count_nonzero(topical))]
    return Text(document, token)


def draw_profile(rng: np.random.Generator, kind: str) -> Array:
    """Return the probability of firing on each token, that both features share."""
    profile = np.zeros(TOKENS)
    if kind == "frequent word":
        profile[rng.integers(3, 40)] = 0.6
    elif kind == "rare word":
        profile[rng.integers(40, 300)] = 0.6
    elif kind == "30 words":
        profile[rng.integers(5, 400, 30)] = rng.uniform(0.1, 0.6, 30)
    elif kind == "all words, seldom":
        profile[:] = np.minimum(0.02 * rng.gamma(0.5, 2, TOKENS), 0.6)
    else:
        profile[:] = np.minimum(0.15 * rng.gamma(1, 1, TOKENS), 0.8)
    return profile


def fire(rng: np.random.Generator, text: Text, profile: Array, logit: Array) -> Array:
    """Return a feature's values: on tokens of its profile, with a document effect, and `logit` more log odds."""
    effect = rng.normal(0, EFFECT, text.document[-1] + 1)[text.document]
    odds = profile[text.token] / (1 - profile[text.token]) * np.exp(effect + logit)
    fires = rng.random(len(text.token)) < odds / (1 + odds)
    return np.where(fires, rng.lognormal(0, TAIL, len(text.token)) * np.exp(0.4 * effect), 0)


def draw_pair(rng: np.random.Generator, text: Text, profile: Array, sense: float) -> tuple[Array, Array]:
    """Return both features; `sense` is how much more the one of two senses of a token makes either fire."""
    share = rng.beta(0.5, 0.5, text.document[-1] + 1)[text.document]
    logit = sense * np.where(rng.random(len(share)) < share, 1, -1)
    return fire(rng, text, profile, logit), fire(rng, text, profile, logit)


def excess_experiment(seed: Sequence[int], kind: str, n_documents: int, sense: float) -> list[float]:
    """Return p and the interval of the excess in one experiment, and p of a permutation of rows."""
    rng = np.random.default_rng(seed)
    text = draw_text(rng, n_documents)
    pair = draw_pair(rng, text, draw_profile(rng, kind), sense)
    return [*estimate_excess(text, pair), permutation_p(text.token, *pair)]


def permutation_p(token: Array, x: Array, y: Array) -> float:
    """Return one-sided p of the sum of products if rows are permuted within tokens, as if they were independent."""
    rows = np.bincount(token, minlength=TOKENS)
    x, y = (values - (np.bincount(token, values, TOKENS) / np.maximum(rows, 1))[token] for values in (x, y))
    squares = [np.bincount(token, values * values, TOKENS) for values in (x, y)]
    variance = (squares[0] * squares[1] / np.maximum(rows - 1, 1)).sum()
    return float(norm.sf(x @ y / np.sqrt(variance))) if variance > 0 else np.nan


def estimate_excess(text: Text, pair: tuple[Array, Array]) -> tuple[float, float, float]:
    """Return p and the interval of the excess."""
    cells = make_cells(text.token, text.document)
    used = cells.place >= 0
    sides = []
    for values in pair:
        column = np.zeros(len(cells.cell), np.float32)
        column[cells.place[used]] = values[used]
        sides.append(scipy.sparse.csc_array(column[:, None]))
    one = np.zeros(1, np.int64)
    found = excess_of_pairs(sides[0], sides[1], (one, one), cells)
    return float(found.excess_p[0]), float(found.excess_low[0]), float(found.excess_high[0])


def judge_excess(n_experiments: int, kinds: Sequence[str] = KINDS, documents: Sequence[int] = DOCUMENTS) -> list[Any]:
    """Return, for every kind of pair and number of documents, how often p and interval are right, and the power."""
    lines: list[dict[str, Any]] = []
    for i, kind in enumerate(kinds):
        for n in documents:
            null = np.array([excess_experiment((i, n, e, 0), kind, n, 0.0) for e in range(n_experiments)])
            power = np.array([excess_experiment((i, n, e, 1), kind, n, SENSE)[0] for e in range(n_experiments)])
            p, low, high, by_permutation = null[np.isfinite(null[:, 0])].T
            power = power[np.isfinite(power)]
            rejected = int(np.count_nonzero(p <= LEVEL))
            lines.append(
                {
                    "kind": kind, "documents": n, "experiments": n_experiments, "given": len(p) / n_experiments,
                    "rejected": rejected / len(p), "permutation_rejected": float(np.mean(by_permutation <= LEVEL)),
                    "p_binomial": float(binomtest(rejected, len(p), LEVEL, alternative="greater").pvalue),
                    "covered": float(np.mean((low <= 0) & (high >= 0))),
                    "power": float(np.mean(power <= LEVEL)), "power_given": len(power) / n_experiments,
                }
            )  # fmt: skip
    add_holm(lines)
    return lines


def populations(kinds: Sequence[str], n: int) -> Iterator[tuple[Array, Array]]:
    """Yield rows, (document, 1), and sums, (document, 1, 5), of the documents of populations in which a pair fires."""
    for i, kind in enumerate(kinds):
        for j in range(n):
            rng = np.random.default_rng((i, j, 2))
            text = draw_text(rng, POPULATION)
            x, y = draw_pair(rng, text, draw_profile(rng, kind), SENSE)
            columns = np.stack([x, y, x * x, y * y, x * y], axis=1)
            first = np.flatnonzero(np.diff(text.document, prepend=-1))
            yield np.bincount(text.document)[:, None].astype(float), np.add.reduceat(columns, first)[:, None]


def percentiles(rng: np.random.Generator, n: Array, sums: Array, level: float) -> Array:
    """Return the percentile interval of r from documents drawn with replacement, (2, pair)."""
    weights = rng.multinomial(len(n), np.full(len(n), 1 / len(n)), size=DRAWS).astype(float)
    drawn = r_of_sums("pearson", weights @ n, np.tensordot(weights, sums, axes=1))
    missing = np.isnan(drawn).all(axis=0)
    drawn[:, missing] = 0
    return np.where(missing, np.nan, np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0))


def judge_intervals(n_experiments: int, kinds: Sequence[str] = KINDS, n_populations: int = POPULATIONS) -> list[Any]:
    """Return the coverage of both intervals of r, by the number of documents in which the pair fires."""
    found: list[list[float]] = []
    for number, (n, sums) in enumerate(populations(kinds, n_populations)):
        truth = r_of_sums("pearson", n.sum(axis=0), sums.sum(axis=0))[0]
        for experiment in range(n_experiments):
            rng = np.random.default_rng((number, experiment, 3))
            drawn = rng.choice(len(n), SAMPLE, replace=False)
            found.append(_interval_experiment(rng, n[drawn], sums[drawn], truth))
    columns = np.array(found)
    which = np.digitize(columns[:, 0], BINS)
    return [_coverage(columns[which == i + 1], i) for i in range(len(BINS)) if np.any(which == i + 1)]


def _interval_experiment(rng: np.random.Generator, n: Array, sums: Array, truth: float) -> list[float]:
    """Return co-firing and effective documents, and of both intervals, whether the truth is within and the width."""
    r = r_of_sums("pearson", n.sum(axis=0), sums.sum(axis=0))
    influence = influence_on_r("pearson", n, sums)
    squares = (influence**2).sum(axis=0)
    n_effective = effective_number(squares, (influence**4).sum(axis=0))
    line = [float(np.count_nonzero(sums[..., 4])), float(n_effective[0])]
    student = fisher_interval(r, squares * len(n) / (len(n) - 1), n_effective, 1 - LEVEL)
    for low, high in (student[:, 0], percentiles(rng, n, sums, 1 - LEVEL)[:, 0]):
        line += [np.nan if np.isnan(low) else float(low <= truth <= high), high - low]
    return line


def _coverage(columns: Array, i: int) -> dict[str, Any]:
    _, n_effective, covered, width, by_percentiles, width_of_percentiles = columns.T
    return {
        "from": BINS[i], "to": BINS[i + 1] - 1 if i + 1 < len(BINS) else None, "experiments": len(columns),
        "effective": float(np.nanmedian(n_effective)), "given": float(np.mean(np.isfinite(covered))),
        "covered": float(np.nanmean(covered)), "width": float(np.nanmedian(width)),
        "percentiles_covered": float(np.nanmean(by_percentiles)),
        "percentiles_width": float(np.nanmedian(width_of_percentiles)),
    }  # fmt: skip


def benchmark(n_experiments: int, n_intervals: int) -> dict[str, Any]:
    """Run everything and return the figures.

    Parameters
    ----------
    n_experiments
        Experiments of each row of the table of the excess.
    n_intervals
        Samples of each population.
    """
    start = time.perf_counter()
    excess, coverage = judge_excess(n_experiments), judge_intervals(n_intervals)
    return {
        "name": "document-calibration",
        "command": f"python -m benchmarks.document_calibration --experiments {n_experiments} --intervals {n_intervals}",
        "seconds": time.perf_counter() - start,
        "peak_gb": peak_gb(),
        "level_is_held": all(line["p_holm"] > LEVEL for line in excess),
        "coverage_is_held": all(line["covered"] >= LEAST_COVERAGE for line in coverage if line["from"] >= 11),
        "excess": excess,
        "coverage": coverage,
    }


def render_excess(lines: Sequence[dict[str, Any]]) -> str:
    """Return the table of the excess in Markdown."""
    head = [
        "| both features fire on | documents | p given | p ≤ .05 without excess | by permuted rows | coverage "
        "| p ≤ .05 with two senses |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [
        f"| {line['kind']} | {line['documents']} | {line['given']:.2f} | {line['rejected']:.3f} "
        f"| {line['permutation_rejected']:.3f} | {line['covered']:.3f} | {line['power']:.2f} |"
        for line in lines
    ])  # fmt: skip


def render_coverage(lines: Sequence[dict[str, Any]]) -> str:
    """Return the table of the intervals of r in Markdown."""
    head = [
        "| documents in which the pair fires | effective, median | interval given | coverage | median width "
        "| percentile bootstrap | its width |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [
        f"| {line['from']}–{line['to'] or ''} | {line['effective']:.1f} | {line['given']:.2f} | {line['covered']:.3f} "
        f"| {line['width']:.2f} | {line['percentiles_covered']:.3f} | {line['percentiles_width']:.2f} |"
        for line in lines
    ])  # fmt: skip


def render(page: str, result: dict[str, Any]) -> str:
    """Return a page with both tables."""
    page = insert(page, EXCESS, render_excess(result["excess"]))
    return insert(page, COVERAGE, render_coverage(result["coverage"]))


def main() -> None:
    """Read the command line, run, print; or make the tables from the stored figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--intervals", type=int, default=200)
    parser.add_argument("--table", action="store_true", help="make the tables of the page from the stored result")
    given = parser.parse_args()
    if given.table:
        update(PAGE, RESULT, render)
        return
    result = benchmark(given.experiments, given.intervals)
    print(render_excess(result["excess"]), render_coverage(result["coverage"]), sep="\n\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
