"""Which rows are of the same segment of text, so that what a pair shares beyond its token can be measured.

A row is the piece of text that ends where both tokenizers end a token. With one tokenizer that is a token; with two,
token ids are fragments of it, and only the text says whether two rows are the same segment.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.text.spans import Spans, check_corpus, first_in_window, iter_documents, read_spans
from storage import Corpus, open_activations, open_corpus
from storage.errors import InputError

#: Rows whose text is read at a time.
BLOCK_ROWS = 2**18


class Segments(NamedTuple):
    """The segment of each row.

    Attributes
    ----------
    number
        (token,) int32, from 0; rows of one segment have one number.
    known_by
        What makes two segments the same: ``text``, ``token ids``, or either with the previous segment's.
    """

    number: NDArray[np.int32]
    known_by: str


def number_segments(
    a: str | Path, b: str | Path, corpus: str | Path | None = None, *, previous: bool = False
) -> Segments:
    """Return the segment of each row of two stores, as numbers.

    Memory: 40 bytes per row, the text of some documents, and each distinct text once.

    Parameters
    ----------
    a, b
        Stores of the same rows.
    corpus
        The text that they were harvested from: segments are the same if their text is, to the last character. Without
        it, they are the same if the last token of each side is.
    previous
        Whether the previous segment must be the same too. The first row of a window has none.

    Returns
    -------
    Segments

    Raises
    ------
    InputError
        If there is no corpus and neither store has token ids, or the stores have no token coordinates.
    RowMismatchError
        If A was harvested from another corpus.

    Examples
    --------
    >>> import tempfile, storage
    >>> folder = tempfile.mkdtemp()
    >>> _ = storage.write_corpus(f"{folder}/corpus.zarr", ["a b", "b a"])
    >>> tokens = {"document": [0, 0, 1, 1], "char_start": [0, 2, 0, 2], "char_end": [1, 3, 1, 3]}
    >>> storage.write_activations(f"{folder}/a.zarr", np.eye(4), tokens=tokens)
    >>> number_segments(f"{folder}/a.zarr", f"{folder}/a.zarr", f"{folder}/corpus.zarr")
    Segments(number=array([0, 1, 1, 0], dtype=int32), known_by='text')
    """
    stores = open_activations(a), open_activations(b)
    if corpus is None:
        number, known_by = _by_token_ids(*stores), "token ids"
    else:
        number, known_by = number_texts(stores[0], open_corpus(corpus)), "text"
    if previous:
        return Segments(_with_previous(number, first_in_window(stores[0])), f"{known_by}, previous segment's too")
    return Segments(number, known_by)


def number_texts(rows: xr.Dataset, corpus: Corpus) -> NDArray[np.int32]:
    """Return a number for the text of each row of a store, from 0 and equal for equal texts; (token,) int32."""
    check_corpus(rows, corpus)
    spans, number = read_spans(rows), np.empty(rows.sizes["token"], np.int32)
    of_text: dict[str, int] = {}
    for first in range(0, len(number), BLOCK_ROWS):
        block = slice(first, first + BLOCK_ROWS)
        for row, text, start, end in iter_documents(corpus, Spans(*(column[block] for column in spans))):
            number[first + row] = of_text.setdefault(text[start:end], len(of_text))
    return number


def _by_token_ids(a: xr.Dataset, b: xr.Dataset) -> NDArray[np.int32]:
    ids = [store["token_id"].values for store in (a, b) if "token_id" in store.variables]
    if not ids:
        path = a.encoding["source"]
        raise InputError(
            f"Neither {path} nor the store of the other side has token ids, and no corpus was given, so rows of the "
            "same token are not known; give the corpus, or harvest again"
        )
    number = _renumber(ids[0])
    return number if len(ids) == 1 else _joined(number, _renumber(ids[1]))


def _with_previous(number: NDArray[np.int32], first: NDArray[np.bool_]) -> NDArray[np.int32]:
    before = np.where(first, 0, np.concatenate([[0], number[:-1] + 1])).astype(np.int32)
    return _joined(number, before)


def _joined(number: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return one number for each pair of numbers, neither of which is negative."""
    return _renumber(number.astype(np.int64) * (int(other.max(initial=0)) + 1) + other)


def _renumber(values: NDArray[np.integer]) -> NDArray[np.int32]:
    return np.unique(values, return_inverse=True)[1].astype(np.int32)
