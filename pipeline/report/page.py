"""The page itself: figures, tables and pairs poured into one HTML template that escapes every text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

from pipeline.report import plots, tables, verdict
from pipeline.report.concepts import FEWEST_SHOWN, Meanings
from pipeline.report.explorer import Explorer, PairView
from pipeline.report.explorer_page import ExplorerView
from pipeline.report.overview import FigureView, MapView, map_views, strip_view
from pipeline.report.results import Run, SitePair, result_paths
from pipeline.report.statements import Tables, answer, concept_findings, read_concepts_table, statements
from pipeline.report.templating import content_policy, environment, explorer_scripts
from pipeline.report.verdict import metric_name, number, p_number
from pipeline.report.yardsticks import open_yardsticks, yardsticks_table
from pipeline.settings.correlate import MEASURE_NAMES
from storage import read_manifest

#: What permuted rows of B are called in figures.
PERMUTED = {"token": "same text permuted", "document": "documents permuted"}


@dataclass(frozen=True)
class SitePairView:
    """One pair of sites as it is shown."""

    anchor: str
    pair: SitePair
    scores: pd.DataFrame
    matching: Any
    fates: pd.DataFrame
    figures: list[FigureView]
    varied: list[PairView]
    one_word: list[PairView]
    n_one_word: int

    @property
    def n_sharing(self) -> int:
        """How many of the varied pairs shown have a top context in common."""
        return sum(pair.n_shared > 0 for pair in self.varied)


def render_page(
    run: Run, explorer: Explorer, scores: pd.DataFrame, explorer_view: ExplorerView, meanings: Meanings | None = None
) -> str:
    """Return the report as one HTML document that needs nothing else.

    Its content policy forbids every connection, and every script but the explorer's own. `meanings` are shown on a page
    of their own, which this one names.
    """
    sites, read = tables.sites_table(run), Tables.of(run)
    judged, matching = read.scores, read.matching
    _, *findings = statements(read)
    views = list(_site_pair_views(run, explorer, judged, matching))
    easy = verdict.EasyPairs(int(matching["n_pairs"].sum()), sum(view.n_one_word for view in views))
    scripts = explorer_scripts() if explorer_view.data else ()
    provenance, usage = list(_provenance(run)), tables.usage_table(run)
    asked = run.experiment.site_pairs if run.experiment.yardsticks is not None else []
    template = environment().get_template("report.html.j2")
    return template.render(
        run=run,
        meanings=meanings,
        legend=None if meanings is None else _legend(meanings, run.directory.concepts_page.name),
        explorer=explorer_view,
        scripts=scripts,
        policy=content_policy(scripts),
        experiment=yaml.safe_dump(run.experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        answer=answer(read),
        strip=strip_view(read),
        findings=findings,
        limits=[
            *verdict.limits(judged, matching, sites, easy, run.unfinished),
            *verdict.concept_limits(read.concepts),
        ],
        vocabulary=read.vocabulary,
        growth=read.growth,
        yardsticks=yardsticks_table(open_yardsticks(run.directory, asked, run.inputs)),
        normalised=read.yardsticks,
        criterion=verdict.CORRECTIONS[verdict.criterion(scores)],
        scores=scores.assign(beats=verdict.beats_chance(scores)),
        matching=matching,
        sites=sites,
        maps=list(map_views(run, judged, matching)),
        addresses=explorer_view.addresses(run.site_pairs),
        site_pairs=views,
        text_facts=tables.text_facts(run) | _made(provenance),
        provenance=provenance,
        usage=usage,
        over=list(dict.fromkeys(usage.loc[usage["peak"] > usage["planned"], "stage"])),
    )


def render_concepts(run: Run, meanings: Meanings, explorer_view: ExplorerView) -> str:
    """Return the page of concepts as one HTML document that needs nothing else: no scripts, every text escaped."""
    views = list(meanings.grid.values())
    clusters = [row for view in meanings.clusters for row in view.rows]
    template = environment().get_template("concepts.html.j2")
    return template.render(
        run=run,
        meanings=meanings,
        first=(views or clusters)[0],
        findings=list(concept_findings(read_concepts_table(run))),
        tested=[view for view in views if view.tested] or views or clusters,
        legend=_legend(meanings),
        addresses=explorer_view.addresses(run.site_pairs, run.directory.report.name),
        corrections=verdict.CORRECTIONS,
        fewest=FEWEST_SHOWN,
    )


@dataclass(frozen=True)
class Legend:
    """How the table of concepts is to be read: its metrics, what a verdict is called and marked, where a concept is."""

    judged: list[str]
    verdicts: dict[str, str]
    marks: dict[str, str]
    beyond: dict[str, str]
    approaches: dict[str, str]
    correction: str
    anchors: dict[str, str]


def _legend(meanings: Meanings, page: str = "") -> Legend:
    """Return the legend of a table that stands in the page of concepts, or in another one and refers to that `page`."""
    first, second = (metric_name(metric) for metric in meanings.judged)
    verdicts = {
        "too_few_pairs": "too few pairs",
        "neither": "neither",
        "first_only": f"{first} only",
        "second_only": f"{second} only",
        "passes_both": "passes both",
        "not_judged": "not judged",
    }
    return Legend(
        judged=[first, second],
        verdicts=verdicts,
        marks={**dict.fromkeys(verdicts, "✓"), "neither": "×", "passes_both": "✓✓", "not_judged": ""},
        beyond={"not_judged": "–", "not_shown": "not shown", "open": "open: too few draws", "beyond": "yes"},
        approaches=verdict.APPROACHES,
        correction=verdict.CORRECTIONS[meanings.correction],
        anchors={view.shown.name: f"{page}#{view.anchor}" for view in meanings.concepts},
    )


def report_figures(run: Run) -> Iterator[tuple[str, FigureView | MapView]]:
    """Yield every figure of the report with a name for its file, from stored results alone."""
    read = Tables.of(run)
    overview: list[FigureView | MapView] = [strip_view(read), *map_views(run, read.scores, read.matching)]
    for figure in overview:
        yield _file_name(figure.title), figure
    for pair in run.site_pairs:
        rows = _of(read.scores, {"site_a": pair.a.name, "site_b": pair.b.name})
        for figure in _site_pair_figures(pair, rows):
            yield _file_name(f"{pair.a.name} {pair.b.name} {figure.title}"), figure


def _file_name(title: str) -> str:
    """Return a title as the name of a file.

    >>> _file_name("layers.5 x/y SVCCA, 1st component")
    'layers.5-x-y-svcca-1st-component'
    """
    return re.sub(r"[^\w.]+", "-", title.lower()).strip("-.")


def _site_pair_views(
    run: Run, explorer: Explorer, scores: pd.DataFrame, matching: pd.DataFrame
) -> Iterator[SitePairView]:
    fates = tables.fate_table(run)
    for i, pair in enumerate(run.site_pairs):
        sites = {"site_a": pair.a.name, "site_b": pair.b.name}
        rows = _of(scores, sites).assign(beats=verdict.beats_chance(scores))
        shown = explorer.pairs(pair)
        yield SitePairView(
            anchor=f"pair-{i + 1}",
            pair=pair,
            scores=rows,
            matching=next(tables.observations(_of(matching, sites))),
            fates=_of(fates, sites).pivot_table(index="fate", columns="side", values="features", sort=False),
            figures=list(_site_pair_figures(pair, rows)),
            varied=[one for one in shown if not one.one_word],
            one_word=[one for one in shown if one.one_word],
            n_one_word=int(explorer.one_word(pair).sum()),
        )


def _of(table: pd.DataFrame, sites: dict[str, str]) -> pd.DataFrame:
    return table[(table["site_a"] == sites["site_a"]) & (table["site_b"] == sites["site_b"])]


def _site_pair_figures(pair: SitePair, scores: pd.DataFrame) -> Iterator[FigureView]:
    where = f"{pair.a.name} and {pair.b.name}"
    compared = pair.scores if pair.scores is not None else xr.Dataset()
    for row in tables.observations(scores[scores["score"].notna()]):
        null = compared["null_score"].sel(metric=row.metric, null=row.null).values
        figure = plots.null_histogram(null, row.score, metric_name(row.metric), verdict.null_name(row.null))
        caption = (
            f"Observed {number(row.score, 3)}; {row.p_runs:,} × {verdict.null_name(row.null)}: mean "
            f"{number(row.null_mean, 3)}, 5 to 95 % {number(row.null_q05, 3)} to {number(row.null_q95, 3)}; "
            f"p = {p_number(row.p)}."
        )
        yield FigureView(figure, f"{metric_name(row.metric)} against chance", caption, where)
    yield _pairs_figure(pair, where)
    yield _all_r_figure(pair, where)
    yield _uses_figure(pair, where)


def _pairs_figure(pair: SitePair, where: str) -> FigureView:
    r, heldout = (pair.pairs[name].values for name in ("r", "r_heldout"))
    has_heldout = bool(np.isfinite(heldout).any())
    curves = {"selection half" if has_heldout else "matched pairs": (r, 1)}
    caption = f"{len(r):,} pairs at r ≥ {pair.pairs.attrs['min_correlation']:g}"
    if has_heldout:
        curves["held-out half"] = (heldout, 1)
        caption += f"; median r {number(tables.median(r))}, held out {number(tables.median(heldout))}"
    if pair.rematched is not None:
        permuted, draws = pair.rematched, int(pair.rematched.attrs["n_draws"])
        for i, null in enumerate(permuted["null"].values.tolist()):
            drawn = (permuted["matched_null"].values == i) & (permuted["matched_in"].values >= 0)
            curves[PERMUTED[null]] = (permuted["matched_r"].values[drawn], draws)
        caption += f". Permuted: on the selection half, mean of {draws} draws"
    return FigureView(plots.pairs_above_r(curves), "Pairs by r", f"{caption}.{_measure(pair)}", where)


def _measure(pair: SitePair) -> str:
    """Say what r is, where it is not Pearson's."""
    measure = pair.correlation.attrs.get("measure", "pearson")
    return "" if measure == "pearson" else f" r is the {MEASURE_NAMES[measure]}."


