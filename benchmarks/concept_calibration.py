"""The token null of concepts: how often p is small where words alone are shared, and where more is.

::

    python -m benchmarks.concept_calibration | tail -n 1 > benchmarks/results/compare/concepts.json
    python -m benchmarks.concept_calibration --experiments 40 --with-senses 20
    python -m benchmarks.concept_calibration --table     # the table of docs/statistics.md, from the stored result

Each experiment has words of Zipf's frequencies with two features on either side, of which each fires in one of two
senses of the word. A concept is some of the words, frequent and rare. Values have heavy tails, and documents differ in
the senses that they prefer. Decoder rows of a word lie together, in both models, and so do, in another space, those of
a sense.

Where only *words* are shared, A's senses have nothing to do with B's: whichever features of a word are paired is
chance, in the real rows as in rows of the same text permuted. p ≤ 0.05 may be no more frequent than 0.05 by an exact
binomial test with Holm's correction over metrics, and the interval must hold 0 in at least 95 % of experiments, but for
sampling error. Where *senses* are shared, the right features of a word find each other in the real rows alone: how
often is p ≤ 0.05?

Rows, draws, matching, cutting out and scores are those of the product, on arrays in memory.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.calibration import add_holm
from benchmarks.table import RESULTS, ROOT, insert
from pipeline.compare.base import families
from pipeline.compare.engine import score_rows
from pipeline.compare.nulls import Draws
from pipeline.compare.statistics import LEVEL
from pipeline.match.edges import make_edges
from pipeline.rematch.nulls import Units
from pipeline.semantics.subspaces import inside
from pipeline.semantics.token_null import COLUMNS, beyond_draws
from pipeline.settings.compare import parse_metric
from pipeline.settings.registries import METHODS, NULLS, ROW_NULLS
from pipeline.settings.rematch import SHUFFLES

METRICS = ("svcca:k=4", "rsa")
#: Words, of which the first so many are the concept; documents, and rows of each.
WORDS, OF_CONCEPT, DOCUMENTS, ROWS = 20, 8, 40, 40
#: Least r of a pair, and dimensions of A and of B.
LEAST_R, DIMENSIONS = 0.1, (24, 20)
#: Of decoder rows: how far the senses of a word lie apart, and the noise of each model.
SENSE, NOISE = 1.0, 0.5
#: How often B's sense is A's, where senses are shared; standard deviation of what a document adds to the log odds.
AGREE, EFFECT = 0.5, 1.0
RESULT, PAGE, MARK = RESULTS / "compare" / "concepts.json", ROOT / "docs" / "statistics.md", "concept-calibration"


def experiment(seed: int, draws: int, *, senses: bool) -> list[dict[str, float]]:
    """Return of each metric what the draws say of the concept's score above shuffled pairings."""
    rng = np.random.default_rng([seed, int(senses)])
    frequency = 1 / np.arange(1, WORDS + 1)
    word = rng.choice(rng.permutation(WORDS), DOCUMENTS * ROWS, p=frequency / frequency.sum())
    document = np.repeat(np.arange(DOCUMENTS), ROWS)
    prefers = rng.normal(0, EFFECT, (2, DOCUMENTS, WORDS))
    sense = [rng.random(len(word)) < 1 / (1 + np.exp(-prefers[side, document, word])) for side in range(2)]
    if senses:
        sense[1] = np.where(rng.random(len(word)) < AGREE, sense[0], sense[1])
    active = [_active(rng, word, fires) for fires in sense]
    decoders = _decoders(rng)
    units = Units(np.arange(len(word)), word)
    orders = [ROW_NULLS["token"].order(units, seed, draw) for draw in range(draws)]
    scores = np.array([_scores(active[0], active[1][order], decoders) for order in [np.arange(len(word)), *orders]])
    return [dict(zip(COLUMNS, beyond_draws(of[0], of[1:], units.overlap), strict=True)) for of in scores.T]


def _active(rng: np.random.Generator, word: np.ndarray, sense: np.ndarray) -> np.ndarray:
    """Return token × feature; feature 2 w + s fires on word w in sense s, and now and then on anything."""
    fires = np.arange(2 * WORDS) == (2 * word + sense)[:, None]
    noise = rng.random(fires.shape) < 0.01
    return np.asarray((fires | noise) * rng.lognormal(0, 0.6, fires.shape))


