"""``python -m pipeline.correlate A.zarr B.zarr --out C.zarr``: every feature of A with every feature of B."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

import pipeline
from pipeline.settings.correlate import Measure
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
    run_script,
    show,
)


def command(
    context: typer.Context,
    a: StoreA,
    b: StoreB,
    out: Out,
    top_k: Annotated[int, typer.Option(min=1, max=256, help="Partners kept for each feature, both ways.")] = 16,
    keep_above: Annotated[float, typer.Option(help="Keep every pair with at least this r.")] = 0.1,
    select: Annotated[
        Literal["half", "all"],
        typer.Option(help="Rows that choose the partners: half of the documents (the other half is held out), or all."),
    ] = "half",
    measure: Annotated[
        Measure, typer.Option(help="What r is. Jaccard and phi are of firing: where values are not 0.")
    ] = "pearson",
    kernel: Annotated[
        Literal["auto", "sparse", "dense"], typer.Option(help="How products are computed; auto: by density.")
    ] = "auto",
    full: Annotated[
        Literal["float32", "float16"] | None,
        typer.Option(help="Keep the whole matrix too (r_all), of this type.", show_default=False),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="Where products are computed; auto: on GPUs if all workers have one."),
    ] = "auto",
    memory: Memory = "auto",
    cluster: Cluster = None,
    cluster_file: ClusterFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Correlate every feature of A with every feature of B, exactly and in bounded memory."""
    with open_client(context, cluster, cluster_file) as client:
        result = pipeline.correlate(
            a,
            b,
            top_k=top_k,
            keep_above=keep_above,
            select=select,
            measure=measure,
            kernel=kernel,
            full=full,
            device=device,
            memory=memory,
            out=out,
            overwrite=overwrite,
            client=client,
        )
    names = (
        "n_rows_select",
        "n_rows_heldout",
        "n_undefined_a",
        "n_undefined_b",
        "n_kept",
        "keep_above",
        "measure",
        "kernel",
    )
    show({"result": str(out), **describe(result, *names)}, as_json=as_json)


if __name__ == "__main__":
    run_script(command)
