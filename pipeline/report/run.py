"""The stage: from a run directory to ``report.html``, ``concepts.html``, ``pairs.csv`` and ``scores.csv``."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pipeline.report import tables
from pipeline.report.concepts import read_meanings
from pipeline.report.explorer import Explorer
from pipeline.report.page import render_concepts, render_page
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
        ``report.html``, one self-contained page without scripts. Beside it, ``pairs.csv`` holds every matched pair
        with the words that both features fire on, ``scores.csv`` every metric with its null and corrected p, and
        ``concepts.html``, where concepts were looked for, what became of each, with its clearest pairs in the text.

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
    meanings = read_meanings(run)
    if meanings is not None:
        _write(run.directory.concepts_page, render_concepts(run, meanings))
    _write(run.directory.report, render_page(run, explorer, scores, meanings))
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
