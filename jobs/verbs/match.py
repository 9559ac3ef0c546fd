"""The verbs that look closer at matchings: sweep, token-identity, layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
import xarray as xr
from rich.table import Table

from pipeline.compare.score_grid import score_grid, scores_table
from pipeline.compare.statistics import LEVEL, benjamini_hochberg
from pipeline.experiment.sweep import plot_sweep, sweep
from pipeline.match.__main__ import Contexts, Corpus, NonConcept, Stores
from pipeline.match.identity import token_identity
from pipeline.match.layers import layer_consistency, layer_table, read_grid
from pipeline.settings.experiment import stored_experiment
from pipeline.settings.match import HELDOUT_NOTE, SweepSettings
from pipeline.work.options import options
from pipeline.work.outputs import claim_outputs
from pipeline.work.script import (
    AsJson,
    Connect,
    Out,
    Overwrite,
    StoreA,
    StoreB,
    describe,
    on_cluster,
    show,
    wide_console,
)
from storage import make_result, new_manifest
from storage.identity import fingerprint
from storage.provenance import RunInputs
from storage.rundir import RunDirectory, Side


@options(SweepSettings)
@on_cluster
def sweep_command(
    connect: Connect,
    correlation: Annotated[Path, typer.Argument(help="Result of `correlate`.", show_default=False)],
    out: Out,
    settings: SweepSettings,
    *,
    contexts: Contexts = None,
    stores: Stores = None,
    corpus: Corpus = None,
    non_concept: NonConcept = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this CSV file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the sweep to this file: .svg, .png or .pdf.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Match at every combination of minimum r and maximum uses; count, score and plot the matchings."""
    with claim_outputs(table=csv, columns="min_correlation,max_uses,", figure=plot, overwrite=overwrite) as outputs:
        result = sweep(
            correlation,
            settings,
            contexts=contexts,
            stores=stores,
            corpus=corpus,
            non_concept=non_concept,
            out=out,
            beside=outputs,
            overwrite=overwrite,
            client=connect,
        )
        table = result.to_dataframe().reset_index()
        outputs.write_table(table)
        if plot is not None:
            outputs.write_figure(plot_sweep(result))
    more = {"lines": table.to_dict("records")} if as_json else {"points": len(table)}
    show({"result": str(out), **more, **describe(result, HELDOUT_NOTE)}, as_json=as_json)


def token_identity_command(
    pairs: Annotated[Path, typer.Argument(help="Result of `match`.", show_default=False)],
    a: StoreA,
    b: StoreB,
    out: Out,
    corpus: Annotated[
        Path | None,
        typer.Option(help="The text; identifies segments by their text instead of the token ids of both sides."),
    ] = None,
    previous: Annotated[bool, typer.Option("--previous", help="Condition on the previous segment too.")] = False,
    level: Annotated[float, typer.Option(help="Nominal coverage of the intervals.")] = 0.95,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Split each pair's r into the part that token identity explains and the rest."""
    result = token_identity(pairs, a, b, out, corpus=corpus, previous=previous, level=level, overwrite=overwrite)
    suffix = "_heldout" if "r_heldout" in result else ""
    means = {f"mean_{name}{suffix}": np.nanmean(result[f"{name}{suffix}"]) for name in ("r", "token_part", "excess")}
    beyond = benjamini_hochberg(result[f"excess_p{suffix}"].values) <= LEVEL
    summary = {"result": str(out), "pairs": result.sizes["pair"], **{name: float(mean) for name, mean in means.items()}}
    summary |= {"share_beyond_token": float(np.mean(beyond)), "of": f"excess{suffix}, BH at {LEVEL}"}
    show({**summary, **describe(result, "segments_known_by", "n_rows", "n_rows_left_out", "note")}, as_json=as_json)


def layers_command(
    run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    side: Annotated[Side, typer.Option(help="Which side's features to follow.")] = "a",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PATH", help="Write the whole dataset here.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this CSV file.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show at which sites of the other model each feature is matched, and at which one best."""
    grid = read_grid(run)
    inputs = {f"{a}--{b}": fingerprint(RunDirectory(run).pairs(a, b)) for a, b in grid}
    manifest = new_manifest("layers", inputs, {"side": side})
    with claim_outputs(table=csv, columns="site,other_site,matched,best_here,", overwrite=overwrite) as outputs:
        make: Callable[[], xr.Dataset] = functools.partial(layer_consistency, grid, side)
        if out is not None:
            make = outputs.checked_before(make)
        lines = layer_table(make_result(out, manifest, make, overwrite=overwrite))
        own, other = ("site_a", "site_b") if side == "a" else ("site_b", "site_a")
        scores = calibrated_scores(RunDirectory(run)).rename(columns={own: "site", other: "other_site"})
        lines = lines.merge(scores, on=["site", "other_site"], how="left")
        outputs.write_table(lines)
    if as_json:
        clean = lines.astype(object).where(lines.notna(), None)
        show({"side": side, "lines": clean.to_dict("records")}, as_json=True)
        return
    metrics = [str(name).replace("_", " ") for name in lines.columns[6:]]
    table = Table(*("site", "other site", "matched", "best here", "share", "mean r", *metrics))
    for line in lines.itertuples(index=False):
        table.add_row(line[0], line[1], f"{line[2]:,}", f"{line[3]:,}", *(f"{value:z.3f}" for value in line[4:]))
    wide_console().print(table)


def calibrated_scores(run: RunDirectory) -> pd.DataFrame:
    """Return the calibrated score of each pair of sites by its first null, a column ``calibrated_METRIC`` each.

    Without rows, and without such columns, where nothing was compared; results that were not made from those beside
    them are left out.
    """
    experiment = stored_experiment(run)
    inputs = RunInputs(run, experiment.site_pairs)
    paths = {sites: run.scores(*sites) for sites in experiment.site_pairs if experiment.compare is not None}
    results = {sites: path for sites, path in paths.items() if inputs.belongs(path)}
    keys = ["site_a", "site_b"]
    if not results:
        return pd.DataFrame(columns=keys, dtype=object)
    table = scores_table(score_grid(results))
    first = table[table["null"] == table["null"].iloc[0]]
    wide = first.pivot_table(index=keys, columns="metric", values="calibrated", sort=False, dropna=False)
    return wide.add_prefix("calibrated_").reset_index()
