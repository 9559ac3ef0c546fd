"""``python -m pipeline.report RUN``: one HTML file from the results of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.report.run import report
from pipeline.script import AsJson, run_script, show


def command(
    run_dir: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write report.html, pairs.csv and scores.csv from stored results; nothing is computed again."""
    show({"report": str(report(run_dir))}, as_json=as_json)


if __name__ == "__main__":
    run_script(command)
