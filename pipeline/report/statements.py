"""What a run found, in sentences: by one function, from small tables that can be stored.

The report and the README take their sentences from :func:`statements` alone. A sentence names the null that was beaten,
gives the effect before p, and speaks of one scale; every approach that was tried is in it, whatever came of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pipeline.report.answer import features_answer, geometry_answer, meanings_answer
from pipeline.report.results import Run
from pipeline.report.tables import matching_table, median, observations, scores_table
from pipeline.report.verdict import (
    APPROACHES,
    CORRECTIONS,
    LEVEL,
    judged_null,
    listed,
    metric_name,
    null_name,
    number,
    r_findings,
    score_findings,
    significance,
)
from pipeline.report.vocabulary import growth_findings, growth_table, vocabulary_findings, vocabulary_table
from pipeline.report.yardsticks import normalised_table, open_yardsticks, yardsticks_findings
from storage import open_result, read_manifest

#: Why subspaces are not judged, by their verdict.
REASONS = {"too_few_pairs": "have too few pairs", "not_judged": "have no null for a verdict"}


@dataclass(frozen=True)
class Tables:
    """What sentences are made of.

    Attributes
    ----------
    scores
        Of the null that the verdict is drawn from; see :data:`pipeline.compare.score_grid.SCORE_COLUMNS`.
    matching
        From :func:`pipeline.report.tables.matching_table`.
    vocabulary
        From :func:`pipeline.report.vocabulary.vocabulary_table`; empty where nothing was permuted.
    concepts
        From :func:`read_concepts_table`.
    growth
        From :func:`pipeline.report.vocabulary.growth_table`; empty where no shares of the text were matched.
    yardsticks
        From :func:`pipeline.report.yardsticks.normalised_table`; empty where there are none.
    """

    scores: pd.DataFrame
    matching: pd.DataFrame
    vocabulary: pd.DataFrame
    concepts: pd.DataFrame
    growth: pd.DataFrame
    yardsticks: pd.DataFrame = field(default_factory=pd.DataFrame)

    @classmethod
    def of(cls, run: Run) -> Tables:
        """Return the tables of a run."""
        return cls(
            judged_null(scores_table(run)),
            matching_table(run),
            vocabulary_table(run),
            read_concepts_table(run),
            growth_table(run),
            _normalised(run),
        )

    def to_records(self) -> dict[str, list[dict[str, Any]]]:
        """Return the tables as lists of objects, for JSON; NaN is None."""
        tables = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: table.astype(object).where(table.notna(), None).to_dict("records") for name, table in tables.items()
        }

    @classmethod
    def from_records(cls, records: Mapping[str, list[dict[str, Any]]]) -> Tables:
        """Return the tables of :meth:`to_records`."""
        defined = {
            name: [{key: np.nan if value is None else value for key, value in row.items()} for row in rows]
            for name, rows in records.items()
        }
        return cls(**{field.name: pd.DataFrame(defined.get(field.name, [])) for field in fields(cls)})


def _normalised(run: Run) -> pd.DataFrame:
    asked = run.experiment.site_pairs if run.experiment.yardsticks is not None else []
    return normalised_table(open_yardsticks(run.directory, asked, run.inputs))


def read_concepts_table(run: Run) -> pd.DataFrame:
    """Return the :func:`concepts_table` of a run; empty where concepts were not looked for."""
    path = run.directory.semantics_table
    manifest = read_manifest(path) if run.experiment.semantics is not None and run.inputs.belongs(path) else None
    if manifest is None:
        return pd.DataFrame()
    return concepts_table(open_result(path, "semantics-table").load(), manifest.settings["nulls"])


def concepts_table(table: xr.Dataset, nulls: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return what became of concepts and clusters: a row for each approach and verdict, with its number of subspaces.

    `names` are those of the subspaces with the verdict, each once; ``above_first`` and ``above_second`` the median
    height of their scores above that null of the verdict which comes nearest, by the first and second judged metric.
    Where there is a token null, ``beyond`` counts those that are beyond the word, ``open`` those of which its ``draws``
    are too few to say (``draws_needed`` would do), and ``beyond_names`` are both; ``token_first`` and ``token_second``,
    with ``_low`` and ``_high``, are the median distance from the draws and the medians of the ends of its interval.

    Parameters
    ----------
    table
        From :func:`pipeline.semantics.tables.semantics_table`.
    nulls
        Those of the verdict, by kind of subspace.
    """
    rows = table[["kind", "name", "approach", "verdict"]].drop_vars(["metric", "null"], errors="ignore").to_dataframe()
    attrs, rows["verdict"] = table.attrs, np.take(table["verdict"].attrs["flag_meanings"].split(), rows["verdict"])
    for place, metric in zip(("above_first", "above_second"), attrs["judged"], strict=True):
        rows[place] = _height(table, metric, nulls) if metric in table["metric"].values else np.nan
    token = _token_columns(table, rows)
    tests: dict[Any, int] = {"concept": attrs["n_tests"], "cluster": attrs["n_tests_of_clusters"]}
    return pd.DataFrame.from_records(
        [
            {
                "kind": kind,
                "approach": approach,
                "verdict": verdict,
                "subspaces": len(group),
                "names": ", ".join(dict.fromkeys(group["name"])) if kind == "concept" else "",
                **{name: median(group[name].to_numpy()) for name in ("above_first", "above_second")},
                **dict(zip(("first", "second"), attrs["judged"], strict=True)),
                "correction": attrs["correction"],
                "tests": tests[kind],
                "nulls": ", ".join(nulls[str(kind)]),
                **(_of_token(group, token) if token else {}),
            }
            for (kind, approach, verdict), group in rows.groupby(["kind", "approach", "verdict"], sort=False)
        ]
    )


