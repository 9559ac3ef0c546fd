"""Meanings: the table of concepts × pairs of sites, and the clearest pairs of each concept in the text."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from pipeline.report.explorer import CONTEXTS, PairView, feature_views, reading_order, same_form, single_forms
from pipeline.report.results import Run, Site
from pipeline.text.passages import gather_passages
from storage import open_result
from storage.rundir import SIDES

#: Pairs shown of each concept, and of each cluster.
CLEAREST, CLEAREST_OF_CLUSTER = 10, 5
#: Concepts, and clusters, whose pairs are shown, those with the most pairs first.
MOST_SHOWN, MOST_CLUSTERS = 50, 24
#: Subspaces with fewer pairs are in the table only.
FEWEST_SHOWN = 3
#: Verdicts, as the table keeps them; the last is also what is said of words where no rows were permuted.
PASSES, UNTESTED, NOT_JUDGED = "passes_both", "too_few_pairs", "not_judged"


class TokenCell(NamedTuple):
    """How far a score lies above the draws of the token null, with its interval, and how many draws are as high."""

    difference: float
    low: float
    high: float
    above: float


@dataclass(frozen=True)
class MetricCell:
    """One metric of one subspace: its score, and by null the mean and the corrected p."""

    name: str
    score: float
    nulls: list[tuple[str, float, float]]
    note: str
    token: TokenCell | None = None

    @property
    def chance(self) -> float:
        """Mean of shuffled pairings; of the first null where there are none."""
        means = {null: mean for null, mean, _ in self.nulls}
        return means.get("shuffled", self.nulls[0][1])


@dataclass(frozen=True)
class SubspaceView:
    """One subspace at one pair of sites, as a row of the table."""

    name: str
    kind: str
    approach: str
    site_a: str
    site_b: str
    n_pairs: int
    n_tested: int
    words: list[str]
    metrics: list[MetricCell]
    coherence: float
    coherence_random: float
    coherence_p: float
    overlap: float
    verdict: str
    row: int
    n_effective: float = float("nan")
    beyond: str = NOT_JUDGED

    @property
    def passes(self) -> bool:
        """Whether it beats chance by both metrics."""
        return self.verdict == PASSES

    @property
    def tested(self) -> bool:
        """Whether it has pairs enough to be tested."""
        return self.verdict != UNTESTED

    @property
    def rank(self) -> tuple[bool, float, int]:
        """What the subspaces of one concept are compared by: the clearest is shown."""
        heights = [cell.score - mean for cell in self.metrics[:2] for null, mean, _ in cell.nulls if null == "shuffled"]
        height = float(np.nansum(heights)) if self.tested else -1.0
        return self.passes, round(height, 6), self.n_pairs


@dataclass(frozen=True)
class ConceptView:
    """A concept: where it is shown, its rows of the table, and its clearest pairs there."""

    anchor: str
    shown: SubspaceView
    rows: list[SubspaceView]
    pairs: list[PairView]


@dataclass(frozen=True)
class Meanings:
    """All that the page of concepts shows."""

    site_pairs: list[tuple[str, str]]
    approaches: list[str]
    grid: dict[tuple[str, str, tuple[str, str]], SubspaceView]
    names: list[str]
    concepts: list[ConceptView]
    clusters: list[ConceptView]
    judged: list[str]
    correction: str
    null_runs: int
    n_tests: int
    token_draws: int
    rule: str

    def tested(self, approach: str) -> list[str]:
        """Return the concepts that have pairs enough to be tested at any pair of sites."""
        return [name for name in self.names if any(view.tested for view in self._row(name, approach))]

    def untested(self, approach: str) -> dict[str, int]:
        """Return the other concepts, those with most pairs first, with the most pairs that they have anywhere."""
        most = {name: max(view.n_pairs for view in self._row(name, approach)) for name in self.names}
        others = set(self.names) - set(self.tested(approach))
        return {name: most[name] for name in sorted(others, key=lambda name: (-most[name], name))}

    def _row(self, name: str, approach: str) -> list[SubspaceView]:
        return [self.grid[name, approach, pair] for pair in self.site_pairs]


def read_meanings(run: Run) -> Meanings | None:
    """Read what the semantics stage found; None where it was not asked for or has not run."""
    path = run.directory.semantics_table
    if run.experiment.semantics is None or not run.inputs.belongs(path):
        return None
    table = open_result(path, "semantics-table").load()
    rows = list(_rows(table))
    concepts = [row for row in rows if row.kind == "concept"]
    names = list(dict.fromkeys(row.name for row in concepts))
    return Meanings(
        site_pairs=list(dict.fromkeys((row.site_a, row.site_b) for row in rows)),
        approaches=list(dict.fromkeys(row.approach for row in concepts)),
        grid={(row.name, row.approach, (row.site_a, row.site_b)): row for row in concepts},
        names=names,
        concepts=list(_views(run, concepts, "concept")),
        clusters=list(_views(run, [row for row in rows if row.kind == "cluster"], "cluster")),
        judged=[str(metric) for metric in table.attrs["judged"]],
        correction=str(table.attrs["correction"]),
        null_runs=int(table.attrs["null_runs"]),
        n_tests=int(table.attrs["n_tests"]),
        token_draws=int(table.attrs.get("token_draws", 0)),
        rule=json.dumps(run.experiment.semantics.rule.model_dump()),
    )


def _rows(table: xr.Dataset) -> Iterator[SubspaceView]:
    """Yield the rows of the table."""
    flags = {name: table[name].attrs["flag_meanings"].split() for name in ("verdict", "beyond") if name in table}
    judged = [str(metric) for metric in table.attrs["judged"]]
    metrics = [*judged, *(m for m in table["metric"].values.tolist() if m not in judged)]
    names = [field.name for field in dataclasses.fields(SubspaceView) if field.name in table]
    columns = {name: table[name].values.tolist() for name in names}
    cells = list(zip(*(list(_cells(table, metric)) for metric in metrics), strict=True))
    for i in range(table.sizes["row"]):
        values_of_row = {name: values[i] for name, values in columns.items()}
        read = {name: texts[values_of_row.pop(name)] for name, texts in flags.items()}
        read["words"] = json.loads(values_of_row.pop("words"))
        yield SubspaceView(**values_of_row, **read, metrics=list(cells[i]), row=i)


def _cells(table: xr.Dataset, metric: str) -> Iterator[MetricCell]:
    """Yield one metric's cell of every row."""
    scores = table.sel(metric=metric)
    nulls = [str(null) for null in table["null"].values]
    score, note = scores["score"].values.tolist(), scores["note"].values.tolist()
    mean = scores["null_mean"].transpose("row", "null").values.tolist()
    p = scores["p"].transpose("row", "null").values.tolist()
    columns = [f"token_{name}" for name in ("difference", "difference_low", "difference_high", "above")]
    token = [scores[name].values.tolist() for name in columns if name in scores]
    for i in range(table.sizes["row"]):
        of_token = TokenCell(*(column[i] for column in token)) if token else None
        yield MetricCell(metric, score[i], list(zip(nulls, mean[i], p[i], strict=True)), str(note[i]), of_token)


