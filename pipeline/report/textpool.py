"""The text that contexts are cut from, each token once however many features list it.

A context is a row and some rows on either side of it, of the same window that the models read. All rows that any
context takes in make the pool; a context is then two numbers, and a page holds no passage twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pipeline.report.snippets import Span, read_spans, readable
from storage import Corpus

#: Rows shown on either side of a token.
REACH = 10
#: Characters of what lies between two rows that are shown, such as tokens that found no row; more is cut.
LONGEST_GAP = 24
#: Characters of a row that are shown.
LONGEST_TOKEN = 200
#: Flags of a row of the pool: the first, the last of what the models read together.
FIRST, LAST = 1, 2


@dataclass(frozen=True)
class Windows:
    """How many rows on either side of a row belong to its context, uint8, in the shape of the rows asked for."""

    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class TextPool:
    """Rows of the corpus with their text.

    Attributes
    ----------
    rows
        Row numbers, int64, ascending, shape (n,).
    text
        All of it: what lies before each row and the row itself, one after the other.
    gap, length
        UTF-16 units before each row that belong to no row, and of the row; uint16, shape (n,).
    flags
        :data:`FIRST` and :data:`LAST`, uint8, shape (n,).
    document
        Where each row is from, uint32, shape (n,).
    """

    rows: np.ndarray
    text: str
    gap: np.ndarray
    length: np.ndarray
    flags: np.ndarray
    document: np.ndarray

    def index(self, rows: np.ndarray) -> np.ndarray:
        """Return where rows stand in the pool, int32 in the shape of `rows`, −1 for −1."""
        return np.where(rows < 0, -1, np.searchsorted(self.rows, rows)).astype(np.int32)


def find_windows(rows: xr.Dataset, wanted: np.ndarray) -> Windows:
    """Return how far the contexts of some rows reach.

    Parameters
    ----------
    rows
        Variable ``document`` over ``token``, and ``window_of_row`` where the models read documents in pieces.
    wanted
        Row numbers, any shape, −1 where there is none.

    Returns
    -------
    Windows
        At most :data:`REACH`; 0 for −1.
    """
    pieces = _Pieces(rows, wanted, REACH)
    return Windows(*(_reach(pieces, wanted, step) for step in (-1, 1)))


class _Pieces:
    """Which piece of text, read by the models at once, each of some rows and the rows around them belongs to."""

    def __init__(self, rows: xr.Dataset, wanted: np.ndarray, reach: int) -> None:
        near = np.unique(np.unique(wanted[wanted >= 0])[:, None] + np.arange(-reach, reach + 1))
        self.rows = near[(near >= 0) & (near < rows.sizes["token"])]
        name = "window_of_row" if "window_of_row" in rows else "document"
        self.piece = rows[name].isel({"token": self.rows}).values

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the piece of each row, −1 where it is not among those known."""
        if not len(self.rows):
            return np.full(rows.shape, -1)
        place = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        return np.where(self.rows[place] == rows, self.piece[place], -1)


def _reach(pieces: _Pieces, wanted: np.ndarray, step: int) -> np.ndarray:
    """Count the rows in one direction that belong to the same piece of text as the row itself."""
    count = np.zeros(wanted.shape, dtype=np.uint8)
    own, going = pieces.of(wanted), wanted >= 0
    for distance in range(1, REACH + 1):
        going = going & (pieces.of(wanted + step * distance) == own)
        count += going
    return count


def make_pool(corpus: Corpus, rows: xr.Dataset, wanted: np.ndarray, windows: Windows) -> TextPool:
    """Gather the text of all contexts.

    Parameters
    ----------
    corpus
        The text.
    rows
        Variables ``document``, ``char_start`` and ``char_end`` over ``token``, in Unicode code points.
    wanted
        Row numbers, any shape, −1 where there is none.
    windows
        Their reach, from :func:`find_windows`.

    Returns
    -------
    TextPool
        Holds every row of every context, about 10 bytes a row.
    """
    offsets, listed = np.arange(-REACH, REACH + 1), wanted.reshape(-1, 1)
    inside = (offsets >= -windows.before.reshape(-1, 1).astype(int)) & (offsets <= windows.after.reshape(-1, 1))
    pooled = np.unique((listed + offsets)[inside & (listed >= 0)])
    texts = list(_texts(corpus, rows, pooled))
    return TextPool(
        rows=pooled,
        text="".join(gap + own for gap, own in texts),
        gap=np.array([_units(gap) for gap, _ in texts], dtype=np.uint16),
        length=np.array([_units(own) for _, own in texts], dtype=np.uint16),
        flags=_flags(rows, pooled),
        document=rows["document"].isel({"token": pooled}).values.astype(np.uint32),
    )


def _flags(rows: xr.Dataset, pooled: np.ndarray) -> np.ndarray:
    pieces = _Pieces(rows, pooled, 1)
    own = pieces.of(pooled)
    flags = FIRST * (pieces.of(pooled - 1) != own) + LAST * (pieces.of(pooled + 1) != own)
    return flags.astype(np.uint8)


def _units(text: str) -> int:
    """Return the length as JavaScript counts it."""
    return len(text.encode("utf-16-le")) // 2


def _texts(corpus: Corpus, rows: xr.Dataset, pooled: np.ndarray) -> Iterator[tuple[str, str]]:
    """Yield what lies before each row of the pool and the row's own text, as they can be shown."""
    spans = read_spans(rows, pooled).values()
    texts = corpus.iter_texts(span.document for span in spans)
    before: Span | None = None
    for span, text in zip(spans, texts, strict=True):
        follows = before is not None and (before.row, before.document) == (span.row - 1, span.document)
        yield _cut(text, span, before.end if before and follows else None)
        before = span


def _cut(text: str, span: Span, end_before: int | None) -> tuple[str, str]:
    """Return the gap after the row before, if that is shown too, and the row; blanks before it belong to the gap."""
    start = span.start if end_before is None else max(span.start, end_before)
    gap = "" if end_before is None else text[end_before:start]
    own = text[start : span.end]
    blanks = len(own) - len(own.lstrip()) if own.strip() else 0
    gap, own = gap + own[:blanks], own[blanks:]
    if end_before is None:
        gap = ""
    if len(gap) > LONGEST_GAP:
        gap = f"{gap[: LONGEST_GAP // 2]}…{gap[-LONGEST_GAP // 2 :]}"
    return readable(gap), readable(own[:LONGEST_TOKEN])
