"""The commands over chosen pairs: ``subspace intervals`` and ``subspace convergence``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from pipeline.correlate.convergence import convergence, plot_convergence
from pipeline.correlate.intervals import intervals
from pipeline.settings.correlate import ConvergenceSettings, IntervalSettings
from pipeline.settings.match import HELDOUT_NOTE
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
)

PairsPath = Annotated[
    Path,
    typer.Argument(help="Result of `match`, or of `correlate` (its mutual best pairs are used).", show_default=False),
]


@options(IntervalSettings)
@on_cluster
def intervals_command(
    connect: Connect,
    pairs: PairsPath,
    a: StoreA,
    b: StoreB,
    *,
    out: Out,
    settings: IntervalSettings,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compute a confidence interval for the r of each pair, with whole documents as the units."""
    ds = intervals(pairs, a, b, settings, out=out, overwrite=overwrite, client=connect)
    suffix = "_heldout" if "r_heldout" in ds else ""
    width = ds[f"r{suffix}_high"].values - ds[f"r{suffix}_low"].values
    width = width[np.isfinite(width)]
    summary = {
        "result": str(out),
        "pairs": ds.sizes["pair"],
        "median_width": float(np.median(width)) if len(width) else None,
        "above_zero": int((ds[f"r{suffix}_low"] > 0).sum()),
        "no_interval": int(np.isnan(ds[f"r{suffix}_low"]).sum()),
        "median_effective_documents": float(np.nanmedian(ds[f"n_effective{suffix}"])),
        "of": f"r{suffix}",
    }
    show({**summary, **describe(ds, "n_documents", "unit", "level", "note", HELDOUT_NOTE)}, as_json=as_json)


@options(ConvergenceSettings)
@on_cluster
def convergence_command(
    connect: Connect,
    pairs: PairsPath,
    a: StoreA,
    b: StoreB,
    *,
    out: Out,
    settings: ConvergenceSettings,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the curve: .png, .svg or .pdf.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Check whether enough text was harvested, i.e. whether r of the pairs stabilises as documents are added."""
    with claim_outputs(figure=plot, overwrite=overwrite) as outputs:
        ds = convergence(pairs, a, b, settings, out=out, beside=outputs, overwrite=overwrite, client=connect)
        if plot is not None:
            outputs.write_figure(plot_convergence(ds))
    curve = {name: ds[name].values.tolist() for name in ("n_rows", "n_documents", "n_good")}
    curve["mean_r_heldout"] = np.round(ds["mean_r"].sel(half="heldout").values, 4).tolist()
    show(
        {"result": str(out), **describe(ds, "verdict", "explanation", "rule", HELDOUT_NOTE), **curve},
        as_json=as_json,
    )
