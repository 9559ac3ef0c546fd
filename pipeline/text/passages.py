"""Passages: a token with the text around it, cut out of the corpus by one rule for every page, table and prompt.

A passage is a row and the rows around it that the models read together with it, at most :data:`REACH` on either side
and at most :data:`WIDTH` characters. It begins and ends with a token, is cut nowhere else, and is the document's own
text, white space and control characters included. White space around a token is no part of the token.

::

    document   …and she didn't see  Paris. It…        rows    [ she][ didn][']  [t][ see] [  Paris][.][ It]
    passage        she didn't see  Paris. It                   of the row [  Paris], 5 rows before and 2 after

All passages of a page are gathered at once: the documents are read once, in blocks, and every stretch of text is held
once, however many passages overlap in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.text.spans import Spans, first_in_window, iter_documents, read_spans, readable, readable_token
from storage import Corpus

#: Rows on either side of a row, at most.
REACH = 10
#: Characters on either side of a row, and of the row itself, at most. Tokens seldom come to it: it is for rows of other
#: makers, such as sentences, and for text that belongs to no row.
WIDTH = 100


@dataclass(frozen=True)
class Piece:
    """A stretch of text, and how active the feature is there; `peak` marks the token the passage is listed for."""

    text: str
    activation: float = 0.0
    peak: bool = False


@dataclass(frozen=True)
class Passage:
    """A token in its context.

    Attributes
    ----------
    row, document
        Where it is.
    activation
        Of the feature in this row; 0 where none was given.
    pieces
        The text, cut at tokens.
    quantile
        At which quantile of the feature's activations the row was sampled; None for a top row.
    starts, ends
        Whether the passage begins and ends where the document does.
    """

    row: int
    document: int
    activation: float
    pieces: tuple[Piece, ...]
    quantile: float | None
    starts: bool
    ends: bool

    @property
    def text(self) -> str:
        """The whole passage."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def token(self) -> str:
        """The token that the passage is listed for."""
        return "".join(piece.text for piece in self.pieces if piece.peak)

    @property
    def before(self) -> str:
        """An ellipsis where the document goes on before the passage."""
        return "" if self.starts else "… "

    @property
    def after(self) -> str:
        """An ellipsis where the document goes on after it."""
        return "" if self.ends else " …"

    @property
    def quoted(self) -> str:
        """The passage in quotation marks, its token in ⟦brackets⟧: no spreadsheet takes it for a formula."""
        text = "".join(f"⟦{piece.text}⟧" if piece.peak else piece.text for piece in self.pieces)
        return readable(f"“{self.before}{text}{self.after}”")


class Stretch(NamedTuple):
    """The text that some consecutive rows stand in, where in the document it begins, and how long the document is."""

    text: str
    offset: int
    length: int


@dataclass(frozen=True)
class Passages:
    """The passages of some rows: where their tokens are, and the text.

    Attributes
    ----------
    rows
        Rows of any passage, int64, ascending, shape (n,).
    spans
        Where they are in the text.
    before, after
        How many rows a passage takes in on either side of its row, uint8, shape (n,); 0 where none was asked for.
    first
        Place among `rows` of the first of every stretch, int64, ascending.
    stretches
        Their texts.
    width
        Characters of a token that are shown.
    """

    rows: NDArray[np.int64]
    spans: Spans
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    first: NDArray[np.int64]
    stretches: list[Stretch]
    width: int

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return where rows are among :attr:`rows`, in the shape of `rows`; −1 for −1."""
        return np.where(rows < 0, -1, np.searchsorted(self.rows, rows)).astype(np.int32)

    def token(self, row: int) -> str:
        """Return the token of a row as it is shown."""
        place = int(np.searchsorted(self.rows, row))
        ((_, token),) = self._cut(place, place + 1, peak=0)
        return readable_token(token)

    def passage(self, row: int, activity: NDArray[np.float32] | None = None, quantile: float | None = None) -> Passage:
        """Return the passage of a row that was asked for.

        Parameters
        ----------
        row
            Its number.
        activity
            The feature's activations on the row and as many on either side as a passage may take in; 0 by default.
        quantile
            What the passage is to say of it.
        """
        place = int(np.searchsorted(self.rows, row))
        start, stop = place - int(self.before[place]), place + int(self.after[place]) + 1
        peak = place - start
        values = [0.0] * (stop - start)
        if activity is not None:
            first = len(activity) // 2 - peak
            values = activity[first : first + stop - start].tolist()
        pieces: list[Piece] = []
        for i, (gap, token) in enumerate(self._cut(start, stop, peak=peak)):
            pieces += [Piece(gap)] if gap else []
            pieces += [Piece(token, values[i], peak=i == peak)] if token or i == peak else []
        return Passage(
            row=row,
            document=int(self.spans.document[place]),
            activation=values[peak],
            pieces=tuple(pieces),
            quantile=quantile,
            starts=int(self.spans.start[start]) == 0,
            ends=int(self.spans.end[stop - 1]) >= self._stretch(place).length,
        )

    def cut_rows(self) -> Iterator[tuple[str, str]]:
        """Yield, for every row, the text between the token before and its own, and its own.

        One after the other, those of a passage's rows are its text, but for the first one's text before the token.
        """
        for start, stop in itertools.pairwise([*self.first.tolist(), len(self.rows)]):
            yield from self._cut(start, stop)

    def document_ends(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which rows begin their document, and which end it, each of shape (n,)."""
        lengths = np.array([stretch.length for stretch in self.stretches], np.int64)
        sizes = np.diff(np.append(self.first, len(self.rows)))
        return self.spans.start == 0, self.spans.end >= np.repeat(lengths, sizes)

    def _stretch(self, place: int) -> Stretch:
        return self.stretches[int(np.searchsorted(self.first, place, side="right")) - 1]

    def _cut(self, start: int, stop: int, peak: int | None = None) -> Iterator[tuple[str, str]]:
        """Yield, for each of some rows, the text between the token before and its own, and its own; first none before.

        Rows may share characters, as the bytes of one sign do: the earlier row has them, but the row at `peak` is
        whole.
        """
        text, offset, _ = self._stretch(start)
        starts, ends = ((bound[start:stop] - offset).tolist() for bound in self.spans[1:])
        cursor = starts[0]
        for i, (start_of_row, end_of_row) in enumerate(zip(starts, ends, strict=True)):
            limit = end_of_row if peak is None or i >= peak else min(end_of_row, starts[peak])
            left, right = _without_blanks(text, start_of_row if i == peak else max(start_of_row, cursor), limit)
            gap, token = text[cursor:left] if i else "", text[left:right]
            yield gap, token if len(token) <= self.width else f"{token[: self.width - 1]}…"
            cursor = max(cursor, right)


