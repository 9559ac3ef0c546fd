"""What scores and r say, in sentences, and what limits them.

The verdict is drawn from p-values corrected over the whole grid and never from a score alone. Every sentence states
the chance level beside the figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline.report.tables import observations

#: Level below which a corrected p counts.
LEVEL = 0.05
#: Metrics kept to reproduce older tables; they do not enter the verdict where others were measured.
FOR_COMPARISON = ("svcca_pc1",)
NULL_NAMES = {
    "shuffled": "shuffled pairings",
    "shuffled_words": "shuffled words",
    "random_features": "random features",
    "random_pairs": "random pairs",
    "random_keywords": "random keywords",
    "random_dictionary": "a random dictionary",
    "token": "rows of the same text permuted",
}
#: What subspaces are called, by the approach that made them.
APPROACHES = {
    "global": "Concept subsets of all matched pairs",
    "within": "Concepts whose features were matched among themselves",
    "cluster": "Clusters of matched pairs",
}
METRIC_NAMES = {
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "cca": "CCA",
    "svcca_pc1": "SVCCA, 1st component",
    "rsa": "RSA",
    "cka": "CKA",
    "cka_debiased": "debiased CKA",
    "procrustes": "Procrustes",
    "mutual_knn": "mutual neighbours",
    "jaccard_knn": "neighbours (Jaccard)",
    "transfer_linear": "linear transfer",
    "transfer_rotation": "transfer by rotation",
}
CORRECTIONS = {"p_holm": "Holm", "p_bh": "Benjamini–Hochberg"}
#: A fraction of variance unexplained above which the dictionary is called a poor stand-in for the model.
POOR_FVU = 0.35
#: Up to this share of the way from chance to 1, a score beats chance by little.
LITTLE = 0.1
MINUS = "−"
NOTHING = "–"


@dataclass(frozen=True)
class EasyPairs:
    """Of how many pairs, how many are one-word pairs."""

    pairs: int
    one_word: int


def metric_name(metric: str) -> str:
    """Return how a metric is written in prose, with its options.

    >>> metric_name("svcca"), metric_name("rsa:inside=euclidean,outside=kendall")
    ('SVCCA', 'RSA (inside=euclidean, outside=kendall)')
    """
    name, _, options = metric.partition(":")
    known = METRIC_NAMES.get(name, name)
    return f"{known} ({options.replace(',', ', ')})" if options else known


def null_name(null: str) -> str:
    """Return how a null is written in prose."""
    return NULL_NAMES.get(null, null)


def judged_null(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the null that the verdict is drawn from: the first that the comparison was asked for."""
    return scores[scores["null"] == scores["null"].iloc[0]] if len(scores) else scores


def number(value: float, digits: int = 2) -> str:
    """Return a figure for people: a true minus sign, thousands separated, a dash where it is undefined.

    >>> number(-0.123), number(float("nan")), number(1203, 0), number(-0.0001)
    ('−0.12', '–', '1,203', '0.00')
    """
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS) if text.strip("-0.") else text.removeprefix("-")


def p_number(value: float) -> str:
    """Return a p-value with two significant digits.

    >>> p_number(0.000999), p_number(0.04), p_number(1.0)
    ('0.001', '0.04', '1')
    """
    return f"{value:.2g}" if math.isfinite(value) else "–"


def gigabytes(value: float | None) -> str:
    """Return bytes as people compare them with their machine.

    >>> gigabytes(1_234_567_890), gigabytes(None)
    ('1.23 GB', '–')
    """
    return "–" if value is None or not math.isfinite(value) else f"{value / 1e9:.2f} GB"


def criterion(scores: pd.DataFrame) -> str:
    """Return the column of corrected p-values that the verdict uses.

    Holm's correction, unless so few shuffled pairings were drawn that it could not fall below :data:`LEVEL` even if
    every score beat all of them; then Benjamini and Hochberg's.
    """
    return "p_bh" if _holm_floor(scores) >= LEVEL else "p_holm"


def _holm_floor(scores: pd.DataFrame) -> float:
    return float(scores["tests"].max() / (scores["null_runs"].min() + 1))


def beats_chance(scores: pd.DataFrame) -> pd.Series:
    """Return for every row of the scores whether it beats its null, corrected over the grid."""
    return (scores[criterion(scores)] < LEVEL) & (scores["score"] > scores["null_mean"])


def above_chance(scores: pd.DataFrame) -> pd.Series:
    """Return for every row of the scores which share of the way from chance, the mean of its null, to 1 it goes."""
    return (scores["score"] - scores["null_mean"]) / (1 - scores["null_mean"])


