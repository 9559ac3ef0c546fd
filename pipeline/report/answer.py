"""The answer in one sentence: how alike the features, their geometry and their meanings are, in words of effect.

An effect is named by its size alone, by fixed bounds (:data:`STRENGTHS`). Whether chance could make it is a question of
its own, which the sentences after this one answer with p.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from pipeline.report.tables import median, observations
from pipeline.report.verdict import (
    LEVEL,
    above_chance,
    beats_chance,
    judged_metrics,
    listed,
    metric_name,
    null_name,
    number,
    span,
)
from pipeline.report.vocabulary import shares_more_than_words

#: Words of effect, each with the least value that it is used from: of r above chance (Cohen 1988), and of the share of
#: the way from chance to 1.
STRENGTHS = ((0.5, "strongly"), (0.3, "moderately"), (0.1, "weakly"))
#: Words for a share of the meanings that were tested.
SHARES = ((0.9, "nearly all"), (0.5, "most"), (0.25, "some"))
#: Verdicts on subspaces that could not be judged.
NOT_JUDGED = ("too_few_pairs", "not_judged")


def strength(effect: float) -> str:
    """Return the word for an effect.

    >>> [strength(effect) for effect in (0.6, 0.35, 0.1, 0.09, -0.2)]
    ['strongly', 'moderately', 'weakly', 'hardly', 'hardly']
    """
    return next((word for least, word in STRENGTHS if effect >= least), "hardly")


def features_answer(matching: pd.DataFrame, vocabulary: pd.DataFrame) -> str:
    """Return how well matched features correspond, and whether a shared vocabulary explains it."""
    if not matching["n_pairs"].sum():
        return "No features correspond"
    heldout = matching["r_heldout_mean"].notna().any()
    r = matching["r_heldout_mean" if heldout else "r_mean"]
    share = matching["n_pairs"] / matching["possible"].clip(lower=1)
    on = "held-out text" if heldout else "the text that selected them"
    words = shares_more_than_words(vocabulary)
    return (
        f"Matched features correspond {strength(median((r - matching['r_random']).to_numpy()))} (mean r {span(r)} on "
        f"{on}, {span(matching['r_random'])} by chance; {span(100 * share, 0)} % of the possible pairs), "
        f"{words or 'not tested against a shared vocabulary'}"
    )


def geometry_answer(scores: pd.DataFrame, yardsticks: pd.DataFrame) -> str:
    """Return how similar the arrangement of matched features is, and where most; it counts where it exceeds chance."""
    if scores.empty:
        return "their geometry was not compared"
    judged = scores[scores["metric"].isin(judged_metrics(scores))]
    beats = beats_chance(judged)
    if not beats.any():
        by = listed(metric_name(metric) for metric in judged_metrics(scores))
        return f"their geometry is not shown to be similar (by {by}, nowhere above {null_name(judged['null'].iloc[0])})"
    # what is not shown to exceed chance counts as chance
    share = above_chance(judged).where(beats, 0.0).fillna(0.0)
    each = share.groupby([judged["site_a"], judged["site_b"]], sort=False).mean()
    best: Any = each.idxmax()
    most = f", most at {best[0]} – {best[1]}" if len(each) > 1 else ""
    spans = listed(
        f"{metric_name(str(metric))} {span(100 * above_chance(rows), 0)} %"
        for metric, rows in judged.groupby("metric", sort=False)
    )
    between = _between(yardsticks, judged_metrics(scores))
    alike = f"their geometry is {strength(median(each.to_numpy()))} similar"
    return f"{alike} ({spans} of the way from chance to 1{between}){most}"


def _between(yardsticks: pd.DataFrame, metrics: Iterable[str]) -> str:
    """Return what of the way from a floor to a ceiling the metrics go; empty where there are none."""
    if yardsticks.empty:
        return ""
    rows = yardsticks[yardsticks["quantity"].isin(list(metrics)) & yardsticks["normalised"].notna()]
    each = rows.groupby("quantity", sort=False)["normalised"]
    parts = [f"{metric_name(str(metric))} {span(100 * values, 0)} %" for metric, values in each]
    return f"; {listed(parts)} from floor to ceiling" if parts else ""


def meanings_answer(concepts: pd.DataFrame) -> str:
    """Return how many of the meanings that could be tested exceed chance, and whether they go beyond their words.

    `concepts` is from :func:`pipeline.report.statements.concepts_table`. Those of the first approach count, which cuts
    concepts out of all matched pairs.
    """
    rows = concepts[concepts["kind"] == "concept"] if len(concepts) else concepts
    if rows.empty:
        return "meanings were not tested"
    rows = rows[rows["approach"] == rows["approach"].iloc[0]]
    judged = int(rows.loc[~rows["verdict"].isin(NOT_JUDGED), "subspaces"].sum())
    if not judged:
        return "no meaning has enough pairs to be tested"
    passing = next(observations(rows[rows["verdict"] == "passes_both"]), None)
    if passing is None:
        return f"no meaning is shown to be shared (none of {judged} subspaces of concepts exceeds chance)"
    share = passing.subspaces / judged
    some = next((word for least, word in SHARES if share >= least), "few")
    names = passing.names.replace("_", " ")
    return (
        f"{some} of the meanings tested are shared ({passing.subspaces} of {judged} subspaces of concepts exceed "
        f"chance: {names}), {_beyond_words(passing)}"
    )


def _beyond_words(passing: Any) -> str:
    draws = getattr(passing, "draws", math.nan)
    if math.isnan(draws):
        return "and whether they go beyond their words was not tested"
    beyond = int(passing.beyond)
    if beyond:
        return f"and {number(beyond, 0)} of these go{'es' if beyond == 1 else ''} beyond its words (p < {LEVEL:g})"
    return "and none is shown to go beyond its words"
