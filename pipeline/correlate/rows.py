"""Which rows choose the candidates, which ones check them, and which count in neither.

Choosing the best of tens of thousands of partners inflates r. So half of the documents choose, and r is stated on the
other half as well. Whole documents go to one half, since tokens of one document are not independent. The documents
are put in the order of a hash of their number (SplitMix64, Steele et al. 2014), and take turns: the halves have
equally many documents, depend on nothing but those numbers, and are not "first" and "last" of an ordered corpus.
Where there are no documents, or only one, the first half of the rows chooses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.correlate.kernels.csr import EXCLUDED
from pipeline.settings.correlate import Select
from storage import InputError, open_activations

SELECTING, HELD_OUT = 0, 1
FEWEST_ROWS = 2


def read_halves(path_a: Path, path_b: Path, select: Select) -> NDArray[np.int8]:
    """Return the half that each row of two stores belongs to, (token,) int8.

    0 chooses, 1 is held out, -1 is left out since either store marks the row as a sink.

    Raises
    ------
    InputError
        If a half has fewer than two rows.
    """
    a, b = open_activations(path_a), open_activations(path_b)
    sink = a["sink"].values | b["sink"].values
    half = split_rows(read_documents(path_a, path_b), sink, select)
    for number, name in enumerate(("chooses", "is held out") if select == "half" else ("counts",)):
        rows = int(np.count_nonzero(half == number))
        if rows < FEWEST_ROWS:
            raise InputError(
                f"Only {rows} of {len(half)} rows of {path_a} {name}: {int(sink.sum())} are attention sinks and "
                f"select={select!r}; correlation needs at least {FEWEST_ROWS}. Harvest more text, or use select='all'"
            )
    return half


def read_documents(path_a: Path, path_b: Path) -> NDArray[np.integer] | None:
    """Return the document of each row, (token,), from the first of two stores that knows it; None if neither does."""
    stores = (open_activations(path) for path in (path_a, path_b))
    return next((store["document"].values for store in stores if "document" in store.variables), None)


def split_rows(documents: NDArray[np.integer] | None, excluded: NDArray[np.bool_], select: Select) -> NDArray[np.int8]:
    """Assign rows to halves, by their documents if there are any; `excluded` ones count in neither.

    >>> split_rows(np.array([7, 7, 8, 9, 9, 5]), np.zeros(6, bool), "half")
    array([1, 1, 0, 1, 1, 0], dtype=int8)
    >>> split_rows(None, np.array([True, False, False, False, False]), "half")
    array([-1,  0,  0,  1,  1], dtype=int8)
    """
    half = np.full(len(excluded), SELECTING, np.int8)
    counted = np.flatnonzero(~excluded)
    if select == "half":
        half[counted] = _contiguous(len(counted)) if documents is None else _by_document(documents[counted])
    half[excluded] = EXCLUDED
    return half


def _contiguous(n: int) -> NDArray[np.int8]:
    return np.where(np.arange(n) < (n + 1) // 2, SELECTING, HELD_OUT).astype(np.int8)


def _by_document(documents: NDArray[np.integer]) -> NDArray[np.int8]:
    numbers, document = np.unique(documents, return_inverse=True)
    if len(numbers) < 2:
        return _contiguous(len(documents))
    half = np.empty(len(numbers), np.int8)
    half[np.argsort(splitmix64(numbers), kind="stable")] = np.arange(len(numbers)) % 2
    return half[document]


def splitmix64(numbers: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return a well-mixed hash of each number."""
    mixed = numbers.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
