"""``python -m pipeline.semantics RUN``: which meanings the matched features of a run share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pipeline.settings.experiment import Experiment, stored_experiment
from pipeline.settings.semantics import SemanticsSettings
from pipeline.work.script import AsJson, Cluster, ClusterFile, open_client, run_script, show, wide_console
from storage.errors import InputError
from storage.rundir import RunDirectory

if TYPE_CHECKING:
    import xarray as xr


def command(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run directory with matched pairs.", show_default=False)],
    concepts: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Concept file, or `default`; may be given several times.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this concept; can be repeated.")] = None,
    approach: Annotated[
        list[str] | None, typer.Option(help="global (cut out of all pairs) or within (paired within the concept).")
    ] = None,
    sides: Annotated[str | None, typer.Option(help="Whose features belong to the concept: both or either.")] = None,
    within: Annotated[str | None, typer.Option(help="greedy, mutual, best, best_of_b or unique.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="As in `compare`; may be given several times.")] = None,
    null_runs: Annotated[int | None, typer.Option(min=1, help="Runs of every null.")] = None,
    min_pairs: Annotated[int | None, typer.Option(min=3, help="Subspaces of fewer pairs are not tested.")] = None,
    embedding: Annotated[
        str | None,
        typer.Option(help="Of words: model:a, model:b, gensim:FILE, sentence-transformers:FOLDER, or none."),
    ] = None,
    clusters: Annotated[int | None, typer.Option(min=0, help="Test so many clusters of the pairs too.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of nulls and clusters.")] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Print subspaces with too few pairs too.")] = False,
    cluster: Cluster = None,
    cluster_file: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Find the subspaces of concepts in a run and test whether both models arrange them alike.

    What is not given is as in the run's experiment file. The table is written to semantics.zarr, .csv, .html and .tex
    in the run directory; `subspace report` shows it with the features in the text.
    """
    given = {
        "concepts": concepts,
        "only": only,
        "approaches": approach,
        "sides": sides,
        "within": within,
        "metrics": metric,
        "judged": _judged(metric),
        "null_runs": null_runs,
        "min_pairs": min_pairs,
        "embedding": embedding,
        "clusters": clusters,
        "seed": seed,
    }
    from pipeline.semantics.stage import run_semantics

    directory = RunDirectory(run)
    config = with_semantics(stored_experiment(directory), given)
    with open_client(context, cluster, cluster_file) as client:
        table = run_semantics(config, directory, client)
    # the report and a later run read the settings from there
    directory.write_experiment(config.model_dump(mode="json"))
    _show(table, directory, as_json=as_json, show_all=show_all)


def _judged(metrics: list[str] | None) -> list[str] | None:
    """Return which of the metrics asked for are judged: the first two, the usual ones if they are among them."""
    usual = SemanticsSettings().judged
    if not metrics or set(usual) <= set(metrics):
        return None
    if len(metrics) < len(usual):
        raise InputError(f"The verdict needs two metrics, not {', '.join(metrics)} alone; give --metric twice")
    return metrics[:2]


def with_semantics(config: Experiment, given: dict[str, Any]) -> Experiment:
    """Return the experiment with some of its semantics settings changed; None leaves a setting as it is.

    Raises
    ------
    InputError
        If a value is none of its setting; the message names it.
    """
    section = config.semantics or SemanticsSettings()
    changes = {name: value for name, value in given.items() if value is not None}
    if changes.get("embedding") == "none":
        changes["embedding"] = None
    try:
        changed = SemanticsSettings.model_validate(section.model_dump() | changes)
    except ValueError as error:
        raise InputError(f"{error}") from error
    return config.model_copy(update={"semantics": changed})


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
    # a log file is read in a wide window
    console = wide_console(200)
    console.print(_rich(study))
    show(summary, as_json=False)


def _counts(study: Any) -> dict[str, int]:
    verdicts = study["Verdict"].value_counts()
    return {str(name).replace(" ", "_").lower(): int(count) for name, count in verdicts.items()}


def _rich(study: Any) -> Table:
    """Return the columns that fit a terminal: scores beside shuffled pairings, and the verdict."""
    wanted = [
        column
        for column in study.columns
        if not any(word in column for word in (" random", "coherence p", "random coherence"))
    ]
    table = Table(title="concepts × pairs of sites (p corrected)")
    for column in wanted:
        table.add_column(column, justify="right" if study[column].dtype.kind in "if" else "left")
    for line in study[wanted].itertuples(index=False):
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in line))
    return table


if __name__ == "__main__":
    run_script(command)
