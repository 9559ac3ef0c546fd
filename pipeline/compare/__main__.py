"""``python -m pipeline.compare PAIRS.zarr A.zarr B.zarr --out SCORES.zarr``: matched spaces against chance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from pipeline.compare.run import compare
from pipeline.config import CompareConfig, Metric
from pipeline.script import AsJson, Cluster, ClusterFile, Out, StoreA, StoreB, open_client, run_script, show

METRICS_HELP = ", ".join(get_args(Metric))


def command(
    context: typer.Context,
    pairs: Annotated[Path, typer.Argument(help="Result of `match`.", show_default=False)],
    a: StoreA,
    b: StoreB,
    out: Out,
    metric: Annotated[list[str] | None, typer.Option(help=f"{METRICS_HELP}; may be given several times.")] = None,
    null_runs: Annotated[int, typer.Option(min=1, help="Shuffled pairings.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the shuffles.")] = 0,
    cluster: Cluster = None,
    cluster_file: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Score the similarity of the matched spaces, each score beside its null."""
    metrics = metric or CompareConfig().metrics
    with open_client(context, cluster, cluster_file) as client:
        scores = compare(pairs, a, b, metrics=metrics, null_runs=null_runs, seed=seed, out=out, client=client)
    summary: dict[str, object] = {"result": str(out)}
    for name in metrics:
        one = scores.sel(metric=name)
        summary[name] = {key: float(one[key]) for key in ("score", "null_mean", "null_std", "p")}
    show(summary, as_json=as_json)


if __name__ == "__main__":
    run_script(command)
