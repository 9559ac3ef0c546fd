"""The text around a row: looked up in the corpus by document and character offsets, and shaded by activation.

Passages are cut in one sweep over the documents, in blocks, so that neither the corpus nor a document's worth of rows
is held longer than needed. Shading reads only the chunks of the activation store that hold a passage's rows.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from pipeline.passages import read_activity
from pipeline.report.results import Site
from storage import Corpus

#: Characters shown on either side of a token.
MARGIN = 40
#: Rows looked at on either side of a token; a row covers at least one character.
REACH = MARGIN
#: One occurrence: (feature, row).
Context = tuple[int, int]
#: Steps of shading: 0 is inactive, LEVELS is the feature's largest activation.
LEVELS = 5

#: Line breaks as a sign, other control characters as their pictures: none of them may act on the page.
PICTURES: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
    ord("\n"): "↵",
    ord("\r"): "",
    ord("\t"): " ",
}


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document around one token.

    `text` starts at character `offset` of the document; `start` and `end` bound the token within `text`; `before` and
    `after` are ellipses where the document goes on.
    """

    document: int
    offset: int
    text: str
    start: int
    end: int
    before: str
    after: str

    @property
    def token(self) -> str:
        """The token as it can be read: without blanks around it, or a sign if it is nothing but blanks."""
        return readable(self.text[self.start : self.end]).strip() or "␣"


class Segment(NamedTuple):
    """A stretch of a passage with one shade; `peak` marks the token that the context is listed for."""

    text: str
    level: int
    peak: bool


class Span(NamedTuple):
    """Where a row is in the text, and from where to where the models read the document together with it."""

    row: int
    document: int
    start: int
    end: int
    read_from: int
    read_to: int


def readable(text: str) -> str:
    r"""Return `text` with control characters made visible.

    >>> readable("a\nb\x00")
    'a↵b␀'
    """
    return text.translate(PICTURES)


def cut_passages(corpus: Corpus, rows: xr.Dataset, wanted: np.ndarray) -> dict[int, Passage]:
    """Cut the passages around some rows out of the corpus.

    Parameters
    ----------
    corpus
        The text.
    rows
        Variables ``document``, ``char_start`` and ``char_end`` over ``token``, in Unicode code points.
    wanted
        Row numbers, int64, in any order; −1 is passed over.

    Returns
    -------
    dict
        One :class:`Passage` a row, :data:`MARGIN` characters on either side, cut at a blank where there is one.
    """
    spans = sorted(read_spans(rows, np.unique(wanted[wanted >= 0])).values(), key=lambda span: span.document)
    texts = corpus.iter_texts(span.document for span in spans)
    return {span.row: _cut(text, span) for span, text in zip(spans, texts, strict=True)}


def read_spans(rows: xr.Dataset, numbers: np.ndarray) -> dict[int, Span]:
    """Return where some rows are in the text, by row number.

    Without windows in `rows`, the models are taken to have read whole documents.
    """
    names = ["document", "char_start", "char_end"]
    some = rows[names].reset_coords().isel({"token": numbers})
    columns = [numbers, *(some[name].values for name in names), *_windows_read(rows, numbers)]
    return {span[0]: Span(*span) for span in zip(*(column.tolist() for column in columns), strict=True)}


