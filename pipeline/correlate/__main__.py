"""``python -m pipeline.correlate A.zarr B.zarr --out C.zarr``: every feature of A with every feature of B."""

from __future__ import annotations

import pipeline
from pipeline.settings.correlate import CorrelateSettings
from pipeline.work.options import options
from pipeline.work.script import (
    AsJson,
    Connect,
    Out,
    Overwrite,
    StoreA,
    StoreB,
    describe,
    on_cluster,
    run_script,
    show,
)


@options(CorrelateSettings)
@on_cluster
def command(
    connect: Connect,
    a: StoreA,
    b: StoreB,
    out: Out,
    settings: CorrelateSettings,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Correlate every feature of A with every feature of B, exactly and in bounded memory."""
    result = pipeline.correlate(a, b, settings, out=out, overwrite=overwrite, client=connect)
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
