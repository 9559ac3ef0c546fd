"""The stage: from a run directory to ``report.html``, ``concepts.html``, ``pairs.csv``, and the table of scores."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.compare.score_grid import save_scores, scores_table
from pipeline.report import tables
from pipeline.report.concepts import read_meanings
from pipeline.report.explorer import Explorer
from pipeline.report.explorer_page import write_explorer
from pipeline.report.results import open_run
from storage.files import write_text

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
        fire on, ``scores.csv`` every metric with its null and corrected p, and ``concepts.html``, where concepts were
        looked for, what became of each, with its clearest pairs in the text.

    Raises
    ------
    MissingInputError
        If there is no such directory, or it lacks a result that the report needs; the message names it.

    Examples
    --------
    >>> report("runs/demo")  # doctest: +SKIP
    PosixPath('runs/demo/report.html')
    """
    from pipeline.report.page import render_concepts, render_page  # noqa: PLC0415 - Matplotlib

    run = open_run(run_dir)
    explorer = Explorer(run)
    scores = scores_table(save_scores(run.directory, run.experiment.site_pairs))
    pairs = tables.pairs_table(run, explorer.texts())
    write_text(run.directory.root / "pairs.csv", pairs.to_csv(index=False))
    meanings = read_meanings(run)
    if meanings is not None:
        write_text(run.directory.concepts_page, render_concepts(run, meanings))
    write_text(run.directory.report, render_page(run, explorer, scores, write_explorer(run), meanings))
    logger.info("%d pairs of features at %d pairs of sites: %s", len(pairs), len(run.site_pairs), run.directory.report)
    return run.directory.report
