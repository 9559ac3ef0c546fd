"""The command over activations: ``subspace compare-activations``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.compare.activations import compare_activations
from pipeline.settings.compare import ActivationsSettings
from pipeline.work.options import options
from pipeline.work.script import AsJson, Connect, Out, Overwrite, StoreA, StoreB, on_cluster, show


@on_cluster
@options(ActivationsSettings)
def activations_command(
    connect: Connect,
    a: StoreA,
    b: StoreB,
    out: Out,
    settings: ActivationsSettings,
    *,
    pairs: Annotated[
        Path | None, typer.Option(help="Result of `match`; compare only the features of its pairs.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Score how similar activations over the same tokens are: of two stores, or of the features of matched pairs."""
    scores = compare_activations(a, b, settings, pairs=pairs, out=out, overwrite=overwrite, client=connect)
    summary: dict[str, Any] = {"result": str(out), "tokens": int(scores["n_tokens"])}
    summary["null"] = scores["null"].item()
    for text in settings.metrics:
        score = scores.isel(null=0).sel(metric=text)
        summary[text] = {
            key: float(score[key]) for key in ("score", "low", "high", "null_mean", "null_std", "p", "p_runs")
        }
        if note := str(score["note"].item()):
            summary[text]["note"] = note
    show(summary, as_json=as_json)
