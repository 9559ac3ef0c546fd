"""The command over activations: ``subspace compare-activations``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.compare.activations import DEFAULT_METRICS, NULL, compare_activations, linear_metrics
from pipeline.work.script import AsJson, Cluster, ClusterFile, Memory, Out, Overwrite, StoreA, StoreB, open_client, show


def activations_command(
    context: typer.Context,
    a: StoreA,
    b: StoreB,
    *,
    out: Out,
    pairs: Annotated[Path | None, typer.Option(help="Result of `match`: only the features of the pairs.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:KEY=VALUE,…]", help=f"{', '.join(linear_metrics())}; can be repeated."),
    ] = None,
    null_runs: Annotated[int, typer.Option(min=0, help="Random orders of blocks of text.")] = 1000,
    blocks: Annotated[int, typer.Option(min=2, help="Blocks of the null; its memory grows with their square.")] = 16,
    intervals: Annotated[int, typer.Option(min=0, help="Bootstrap draws over documents; 0: no interval.")] = 0,
    level: Annotated[float, typer.Option(help="Share of the draws within an interval.")] = 0.95,
    groups: Annotated[int, typer.Option(min=2, help="Groups of documents that are drawn together.")] = 32,
    seed: Annotated[int, typer.Option(help="Of orders and draws.")] = 0,
    memory: Memory = "auto",
    cluster: Cluster = None,
    cluster_file: ClusterFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Score how alike activations are over the same tokens: two stores, or the features of matched pairs."""
    metrics = metric or list(DEFAULT_METRICS)
    with open_client(context, cluster, cluster_file) as client:
        scores = compare_activations(
            a, b, pairs=pairs, metrics=metrics, null_runs=null_runs, blocks=blocks, intervals=intervals, level=level,
            groups=groups, seed=seed, out=out, overwrite=overwrite, client=client, memory=memory,
        )  # fmt: skip
    summary: dict[str, Any] = {"result": str(out), "tokens": int(scores["n_tokens"])}
    for text in metrics:
        one = scores.sel(metric=text, null=NULL.name)
        summary[text] = {key: float(one[key]) for key in ("score", "low", "high", "null_mean", "null_std", "p")}
        if note := str(one["note"].item()):
            summary[text]["note"] = note
    show(summary, as_json=as_json)