def judged_metrics(scores: pd.DataFrame) -> list[str]:
    """Return the metrics that enter the verdict: those defined anywhere, without those kept for comparison."""
    metrics = list(dict.fromkeys(scores.loc[scores["p"].notna(), "metric"])) or list(dict.fromkeys(scores["metric"]))
    return [metric for metric in metrics if metric not in FOR_COMPARISON] or metrics


def limits(
    scores: pd.DataFrame, matching: pd.DataFrame, sites: pd.DataFrame, easy: EasyPairs, unfinished: Sequence[str]
) -> list[str]:
    """Return what limits the conclusion of a run, from its tables (:mod:`pipeline.report.tables`)."""
    return [*_missing(matching, unfinished), *_easy(easy), *_resolution(scores), *_notes(scores), *_poor(sites)]


def significance(scores: pd.DataFrame) -> Iterator[str]:
    """Yield where which metrics are above their null, by how much, and by which corrected p; nothing without scores."""
    if len(scores):
        yield _significance(scores)


def _significance(scores: pd.DataFrame) -> str:
    metrics = judged_metrics(scores)
    judged = scores[scores["metric"].isin(metrics)]
    beats = beats_chance(judged)
    wins = beats.groupby([judged["site_a"], judged["site_b"]])
    every, some, total = int(wins.all().sum()), int(wins.any().sum()), len(wins)
    above = (judged["score"] - judged["null_mean"]).where(beats)
    heights = {metric: span(above[judged["metric"] == metric]) for metric in metrics}
    by = listed(
        metric_name(metric) + (f" ({height} higher)" if height != NOTHING else "") for metric, height in heights.items()
    )
    alike = f"more similarly than {null_name(judged['null'].iloc[0])} by {by}"
    proof = f"{CORRECTIONS[criterion(scores)]}-corrected p < {LEVEL:g}"
    if some == 0:
        return (
            f"No evidence of a shared feature space: at none of the {total} pairs of sites are matched features "
            f"arranged {alike} ({proof})."
        )
    if every == 0:
        return (
            f"At {some} of {total} pairs of sites, matched features are arranged {alike} ({proof}), "
            "but at none by all of these metrics."
        )
    if every == total:
        where = "At the one pair of sites" if total == 1 else f"At all {total} pairs of sites"
        return f"{where}, matched features are arranged {alike}: {proof}."
    rest = f"; at {some - every} more by some of these metrics only" if some > every else ""
    return f"At {every} of {total} pairs of sites, matched features are arranged {alike} ({proof}){rest}."


def score_findings(scores: pd.DataFrame) -> Iterator[str]:
    """Yield for each metric whether it beats its null, and by how much where it stands furthest above it."""
    for metric in dict.fromkeys(scores["metric"]):
        if metric in FOR_COMPARISON:
            continue
        rows = scores[scores["metric"] == metric]
        above = (rows["score"] - rows["null_mean"]).dropna()
        if above.empty:
            yield f"{metric_name(metric)} is undefined at every pair of sites."
            continue
        (best,) = observations(rows[rows.index == above.idxmax()])
        wins, share = int(beats_chance(scores)[rows.index].sum()), above_chance(rows)[above.idxmax()]
        yield (
            f"{_outcome(metric_name(metric), null_name(best.null), (wins, len(rows)), share)} Largest effect: "
            f"{best.site_a} – {best.site_b}, {number(best.score, 3)} against {number(best.null_mean, 3)} on average "
            f"(95th percentile {number(best.null_q95, 3)}), {number(100 * share, 0)} % of the way from chance to 1; "
            f"p = {p_number(best.p)}, corrected {p_number(getattr(best, criterion(scores)))}."
        )


def _outcome(metric: str, null: str, wins: tuple[int, int], share: float) -> str:
    """Say at how many of how many pairs of sites a metric beats a null, and whether by little."""
    significant, total = wins
    if not significant:
        return f"{metric} is not shown to exceed {null}: it is significant at none of {total} pairs of sites."
    little = ", but only slightly" if share < LITTLE else ""
    return f"{metric} exceeds {null} at {significant} of {total} pairs of sites{little}."


