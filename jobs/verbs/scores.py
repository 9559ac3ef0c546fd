"""``subspace scores``: every score of a run beside its chance, as a table, CSV, LaTeX or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import typer
from rich.table import Table

from pipeline.compare.score_grid import best_sites, power_notes, save_scores, scores_table, to_latex, written_table
from pipeline.compare.statistics import LEVEL
from pipeline.report.tables import observations
from pipeline.settings.experiment import stored_experiment
from pipeline.work.script import AsJson, show, wide_console
from storage.rundir import RunDirectory

#: Columns of a terminal from which on all columns of the table are shown.
FULL_WIDTH = 130


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
    console = wide_console()
    narrow = console.width < FULL_WIDTH
    console.print(_table(table, narrow=narrow))
    if narrow:
        console.print(f"For intervals and further p: a terminal of {FULL_WIDTH} columns, or --csv.")
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


def _table(table: pd.DataFrame, *, narrow: bool) -> Table:
    """Return the scores as a table; a narrow one has fewer columns, so that names of sites stay whole."""
    written = written_table(table)
    intervals, nulls = bool((written["interval"] != "").any()), table["null"].nunique() > 1
    names = ["A", "B", "pairs", "metric", "score", *["interval"] * intervals, *["null"] * nulls]
    names += ["chance", "above it", "calibrated", "p", "p (Holm)", "p (max)"]
    if narrow:
        written["chance"] = written["chance"].str.partition(" ± ")[0]
        names = [name for name in names if name not in ("interval", "calibrated", "p", "p (max)")]
    close: dict[str, Any] = {"box": None, "pad_edge": False, "collapse_padding": True} if narrow else {}
    shown = Table(title=f"green: above chance, Holm-corrected p < {LEVEL}", **close)
    for name in names:
        justify: Literal["left", "right"] = "left" if name in ("A", "B", "metric", "null") else "right"
        title = "chance ± sd" if name == "chance" and not narrow else name
        shown.add_column(title, justify=justify, overflow="fold", no_wrap=name in ("A", "B", "metric"))
    significant = (table["p_holm"] < LEVEL).to_numpy()
    written.loc[significant, "score"] = "[green]" + written.loc[significant, "score"] + "[/green]"
    again = written[["A", "B"]].duplicated()
    written.loc[again, ["A", "B", "pairs"]] = ""
    for repeated, cells in zip(again, written[names].itertuples(index=False), strict=True):
        if not repeated:
            shown.add_section()
        if not repeated and narrow and shown.row_count:
            shown.add_row()
        shown.add_row(*cells)
    return shown
