"""``python -m pipeline.semantics RUN``: which meanings the matched features of a run share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pipeline.settings.experiment import Experiment, stored_experiment
from pipeline.settings.semantics import SemanticsSettings
from pipeline.work.options import options
from pipeline.work.script import AsJson, Connect, on_cluster, run_script, show, wide_console
from storage.errors import InputError
from storage.rundir import RunDirectory

if TYPE_CHECKING:
    import xarray as xr


@options(SemanticsSettings, changes=True)
@on_cluster
def command(
    connect: Connect,
    run: Annotated[Path, typer.Argument(help="Run directory with matched pairs.", show_default=False)],
    settings: dict[str, Any],
    show_all: Annotated[bool, typer.Option("--all", help="Also print subspaces with too few pairs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the subspaces of concepts in a run and test whether both models arrange them similarly.

    Settings that are not given are taken from the run's experiment file. The table is written to semantics.zarr, .csv,
    .html and .tex in the run directory; `subspace report` shows it with the features in the text.
    """
    from pipeline.semantics.stage import run_semantics

    directory = RunDirectory(run)
    config = with_semantics(stored_experiment(directory), settings)
    with directory.claim():
        table = run_semantics(config, directory, connect)
        # the report and a later run read the settings from there
        directory.write_experiment(config.model_dump(mode="json"))
    _show(table, directory, as_json=as_json, show_all=show_all)


def with_semantics(config: Experiment, changes: dict[str, Any]) -> Experiment:
    """Return the experiment with some of its semantics settings changed.

    Raises
    ------
    InputError
        If a value is none of its setting; the message names it.
    """
    section = config.semantics or SemanticsSettings()
    if "metrics" in changes and "judged" not in changes:
        changes = {**changes, "judged": _judged(changes["metrics"])}
    changed = SemanticsSettings.make(**section.model_dump() | changes)
    return config.model_copy(update={"semantics": changed})


def _judged(metrics: list[str]) -> list[str]:
    """Return which of the metrics asked for are judged: the first two, the usual ones if they are among them."""
    usual = SemanticsSettings().judged
    if set(usual) <= set(metrics):
        return usual
    if len(metrics) < len(usual):
        raise InputError(f"The verdict needs two metrics, not {', '.join(metrics)} alone; give --metric twice")
    return metrics[:2]


def _show(table: xr.Dataset, directory: RunDirectory, *, as_json: bool, show_all: bool) -> None:
    from pipeline.semantics.tables import study_frame

    summary: dict[str, Any] = {"result": str(directory.semantics_table), **_counts(study_frame(table))}
    if as_json:
        lines = study_frame(table, table["metric"].values.tolist()).astype(object)
        show({**summary, "lines": lines.where(lines.notna(), None).to_dict("records")}, as_json=True)
        return
    study = study_frame(table)
    if not show_all:
        study = study[study["Verdict"] != "too few pairs"]
    wide_console(200).print(_rich(study))  # a log file is read in a wide window
    show(summary, as_json=False)


def _counts(study: Any) -> dict[str, int]:
    verdicts = study["Verdict"].value_counts()
    return {str(name).replace(" ", "_").lower(): int(count) for name, count in verdicts.items()}


def _rich(study: Any) -> Table:
    """Return the columns that fit a terminal: scores beside shuffled pairings and above words, and the verdicts."""
    left_out = (" random", "coherence p", "random coherence", " low", " high", " draws above")
    wanted = [column for column in study.columns if not any(word in column for word in left_out)]
    table = Table(title="concepts × pairs of sites (p corrected)")
    for column in wanted:
        table.add_column(column, justify="right" if study[column].dtype.kind in "if" else "left")
    for line in study[wanted].itertuples(index=False):
        table.add_row(*(f"{value:z.3f}" if isinstance(value, float) else str(value) for value in line))
    return table


if __name__ == "__main__":
    run_script(command)
