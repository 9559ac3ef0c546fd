"""``subspace scores``: every score of a run beside its chance, as a table, CSV, LaTeX or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.table import Table

from pipeline.compare.score_grid import power_notes, save_scores, scores_table, to_latex
from pipeline.compare.statistics import LEVEL
from pipeline.report.tables import observations
from pipeline.settings.experiment import stored_experiment
from pipeline.work.script import AsJson, show, wide_console
from storage.rundir import RunDirectory


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: a row for each pair of sites, metric and null.")
    ] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print a LaTeX table (booktabs).")] = False,
    as_json: AsJson = False,
) -> None:
    """Print all scores of a run, each beside its chance, with p corrected for their number."""
    directory = RunDirectory(run)
    site_pairs = stored_experiment(directory).site_pairs
    grid = save_scores(directory, site_pairs)
    table = scores_table(grid)
    if csv:
        typer.echo(table.to_csv(index=False), nl=False)
    elif latex:
        typer.echo(to_latex(table), nl=False)
    elif as_json:
        clean = table.astype(object).where(table.notna(), None)
        show({"run_directory": str(run), "power": power_notes(grid), "scores": clean.to_dict("records")}, as_json=True)
    else:
        _print(table, power_notes(grid), len(site_pairs))


def _print(table: pd.DataFrame, power: dict[str, str], n_site_pairs: int) -> None:
    shown = Table(title=f"green: above chance, Holm-corrected p < {LEVEL}")
    intervals, nulls = bool(table["low"].notna().any()), table["null"].nunique() > 1
    names = ["A", "B", "pairs", "metric", "score", *["interval"] * intervals, *["null"] * nulls]
    for name in (*names, "chance ± sd", "above it", "p", "p (Holm)"):
        text = name in ("A", "B", "metric", "null")
        shown.add_column(name, justify="left" if text else "right", overflow="fold")
    last: tuple[Any, ...] = ()
    for line in observations(table):
        here = (line.site_a, line.site_b)
        if last and here != last:
            shown.add_section()
        score = f"[green]{line.score:.3f}[/green]" if line.p_holm < LEVEL else f"{line.score:.3f}"
        cells = [*(here if here != last else ("", "")), f"{line.n_pairs:,}" if here != last else "", line.metric, score]
        cells += [_span(line.low, line.high)] * intervals + [line.null] * nulls
        chance = "" if np.isnan(line.null_mean) else f"{line.null_mean:.3f} ± {line.null_std:.3f}"
        cells += [chance, *(_number(value) for value in (line.difference, line.p, line.p_holm))]
        shown.add_row(*cells)
        last = here
    console = wide_console()
    console.print(shown)
    compared = len(table[["site_a", "site_b"]].drop_duplicates())
    if compared < n_site_pairs:
        console.print(f"{compared} of {n_site_pairs} pairs of sites are compared so far; corrections count these only.")
    for null, note in power.items():
        console.print(f"{null}: {note}")
    for said, rows in table[table["note"] != ""].groupby("note", sort=False):
        metrics = ", ".join(dict.fromkeys(rows["metric"]))
        console.print(f"{metrics} ({len(rows)} rows): {said}")


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


def _span(low: float, high: float) -> str:
    """Write an interval.

    >>> _span(0.1, 0.25)
    '0.100 – 0.250'
    """
    return "" if np.isnan(low) else f"{low:.3f} – {high:.3f}"
