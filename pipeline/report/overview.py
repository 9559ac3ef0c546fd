"""What the report begins with: scores on strips from chance to 1, and maps of the grid of sites, all on one scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.report import plots, verdict
from pipeline.report.plots import Cell, Mark
from pipeline.report.results import Run
from pipeline.report.statements import Tables
from pipeline.report.tables import observations
from pipeline.report.verdict import metric_name, number, p_number
from pipeline.report.vocabulary import quantity_name

SHADE = "Shade: share of the way from chance to 1."


@dataclass(frozen=True)
class FigureView:
    """A figure with its title and caption, and the sites that it is of."""

    figure: Figure
    title: str
    caption: str
    sites: str = ""

    @property
    def svg(self) -> Markup:
        """The figure as it stands in the page, with what it shows in words."""
        where = f", {self.sites}" if self.sites else ""
        return plots.to_svg(self.figure, f"{self.title}{where}. {self.caption}")


@dataclass(frozen=True)
class MapView:
    """A map of the grid of sites: a table in the page, whose cells lead to their pair of sites, a figure in a paper."""

    title: str
    caption: str
    cells: dict[tuple[str, str], Cell]
    sites_a: list[str]
    sites_b: list[str]

    @property
    def figure(self) -> Figure:
        """The map as a figure."""
        return plots.heat_map(self.cells, self.sites_a, self.sites_b)


def strip_view(tables: Tables) -> FigureView:
    """Return all scores on strips, with a mark for each pair of sites, from chance to 1."""
    strips = dict(_strips(tables))
    caption = (
        "One mark for each pair of sites, in the order of the maps below. Chance of r: a random pair of features; of "
        "metrics: shuffled pairings."
    )
    if len(tables.yardsticks):
        row = tables.yardsticks.iloc[0]
        caption += (
            f" Floor: {row['floor_name']}; ceiling: {row['ceiling_name']}; both, and their score, at the same number "
            "of pairs."
        )
    spoken = "; ".join(f"{name}: {_spoken(marks)}" for name, marks in strips.items())
    return FigureView(plots.strip_plot(strips), "Scores and their chance levels", caption, spoken)


def _spoken(marks: list[Mark]) -> str:
    chance = verdict.span(mark.chance[0] for mark in marks)
    against = "" if chance == verdict.NOTHING else f" against {chance} by chance"
    between = [(mark.floor, mark.ceiling) for mark in marks if math.isfinite(mark.floor)]
    spans = [verdict.span(values) for values in zip(*between, strict=True)]
    return f"{verdict.span(mark.score for mark in marks)}{against}" + (
        f", floor {spans[0]}, ceiling {spans[1]}" if spans else ""
    )


def _strips(tables: Tables) -> Iterator[tuple[str, list[Mark]]]:
    heldout = tables.matching["r_heldout_mean"].notna().any()
    r = [
        Mark(row.r_heldout_mean if heldout else row.r_mean, (row.r_random, math.nan, math.nan))
        for row in observations(tables.matching)
    ]
    yield ("mean r, held out" if heldout else "mean r", [mark for mark in r if math.isfinite(mark.score)])
    scores = tables.scores
    for metric in verdict.judged_metrics(scores) if len(scores) else ():
        rows = scores[(scores["metric"] == metric) & scores["score"].notna()]
        marks = [Mark(row.score, (row.null_mean, row.null_q05, row.null_q95)) for row in observations(rows)]
        if marks:
            yield metric_name(metric), marks
    between = tables.yardsticks
    between = between[(between["quantity"] != "pairs") & between["score"].notna()] if len(between) else between
    for quantity, rows in between.groupby("quantity", sort=False) if len(between) else ():
        marks = [Mark(row.score, floor=row.floor, ceiling=row.ceiling) for row in observations(rows)]
        yield f"{quantity_name(str(quantity))}, at {verdict.span(rows['n_pairs'], 0)} pairs", marks


def map_views(run: Run, scores: pd.DataFrame, matching: pd.DataFrame) -> Iterator[MapView]:
    """Yield the maps of the grid: of each metric, those that are evidence first, of r and of the number of pairs."""
    evidence = verdict.judged_metrics(scores) if len(scores) else []
    for metric in [*evidence, *(name for name in dict.fromkeys(scores["metric"]) if name not in evidence)]:
        yield _metric_map(run, metric, scores, evidence=metric in evidence)
    yield _r_map(run, matching)
    yield _count_map(run, matching)


def _metric_map(run: Run, metric: str, scores: pd.DataFrame, *, evidence: bool) -> MapView:
    column, beats, share = verdict.criterion(scores), verdict.beats_chance(scores), verdict.above_chance(scores)
    rows = scores[scores["metric"] == metric]

    def cell(row: Any) -> Cell:
        chance = f"chance {number(row.null_mean, 3)}"
        if not evidence:
            return Cell(share[row.Index], number(row.score, 3), (chance,), evidence=False)
        p = f"p {p_number(getattr(row, column))}{' ✓' if beats[row.Index] else ''}"
        return Cell(share[row.Index], number(row.score, 3), (chance, p))

    caption = f"Chance: mean over {verdict.null_name(rows['null'].iloc[0])}. "
    if evidence:
        caption += f"p: {verdict.CORRECTIONS[column]}-corrected over the grid; ✓ below {verdict.LEVEL:g}."
    else:
        caption += "No evidence of similarity, and so in grey; shown for comparison with published figures."
    return _map(run, rows, cell, metric_name(metric), caption)


def _r_map(run: Run, matching: pd.DataFrame) -> MapView:
    heldout = matching["r_heldout_mean"].notna().all()
    column = "r_heldout_mean" if heldout else "r_mean"

    def cell(row: Any) -> Cell:
        lines = f"selected {number(row.r_mean)}", f"chance {number(row.r_random)}"
        value = getattr(row, column)
        return Cell((value - row.r_random) / (1 - row.r_random), number(value), lines)

    title = "Mean r of matched pairs, held out" if heldout else "Mean r of matched pairs"
    caption = "Chance: mean r of all pairs of features, the expected r of a random pair. Selected: on the " + (
        "selection half." if heldout else "same rows, all of which selected the pairs."
    )
    return _map(run, matching, cell, title, f"{caption} {run.heldout_note}".strip())


def _count_map(run: Run, matching: pd.DataFrame) -> MapView:
    def cell(row: Any) -> Cell:
        return Cell(row.n_pairs / max(1, row.possible), f"{row.n_pairs:,}", (f"of {row.possible:,}",))

    minimum = run.experiment.match.min_correlation
    caption = (
        f"Matched at r ≥ {minimum:g} by the method “{run.experiment.match.method}”, of as many as there are features "
        "that ever vary on the side with fewer."
    )
    return _map(run, matching, cell, "Number of matched pairs", caption)


def _map(run: Run, table: pd.DataFrame, cell: Callable[[Any], Cell], title: str, caption: str) -> MapView:
    """Return the grid of sites, with a cell for each row of a table."""
    cells = {(row.site_a, row.site_b): cell(row) for row in observations(table)}
    return MapView(title, caption, cells, run.experiment.a.sites, run.experiment.b.sites)
