"""Is every p what it claims to be? How often each is small without an effect, and how often with one.

::

    python -m benchmarks.every_p                             # all; hours; into benchmarks/results
    python -m benchmarks.every_p --only coherence keywords   # these alone; the others stay as they are
    python -m benchmarks.every_p --table                     # the table of docs/statistics.md, of stored results

Three parts are modules of their own: ``scores`` (:mod:`benchmarks.calibration`), the nulls of `compare` and
`compare-activations`; ``excess`` (:mod:`benchmarks.document_calibration`), of single pairs; ``concepts``
(:mod:`benchmarks.concept_calibration`), the token null of concepts. The others are here:

====================  ==================================================================================================
``rematch token``     features know the same tokens of Zipf's frequencies, and have document effects of their own; with
                      an effect, both know which of two senses a token has
``rematch document``  A reads other documents than B, of the same lengths, and all features fire at their beginning;
                      with an effect, both read the same
``keywords``          concepts of random words, of matched pairs in clumps of one word that have a like r; with an
                      effect, the pairs of the concept are more alike than others of the same r
``shuffled words``    clumps of words that are paired at random; with an effect, words lie alike in both spaces
``coherence``         random pairs whose features fire on the same word on both sides; with an effect, related words
``token identity``    20 pairs of features of one text: does Benjamini and Hochberg's rule call any of them more?
``ends early``        a null that ends with the tenth run that is as high as the real pairing
``rare words``        r of two features of words of two to six rows each, of which draws of the null ``token`` have
                      many a partner in common; beside it, what the ranks of the draws alone would say
====================  ==================================================================================================

All that makes p is the product's. Without an effect p may be at most .05 in no more than 5 % of experiments: an exact
binomial test from above, with Holm's correction over the rows of all parts.
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr
from scipy.stats import binomtest

from benchmarks import calibration, concept_calibration, document_calibration
from benchmarks.calibration import add_holm
from benchmarks.document_calibration import KINDS, SENSE, Text, draw_pair, draw_profile, draw_text, fire
from benchmarks.table import RESULTS, ROOT, insert, percent
from pipeline.compare.base import families
from pipeline.compare.engine import score_draws, score_rows
from pipeline.compare.nulls import Draws
from pipeline.compare.random_keywords import random_lists
from pipeline.compare.statistics import LEVEL, benjamini_hochberg, ended_after, p_of_overlapping, p_value
from pipeline.correlate.rows import splitmix64
from pipeline.match.edges import make_edges
from pipeline.match.excess import excess_of_pairs, make_cells
from pipeline.rematch.nulls import Rows, Units
from pipeline.rematch.run import CHANCE, COUNTS, summarise
from pipeline.rematch.summary import feature_tests, strata_of
from pipeline.semantics.coherence import centred_unit, coherence
from pipeline.semantics.tables import JUDGED, JUDGED_NULLS, joint_p
from pipeline.settings.compare import parse_metric
from pipeline.settings.registries import METHODS, METRICS, NULLS, ROW_NULLS
from pipeline.text.top_tokens import Dominant

RESULT, PAGE, MARK = RESULTS / "compare" / "levels.json", ROOT / "docs" / "statistics.md", "every-p"
METHOD = ROOT / "docs" / "method.md"
#: Parts that are modules of their own, and how many experiments they make.
PARTS: dict[str, tuple[Path, Callable[..., dict[str, Any]], tuple[Any, ...]]] = {
    "scores": (calibration.LEVELS, calibration.benchmark, (500, 500, 39, list(METRICS))),
    "excess": (document_calibration.RESULT, document_calibration.benchmark, (1000, 200)),
    "concepts": (concept_calibration.RESULT, concept_calibration.benchmark, (500, 19, 200)),
}
EXPERIMENTS, WITH_EFFECT = 500, 200
#: Of matching anew: documents, features, draws and the least r; and how much more features fire at a beginning.
DOCUMENTS, FEATURES, DRAWS, LEAST_R, BEGINNING = 60, 30, 20, 0.1, 3.0
#: Of concepts: words, dimensions, concepts of so many words, runs for a corrected p of 4 tests; noise of a planted one.
WORDS, DIMENSIONS, CONCEPTS, OF_CONCEPT, RUNS, PLANTED = 150, (24, 20), 2, 6, 79, 0.3
#: Pairs of one text, runs of a null that ends early after so many.
PAIRS, EARLY = 20, (400, 10)

Array = np.ndarray
Values = dict[str, float]


class _TextRows(Rows):
    """Rows whose text is a column of the store."""

    def same_text(self) -> Array:
        return np.asarray(self.store["text"].values, np.int64)


def _correlation(x: Array, y: Array) -> Array:
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(x.T @ y / np.sqrt(np.outer((x * x).sum(axis=0), (y * y).sum(axis=0))))


def _matched(x: Array, y: Array, half: Array) -> tuple[list[float], Array]:
    """Return number of pairs, r and held-out r of a greedy matching, and each A feature's best r."""
    chosen, heldout = (_correlation(x[half == h], y[half == h]) for h in (0, 1))
    a, b = np.nonzero(chosen >= LEAST_R)
    edges = make_edges(a, b, chosen[a, b], *chosen.shape)
    places = METHODS["greedy"](edges)
    ids = edges.ids_a[places], edges.ids_b[places]
    means = [np.nanmean(values[ids]) if np.isfinite(values[ids]).any() else np.nan for values in (chosen, heldout)]
    return [float(len(places)), *means], np.where(np.isnan(chosen), -1, chosen).max(axis=1)


