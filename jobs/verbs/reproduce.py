"""``subspace reproduce``: run the published experiments again, and set our numbers beside the published ones.

The study is Lan et al., arXiv 2410.06981. Its experiments come as files (``jobs/experiments``), its numbers as data
(``published.yaml``), with what each is called there and which of ours it is to be held against: what was published as
SVCCA keeps one component of either side, which we call ``svcca_pc1``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import typer
import xarray as xr
import yaml
from rich.table import Table

from pipeline.experiment.run import run
from pipeline.report.tables import observations
from pipeline.settings.experiment import load_experiment, stored_experiment
from pipeline.work.script import (
    AllowBadSite,
    AsJson,
    Connect,
    RunDir,
    on_cluster,
    read_experiment,
    show,
    text_table,
    wide_console,
)
from storage import open_result
from storage.provenance import RunInputs
from storage.rundir import RunDirectory

FOLDER = Path(__file__).parent.parent / "experiments"
PUBLISHED = FOLDER / "published.yaml"
Name = Literal["pythia", "gemma"]
NAMES: tuple[Name, ...] = ("pythia", "gemma")
COLUMNS = ("site_a", "site_b", "concept", "quantity", "published_as", "published", "ours", "ours_is", "note")
NOT_RUN = "this run does not have these sites"
NO_CONCEPT = "this run has no such concept; see `subspace semantics`"
#: Of the ways in which `semantics` makes a concept's pairs, the study's: features of the concept are matched again.
APPROACH = "within"


class Figure(NamedTuple):
    """One published number and what it is."""

    site_a: str
    site_b: str
    concept: str
    quantity: str
    published_as: str
    published: float
    ours_is: str


def published_figures(name: Name) -> list[Figure]:
    """Return every number that the study published of an experiment, in its order.

    Examples
    --------
    >>> published_figures("pythia")[3][:6]
    ('layers.2', 'layers.5', '', 'svcca_pc1', 'SVCCA', 0.678)
    """
    data = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    lines = [*data["sites"][name], *data["concepts"][name]]
    return [
        Figure(
            line["a"], line["b"], line.get("concept", ""), quantity, meaning["published"], float(line[quantity]),
            meaning["ours"],
        )
        for line in lines
        for quantity, meaning in data["quantities"].items()
        if quantity in line
    ]  # fmt: skip


def beside_published(name: Name, run_dir: str | Path) -> pd.DataFrame:
    """Set the numbers of a run, of this experiment or one with the same sites, beside the published ones.

    A row for each published number, columns :data:`COLUMNS`. ``ours`` is NaN, and ``note`` says why, where the run has
    no such sites, or has not compared them by that metric.
    """
    directory = RunDirectory(Path(run_dir))
    run_sites = stored_experiment(directory).site_pairs
    inputs = RunInputs(directory, run_sites)
    figures: dict[tuple[str, str, str], dict[str, float]] = {}
    records = []
    for figure in published_figures(name):
        here = figure.site_a, figure.site_b, figure.concept
        if here[:2] in run_sites and here not in figures:
            figures[here] = dict(
                _concept_figures(directory, inputs, here) if figure.concept else _our_figures(directory, inputs, here)
            )
        ours, note = _ours(figure, figures.get(here))
        records.append({**figure._asdict(), "ours": ours, "note": note})
    return pd.DataFrame.from_records(records, columns=list(COLUMNS))


def _ours(figure: Figure, figures: dict[str, float] | None) -> tuple[float, str]:
    if figures is None:
        return np.nan, NOT_RUN
    if figure.concept and not figures:
        return np.nan, NO_CONCEPT
    if figure.quantity not in figures:
        why = "the metric was not asked for" if figures else "the run was stopped before"
        return np.nan, f"not computed: {why}"
    return figures[figure.quantity], ""


def _our_figures(directory: RunDirectory, inputs: RunInputs, here: tuple[str, str, str]) -> Iterator[tuple[str, float]]:
    """Yield those of our numbers that a pair of sites has so far."""
    correlation, pairs, scores = (getattr(directory, stage)(*here[:2]) for stage in ("correlation", "pairs", "scores"))
    if inputs.belongs(correlation):
        yield "best_r", _mean(open_result(correlation, "correlate")["r_a"].isel(rank=0))
    if inputs.belongs(pairs):
        matched = open_result(pairs, "match")
        yield "mean_r", _mean(matched["r"])
        yield "pairs", float(matched.sizes["pair"])
    if inputs.belongs(scores):
        compared = open_result(scores, "compare")
        for metric in ("svcca_pc1", "rsa"):
            if metric in compared["metric"].values:
                yield metric, float(compared["score"].sel(metric=metric))
        if "svcca_pc1" in compared["metric"].values and "shuffled" in compared["null"].values:
            yield "svcca_pc1_null", float(compared["null_mean"].sel(metric="svcca_pc1", null="shuffled"))


def _concept_figures(
    directory: RunDirectory, inputs: RunInputs, here: tuple[str, str, str]
) -> Iterator[tuple[str, float]]:
    """Yield our numbers of one concept's pairs, where the run has looked for concepts."""
    table = directory.semantics_table
    if not inputs.belongs(table):
        return
    rows = open_result(table, "semantics-table")
    wanted = dict(zip(("site_a", "site_b", "name"), here, strict=True)) | {"approach": APPROACH}
    at = np.flatnonzero(np.logical_and.reduce([rows[key].values == value for key, value in wanted.items()]))
    if len(at):
        row = rows.isel(row=int(at[0]))
        yield "pairs", float(row["n_pairs"])
        for metric in ("svcca_pc1", "rsa"):
            if metric in row["metric"].values:
                yield metric, float(row["score"].sel(metric=metric))


