"""``python -m pipeline.report RUN``: one HTML file from the results of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import pipeline
from pipeline.work.script import AsJson, Overwrite, run_script, show


def command(
    run_dir: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    figures: Annotated[
        Path | None,
        typer.Option(help="Write figures and tables for a paper to this folder instead.", show_default=False),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", help="Format of the figures: pdf, svg or png; repeatable.  [default: pdf]", show_default=False
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write report.html, pairs.csv and scores.csv from stored results, without recomputing anything.

    With --figures, write each figure of the report as a file, and its tables as LaTeX (booktabs) and CSV:

    subspace report RUN --figures paper/ --format pdf --format png
    """
    if figures is None:
        show({"report": str(pipeline.report(run_dir))}, as_json=as_json)
        return
    from pipeline.report.export import export_figures

    files = export_figures(run_dir, figures, formats or ["pdf"], overwrite=overwrite)
    show({"figures": str(figures), "files": len(files)}, as_json=as_json)


if __name__ == "__main__":
    run_script(command)
