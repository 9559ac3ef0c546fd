"""Where rows are in the text, which of them a model read together, and how text is made fit to be shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from storage import Corpus, fingerprint, open_activations, open_corpus, open_result
from storage.errors import InputError, RowMismatchError

#: Line ends as a sign, other control characters as their pictures. What could turn the direction of the text after it,
#: or is a command to a terminal, is a replacement character: nothing in a corpus may act on a page or a screen.
PICTURES: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
    **dict.fromkeys(map(ord, "\n\u2028\u2029"), "↵"),
    ord("\r"): "",
    ord("\t"): " ",
}


class Spans(NamedTuple):
    """Where n rows are: the number of the document, and code points in it, the end exclusive; int64, shape (n,)."""

    document: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]


def open_text(contexts: str | Path, store: str | Path, corpus: str | Path) -> tuple[xr.Dataset, xr.Dataset, Corpus]:
    """Open what features fire on: contexts, activation store and corpus, after :func:`check_same_text`."""
    opened = open_result(contexts, "contexts"), open_activations(store), open_corpus(corpus)
    check_same_text(*opened)
    return opened


def text_fingerprints(
    paths: Sequence[str | Path], identify: Callable[[str | Path], str] = fingerprint
) -> dict[str, str]:
    """Return the inputs of a result that is made from contexts, store and corpus, as its manifest names them."""
    return dict(zip(("contexts", "activations", "corpus"), map(identify, paths), strict=True))


def check_same_text(contexts: xr.Dataset, store: xr.Dataset, corpus: Corpus) -> None:
    """Raise unless contexts, store and corpus are of the same rows of the same text.

    Raises
    ------
    InputError
        If the store has no token coordinates.
    RowMismatchError
        If the contexts are of other rows, or the store of another corpus.
    """
    check_corpus(store, corpus)
    if contexts.attrs.get("row_hash") != store.attrs["row_hash"]:
        path, where = store.encoding["source"], contexts.encoding["source"]
        raise RowMismatchError(f"The contexts at {where} are of other rows than {path}; make them from that store")


def check_corpus(store: xr.Dataset, corpus: Corpus) -> None:
    """Raise unless the rows of a store are places in the text of a corpus.

    Raises
    ------
    InputError
        If the store has no token coordinates.
    RowMismatchError
        If it was harvested from another corpus.
    """
    path = store.encoding["source"]
    if "char_start" not in store.variables:
        raise InputError(
            f"{path} has no token coordinates, so its rows have no text; harvest it again, or import it again with "
            "--tokens"
        )
    if store.attrs.get("corpus_hash", corpus.hash) != corpus.hash:
        raise RowMismatchError(f"{path} was not harvested from the corpus {corpus.path}; give the one that was")


def read_spans(rows: xr.Dataset, numbers: NDArray[np.int64] | None = None) -> Spans:
    """Return where rows are in the text.

    Parameters
    ----------
    rows
        A store or a table of rows: ``document``, ``char_start`` and ``char_end`` over ``token``.
    numbers
        Row numbers, ascending; all rows by default.
    """
    return Spans(*(_column(rows, name, numbers) for name in ("document", "char_start", "char_end")))


def _column(rows: xr.Dataset, name: str, numbers: NDArray[np.int64] | None) -> NDArray[np.int64]:
    variable = rows.variables[name]
    return np.asarray((variable if numbers is None else variable.isel(token=numbers)).values, np.int64)


def first_in_window(rows: xr.Dataset, numbers: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Say which rows are the first of a document, or of a window: the part of it that the models read at once.

    Parameters
    ----------
    rows
        As for :func:`read_spans`. Windows are known by ``window_of_row``, or begin where ``position`` starts again.
    numbers
        Row numbers, ascending; all rows by default. One that does not follow the number before it counts as first.

    Examples
    --------
    >>> rows = xr.Dataset({"document": ("token", [0, 0, 0, 1]), "position": ("token", [0, 1, 0, 0])})
    >>> first_in_window(rows)
    array([ True, False,  True,  True])
    """
    document = _column(rows, "document", numbers)
    first = np.ones(len(document), bool)
    first[1:] = np.diff(document) != 0
    if numbers is not None:
        first[1:] |= np.diff(numbers) != 1
    if "window_of_row" in rows.variables:
        first[1:] |= np.diff(_column(rows, "window_of_row", numbers)) != 0
    if "position" in rows.variables:
        first[1:] |= np.diff(_column(rows, "position", numbers)) < 0
    return first


def iter_documents(corpus: Corpus, spans: Spans) -> Iterator[tuple[int, str, int, int]]:
    """Yield, document by document, the place of each span, the text of its document, its start and its end.

    A block of documents is read at a time, and each once, whatever the order of the spans.
    """
    order = np.argsort(spans.document, kind="stable")
    texts = corpus.iter_texts(spans.document[order].tolist())
    yield from zip(order.tolist(), texts, spans.start[order].tolist(), spans.end[order].tolist(), strict=True)


def readable(text: str) -> str:
    r"""Return `text` with control characters made visible.

    >>> readable("a\nb\x00")
    'a↵b␀'
    """
    return text.translate(PICTURES)


def readable_token(token: str) -> str:
    r"""Return a token as it is shown: without white space around it, or a sign if it is nothing else.

    >>> readable_token(" the"), readable_token("\n"), readable_token(" ")
    ('the', '↵', '␣')
    """
    return readable(token).strip() or "␣"