def _share(values: np.ndarray) -> str:
    return f"{values.mean():.0%}" if len(values) else "–"


def _uses_figure(pair: SitePair, where: str) -> FigureView:
    uses = tables.uses(pair)
    title = "Uses of every B feature"
    caption = (
        f"Number of A features whose best match it is, before one-to-one matching: 0 for {_share(uses == 0)} "
        f"of the B features that ever vary; {int(uses.max(initial=0)):,} at most. Logarithmic scale."
    )
    return FigureView(plots.uses_histogram(uses), title, caption, where)


def _all_r_figure(pair: SitePair, where: str) -> FigureView:
    correlation = pair.correlation
    counts, left, right = (correlation[name].values for name in ("histogram", "bin_left", "bin_right"))
    keep_above = float(correlation.attrs["keep_above"])
    n_kept = int(correlation.attrs["n_kept"])
    title = "All correlations"
    caption = (
        f"{n_kept:,} of {int(counts.sum()):,} pairs of features ({n_kept / max(1, int(counts.sum())):.2%}) reach "
        f"r ≥ {keep_above:g} and were kept. Logarithmic scale.{_measure(pair)}"
    )
    return FigureView(plots.all_r_histogram(counts, left, right, keep_above), title, caption, where)


def _made(provenance: list[dict[str, Any]]) -> dict[str, str]:
    """Return, for people, from when to when the results were made, and the seeds they drew with."""
    times = sorted(str(result["created"])[:19].replace("T", " ") for result in provenance)
    seeds = {str(result["settings"].get("seed")) for result in provenance} - {"None"}
    facts = {"Made (UTC)": " to ".join(dict.fromkeys([times[0], times[-1]]))} if times else {}
    return facts | ({"Seeds": ", ".join(sorted(seeds))} if seeds else {})


def _provenance(run: Run) -> Iterator[dict[str, Any]]:
    """Yield what is recorded of every result: where it is, when and from what it was made."""
    for path in result_paths(run.experiment, run.directory):
        manifest = read_manifest(path)
        if manifest is not None:
            yield {
                "path": path.relative_to(run.directory.root).as_posix(),
                "stage": manifest.stage,
                "created": manifest.created,
                "fingerprint": manifest.fingerprint,
                "settings": manifest.settings,
                "versions": manifest.versions,
            }