def _rematched(rng: np.random.Generator, null: str, sides: tuple[Array, Array], text: Text) -> Values:
    """Return what :func:`pipeline.rematch` says of two sides, (token, feature) each."""
    x, y = sides
    bits = splitmix64(np.arange(DOCUMENTS) + int(rng.integers(2**32))) & np.uint64(1)
    half = bits.astype(np.int8)[text.document]
    store = xr.Dataset({"document": ("token", text.document), "text": ("token", text.token)})
    units = ROW_NULLS[null].function(_TextRows(half, store))
    used = np.flatnonzero(units.used)
    seed = int(rng.integers(2**32))
    orders = [np.arange(len(half)), *(ROW_NULLS[null].order(units, seed, draw) for draw in range(DRAWS))]
    made = [_matched(x[used], y[order[used]], half[used]) for order in orders]
    values = np.array([counts for counts, _ in made])
    found = summarise({null: values}, {null: np.empty(0)}, {null: units.overlap})
    names = COUNTS[:1] if null == CHANCE else COUNTS
    said = {name: float(found["p"][1][0, j]) for j, name in enumerate(names)}
    ends = [found[f"difference_{end}"][1][0] for end in ("low", "high")]
    said |= {f"{name} interval": float(ends[0][j] > 0 or ends[1][j] < 0) for j, name in enumerate(names)}
    if null == CHANCE:
        best = np.array([of_feature for _, of_feature in made])
        chosen = x[used][half[used] == 0] != 0
        documents = [len(np.unique(text.document[used][half[used] == 0][column])) for column in chosen.T]
        tests = feature_tests(best[0], best[1:], strata_of(chosen.sum(axis=0), np.array(documents)))
        said |= {"best_r_p": float(rng.choice(tests["p"])), "best_r_q": float(np.nanmin(tests["q"]))}
    return said


def rematch_token(rng: np.random.Generator, *, effect: bool) -> Values:
    """Match anew with rows of the same text permuted."""
    text = draw_text(rng, DOCUMENTS)
    pairs = [draw_pair(rng, text, draw_profile(rng, KINDS[i % len(KINDS)]), SENSE * effect) for i in range(FEATURES)]
    x, y = (np.stack(side, axis=1) for side in zip(*pairs, strict=True))
    return _rematched(rng, "token", (x, y), text)


