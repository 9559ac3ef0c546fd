"""Compiled loops of :mod:`pipeline.harvest.contexts`, apart from it so that importing the stage compiles nothing.

Both keep, for every feature of a panel, the `top_n` best rows seen so far in descending order of activation. Rows are
offered in ascending order, so a row displaces another only by a strictly larger activation: ties stay with the lowest
row, whatever the sizes of the slabs.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True)
def _offer(values: np.ndarray, rows: np.ndarray, value: float, row: int) -> None:
    """Insert `row` into one feature's descending list, if `value` beats its last entry."""
    place = len(values)
    while place > 0 and value > values[place - 1]:
        place -= 1
    for k in range(len(values) - 1, place, -1):
        values[k] = values[k - 1]
        rows[k] = rows[k - 1]
    if place < len(values):
        values[place] = value
        rows[place] = row


@numba.njit(nogil=True)
def offer_csr(
    slab: tuple[np.ndarray, np.ndarray, np.ndarray],
    skip: np.ndarray,
    first_row: int,
    values: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Offer the stored entries of a CSR slab, shape (rows of the slab, features of the panel).

    Parameters
    ----------
    slab
        Its row pointers, column ids and values; the values are float32.
    skip
        Boolean, shape (rows of the slab,): rows that are never offered (attention sinks).
    first_row
        The slab's first row, counted in the store.
    values, rows
        Best activations (float32, −inf where none) and their rows (int64, −1 where none), shape
        (features of the panel, top_n); changed in place.
    """
    indptr, indices, data = slab
    for i in range(len(indptr) - 1):
        if skip[i]:
            continue
        for j in range(indptr[i], indptr[i + 1]):
            if data[j] != 0:
                _offer(values[indices[j]], rows[indices[j]], data[j], first_row + i)


@numba.njit(nogil=True)
def offer_dense(slab: np.ndarray, skip: np.ndarray, first_row: int, values: np.ndarray, rows: np.ndarray) -> None:
    """Offer the entries of a dense slab that are not zero; parameters as in :func:`offer_csr`."""
    for i in range(slab.shape[0]):
        if skip[i]:
            continue
        for j in range(slab.shape[1]):
            if slab[i, j] != 0 and slab[i, j] > values[j, -1]:
                _offer(values[j], rows[j], slab[i, j], first_row + i)
