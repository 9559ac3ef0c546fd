"""``subspace scores``: every score of a run beside its chance, as a table, CSV, LaTeX or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import typer
from rich.table import Table

from pipeline.compare.score_grid import best_sites, power_notes, save_scores, scores_table, to_latex, written_table
from pipeline.compare.statistics import LEVEL
from pipeline.report.tables import observations
from pipeline.settings.experiment import stored_experiment
from pipeline.work.script import AsJson, show, wide_console
from storage.rundir import RunDirectory


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV: one row per pair of sites, metric and null.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print a LaTeX table (booktabs).")] = False,
    as_json: AsJson = False,
) -> None:
    """Print every score of a run with its chance level and corrected p-value."""
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
    written = written_table(table)
    intervals, nulls = bool((written["interval"] != "").any()), table["null"].nunique() > 1
    names = ["A", "B", "pairs", "metric", "score", *["interval"] * intervals, *["null"] * nulls]
    names += ["chance", "above it", "calibrated", "p", "p (Holm)", "p (max)"]
    shown = Table(title=f"green: above chance, Holm-corrected p < {LEVEL}")
    for name in names:
        justify: Literal["left", "right"] = "left" if name in ("A", "B", "metric", "null") else "right"
        shown.add_column("chance ± sd" if name == "chance" else name, justify=justify, overflow="fold")
    significant = (table["p_holm"] < LEVEL).to_numpy()
    written.loc[significant, "score"] = "[green]" + written.loc[significant, "score"] + "[/green]"
    again = written[["A", "B"]].duplicated()
    written.loc[again, ["A", "B", "pairs"]] = ""
    for repeated, cells in zip(again, written[names].itertuples(index=False), strict=True):
        if not repeated:
            shown.add_section()
        shown.add_row(*cells)
    console = wide_console()
    console.print(shown)
    compared = len(table[["site_a", "site_b"]].drop_duplicates())
    if compared < n_site_pairs:
        console.print(f"{compared} of {n_site_pairs} pairs of sites are compared so far; corrections count these only.")
    for best in observations(best_sites(table)) if compared > 1 else ():
        console.print(
            f"{best.metric}, {best.null}: highest at {best.site_a} – {best.site_b}, calibrated {best.calibrated:.3f}; "
            f"p of the highest of {compared} pairs of sites: {best.p_max:.3g}"
        )
    for null, advice in power.items():
        console.print(f"{null}: {advice}")
    for note, rows in table[table["note"] != ""].groupby("note", sort=False):
        metrics = ", ".join(dict.fromkeys(rows["metric"]))
        console.print(f"{metrics} ({len(rows)} rows): {note}")
