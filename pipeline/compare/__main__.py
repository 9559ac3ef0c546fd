"""``python -m pipeline.compare PAIRS.zarr A.zarr B.zarr --out SCORES.zarr``: matched spaces against chance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr
from rich.table import Table

from pipeline.compare.run import compare
from pipeline.settings.compare import CompareSettings
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
    wide_console,
)

#: Of a line in the table.
FIGURES = ("score", "low", "high", "null_mean", "null_q05", "null_q95", "z", "p", "p_runs")


@options(CompareSettings)
@on_cluster
def command(
    connect: Connect,
    pairs: Annotated[Path, typer.Argument(help="Result of `match`.", show_default=False)],
    a: StoreA,
    b: StoreB,
    out: Out,
    settings: CompareSettings,
    pool: Annotated[
        Path | None, typer.Option(metavar="PAIRS", help="Matching of the whole space, for the null random_pairs.")
    ] = None,
    control_a: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Store of A with a random dictionary, for random_dictionary.")
    ] = None,
    control_b: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Store of B with a random dictionary, for random_dictionary.")
    ] = None,
    contexts: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Contexts of both sides; needed for nulls of words and for n_effective."),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="The text; needed together with --contexts.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Score the similarity of the matched spaces, each score next to its nulls."""
    scores = compare(
        pairs,
        a,
        b,
        settings,
        pool=pool,
        control=(control_a, control_b),
        contexts=contexts,
        corpus=corpus,
        out=out,
        overwrite=overwrite,
        client=connect,
    )
    counts = {name: _figure(scores[name]) for name in ("n_pairs", "n_effective")}
    if as_json:
        show({"result": str(out), **counts, **summary(scores)}, as_json=True)
    else:
        console = wide_console()
        console.print(score_table(scores))
        show({"result": str(out), **counts}, as_json=False)


def summary(scores: xr.Dataset) -> dict[str, Any]:
    """Return the scores for programs: each metric with its score and interval, and by null what is said of it."""
    found: dict[str, Any] = {}
    for metric in scores["metric"].values.tolist():
        one = scores.sel(metric=metric)
        nulls = {
            str(null): {
                name: _figure(one[name].sel(null=null)) for name in ("null_mean", "null_std", "z", "p", "p_runs")
            }
            for null in scores["null"].values
        }
        found[metric] = {
            **{name: _figure(one[name]) for name in ("score", "low", "high")},
            "nulls": nulls,
            "note": str(one["note"].item()),
        }
    return found


def _figure(value: xr.DataArray) -> float | None:
    """Return a number, or None where it is undefined: NaN is no JSON."""
    number = float(value)
    return number if math.isfinite(number) else None


def score_table(scores: xr.Dataset) -> Table:
    """Return the scores for people: one line for each metric and null, with notes below."""
    table = Table(caption="\n".join(f"{metric}: {note}" for metric, note in _notes(scores)), caption_justify="left")
    for name in ("metric", "score", "95 %", "null", "mean", "5–95 %", "z", "p", "runs"):
        table.add_column(name, justify="left" if name in ("metric", "null") else "right")
    for metric in scores["metric"].values.tolist():
        for i, null in enumerate(scores["null"].values.tolist()):
            one = scores.sel(metric=metric, null=null)
            value = {name: float(one[name]) for name in FIGURES}
            own = (metric, f"{value['score']:z.4f}", _span(value["low"], value["high"])) if i == 0 else ("", "", "")
            table.add_row(
                *own, null, f"{value['null_mean']:z.4f}", _span(value["null_q05"], value["null_q95"]),
                f"{value['z']:z.1f}", f"{value['p']:.4f}", f"{value['p_runs']:,.0f}",
            )  # fmt: skip
    return table


def _notes(scores: xr.Dataset) -> list[tuple[str, str]]:
    notes = zip(scores["metric"].values.tolist(), scores["note"].values.tolist(), strict=True)
    return [(metric, note) for metric, note in notes if note]


def _span(low: float, high: float) -> str:
    return f"{low:z.4f} – {high:z.4f}" if math.isfinite(low) else "–"


if __name__ == "__main__":
    run_script(command)
