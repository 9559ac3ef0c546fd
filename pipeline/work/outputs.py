"""Tables and figures that a command writes beside its result: claimed before anything is computed, written whole."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.targets import FIGURE_PROGRAM, FileTarget, claim_file, names_program, starts_with

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
#: What each format calls the program that made a figure, and its date, without which equal figures are equal files.
FIGURE_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": FIGURE_PROGRAM},
    ".svg": {"Creator": FIGURE_PROGRAM, "Date": None},
    ".pdf": {"Creator": FIGURE_PROGRAM, "CreationDate": None},
}


@dataclass(frozen=True)
class Outputs:
    """Where a table and a figure go; nowhere, if absent."""

    table: FileTarget | None
    figure: FileTarget | None

    def checked_before(self, make: Callable[[], xr.Dataset]) -> Callable[[], xr.Dataset]:
        """Return `make`, which first raises an InputError if the new result's files would not be written either.

        A result that is current is not made, and its files may have the same content as those that stand.
        """

        def make_if_all_may_be_replaced() -> xr.Dataset:
            for file in (self.table, self.figure):
                if file is not None:
                    file.refuse_older()
            return make()

        return make_if_all_may_be_replaced

    def write_table(self, frame: pd.DataFrame) -> None:
        """Write a table as CSV, without its index."""
        if self.table is not None:
            self.table.write_text(frame.to_csv(index=False))

    def write_figure(self, figure: Figure) -> None:
        """Write a figure in the format of the file's ending."""
        if self.figure is not None:
            with self.figure.writing() as path:
                save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure: 150 dots an inch where it has dots, the same bytes for the same figure."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only figures need it

    with mpl.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, dpi=150, metadata=FIGURE_METADATA[path.suffix.lower()])


NO_OUTPUTS = Outputs(None, None)


def is_table(columns: str) -> Callable[[Path], bool]:
    r"""Return whether a table begins with some columns and is as :meth:`Outputs.write_table` writes, as a function.

    Spreadsheets end lines otherwise, and notes in the margin have other numbers of fields.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "t.csv")
    >>> texts = b"a,b\n1,2\n", b"a,b\r\n1,2\r\n", b"a,b\nmine\n"
    >>> [(file.write_bytes(text), is_table("a,b")(file))[1] for text in texts]
    [True, False, False]
    """

    def is_ours(path: Path) -> bool:
        if not starts_with(columns)(path):
            return False
        try:
            text = path.read_bytes().decode()
            rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except (UnicodeDecodeError, csv.Error):
            return False
        written = io.StringIO()
        csv.writer(written, lineterminator="\n").writerows(rows)
        return written.getvalue() == text and all(len(row) == len(rows[0]) for row in rows)

    return is_ours


@contextlib.contextmanager
def claim_outputs(
    *, table: Path | None = None, columns: str = "", figure: Path | None = None, overwrite: bool = False
) -> Iterator[Outputs]:
    """Hold the files of a table and a figure while they are computed and written.

    Parameters
    ----------
    table, figure
        A ``.csv`` file, and a ``.png``, ``.svg`` or ``.pdf`` file.
    columns
        How the first line of the table begins: a table that begins so, and was not edited, may be replaced.
    overwrite
        Whether a table or figure of this package with other content may be replaced.
    """
    with contextlib.ExitStack() as claims:

        def claimed(path: Path | None, is_ours: Any, suffixes: tuple[str, ...]) -> FileTarget | None:
            if path is None:
                return None
            return claims.enter_context(claim_file(path, is_ours, suffixes=suffixes, overwrite=overwrite))

        yield Outputs(claimed(table, is_table(columns), (".csv",)), claimed(figure, names_program, FIGURE_SUFFIXES))
