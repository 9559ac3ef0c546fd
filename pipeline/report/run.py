"""The stage: from a run directory to ``report.html``, ``concepts.html``, ``pairs.csv``, and the table of scores."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.compare.score_grid import save_scores, scores_table
from pipeline.report import tables
from pipeline.report.concepts import read_meanings
from pipeline.report.explorer import Explorer
from pipeline.report.explorer_page import write_explorer
from pipeline.report.results import Run, open_run, result_paths
from pipeline.report.yardsticks import open_yardsticks, save_yardsticks
from pipeline.settings.experiment import Experiment
from storage import Manifest, fingerprint, new_manifest
from storage.derived import is_page, write_derived
from storage.errors import MissingInputError
from storage.rundir import RunDirectory

logger = logging.getLogger(__name__)

STAGE = "report"


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
    with run.directory.claim():
        return _write(run, render_page, render_concepts)


def _write(run: Run, render_page: Callable[..., str], render_concepts: Callable[..., str]) -> Path:
    explorer = Explorer(run)
    if run.experiment.compare is None:
        scores = tables.scores_table(run)
    else:
        scores = scores_table(save_scores(run.directory, run.experiment.site_pairs, run.inputs))
    if run.experiment.yardsticks is not None:
        save_yardsticks(run.directory, open_yardsticks(run.directory, run.experiment.site_pairs, run.inputs))
    pairs = tables.pairs_table(run, explorer)
    write_derived(run.directory.pairs_table, pairs.to_csv(index=False))
    meanings = read_meanings(run)
    explorer_view = write_explorer(run)
    if meanings is not None:
        write_derived(run.directory.concepts_page, render_concepts(run, meanings, explorer_view), is_page)
    write_derived(run.directory.report, render_page(run, explorer, scores, explorer_view, meanings), is_page)
    manifest = report_manifest(run.experiment, run.directory)
    write_derived(run.directory.report_manifest, json.dumps(manifest.to_attrs(), indent=2) + "\n")
    logger.info("%d pairs of features at %d pairs of sites: %s", len(pairs), len(run.site_pairs), run.directory.report)
    return run.directory.report


def report_manifest(
    config: Experiment, run: RunDirectory, identify: Callable[[str | Path], str] = fingerprint
) -> Manifest:
    """Return what the report depends on: the results that there are, and the experiment, all of which it shows.

    `identify` returns the fingerprint of what is, or will be, at a path.
    """
    inputs = {}
    for path in result_paths(config, run):
        try:
            inputs[path.relative_to(run.root).as_posix()] = identify(path)
        except MissingInputError:
            continue  # labels, which only users make; or what is unfinished, of which the report says so
    return new_manifest(STAGE, inputs, {"experiment": config.model_dump(mode="json")})


def read_report_manifest(report_path: Path) -> Manifest | None:
    """Return what the report at a path was made from; None if there is no report, or no record of it."""
    file = RunDirectory(report_path.parent).report_manifest
    if not (report_path.is_file() and file.is_file()):
        return None
    try:
        return Manifest.from_attrs(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:  # FormatError is a ValueError
        logger.warning("%s is damaged, and the report is made again: %s", file, error)
        return None