def _views(run: Run, rows: list[SubspaceView], kind: str) -> Iterator[ConceptView]:
    """Yield concepts with enough pairs to show, each at the pair of sites and by the approach where it is clearest."""
    by_name: dict[Any, list[SubspaceView]] = {}
    for row in rows:
        # clusters of different pairs of sites have nothing but their number in common
        by_name.setdefault(row.name if kind == "concept" else (row.name, row.site_a, row.site_b), []).append(row)
    chosen = [(same_name, max(same_name, key=lambda row: row.rank)) for same_name in by_name.values()]
    shown = [named for named in chosen if named[1].n_pairs >= FEWEST_SHOWN]
    limit, n_pairs = (MOST_SHOWN, CLEAREST) if kind == "concept" else (MOST_CLUSTERS, CLEAREST_OF_CLUSTER)
    most = sorted(shown, key=lambda named: -named[1].n_pairs)[:limit]
    keep = {id(best) for _, best in most}
    views = [named for named in shown if id(named[1]) in keep]
    if kind == "concept":  # those that pass come first, and those that could not be tested last
        views.sort(key=lambda named: (not named[1].passes, not named[1].tested))
    clearest = _clearest(run, [best for _, best in views], n_pairs)
    for i, (same_name, best) in enumerate(views):
        yield ConceptView(f"{kind}-{i + 1}", best, same_name, clearest[best.row])