def _token_columns(table: xr.Dataset, rows: pd.DataFrame) -> dict[str, Any]:
    """Put what the token null says to the rows of subspaces, and return what is the same for all of them."""
    if "beyond" not in table:
        return {}
    rows["beyond"] = np.take(table["beyond"].attrs["flag_meanings"].split(), table["beyond"].values)
    for place, metric in zip(("token_first", "token_second"), table.attrs["judged"], strict=True):
        for end in ("", "_low", "_high"):
            values = table[f"token_difference{end}"].reindex(metric=[metric])
            rows[f"{place}{end}"] = values.values.ravel()
    return {"draws": table.attrs["token_draws"], "draws_needed": table.attrs["token_draws_needed"]}


def _of_token(group: pd.DataFrame, same: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the token null says of some subspaces."""
    above = group[group["beyond"].isin(["beyond", "open"])]
    medians = [f"token_{place}{end}" for place in ("first", "second") for end in ("", "_low", "_high")]
    return {
        "beyond": int((group["beyond"] == "beyond").sum()),
        "open": int((group["beyond"] == "open").sum()),
        "beyond_names": ", ".join(dict.fromkeys(above["name"])),
        **{name: median(group[name].to_numpy()) for name in medians},
        **same,
    }


def _height(table: xr.Dataset, metric: str, judged: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Return how far each row's score lies above the nearest null of its verdict."""
    difference = table["difference"].sel(metric=metric)
    height = np.full(table.sizes["row"], np.nan)
    for kind, nulls in judged.items():
        of_kind = table["kind"].values == kind
        height[of_kind] = difference.reindex(null=list(nulls)).min("null").values[of_kind]
    return height


def answer(tables: Tables) -> tuple[str, str, str]:
    """Return how alike features, geometry and meanings are, by the size of the effect: three parts of a sentence."""
    return (
        features_answer(tables.matching, tables.vocabulary),
        geometry_answer(tables.scores, tables.yardsticks),
        meanings_answer(tables.concepts),
    )


def statements(tables: Tables) -> list[str]:
    """Return what a run found, in sentences: the :func:`answer` first.

    Parameters
    ----------
    tables
        Of the run, or stored.
    """
    return [
        f"{'; '.join(answer(tables))}.",
        *vocabulary_findings(tables.vocabulary),
        *significance(tables.scores),
        *score_findings(tables.scores),
        *r_findings(tables.matching),
        *growth_findings(tables.growth),
        *yardsticks_findings(tables.yardsticks),
        *concept_findings(tables.concepts),
    ]


def concept_findings(table: pd.DataFrame) -> Iterator[str]:
    """Yield what came of each approach by which subspaces were made."""
    for approach, rows in table.groupby("approach", sort=False) if len(table) else ():
        by_verdict = {row.verdict: row for row in observations(rows)}
        first, total = next(observations(rows)), int(rows["subspaces"].sum())
        left = [f"{by_verdict[name].subspaces} {why}" for name, why in REASONS.items() if name in by_verdict]
        judged = sum(row.subspaces for row in by_verdict.values() if row.verdict not in REASONS)
        why = f" ({' and '.join(left)})" if left else ""
        yield (
            f"{APPROACHES[str(approach)]}: {judged or 'none'} of {total} subspaces can be judged{why}."
            f"{_outcomes(by_verdict, first, judged)}{_beyond(by_verdict.get('passes_both'))}"
        )


def _outcomes(by_verdict: Mapping[str, Any], first: Any, judged: int) -> str:
    """Say how many subspaces beat their nulls by both metrics, by one, and by none, with how far they are above."""
    if not judged:
        return ""
    names = metric_name(first.first), metric_name(first.second)
    heights = {
        "passes_both": (f"both {names[0]} and {names[1]}", ("above_first", "above_second")),
        "first_only": (f"{names[0]} alone", ("above_first",)),
        "second_only": (f"{names[1]} alone", ("above_second",)),
    }
    nulls = f"all of {listed(null_name(null) for null in first.nulls.split(', '))}"
    proof = f"{CORRECTIONS[first.correction]}-corrected over {first.tests} tests"
    if not any(verdict in by_verdict for verdict in heights):
        return f" None exceeds {nulls}, by {names[0]} or by {names[1]} (p ≥ {LEVEL:g}, {proof})."
    parts = [_beating(name, by_verdict.get(verdict), columns) for verdict, (name, columns) in heights.items()]
    return f" Subspaces that exceed {nulls}: {'; '.join(parts)} (largest p < {LEVEL:g}, {proof})."


def _beating(name: str, row: Any, columns: tuple[str, ...]) -> str:
    """Return how many subspaces there are by some metrics, which, and the median distance to the nearest null."""
    if row is None:
        return f"none by {name}"
    names = f"{row.names.replace('_', ' ')}; " if row.names else ""
    above = listed(number(getattr(row, column)) for column in columns)
    return f"{row.subspaces} by {name} ({names}median {above} above the nearest null)"


def _beyond(row: Any) -> str:
    """Say of the subspaces that beat their nulls by both metrics how many are more than their words."""
    if row is None:
        return ""
    draws = getattr(row, "draws", math.nan)
    if math.isnan(draws):
        return (
            f" Whether they go beyond shared words is unknown: that requires {null_name('token')} "
            "(the section rematch)."
        )
    names = metric_name(row.first), metric_name(row.second)
    by = " and ".join(
        f"{number(getattr(row, key))} by {name} (95 %: {number(getattr(row, f'{key}_low'))} to "
        f"{number(getattr(row, f'{key}_high'))})"
        for key, name in zip(("token_first", "token_second"), names, strict=True)
    )
    median_one = "it is" if row.subspaces == 1 else f"the median of these {row.subspaces} is"
    which = f" ({row.beyond_names.replace('_', ' ')})" if row.beyond_names else ""
    proof = f"{CORRECTIONS[row.correction]}-corrected over {row.tests} tests"
    if draws >= row.draws_needed:
        return (
            f" {int(row.beyond) or 'None'} of these {row.subspaces}{which} {'goes' if row.beyond < 2 else 'go'} beyond "
            f"the word, as tested against {null_name('token')} (p < {LEVEL:g}, {proof}); {median_one} {by} above the "
            "draws."
        )
    return (
        f" Compared with {null_name('token')}, {median_one} {by} above the draws; "
        f"{int(row.beyond + row.open) or 'none'}{which} {'is' if row.beyond + row.open < 2 else 'are'} above all "
        f"{int(draws)} draws by both metrics. This is an estimate, not a test: {proof}, {int(row.draws_needed):,} "
        "draws are needed to show that one goes beyond its words."
    )