def gather_passages(
    corpus: Corpus, rows: xr.Dataset, wanted: NDArray[np.int64], *, reach: int = REACH, width: int = WIDTH
) -> Passages:
    """Cut the passages of some rows out of the corpus, up to `reach` rows and `width` characters on either side.

    `rows` is a store or a table of rows: ``document``, ``char_start``, ``char_end`` over ``token``, and
    ``window_of_row`` or ``position`` where documents were read in windows. `wanted` are numbers of rows, of any shape
    and in any order; −1 is passed over. Held are about 40 bytes a row that any passage takes in, and its text.

    >>> import tempfile, storage
    >>> corpus = storage.write_corpus(tempfile.mkdtemp() + "/corpus.zarr", ["she saw it", "not this"])
    >>> columns = {"document": [0, 0, 0, 1], "char_start": [0, 3, 7, 0], "char_end": [3, 7, 10, 8]}
    >>> rows = xr.Dataset({name: ("token", values) for name, values in columns.items()})
    >>> gather_passages(corpus, rows, np.array([2]), reach=1).passage(2).quoted
    '“… saw ⟦it⟧”'
    """
    peaks = np.unique(wanted[wanted >= 0])
    near = np.unique(peaks[:, None] + np.arange(-reach, reach + 1))
    near = near[(near >= 0) & (near < rows.sizes["token"])]
    spans, window = read_spans(rows, near), np.cumsum(first_in_window(rows, near), dtype=np.int64)
    at = np.searchsorted(near, peaks)
    counts = [_count(spans, window, at, step, (reach, width)) for step in (-1, 1)]
    # a row is used where more passages have begun than have ended
    begun, ended = (np.bincount(edge, minlength=len(near) + 1) for edge in (at - counts[0], at + counts[1] + 1))
    used = np.cumsum(begun - ended)[:-1] > 0
    before, after = (np.zeros(len(near), np.uint8) for _ in counts)
    before[at], after[at] = counts
    spans = Spans(*(bound[used] for bound in spans))
    first = _first_of_stretches(near[used], spans, width)
    return Passages(near[used], spans, before[used], after[used], first, _read_stretches(corpus, spans, first), width)


def _count(
    spans: Spans, window: NDArray[np.int64], at: NDArray[np.int64], step: int, limits: tuple[int, int]
) -> NDArray[np.int64]:
    """Count the rows on one side of each of some rows that belong to its passage."""
    count, inside = np.zeros(len(at), np.int64), np.ones(len(at), bool)
    reach, width = limits
    for distance in range(1, reach + 1):
        place = at + step * distance
        inside = inside & (place >= 0) & (place < len(window))
        place = np.where(inside, place, at)
        far = spans.start[at] - spans.start[place] if step < 0 else spans.end[place] - spans.end[at]
        inside &= (window[place] == window[at]) & (far <= width)
        count += inside
    return count


def _first_of_stretches(rows: NDArray[np.int64], spans: Spans, width: int) -> NDArray[np.int64]:
    """Return the place of every row that no passage joins with the row before it."""
    apart = np.ones(len(rows), bool)
    apart[1:] = (np.diff(rows) != 1) | (np.diff(spans.document) != 0) | (spans.start[1:] - spans.end[:-1] > width)
    return np.flatnonzero(apart)


def _read_stretches(corpus: Corpus, spans: Spans, first: NDArray[np.int64]) -> list[Stretch]:
    if not len(first):
        return []
    starts, ends = np.minimum.reduceat(spans.start, first), np.maximum.reduceat(spans.end, first)
    stretches = {
        place: Stretch(text[start:end], start, len(text))
        for place, text, start, end in iter_documents(corpus, Spans(spans.document[first], starts, ends))
    }
    return [stretches[place] for place in range(len(first))]


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """Shrink a span to what is not white space, unless nothing else is in it."""
    token = text[start:end]
    if not token.strip():  # nothing, or nothing but white space
        return start, max(start, end)
    return start + len(token) - len(token.lstrip()), end - len(token) + len(token.rstrip())
