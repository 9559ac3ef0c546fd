"""``subspace diff``: two or more runs side by side, as a table, CSV, JSON, data or a figure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
import xarray as xr
from rich.table import Table
from rich.text import Text

from pipeline.experiment.diff import TABLE_COLUMNS, agreement_table, diff, diff_table, plot_diff
from pipeline.report.tables import observations
from pipeline.work.outputs import claim_outputs
from pipeline.work.script import AsJson, Overwrite, show, wide_console

#: Characters of a line of the printed tables.
WIDTH = 80
#: Columns of texts, which are set to the left.
TEXTS = ("A", "B", "of", "metric", "concept")


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Run directories.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PATH", help="Keep the whole dataset here.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table of scores here too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw scores and mean r: .svg, .png or .pdf.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Set runs side by side: which pairs of features agree, and how scores move from the first run."""
    columns = ",".join(TABLE_COLUMNS[:3])
    with claim_outputs(table=csv, columns=columns, figure=plot, overwrite=overwrite) as outputs:
        make: Callable[[], xr.Dataset] = functools.partial(diff, runs)
        if csv is not None or plot is not None:
            make = outputs.checked_before(make)
        beside = make() if out is None else diff(runs, out, overwrite=overwrite)
        table = diff_table(beside)
        outputs.write_table(table)
        if plot is not None:
            outputs.write_figure(plot_diff(beside))
    agreement = agreement_table(beside)
    if as_json:
        tables = {"scores": records(table), "agreement": records(agreement)}
        show({"runs": list(map(str, runs)), **tables, **_lists(beside)}, as_json=True)
        return
    _print(runs, beside, table, agreement)


def records(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the rows of a table for JSON, which knows no NaN."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _lists(beside: xr.Dataset) -> dict[str, list[str]]:
    return {name: list(beside.attrs[name]) for name in ("settings", "notes")}


def _print(runs: list[Path], beside: xr.Dataset, table: pd.DataFrame, agreement: pd.DataFrame) -> None:
    numbers = {label: str(n) for n, label in enumerate(beside["run"].values.tolist(), start=1)}
    console = wide_console(WIDTH)
    for number, path in zip(numbers.values(), runs, strict=True):
        console.print(f"{number}  {path}", soft_wrap=True, markup=False)
    first = agreement[agreement["other"] == next(iter(numbers))]
    matched = table.drop_duplicates(["run", "site_a", "site_b"]).merge(
        first.drop(columns="other"), on=["run", "site_a", "site_b"], how="left"
    )
    columns = ("A", "B", "run", "pairs", "mean r", "held out", "in both", "same", "share")
    lines = (
        (*_key(line, numbers), f"{line.n_pairs:,}", digits(line.mean_r), digits(line.mean_r_heldout),
         *("" if np.isnan(n) else f"{n:,.0f}" for n in (line.n_both, line.n_same)), digits(line.share_same))
        for line in _by_sites(matched)
    )  # fmt: skip
    console.print(
        sites_table(columns, lines, title="matched pairs; of A features matched in run 1 too: the same partner")
    )
    compared = table.dropna(subset="metric")
    several = compared["null"].nunique() > 1
    moved = compared["change"].where(compared["run"] != next(iter(numbers)))
    columns = ("A", "B", "run", "metric", "score", "chance", "above", "change", "p Holm")
    lines = (
        (*_key(line, numbers), f"{line.metric} {line.null}" if several else line.metric,
         *map(digits, (line.score, line.null_mean, line.difference, line.change, line.p_holm)))
        for line in _by_sites(compared.assign(change=moved))
    )  # fmt: skip
    if len(compared):
        console.print(sites_table(columns, lines, title="scores; change: of what is above chance, from run 1"))
    for name, entries in _lists(beside).items():
        for entry in entries:
            console.print(f"{'differs in' if name == 'settings' else 'note'}: {entry}", markup=False)


def _by_sites(table: pd.DataFrame) -> Iterable[Any]:
    """Yield rows with those of one pair of sites, metric and null together, in the order in which they appear."""
    keys = [key for key in ("site_a", "site_b", "metric", "null") if key in table]
    order = table.groupby(keys, sort=False, dropna=False).ngroup()
    return observations(table.iloc[np.argsort(order.to_numpy(), kind="stable")])


def _key(line: Any, numbers: dict[str, str]) -> tuple[str, str, str]:
    return line.site_a, line.site_b, numbers[line.run]


def sites_table(columns: tuple[str, ...], lines: Iterable[tuple[str, ...]], *, title: str = "") -> Table:
    """Return a table without lines, which fits a terminal; its first two columns are said once for all that follow."""
    shown = Table(title=title or None, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    for column in columns:
        shown.add_column(column, justify="left" if column in TEXTS else "right", overflow="fold")
    last: tuple[str, ...] = ()
    for line in lines:
        shown.add_row(*(Text(cell) for cell in (line if line[:2] != last else ("", "", *line[2:]))))
        last = line[:2]
    return shown


def digits(value: float) -> str:
    """Write a figure with three digits, nothing if it is undefined.

    >>> digits(0.12345), digits(-0.0001), digits(float("nan"))
    ('0.123', '0.000', '')
    """
    return "" if np.isnan(value) else f"{round(value, 3) + 0.0:.3f}"