def _clearest(run: Run, views: list[SubspaceView], n_pairs: int) -> dict[int, list[PairView]]:
    """Return the clearest pairs of subspaces by their rows of the table; each pair of sites is read once."""
    by_sites: dict[tuple[str, str], list[SubspaceView]] = {}
    for view in views:
        by_sites.setdefault((view.site_a, view.site_b), []).append(view)
    return {
        view.row: pairs
        for sites, views_there in by_sites.items()
        for view, pairs in zip(views_there, _clearest_at(run, sites, views_there, n_pairs), strict=True)
    }


def _clearest_at(
    run: Run, site_pair: tuple[str, str], views: list[SubspaceView], n_pairs: int
) -> Iterator[list[PairView]]:
    """Yield the first pairs of each subspace in :func:`reading_order`, with their contexts."""
    sites = [run.site(side, name) for side, name in zip(SIDES, site_pair, strict=True)]
    with open_result(run.directory.semantics(*site_pair), "semantics") as result:
        all_members = pd.concat([_members(result, view) for view in views], keys=range(len(views)))
    one_word = _one_word(run, sites, all_members)
    order = reading_order(all_members["r"].to_numpy(), all_members["r_heldout"].to_numpy(), one_word)
    ordered = all_members.assign(one_word=one_word).iloc[order]
    of_view = ordered.index.get_level_values(0)
    members = [ordered[of_view == i].head(n_pairs) for i in range(len(views))]
    pairs = pd.concat(members)
    top = [site.contexts["row"].values[pairs[f"feature_{site.side}"]] for site in sites]
    passages = gather_passages(run.corpus, run.rows, np.concatenate(top))
    sides = [
        feature_views(site, pairs[f"feature_{site.side}"].to_numpy(), (features, other), passages)
        for site, features, other in zip(sites, top, top[::-1], strict=True)
    ]
    lines = zip(pairs["r"], pairs["r_heldout"], *sides, pairs["one_word"].tolist(), strict=True)
    for pairs_of_view in members:
        some = enumerate(itertools.islice(lines, len(pairs_of_view)))
        yield [PairView(rank + 1, float(r), float(heldout), *others) for rank, (r, heldout, *others) in some]


def _one_word(run: Run, sites: list[Site], pairs: pd.DataFrame) -> np.ndarray:
    """Return which pairs of features of two sites are one-word pairs."""
    top = [site.contexts["row"].values[pairs[f"feature_{site.side}"], :CONTEXTS] for site in sites]
    passages = gather_passages(run.corpus, run.rows, np.concatenate(top))
    return same_form(*(single_forms(rows, passages) for rows in top))


def _members(result: xr.Dataset, view: SubspaceView) -> pd.DataFrame:
    """Return the pairs of a subspace."""
    names, approaches = result["name"].values, result["approach"].values
    (place,) = np.flatnonzero((names == view.name) & (approaches == view.approach))
    at = np.flatnonzero(result["subspace_of"].values == place)
    return pd.DataFrame({name: result[name].values[at] for name in ("feature_a", "feature_b", "r", "r_heldout")})