def rematch_document(rng: np.random.Generator, *, effect: bool) -> Values:
    """Match anew with documents in each other's place."""
    text = draw_text(rng, DOCUMENTS)
    first = np.flatnonzero(np.diff(text.document, prepend=-1))
    beginning = BEGINNING * np.exp(-(np.arange(len(text.token)) - first[text.document]) / 2)
    other = (
        text if effect else text._replace(token=rng.permutation(draw_text(rng, 2 * DOCUMENTS).token)[: len(text.token)])
    )
    profiles = [draw_profile(rng, KINDS[i % len(KINDS)]) for i in range(FEATURES)]
    x, y = (np.stack([fire(rng, of, profile, beginning) for profile in profiles], axis=1) for of in (text, other))
    return _rematched(rng, "document", (x, y), text)


def keywords(rng: np.random.Generator, *, effect: bool) -> Values:
    """Judge concepts of random words against random keywords, and by all nulls of the verdict."""
    word = np.repeat(np.arange(WORDS), np.minimum(rng.geometric(0.4, WORDS), 4))
    word_r = rng.uniform(0.4, 0.6, WORDS)
    r = np.clip(word_r[word] + 0.1 * rng.normal(size=len(word)), 0.2, 0.95)
    large = rng.permutation(np.flatnonzero(np.bincount(word) >= 2))
    lists = np.array_split(large[: CONCEPTS * OF_CONCEPT], CONCEPTS)
    concepts = [np.isin(word, words) for words in lists]
    noise = (1.5 - r) * np.where(effect & np.any(concepts, axis=0), PLANTED, 1)
    rows = _clumps(rng, word, noise)
    groups = families([parse_metric(metric) for metric in JUDGED])
    nulls = JUDGED_NULLS["concept"]
    p = np.full((CONCEPTS, len(JUDGED), len(nulls)), np.nan)
    dominant = Dominant(word, rng.random(len(word)) < 0.5)
    for i, concept in enumerate(concepts):
        own = [side[concept] for side in rows]
        n, seed = len(own[0]), int(rng.integers(2**32))
        outcome = list(score_rows(own, n, groups, [Draws(NULLS["shuffled"], n, (n, n), RUNS, seed)]).values())
        places, _ = random_lists(rng, RUNS, dominant=dominant, r=r, concept=concept)
        for j, null in enumerate(nulls):
            if null == "shuffled":
                scores = np.array([one.null[null] for one in outcome])
            elif null == "random_keywords" and places is None:
                continue
            else:
                own_places = places if null == "random_keywords" else None
                draws = Draws(NULLS[null], n, (len(word),) * 2, RUNS, seed, own_places)
                scores = score_draws(range(RUNS), *rows, draws, groups)
            p[i, :, j] = [p_value(one.score, values) for one, values in zip(outcome, scores, strict=True)]
    table = xr.Dataset(
        {"p": (("row", "metric", "null"), p), "kind": ("row", ["concept"] * CONCEPTS)},
        {"metric": list(JUDGED), "null": list(nulls)},
    )
    joint = joint_p(table)
    said = {
        f"random_keywords {metric}": float(p[0, i, nulls.index("random_keywords")]) for i, metric in enumerate(JUDGED)
    }
    for name in ("holm", "bh"):
        corrected = joint[f"p_joint_{name}"].values
        said[f"verdict, {name}"] = float(np.nanmin(corrected)) if np.isfinite(corrected).any() else np.nan
    return said


def _clumps(rng: np.random.Generator, word: Array, noise: Array) -> tuple[Array, Array]:
    """Return rows of both sides, (pair, dimension): those of a word lie together, and words alike on both sides."""
    d = DIMENSIONS[1]
    common = rng.normal(size=(word.max() + 1, d))[word] + 0.7 * rng.standard_t(5, size=(len(word), d))
    turns = [np.linalg.qr(rng.normal(size=(of_side, d)))[0] for of_side in DIMENSIONS]
    x, y = (common @ turn.T + noise[:, None] * rng.standard_t(5, size=(len(word), len(turn))) for turn in turns)
    return x, y


