"""Compiled loops of the sparse storage: splitting rows into column panels and putting panels back together.

All run without the GIL and move values as raw bits (unsigned integers of the same width), so that one loop serves
float16, float32 and float64, and not a single value is changed on its way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.jit import cached_njit

Ints = NDArray[Any]


@cached_njit
def rows_are_canonical(indptr: Ints, indices: Ints) -> bool:
    """Return whether the column ids of every row are strictly increasing."""
    for row in range(len(indptr) - 1):
        for at in range(indptr[row] + 1, indptr[row + 1]):
            if indices[at] <= indices[at - 1]:
                return False
    return True


@cached_njit
def count_by_panel(indptr: Ints, indices: Ints, first_row: int, width: int, lengths: Ints) -> None:
    """Count the entries of each row in each panel of `width` columns into ``lengths[panel, row]``."""
    for row in range(min(lengths.shape[1], len(indptr) - 1 - first_row)):
        for at in range(indptr[first_row + row], indptr[first_row + row + 1]):
            lengths[indices[at] // width, row] += 1


@cached_njit
def scatter_by_panel(  # noqa: PLR0917 - numba takes no keywords
    indptr: Ints, indices: Ints, bits: Ints, rows: tuple[int, int], width: int, cursor: Ints, ids: Ints, out: Ints
) -> None:
    """Copy entries to their panel's place (``cursor[panel]`` onwards), rows in order, ids relative to the panel."""
    for row in range(rows[0], rows[1]):
        for at in range(indptr[row], indptr[row + 1]):
            panel = indices[at] // width
            to = cursor[panel]
            ids[to] = indices[at] - panel * width
            out[to] = bits[at]
            cursor[panel] = to + 1


@cached_njit
def cut_columns(ids: Ints, starts: Ints, stops: Ints, low: int, high: int) -> None:
    """Narrow each row's range ``starts[row]:stops[row]`` to the ids in ``low <= id < high`` (ids are sorted)."""
    for row in range(len(starts)):
        start, stop = starts[row], stops[row]
        while start < stop and ids[start] < low:
            start += 1
        while stop > start and ids[stop - 1] >= high:
            stop -= 1
        starts[row], stops[row] = start, stop


@cached_njit
def place_panel(  # noqa: PLR0917
    ids: Ints, bits: Ints, starts: Ints, stops: Ints, shift: int, cursor: Ints, out_ids: Ints, out_bits: Ints
) -> None:
    """Append each row's range of a panel at ``cursor[row]`` of the output, ids moved by `shift`."""
    for row in range(len(starts)):
        to = cursor[row]
        for at in range(starts[row], stops[row]):
            out_ids[to] = np.int64(ids[at]) + shift
            out_bits[to] = bits[at]
            to += 1
        cursor[row] = to