def r_findings(matching: pd.DataFrame) -> Iterator[str]:
    """Yield how many pairs there are, and their r where they were chosen and elsewhere."""
    total = int(matching["n_pairs"].sum())
    if not total:
        yield "No pair of features reached the minimum correlation at any pair of sites."
        return
    share = matching["n_pairs"] / matching["possible"].clip(lower=1)
    yield (
        f"{total:,} pairs of features were matched in total, {span(share * 100, 0)} % of the maximum that the smaller "
        "dictionary allows."
    )
    if matching["r_heldout_mean"].notna().any():
        yield (
            f"Their mean r is {span(matching['r_mean'])} on the selection half and "
            f"{span(matching['r_heldout_mean'])} on {_heldout(matching)}, a change of "
            f"{span(matching['r_heldout_mean'] - matching['r_mean'])}; {span(matching['replicated'] * 100, 0)} % of "
            f"them reach the minimum r there too. Random pairs average {span(matching['r_random'], 3)}."
        )
    else:
        yield f"Their mean r is {span(matching['r_mean'])}, on the same rows that selected them."
    if "r_check_mean" in matching and matching["r_check_mean"].notna().any():
        yield (
            f"On other text, {span(matching['rows_check'], 0)} rows that were not used to select pairs "
            f"(match.check_on), their mean r is {span(matching['r_check_mean'])}."
        )


def _heldout(matching: pd.DataFrame) -> str:
    """Return what the half that did not select the pairs is called."""
    if matching["heldout_in_choice"].any():
        return "the other half, which a filter of the pairs reads"
    return "the held-out half"


def _missing(matching: pd.DataFrame, unfinished: Sequence[str]) -> Iterator[str]:
    if unfinished:
        yield f"Not finished, and not in this report: {listed(unfinished)}."
    if matching["heldout_in_choice"].any():
        yield (
            "A filter that reads held-out r took part in choosing the pairs: their held-out r is biased, usually "
            "upwards."
        )
    if matching["rows_heldout"].eq(0).any():
        yield "All rows selected the pairs, so r is inflated by the selection: correlate with select: half."


def _easy(easy: EasyPairs) -> Iterator[str]:
    if easy.one_word:
        are = "is a one-word pair" if easy.one_word == 1 else "are one-word pairs"
        yield (
            f"Of the {easy.pairs:,} pairs, {easy.one_word:,} {are}: all top contexts of both features are on forms of "
            "one and the same word, or on punctuation, so token identity alone could explain the match. They are "
            "listed last."
        )


def _resolution(scores: pd.DataFrame) -> Iterator[str]:
    if scores.empty:
        return
    runs, tests = int(scores["null_runs"].min()), int(scores["tests"].max())
    if tests:
        yield (
            f"With {runs:,} null runs per test, p cannot be below {p_number(1 / (runs + 1))}; after Holm’s correction "
            f"for {tests} tests, not below {p_number(min(1.0, _holm_floor(scores)))}."
        )
    if criterion(scores) == "p_bh":
        yield "These are too few for Holm’s correction, so the verdict uses Benjamini and Hochberg’s."


def concept_limits(concepts: pd.DataFrame) -> Iterator[str]:
    """Yield what the number of draws of the token null does not let one say of concepts.

    `concepts` is from :func:`pipeline.report.statements.concepts_table`.
    """
    if concepts.empty or not (concepts["kind"] == "concept").any():
        return
    first = next(observations(concepts[concepts["kind"] == "concept"]))
    draws = getattr(first, "draws", math.nan)
    if math.isnan(draws):
        yield (
            f"Concepts were not compared with {null_name('token')}: those that exceed their nulls may share no more "
            "than their words. The section rematch of the experiment tests this."
        )
    elif draws < first.draws_needed:
        yield (
            f"With {int(draws)} draws of {null_name('token')}, p of a concept cannot be below "
            f"{p_number(1 / (draws + 1))}; corrected over {first.tests} tests, {int(first.draws_needed):,} draws are "
            "needed for p < 0.05. So no concept is said to go beyond its words; its distance from the draws is given "
            "with an interval."
        )


def _poor(sites: pd.DataFrame) -> Iterator[str]:
    for site in observations(sites[sites["fvu"] > POOR_FVU]):
        yield (
            f"The dictionary of {site.side} {site.site} leaves {number(site.fvu)} of the variance unexplained: its "
            "features represent the model poorly."
        )


def _notes(scores: pd.DataFrame) -> Iterator[str]:
    noted = scores[scores["note"] != ""]
    for metric, rows in noted.groupby("metric", sort=False):
        first = next(observations(rows))
        others = f" (and at {len(rows) - 1} more; see the table)" if len(rows) > 1 else ""
        yield f"{metric_name(str(metric))} at {first.site_a} – {first.site_b} is {first.note}{others}."


def span(values: Iterable[float], digits: int = 2) -> str:
    """Return one figure, or the range where they differ at the precision shown."""
    shown = [number(value, digits) for value in sorted(value for value in values if math.isfinite(value))]
    if not shown:
        return NOTHING
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]} to {shown[-1]}"


def listed(names: Iterable[str]) -> str:
    """Join names as in prose."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