def shuffled_words(rng: np.random.Generator, *, effect: bool) -> Values:
    """Score pairs in clumps of words beside words that change places."""
    word = np.repeat(np.arange(24), rng.integers(1, 5, 24))
    x, y = _clumps(rng, word, np.full(len(word), 0.8))
    if not effect:
        y = _clumps(rng, word, np.full(len(word), 0.8))[1]
    groups = families([parse_metric(metric) for metric in JUDGED])
    n = len(word)
    draws = Draws(NULLS["shuffled_words"], n, (n, n), 39, int(rng.integers(2**32)), words=word)
    found = score_rows((x, y), n, groups, [draws]).values()
    return {metric: p_value(one.score, one.null["shuffled_words"]) for metric, one in zip(JUDGED, found, strict=True)}


def coherence_of_words(rng: np.random.Generator, *, effect: bool) -> Values:
    """Judge how related the words of pairs are, whose features fire on the same words."""
    vectors = rng.standard_t(5, size=(150, 12))
    if effect:
        vectors[:8] += 1.5
    sides = [centred_unit(vectors + 0.3 * rng.normal(size=vectors.shape)) for _ in range(2)]
    pool = np.arange(150), rng.permutation(150)
    sides[1][pool[1]] = sides[1].copy()
    chosen = np.arange(8) if effect else rng.choice(150, 8, replace=False)
    members = pool[0][chosen], pool[1][chosen]
    seed = int(rng.integers(2**32))
    apart = [
        coherence([side], [ids], runs=99, seed=seed + i)
        for i, (side, ids) in enumerate(zip(sides, members, strict=True))
    ]
    score, random = float(np.mean([one.score for one in apart])), np.mean([one.random for one in apart], axis=0)
    return {"p": coherence(sides, members, runs=99, seed=seed, pool=pool).p, "p otherwise": p_value(score, random)}


def token_identity(rng: np.random.Generator, *, effect: bool) -> Values:
    """Estimate the excess of all pairs of a text, and ask whether any is called more than its token."""
    text = draw_text(rng, DOCUMENTS)
    cells = make_cells(text.token, text.document)
    used = cells.place >= 0
    columns = np.zeros((2, len(cells.cell), PAIRS), np.float32)
    for pair in range(PAIRS):
        values = draw_pair(rng, text, draw_profile(rng, KINDS[pair % len(KINDS)]), SENSE * effect)
        for side in range(2):
            columns[side, cells.place[used], pair] = values[side][used]
    ids = np.arange(PAIRS)
    x, y = (scipy.sparse.csc_array(side) for side in columns)
    found = excess_of_pairs(x, y, (ids, ids), cells)
    return {"any excess, Benjamini–Hochberg": float(np.nanmin(benjamini_hochberg(found.excess_p)))}


def rare_words(rng: np.random.Generator, *, effect: bool) -> Values:
    """Return p of r against rows of the same word, and what the ranks of the draws would say."""
    word = np.repeat(np.arange(60), rng.integers(2, 7, 60))
    sense = rng.normal(size=len(word)) * effect
    x, y = (rng.lognormal(0, 0.6, len(word)) + sense + rng.normal(size=60)[word] for _ in range(2))
    units = Units(np.arange(len(word)), word)
    orders = [ROW_NULLS["token"].order(units, int(rng.integers(2**32)), draw) for draw in range(DRAWS)]
    r, draws = np.corrcoef(x, y)[0, 1], np.array([np.corrcoef(x, y[order])[0, 1] for order in orders])
    return {"r": p_of_overlapping(r, draws, units.overlap), "r otherwise": p_value(r, draws)}


def ends_early(rng: np.random.Generator, *, effect: bool) -> Values:
    """Return p of a null that ends early."""
    runs, stop_after = EARLY
    score, null = rng.normal() + 2 * effect, rng.normal(size=runs)
    if ended := ended_after(score, null, stop_after):
        null[ended:] = np.nan
    return {"p": p_value(score, null)}


