"""``subspace neurons``: raw units against the features of a run's dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.verbs.diff import WIDTH, digits, records, sites_table
from pipeline.experiment.neurons import (
    KINDS,
    check_finished,
    concepts_beside,
    expansion,
    metrics_of,
    neurons_experiment,
    neurons_table,
    plot_neurons,
    statement,
)
from pipeline.experiment.run import run as run_experiment
from pipeline.settings.experiment import stored_experiment
from pipeline.work.outputs import claim_outputs
from pipeline.work.script import AsJson, Connect, Overwrite, on_cluster, show, wide_console
from storage.rundir import RunDirectory

#: Metrics that the printed table has room for.
MOST_METRICS = 2


@on_cluster
def command(
    connect: Connect,
    run: Annotated[Path, typer.Argument(help="Run directory, with dictionaries.", show_default=False)],
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the run of raw units is made; RUN-neurons by default.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table here too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: .svg, .png or .pdf.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Run the same experiment on raw units, and set it beside the run: matching, geometry, every concept."""
    features = RunDirectory(run)
    check_finished(features)
    experiment = neurons_experiment(features)
    units = RunDirectory(run_dir or run.resolve().parent / f"{run.resolve().name}-neurons")
    units.check_free(experiment.name)  # whatever would be refused is refused before workers are waited for
    with claim_outputs(table=csv, columns="site_a,site_b,kind,", figure=plot, overwrite=overwrite) as outputs:
        with connect(units.root / "logs") as client:
            run_experiment(experiment, run_dir=units.root, until="semantics", client=client)
        table, concepts = neurons_table(features, units), concepts_beside(features, units)
        outputs.write_table(table)
        if plot is not None:
            outputs.write_figure(plot_neurons(table, concepts))
    more = expansion(features, stored_experiment(features))
    said = statement(table, concepts, more)
    if as_json:
        lines = {"sites": records(table), "concepts": records(concepts)}
        show(
            {"features": str(run), "units": str(units.root), "expansion": more, **lines, "statement": said},
            as_json=True,
        )
        return
    console = wide_console(WIDTH)
    metrics = metrics_of(table)[:MOST_METRICS]
    columns: tuple[str, ...] = ("A", "B", "of", "pairs", "share", "mean r", "held out", *metrics)
    shown = ("share_paired", "mean_r", "mean_r_heldout", *(f"above_{metric}" for metric in metrics))
    rows = [
        (line["site_a"], line["site_b"], line["kind"], f"{line['n_pairs']:,}",
         *(digits(line[name]) for name in shown))
        for line in table.to_dict("records")
    ]  # fmt: skip
    console.print(sites_table(columns, rows, title="matched pairs; share: of the smaller side; metrics: above chance"))
    if len(concepts):
        columns = ("concept", *(f"{what}, {kind}" for what in ("pairs", "coherence") for kind in KINDS))
        rows = [
            (line["name"], *(f"{line[f'pairs_{kind}']:,}" for kind in KINDS),
             *(digits(line[f"coherence_{kind}"]) for kind in KINDS))
            for line in concepts.to_dict("records")
        ]  # fmt: skip
        console.print(sites_table(columns, rows))
    console.print(said)