def _mean(values: xr.DataArray) -> float:
    defined = values.values[np.isfinite(values.values)]
    return float(defined.mean()) if len(defined) else float("nan")


@on_cluster
def command(
    connect: Connect,
    name: Annotated[Name | None, typer.Argument(help="Name of the experiment; see --list.", show_default=False)] = None,
    run_dir: RunDir = None,
    list_: Annotated[bool, typer.Option("--list", help="List the experiments.")] = False,
    show_file: Annotated[bool, typer.Option("--show", help="Print the experiment's YAML file as a template.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Run nothing; print the table from the results in the run directory.")
    ] = False,
    experiment: Annotated[
        Path | None, typer.Option(metavar="YAML", help="Run this file instead, e.g. with local copies or fewer sites.")
    ] = None,
    allow_bad_site: AllowBadSite = False,
    as_json: AsJson = False,
) -> None:
    """Re-run a published experiment and print its numbers next to ours. Needs access to the Hugging Face Hub."""
    if list_ or name is None:
        _list(as_json=as_json)
        return
    file = experiment or FOLDER / f"{name}.yaml"
    if show_file:
        typer.echo(file.read_text(encoding="utf-8"), nl=False)
        return
    config = read_experiment(file, allow_bad_site=allow_bad_site)
    RunDirectory.of(config.name, run_dir).check(None if table else config.name)
    root = RunDirectory.of(config.name, run_dir).root
    if not table:
        run(config, run_dir=root, client=connect)
    _show(name, root, as_json=as_json)


def _list(*, as_json: bool) -> None:
    lines = []
    for name in NAMES:
        config = load_experiment(FOLDER / f"{name}.yaml")
        lines.append(
            {
                "name": name,
                "a": config.models["a"].model,
                "b": config.models["b"].model,
                "pairs_of_sites": len(config.site_pairs),
                "text": f"{config.corpus.documents} documents of {config.corpus.dataset}",
                "published_numbers": len(published_figures(name)),
            }
        )
    if as_json:
        show({"experiments": lines}, as_json=True)
        return
    columns = [key.replace("_", " ") for key in lines[0]]
    rows = [[str(value) for value in line.values()] for line in lines]
    wide_console().print(text_table(columns, rows, title="published experiments; they need the model hub"))


def _show(name: Name, root: Path, *, as_json: bool) -> None:
    numbers = beside_published(name, root)
    if as_json:
        clean = numbers.astype(object).where(numbers.notna(), None)
        show({"run_directory": str(root), "numbers": clean.to_dict("records")}, as_json=True)
        return
    shown = Table(title=f"{name}: published (arXiv 2410.06981) and ours, {root}")
    for column in ("A", "B", "concept", "published as", "published", "ours", "which of ours it is"):
        shown.add_column(column, justify="right" if column in ("published", "ours") else "left")
    last = None
    for line in observations(numbers):
        here = (line.site_a, line.site_b, line.concept)
        if last is not None and here != last:
            shown.add_section()
        names = here if here != last else ("", "", "")
        shown.add_row(*names, line.published_as, _digits(line.published), _digits(line.ours), line.ours_is)
        last = here
    console = wide_console()
    console.print(shown)
    for note, rows in numbers[numbers["note"] != ""].groupby("note", sort=False):
        sites = ", ".join(
            dict.fromkeys(f"{line.site_a} – {line.site_b} {line.concept}".strip() for line in observations(rows))
        )
        console.print(f"Not there: {note} ({sites})", soft_wrap=True)


def _digits(value: Any) -> str:
    """Write a count whole and a score with three decimals.

    >>> _digits(4055.0), _digits(0.678), _digits(float("nan"))
    ('4,055', '0.678', '–')
    """
    if np.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 2 else f"{value:.3f}"