#: By name: the experiment, and how many more of it are made, where they cost next to nothing.
KINDS_OF_P: dict[str, tuple[Callable[..., Values], int]] = {
    "rematch token": (rematch_token, 1),
    "rematch document": (rematch_document, 1),
    "keywords": (keywords, 1),
    "shuffled words": (shuffled_words, 1),
    "coherence": (coherence_of_words, 4),
    "token identity": (token_identity, 1),
    "ends early": (ends_early, 20),
    "rare words": (rare_words, 4),
}


def judge(name: str, experiments: int, with_effect: int) -> list[dict[str, Any]]:
    """Return a line for each p of a kind: how often it is given, and small, without an effect and with one."""
    experiment, times = KINDS_OF_P[name]
    place = list(KINDS_OF_P).index(name)
    without, power = (
        [
            experiment(np.random.default_rng([place, seed, effect]), effect=bool(effect))
            for seed in range(times * number)
        ]
        for effect, number in enumerate((experiments, with_effect))
    )
    lines = []
    for column in (key for key in without[0] if not key.endswith((" interval", " otherwise"))):
        p, found = (np.array([one[column] for one in made]) for made in (without, power))
        p, found = p[np.isfinite(p)], found[np.isfinite(found)]
        below = int(np.count_nonzero(p <= LEVEL))
        line = {
            "data": name, "p": column, "experiments": len(without), "given": len(p) / len(without),
            "below_level": below / len(p), "power": float(np.mean(found <= LEVEL)),
            "p_binomial": float(binomtest(below, len(p), LEVEL, alternative="greater").pvalue),
        }  # fmt: skip
        if f"{column} interval" in without[0]:
            line["covered"] = 1 - float(np.mean([one[f"{column} interval"] for one in without]))
        if f"{column} otherwise" in without[0]:
            line["otherwise"] = float(np.mean([one[f"{column} otherwise"] <= LEVEL for one in without]))
        lines.append(line)
    return lines


def run_part(name: str, experiments: int, with_effect: int) -> None:
    """Run one part, and store its figures."""
    if name in PARTS:
        file, benchmark, arguments = PARTS[name]
        file.write_text(json.dumps(benchmark(*arguments)) + "\n", encoding="utf-8")
        return
    start = time.perf_counter()
    lines = judge(name, experiments, with_effect)
    stored = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    stored[name] = {"seconds": round(time.perf_counter() - start, 1), "lines": lines}
    RESULT.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def all_lines() -> list[dict[str, Any]]:
    """Return the rows of all parts, with ``p_holm`` over all of them."""
    stored = {name: json.loads(file.read_text(encoding="utf-8")) for name, (file, *_) in PARTS.items()}
    lines = [
        *({**line, "part": "scores"} for line in stored["scores"]["lines"]),
        *({**line, "part": "excess"} for line in stored["excess"]["excess"]),
        *({**line, "part": "concepts"} for line in stored["concepts"]["lines"]),
        *(
            {**line, "part": name}
            for name, of in json.loads(RESULT.read_text(encoding="utf-8")).items()
            for line in of["lines"]
        ),
    ]
    add_holm(lines)
    return lines


