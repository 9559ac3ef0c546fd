"""``python -m pipeline.match C.zarr --out PAIRS.zarr``: from correlations to pairs of features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import MatchMethod
from pipeline.match.run import match
from pipeline.script import AsJson, Out, run_script, show


def command(
    correlation: Annotated[Path, typer.Argument(help="Result of `correlate`.", show_default=False)],
    out: Out,
    method: Annotated[
        MatchMethod, typer.Option(help="best, best_of_b: many to one; the others one to one: greedy is best-first.")
    ] = "greedy",
    min_correlation: Annotated[float, typer.Option(help="Pairs below this r are not matched.")] = 0.1,
    as_json: AsJson = False,
) -> None:
    """Choose pairs of features from the kept correlations, exactly."""
    pairs = match(correlation, method=method, min_correlation=min_correlation, out=out)
    summary = {
        "result": str(out),
        "pairs": pairs.sizes["pair"],
        "mean_r": float(pairs["r"].mean()),
        "mean_r_heldout": float(pairs["r_heldout"].mean()),
    }
    show(summary, as_json=as_json)


if __name__ == "__main__":
    run_script(command)
