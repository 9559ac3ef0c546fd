"""The report's figures and tables as files for a paper, from stored results."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from pipeline.report import plots, tables
from pipeline.report.page import report_figures
from pipeline.report.results import Run, open_run
from pipeline.work.outputs import FIGURE_SUFFIXES
from storage.errors import InputError
from storage.targets import claim_file, names_program, starts_with

logger = logging.getLogger(__name__)

FORMATS = ("pdf", "svg", "png")
#: Digits of figures in LaTeX; CSV keeps all.
DIGITS = 3


def export_figures(
    run_dir: str | Path, folder: str | Path, formats: Sequence[str] = ("pdf",), *, overwrite: bool = False
) -> list[Path]:
    """Write every figure of the report, and its tables as LaTeX (booktabs) and CSV; nothing is computed again.

    Parameters
    ----------
    run_dir
        The directory that ``subspace run`` filled.
    folder
        Where the files go; made if missing.
    formats
        One or more of ``pdf``, ``svg``, ``png``.
    overwrite
        Whether figures and tables of an earlier call with other content may be replaced; other files never are.

    Returns
    -------
    list of Path
        The files: one for each figure and format, ``.tex`` and ``.csv`` for each table.

    Raises
    ------
    InputError
        If a format is none of these, or another file has one of the names.
    MissingInputError
        If there is no such run, or it lacks a result that the report needs.

    Examples
    --------
    >>> export_figures("runs/demo", "paper", ["pdf", "png"])  # doctest: +SKIP
    """
    for unknown in [one for one in formats if one not in FORMATS]:
        raise InputError(f"Format {unknown!r} of figures is not known; one of {', '.join(FORMATS)}")
    run, where = open_run(run_dir), Path(folder)
    files = [*_figures(run, where, formats, overwrite=overwrite), *_tables(run, where, overwrite=overwrite)]
    logger.info("%d files in %s", len(files), where)
    return files


def _figures(run: Run, folder: Path, formats: Sequence[str], *, overwrite: bool) -> Iterator[Path]:
    for name, view in report_figures(run):
        for ending in dict.fromkeys(formats):
            path = folder / f"{name}.{ending}"
            with (
                claim_file(path, names_program, suffixes=FIGURE_SUFFIXES, overwrite=overwrite) as target,
                target.writing() as new,
            ):
                plots.save(view.figure, new)
            yield path


def _tables(run: Run, folder: Path, *, overwrite: bool) -> Iterator[Path]:
    made = {
        "scores": tables.scores_table(run),
        "matching": tables.matching_table(run),
        "fates": tables.fate_table(run),
        "sites": tables.sites_table(run),
    }
    usage = tables.usage_table(run)
    made |= {"usage": usage} if len(usage) else {}
    for name, table in made.items():
        texts = {".csv": table.to_csv(index=False), ".tex": to_latex(table)}
        for ending, text in texts.items():
            path, is_ours = folder / f"{name}{ending}", starts_with(text.split("\n", 1)[0])
            with claim_file(path, is_ours, suffixes=[ending], overwrite=overwrite) as target:
                target.write_text(text)
            yield path


def to_latex(table: pd.DataFrame) -> str:
    r"""Return a table as LaTeX with booktabs' rules, names and text escaped, figures to three digits.

    >>> print(to_latex(pd.DataFrame({"site_a": ["x"], "r": [0.5]})))
    \begin{tabular}{lr}
    \toprule
    site\_a & r \\
    \midrule
    x & 0.500 \\
    \bottomrule
    \end{tabular}
    <BLANKLINE>
    """
    text: str = table.to_latex(index=False, escape=True, na_rep="--", float_format=f"%.{DIGITS}f")
    return text
