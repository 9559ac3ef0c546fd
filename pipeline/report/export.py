"""The report's figures and tables as files for a paper, from stored results."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from pipeline.report import plots, tables
from pipeline.report.page import report_figures
from pipeline.report.results import Run, open_run
from storage.errors import InputError

logger = logging.getLogger(__name__)

FORMATS = ("pdf", "svg", "png")
#: Digits of figures in LaTeX; CSV keeps all.
DIGITS = 3


def export_figures(run_dir: str | Path, folder: str | Path, formats: Sequence[str] = ("pdf",)) -> list[Path]:
    """Write every figure of the report, and its tables as LaTeX (booktabs) and CSV; nothing is computed again.

    Parameters
    ----------
    run_dir
        The directory that ``subspace run`` filled.
    folder
        Where the files go; made if missing, files of the same names are replaced.
    formats
        One or more of ``pdf``, ``svg``, ``png``.

    Returns
    -------
    list of Path
        The files: one for each figure and format, ``.tex`` and ``.csv`` for each table.

    Raises
    ------
    InputError
        If a format is none of these.
    MissingInputError
        If there is no such run, or it lacks a result that the report needs.

    Examples
    --------
    >>> export_figures("runs/demo", "paper", ["pdf", "png"])  # doctest: +SKIP
    """
    for unknown in [one for one in formats if one not in FORMATS]:
        raise InputError(f"Format {unknown!r} of figures is not known; one of {', '.join(FORMATS)}")
    run, where = open_run(run_dir), Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    files = [*_figures(run, where, formats), *_tables(run, where)]
    logger.info("%d files in %s", len(files), where)
    return files


def _figures(run: Run, folder: Path, formats: Sequence[str]) -> Iterator[Path]:
    for name, view in report_figures(run):
        for ending in dict.fromkeys(formats):
            path = folder / f"{name}.{ending}"
            plots.save(view.figure, path)
            yield path


def _tables(run: Run, folder: Path) -> Iterator[Path]:
    made = {
        "scores": tables.scores_table(run),
        "matching": tables.matching_table(run),
        "fates": tables.fate_table(run),
        "sites": tables.sites_table(run),
    }
    usage = tables.usage_table(run)
    made |= {"usage": usage} if len(usage) else {}
    for name, table in made.items():
        csv, tex = folder / f"{name}.csv", folder / f"{name}.tex"
        csv.write_text(table.to_csv(index=False), encoding="utf-8", newline="\n")
        tex.write_text(to_latex(table), encoding="utf-8", newline="\n")
        yield from (csv, tex)


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