def _decoders(rng: np.random.Generator) -> list[np.ndarray]:
    """Return the decoder rows of both models: words and senses lie alike, in other directions."""
    of_word, of_sense = rng.normal(size=(WORDS, DIMENSIONS[1])), SENSE * rng.normal(size=(2 * WORDS, DIMENSIONS[1]))
    common = np.repeat(of_word, 2, axis=0) + of_sense
    turns = [np.linalg.qr(rng.normal(size=(d, DIMENSIONS[1])))[0] for d in DIMENSIONS]
    return [
        common @ turn.T + NOISE * rng.normal(size=(2 * WORDS, d)) for turn, d in zip(turns, DIMENSIONS, strict=True)
    ]


def _scores(x: np.ndarray, y: np.ndarray, decoders: list[np.ndarray]) -> list[float]:
    """Return the scores of the concept's pairs above shuffled pairings of them."""
    n = 2 * WORDS
    r = np.corrcoef(x.T, y.T)[:n, n:]
    a, b = np.nonzero(r >= LEAST_R)
    edges = make_edges(a, b, r[a, b], n, n)
    chosen = np.sort(METHODS["greedy"](edges))
    member = np.arange(n) < 2 * OF_CONCEPT
    pairs = edges.ids_a[chosen], edges.ids_b[chosen]
    places = inside(pairs, (member, member), "both")
    rows = [decoder[ids[places]] for decoder, ids in zip(decoders, pairs, strict=True)]
    groups = families([parse_metric(metric) for metric in METRICS])
    shuffled = Draws(NULLS["shuffled"], len(places), (len(places), len(places)), SHUFFLES, 0)
    outcomes = score_rows(rows, len(places), groups, [shuffled]).values()
    return [outcome.score - float(outcome.null["shuffled"].mean()) for outcome in outcomes]


def benchmark(experiments: int, draws: int, with_senses: int) -> dict[str, Any]:
    """Run all experiments and return the figures.

    Parameters
    ----------
    experiments, with_senses
        With words alone shared, and with senses.
    draws
        Permutations in each.
    """
    start = time.perf_counter()
    words, senses = (
        [experiment(seed, draws, senses=shared) for seed in range(number)]
        for shared, number in ((False, experiments), (True, with_senses))
    )
    lines: list[dict[str, Any]] = []
    for i, metric in enumerate(METRICS):
        said, found = ([of[i] for of in made if np.isfinite(of[i]["p"])] for made in (words, senses))
        below = sum(one["p"] <= LEVEL for one in said)
        missed = sum(not one["difference_low"] <= 0 <= one["difference_high"] for one in said)
        lines.append(
            {
                "metric": metric, "experiments": len(said), "below_level": below / len(said),
                "p_binomial": float(binomtest(below, len(said), LEVEL, alternative="greater").pvalue),
                "holds_0": 1 - missed / len(said),
                "p_missed": float(binomtest(missed, len(said), LEVEL, alternative="greater").pvalue),
                "power": float(np.mean([one["p"] <= LEVEL for one in found])),
                "difference": float(np.mean([one["difference"] for one in found])),
            }
        )  # fmt: skip
    add_holm(lines)
    return {
        "name": "concept_calibration",
        "command": f"python -m benchmarks.concept_calibration --experiments {experiments} --draws {draws} "
        f"--with-senses {with_senses}",
        "seconds": time.perf_counter() - start,
        "level_is_held": all(line["p_holm"] > LEVEL for line in lines),
        "interval_holds": all(line["p_missed"] > LEVEL / len(lines) for line in lines),
        "lines": lines,
    }


def render(result: dict[str, Any]) -> str:
    """Return the figures as a table in Markdown."""
    head = [
        "| metric | experiments | words alone: p ≤ .05 | p of that | interval holds 0 | senses too: p ≤ .05 "
        "| mean difference |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [
        f"| `{line['metric']}` | {line['experiments']} | {line['below_level']:.3f} | {line['p_binomial']:.2g} "
        f"| {line['holds_0']:.3f} | {line['power']:.2f} | {line['difference']:.2f} |"
        for line in result["lines"]
    ])  # fmt: skip


def page_with_table(page: str) -> str:
    """Return a page with the table, of the stored result."""
    return insert(page, MARK, render(json.loads(RESULT.read_text(encoding="utf-8"))))


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=500)
    parser.add_argument("--draws", type=int, default=19)
    parser.add_argument("--with-senses", type=int, default=200)
    parser.add_argument("--table", action="store_true", help="make the table of the page from the stored result")
    given = parser.parse_args()
    if given.table:
        Path(PAGE).write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    result = benchmark(given.experiments, given.draws, given.with_senses)
    print(render(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
