"""The report's figures and tables as files for a paper, from stored results."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from pipeline.report import plots, tables
from pipeline.report.page import report_figures
from pipeline.report.results import Run, open_run
from storage.errors import InputError
from storage.targets import FileTarget, check_parents, claim_file, names_program, starts_with

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
    for unknown in [name for name in formats if name not in FORMATS]:
        raise InputError(f"Format {unknown!r} of figures is not known; one of {', '.join(FORMATS)}")
    where = Path(folder)
    check_parents(where / "scores.csv")  # before all of them are drawn
    with tempfile.TemporaryDirectory() as folder_of_drafts:
        drafts = list(_drafts(open_run(run_dir), Path(folder_of_drafts), formats))
        for draft, is_ours in drafts:  # all of them, before the first is written
            FileTarget(where / draft.name, is_ours, overwrite).check_new(draft)
        for draft, is_ours in drafts:
            claimed = claim_file(where / draft.name, is_ours, suffixes=[draft.suffix], overwrite=overwrite)
            with claimed as target, target.writing() as new:
                shutil.copyfile(draft, new)
    logger.info("%d files in %s", len(drafts), where)
    return [where / draft.name for draft, _ in drafts]


def _drafts(run: Run, folder: Path, formats: Sequence[str]) -> Iterator[tuple[Path, Callable[[Path], bool]]]:
    """Write all files to a folder of their own; yield each, and what says whether a file of its name is ours."""
    for name, view in report_figures(run):
        for ending in dict.fromkeys(formats):
            path = folder / f"{name}.{ending}"
            plots.save(view.figure, path)
            yield path, names_program
    for name, table in _tables(run).items():
        for ending, text in {".csv": table.to_csv(index=False), ".tex": to_latex(table)}.items():
            path = folder / f"{name}{ending}"
            path.write_text(text, encoding="utf-8", newline="\n")
            yield path, starts_with(text.split("\n", 1)[0])


def _tables(run: Run) -> dict[str, pd.DataFrame]:
    made = {
        "scores": tables.scores_table(run),
        "matching": tables.matching_table(run),
        "fates": tables.fate_table(run),
        "sites": tables.sites_table(run),
    }
    usage = tables.usage_table(run)
    return made | ({"usage": usage} if len(usage) else {})


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
