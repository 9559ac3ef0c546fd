"""``python -m pipeline.rematch PAIRS.zarr C.zarr A.zarr B.zarr …``: matchings with rows of B permuted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

import pipeline
from pipeline.match.__main__ import Contexts, Corpus, NonConcept
from pipeline.settings.rematch import RematchSettings
from pipeline.work.options import options
from pipeline.work.script import (
    AsJson,
    Connect,
    Out,
    Overwrite,
    StoreA,
    StoreB,
    on_cluster,
    run_script,
    show,
    text_table,
    wide_console,
)

if TYPE_CHECKING:
    import xarray as xr

#: Level below which a feature's corrected p counts.
SIGNIFICANT = 0.05
#: How many rows each null uses and leaves out.
ROWS = ("n_rows", "n_left_out")
#: Columns of the table of `rematch`: what they are called, and the variables that they hold.
COLUMNS = {
    "real": "value",
    "null mean": "null_mean",
    "null low": "null_low",
    "null high": "null_high",
    "difference": "difference",
    "beyond": "beyond",
    "beyond low": "beyond_low",
    "beyond high": "beyond_high",
    "p": "p",
}


@options(RematchSettings)
@on_cluster
def command(
    connect: Connect,
    pairs: Annotated[Path, typer.Argument(help="Result of `match`.", show_default=False)],
    correlation: Annotated[
        Path, typer.Argument(help="Result of `correlate` that the pairs were matched from.", show_default=False)
    ],
    a: StoreA,
    b: StoreB,
    out: Out,
    settings: RematchSettings,
    *,
    corpus: Corpus = None,
    contexts: Contexts = None,
    non_concept: NonConcept = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Match again with rows of B permuted, and print how much of a matching exceeds a shared vocabulary."""
    result = pipeline.rematch(
        pairs,
        correlation,
        a,
        b,
        settings,
        out=out,
        corpus=corpus,
        contexts=contexts,
        non_concept=non_concept,
        overwrite=overwrite,
        client=connect,
    )
    rows = {name: dict(zip(result["null"].values.tolist(), result[name].values.tolist(), strict=True)) for name in ROWS}
    summary: dict[str, Any] = {"result": str(out), "draws": result.attrs["n_draws"], **rows}
    if "best_r_q" in result:
        tested = result["best_r_q"].values[np.isfinite(result["best_r_q"].values)]
        summary["features_beyond_chance"] = int((tested < SIGNIFICANT).sum())
        summary["features_tested"] = len(tested)
    lines = list(_lines(result))
    if as_json:
        show({**summary, "lines": lines}, as_json=True)
        return
    wide_console().print(text_table(list(lines[0]), [_cells(line) for line in lines], right=list(lines[0])[2:]))
    show(summary, as_json=False)


def _lines(result: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Yield a line for each quantity beside each null; scores are those above shuffled pairings."""
    for null in result["null"].values.tolist():
        for quantity in result["quantity"].values.tolist():
            values = result.sel(null=null, quantity=quantity)
            yield {
                "null": null,
                "of": quantity,
                **{heading: values[name].item() for heading, name in COLUMNS.items()},
            }


def _cells(line: dict[str, Any]) -> list[str]:
    return [value if isinstance(value, str) else "–" if np.isnan(value) else f"{value:.4g}" for value in line.values()]


if __name__ == "__main__":
    run_script(command)
