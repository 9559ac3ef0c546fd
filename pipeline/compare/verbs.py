"""The command over activations: ``subspace compare-activations``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.compare.activations import NULL, compare_activations
from pipeline.settings.compare import ActivationsSettings
from pipeline.work.options import options
from pipeline.work.script import AsJson, Cluster, ClusterFile, Out, Overwrite, StoreA, StoreB, open_client, show


@options(ActivationsSettings)
def activations_command(
    context: typer.Context,
    a: StoreA,
    b: StoreB,
    out: Out,
    settings: ActivationsSettings,
    *,
    pairs: Annotated[Path | None, typer.Option(help="Result of `match`: only the features of the pairs.")] = None,
    cluster: Cluster = None,
    cluster_file: ClusterFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Score how alike activations are over the same tokens: two stores, or the features of matched pairs."""
    with open_client(context, cluster, cluster_file) as client:
        scores = compare_activations(a, b, settings, pairs=pairs, out=out, overwrite=overwrite, client=client)
    summary: dict[str, Any] = {"result": str(out), "tokens": int(scores["n_tokens"])}
    for text in settings.metrics:
        one = scores.sel(metric=text, null=NULL.name)
        summary[text] = {
            key: float(one[key]) for key in ("score", "low", "high", "null_mean", "null_std", "p", "p_runs")
        }
        if note := str(one["note"].item()):
            summary[text]["note"] = note
    show(summary, as_json=as_json)
