"""``python -m pipeline.yardsticks RUN``: floors, ceilings, and what of the way between them a run's scores go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pipeline.settings.experiment import Experiment, resolve_paths, stored_experiment
from pipeline.settings.yardsticks import YardsticksSettings
from pipeline.work.options import options
from pipeline.work.script import AsJson, Connect, on_cluster, run_script, show, text_table, wide_console
from storage.rundir import RunDirectory

if TYPE_CHECKING:
    import pandas as pd


@options(YardsticksSettings, changes=True)
@on_cluster
def command(
    connect: Connect,
    run: Annotated[Path, typer.Argument(help="Run directory with matched pairs.", show_default=False)],
    settings: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Place every score of a run between what the worst and the best possible would score on its text.

    Settings that are not given are taken from the run's experiment file. Floors and ceilings are made by the stages of
    the run with its settings, below yardsticks/ in the run directory; the tables are yardsticks.csv and normalised.csv
    there, and `subspace report` shows them. The yardsticks token and document are read from the results of `rematch`,
    which the run must have (`rematch: {}` in its experiment file, as by default).
    """
    from pipeline.yardsticks.stage import run_yardsticks

    directory = RunDirectory(run)
    config = with_yardsticks(stored_experiment(directory), settings)
    with directory.claim():
        run_yardsticks(config, directory, connect)
        # the report and a later run read the settings from there
        directory.write_experiment(config.model_dump(mode="json"))
        show_yardsticks(config, directory, as_json=as_json)


def with_yardsticks(config: Experiment, changes: dict[str, Any]) -> Experiment:
    """Return the experiment with some of its settings of yardsticks changed; relative paths start here.

    Raises
    ------
    InputError
        If a value is none of its setting; the message names it.
    """
    section = {} if config.yardsticks is None else config.yardsticks.model_dump()
    changed = config.model_copy(update={"yardsticks": YardsticksSettings.make(**section | changes)})
    return resolve_paths(changed, Path.cwd())


def show_yardsticks(config: Experiment, directory: RunDirectory, *, as_json: bool) -> None:
    """Write the tables of a run's yardsticks, and print them."""
    from pipeline.report.yardsticks import (
        normalised_table,
        numbered_notes,
        open_yardsticks,
        save_yardsticks,
        yardsticks_table,
    )

    results = open_yardsticks(directory, config.site_pairs)
    save_yardsticks(directory, results)
    beside, between = yardsticks_table(results), normalised_table(results)
    summary = {"yardsticks": str(directory.yardsticks_table), "normalised": str(directory.normalised_table)}
    if as_json:
        clean = [table.astype(object).where(table.notna(), None).to_dict("records") for table in (beside, between)]
        show({**summary, "beside": clean[0], "between": clean[1]}, as_json=True)
        return
    console = wide_console(200)  # as a log file is read
    console.print(_beside(beside))
    if len(between):
        marks, notes = numbered_notes(between)
        console.print(_between(between, marks))
        for number, note in enumerate(notes, start=1):
            console.print(f"{number}  {note}", markup=False)
    show(summary, as_json=False)


def _beside(table: pd.DataFrame) -> Table:
    """Return a line for each pair of sites and yardstick: of each quantity, the run's value and the yardstick's."""
    quantities = list(dict.fromkeys(table["quantity"]))
    columns = ["A", "B", "yardstick", "at pairs", *quantities]
    lines = []
    for (a, b, kind, name), rows in table.groupby(["site_a", "site_b", "kind", "yardstick"], sort=False):
        of = {row.quantity: row for row in rows.itertuples()}
        cells = [_beside_cell(of.get(quantity)) for quantity in quantities]
        lines.append([str(a), str(b), f"{kind}: {name}", f"{rows['n_pairs'].iloc[0]:,}", *cells])
    title = "value of the run | of the yardstick, at the same number of pairs"
    return text_table(columns, lines, title=title, right=columns[3:])


def _beside_cell(row: Any) -> str:
    return "" if row is None else " | ".join(_written(value, row.quantity) for value in (row.raw, row.value))


def _written(value: float, quantity: str) -> str:
    from pipeline.report.verdict import number

    return number(value, 0 if quantity == "pairs" else 3)


def _between(table: pd.DataFrame, marks: list[str]) -> Table:
    columns = ["A", "B", "score", "at pairs", "raw", "floor", "ceiling", "normalised", "95 %", "note"]
    first = table.iloc[0]
    title = f"between floor ({first.floor_name}) and ceiling ({first.ceiling_name})"
    return text_table(columns, _between_lines(table, marks), title=title, right=columns[3:-1])


def _between_lines(table: pd.DataFrame, marks: list[str]) -> Iterator[list[str]]:
    from pipeline.report.verdict import number

    for row, mark in zip(table.to_dict("records"), marks, strict=True):
        quantity = row["quantity"]
        values = (_written(row[key], quantity) for key in ("score", "floor", "ceiling"))
        ends = " – ".join(dict.fromkeys(number(row[key]) for key in ("low", "high")))
        n = "all" if quantity == "pairs" else f"{row['n_pairs']:,}"
        yield [row["site_a"], row["site_b"], quantity, n, *values, number(row["normalised"]), ends, mark]


if __name__ == "__main__":
    run_script(command)