def render(lines: Sequence[dict[str, Any]]) -> str:
    """Return the rows that have no table of their own, in Markdown, and what is found of all."""
    head = [
        "| data | p | experiments | p given | p ≤ .05 without an effect | p of that | interval holds 0 "
        "| p ≤ .05 with one |",
        "|---|---|---|---|---|---|---|---|",
    ]
    body = [
        f"| {line['part']} | {line['p']} | {line['experiments']:,} | {line['given']:.2f} | {line['below_level']:.3f} "
        f"| {line['p_binomial']:.2g} | {format(line['covered'], '.3f') if 'covered' in line else '–'} "
        f"| {line['power']:.2f} |"
        for line in lines
        if line["part"] not in PARTS
    ]
    least = min(lines, key=lambda line: line["p_holm"])
    verdict = "none of them exceeds" if least["p_holm"] > LEVEL else "not all of them hold"
    said = (
        f"This table and those above and of the sections before have {len(lines)} rows, of at least "
        f"{min(line['experiments'] for line in lines)} experiments each: {verdict} .05 by an exact binomial test with "
        f"Holm's correction over all rows (smallest p {least['p_binomial']:.2g}, corrected {least['p_holm']:.2g})."
    )
    return "\n".join([*head, *body, "", *textwrap.wrap(said, 118)])


def page_with_table(page: str) -> str:
    """Return the page of statistics with the table, of the stored results."""
    return insert(page, MARK, render(all_lines()))


def render_traps(page: str) -> str:
    """Return the page of method with the traps that the stored results show."""
    stored = json.loads(RESULT.read_text(encoding="utf-8"))
    (rare,), (related,) = stored["rare words"]["lines"], stored["coherence"]["lines"]
    documents = json.loads(document_calibration.RESULT.read_text(encoding="utf-8"))["coverage"]
    few, many = documents[0], documents[-1]
    scores = json.loads(calibration.LEVELS.read_text(encoding="utf-8"))
    tokens = min(line["below_level"] for line in scores["shuffled_tokens"])
    of_r = "statistics.md#intervals-of-r-and-what-a-pair-shares-beyond-its-token"
    traps = [
        "**Tokens shuffled one by one.** Neighbours in a text are alike. Of unrelated documents, at least "
        f"{percent(tokens)} of comparisons are significant at 5 % against shuffled tokens; whole documents must change "
        "places ([statistics](statistics.md#nulls-for-activations-over-tokens)).",
        f"**A bootstrap of r from a few documents.** Where a pair fires in {few['from']} or {few['to']} of "
        f"{document_calibration.SAMPLE} documents, 95 % percentile intervals hold the true r in "
        f"{percent(few['percentiles_covered'])} of samples, and in {percent(many['percentiles_covered'])} where it "
        f"fires in more than {many['from'] - 1}. What counts is the documents that carry the pair "
        f"({percent(few['covered'])} and {percent(many['covered'])}, [statistics]({of_r})).",
        "**Draws that resemble each other more than the data.** If no row may keep its own partner, rows of rare "
        "words have the same few others in every draw. By the ranks of 20 draws, "
        f"{percent(rare['otherwise'])} of unrelated pairs of features of rare words are significant at 5 %; with the "
        f"overlap of draws counted, {percent(rare['below_level'], 1)} "
        "([statistics](statistics.md#more-than-a-shared-vocabulary)).",
        "**Two sides drawn apart whose members are pairs.** Matched features fire on the same words, so that both "
        "sides of a set of pairs are coherent, or neither. With random features of each side for chance, "
        f"{percent(related['otherwise'])} of random sets have p ≤ .05; with random pairs, "
        f"{percent(related['below_level'], 1)} ([semantics](semantics.md#coherence)).",
    ]
    text = "\n".join(
        textwrap.fill(f"{18 + i}. {trap}", 118, subsequent_indent=" " * 4, break_on_hyphens=False)
        for i, trap in enumerate(traps)
    )
    return insert(page, "traps", text)


def main() -> None:
    """Read the command line; run what is asked for, store it, and make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS)
    parser.add_argument("--with-effect", type=int, default=WITH_EFFECT)
    parser.add_argument("--only", nargs="+", choices=[*PARTS, *KINDS_OF_P], default=[*PARTS, *KINDS_OF_P])
    parser.add_argument("--table", action="store_true", help="make the table of the page from the stored results")
    given = parser.parse_args()
    for name in () if given.table else given.only:
        run_part(name, given.experiments, given.with_effect)
    for page, make in ((PAGE, page_with_table), (METHOD, render_traps)):
        page.write_text(make(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