def _windows_read(rows: xr.Dataset, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if "window_of_row" not in rows:
        return np.zeros(len(numbers), dtype=np.int64), np.full(len(numbers), sys.maxsize)
    window = rows["window_of_row"].isel({"token": numbers}).values
    return rows["window_start"].values[window], rows["window_end"].values[window]


def _cut(text: str, span: Span) -> Passage:
    """Cut :data:`MARGIN` characters on either side of a token, at a blank and within what the models read with it."""
    first, last = max(0, span.read_from), min(len(text), span.read_to)
    start, end = span.start, span.end
    left, right = max(first, start - MARGIN), min(last, end + MARGIN)
    if left > first:
        blank = re.search(r"\s\S", text[left:start])
        left += blank.start() + 1 if blank else 0
    if right < last:
        blanks = [found.start() for found in re.finditer(r"\s", text[end:right])]
        right = end + blanks[-1] if blanks else right
    before = "" if left == 0 else "… "
    after = "" if right == len(text) else " …"
    return Passage(span.document, left, text[left:right], start - left, end - left, before, after)


def feature_texts(features: np.ndarray, top_rows: np.ndarray, passages: dict[int, Passage]) -> pd.DataFrame:
    """Return short strings that say what features fire on, for tables.

    Parameters
    ----------
    features
        Feature ids, shape (n,).
    top_rows
        Their top activating rows, shape (n, top_n), −1 where none.
    passages
        The passages of those rows.

    Returns
    -------
    pandas.DataFrame
        Indexed by feature: ``tokens``, the distinct top tokens as a JSON list; ``context``, the first passage in
        quotation marks with its token in ⟦brackets⟧. Neither begins with a character that a spreadsheet would take
        for a formula.
    """
    found = [[passages[row] for row in rows if row >= 0] for rows in top_rows.tolist()]
    return pd.DataFrame(
        {
            "tokens": [json.dumps(distinct_tokens(some), ensure_ascii=False) for some in found],
            "context": [_quoted(some[0]) if some else "" for some in found],
        },
        index=pd.Index(features, name="feature"),
    )


def distinct_tokens(passages: list[Passage]) -> list[str]:
    """Return the passages' tokens, each once, in order."""
    return list(dict.fromkeys(passage.token for passage in passages))


def _quoted(passage: Passage) -> str:
    text, start, end = passage.text, passage.start, passage.end
    return readable(f"“{passage.before}{text[:start]}⟦{text[start:end]}⟧{text[end:]}{passage.after}”")


def shade_passages(
    site: Site, rows: xr.Dataset, features: np.ndarray, top_rows: np.ndarray, passages: dict[int, Passage]
) -> dict[tuple[int, int], list[Segment]]:
    """Shade every passage by what its feature does on each token in it.

    Parameters
    ----------
    site
        Whose activations are read.
    rows
        As for :func:`cut_passages`.
    features
        Feature ids, shape (n,).
    top_rows
        Their top activating rows, shape (n, top_n), −1 where none.
    passages
        The passages of those rows.

    Returns
    -------
    dict
        Segments by (feature, row).
    """
    contexts = [(int(f), row) for f, some in zip(features, top_rows.tolist(), strict=True) for row in some if row >= 0]
    contexts = list(dict.fromkeys(contexts))
    spans, n_rows = _spans_around(rows, contexts), rows.sizes["token"]
    largest = dict(zip(features.tolist(), site.store["max"].values[features].tolist(), strict=True))
    shaded = {}
    for (feature, row), window, activity in read_activity(site.path, contexts, lambda row: _window(row, n_rows)):
        strength = activity / largest[feature] if largest[feature] > 0 else np.zeros_like(activity)
        levels = np.clip(np.ceil(strength * LEVELS), 0, LEVELS).astype(int)
        numbers = np.arange(window.start, window.stop)
        lit = (levels > 0) | (numbers == row)
        marks = [
            (spans[number], level) for number, level in zip(numbers[lit].tolist(), levels[lit].tolist(), strict=True)
        ]
        shaded[feature, row] = list(_segments(passages[row], row, marks))
    return shaded


def _window(row: int, n_rows: int) -> slice:
    return slice(max(0, row - REACH), min(n_rows, row + REACH + 1))


def _spans_around(rows: xr.Dataset, contexts: list[Context]) -> dict[int, Span]:
    windows = [_window(row, rows.sizes["token"]) for _, row in contexts]
    near = [np.arange(window.start, window.stop) for window in windows]
    return read_spans(rows, np.unique(np.concatenate(near)) if near else np.zeros(0, dtype=np.int64))


def _segments(passage: Passage, row: int, marks: Iterable[tuple[Span, int]]) -> Iterator[Segment]:
    """Split a passage into stretches of one shade; `marks` are spans with their levels, by ascending row."""
    text, cursor = passage.text, 0
    if passage.before:
        yield Segment(passage.before, 0, peak=False)
    for span, level in marks:
        if span.document != passage.document:
            continue
        start, end = span.start - passage.offset, span.end - passage.offset
        if span.row < row:
            end = min(end, passage.start)
        elif span.row > row:
            start = max(start, passage.end)
        start, end = _without_blanks(text, max(start, cursor), min(end, len(text)))
        if start >= end:
            continue
        if start > cursor:
            yield Segment(readable(text[cursor:start]), 0, peak=False)
        yield Segment(readable(text[start:end]), level, peak=span.row == row)
        cursor = end
    if cursor < len(text) or passage.after:
        yield Segment(readable(text[cursor:]) + passage.after, 0, peak=False)


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """Shrink a span to what is not blank, unless nothing else is in it."""
    piece = text[start:end]
    if not piece.strip():
        return start, end
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
