"""The commands over chosen pairs: ``subspace bootstrap`` and ``subspace convergence``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from pipeline.correlate.bootstrap import bootstrap
from pipeline.correlate.convergence import convergence, plot_convergence
from pipeline.settings.correlate import Measure
from pipeline.work.outputs import claim_outputs
from pipeline.work.script import (
    AsJson,
    Cluster,
    ClusterFile,
    Memory,
    Out,
    Overwrite,
    StoreA,
    StoreB,
    describe,
    open_client,
    show,
)

PairsPath = Annotated[
    Path, typer.Argument(help="Result of `match`, or of `correlate`: its mutually best partners.", show_default=False)
]
MeasureOption = Annotated[Measure | None, typer.Option(help="What r is; as the pairs were correlated, if absent.")]


def bootstrap_command(
    context: typer.Context,
    pairs: PairsPath,
    a: StoreA,
    b: StoreB,
    *,
    out: Out,
    runs: Annotated[int, typer.Option(min=1, help="How often documents are drawn.")] = 1000,
    level: Annotated[float, typer.Option(help="Share of the draws within an interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    select: Annotated[
        Literal["half", "all"] | None, typer.Option(help="Halves, as the pairs were correlated if absent.")
    ] = None,
    measure: MeasureOption = None,
    memory: Memory = "auto",
    cluster: Cluster = None,
    cluster_file: ClusterFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Say how sure r of each pair is: intervals from documents drawn with replacement."""
    with open_client(context, cluster, cluster_file) as client:
        ds = bootstrap(
            pairs,
            a,
            b,
            runs=runs,
            level=level,
            seed=seed,
            select=select,
            measure=measure,
            memory=memory,
            out=out,
            overwrite=overwrite,
            client=client,
        )
    suffix = "_heldout" if "r_heldout" in ds else ""
    width = ds[f"r{suffix}_high"].values - ds[f"r{suffix}_low"].values
    width = width[np.isfinite(width)]
    summary = {
        "result": str(out),
        "pairs": ds.sizes["pair"],
        "median_width": float(np.median(width)) if len(width) else None,
        "above_zero": int((ds[f"r{suffix}_low"] > 0).sum()),
        "of": f"r{suffix}",
    }
    show({**summary, **describe(ds, "n_documents", "unit", "runs", "level", "note")}, as_json=as_json)


def convergence_command(
    context: typer.Context,
    pairs: PairsPath,
    a: StoreA,
    b: StoreB,
    *,
    out: Out,
    threshold: Annotated[
        float | None, typer.Option(help="Good: this r in both halves. Default: the minimum of the match.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curve too: .png, .svg or .pdf.")] = None,
    measure: MeasureOption = None,
    memory: Memory = "auto",
    cluster: Cluster = None,
    cluster_file: ClusterFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Say whether enough text was harvested: whether r of the pairs settles as documents come in."""
    settings: dict[str, Any] = {"threshold": threshold, "measure": measure, "memory": memory, "overwrite": overwrite}
    with (
        claim_outputs(figure=plot, overwrite=overwrite) as outputs,
        open_client(context, cluster, cluster_file) as client,
    ):
        ds = convergence(pairs, a, b, out=out, client=client, **settings)
        if plot is not None:
            outputs.write_figure(plot_convergence(ds))
    curve = {name: ds[name].values.tolist() for name in ("n_rows", "n_documents", "n_good")}
    curve["mean_r_heldout"] = np.round(ds["mean_r"].sel(half="heldout").values, 4).tolist()
    show(
        {"result": str(out), **describe(ds, "verdict", "explanation", "rule"), **curve},
        as_json=as_json,
    )
