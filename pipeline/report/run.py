"""The stage: from a run directory to ``report.html``, ``pairs.csv`` and ``scores.csv``."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pipeline.report import tables
from pipeline.report.explorer import Explorer
from pipeline.report.explorer_page import write_explorer
from pipeline.report.page import render_page
from pipeline.report.results import open_run

logger = logging.getLogger(__name__)


def report(run_dir: str | Path) -> Path:
    """Write the report of a run from its stored results; nothing is computed again.

    Parameters
    ----------
    run_dir
        The directory that ``subspace run`` filled, with at least one finished pair of sites.

    Returns
    -------
    Path
        ``report.html``, one self-contained page with an explorer of all pairs; where that is beyond 20 MB, it stands
        in the folder ``explorer``. Beside it, ``pairs.csv`` holds every matched pair with the words that both features
        fire on, and ``scores.csv`` every metric with its null and corrected p.

    Raises
    ------
    MissingInputError
        If there is no such directory, or it lacks a result that the report needs; the message names it.

    Examples
    --------
    >>> report("runs/demo")  # doctest: +SKIP
    PosixPath('runs/demo/report.html')
    """
    run = open_run(run_dir)
    explorer = Explorer(run)
    scores = tables.scores_table(run)
    pairs = tables.pairs_table(run, explorer.texts())
    root = run.directory.root
    _write(root / "scores.csv", scores.to_csv(index=False))
    _write(root / "pairs.csv", pairs.to_csv(index=False))
    _write(run.directory.report, render_page(run, explorer, scores, write_explorer(run)))
    logger.info("%d pairs of features at %d pairs of sites: %s", len(pairs), len(run.site_pairs), run.directory.report)
    return run.directory.report


def _write(path: Path, text: str) -> None:
    """Write a file so that it is there completely or, as before, not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
