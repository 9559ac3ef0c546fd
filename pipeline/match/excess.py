"""What a pair's r exceeds when B reads the same segment in another document: the covariance within segments.

Every row is compared with the rows of the same segment in *other* documents: rows of one document depend on each
other, so agreement among them says nothing about what is shared beyond the token. With x and y the two features, n_g
the rows of segment g and n_gd those in document d,

    excess = sum over g of 1 / (n_g - 1) · sum over pairs of rows i, j of g in two documents of (x_i - x_j)(y_i - y_j)
             / (N · std x · std y)

which is a U-statistic, with expectation 0 if A and B are independent given the segment, however the rows of a document
depend on each other. With one row of a segment per document it is sum of n_g / (n_g - 1) · cov_g, which a permutation
of rows within segments destroys, on average, without bias. A row weighs (n_g - n_gd) / (n_g - 1), the share of the
other rows of its segment that are in other documents; N is the sum of the weights, and means, standard deviations and
r are weighted alike. Then r - excess, the token's part, is itself a correlation: of x with the y of a row of the same
segment in another document.

The influence of a document on the sum is that of its rows' products of deviations from the means of their segments in
the other documents (as if left out), times √(1 - n_gd / n_g), which makes the variance unbiased if A and B are
independent (Bell and McCaffrey's CR2 for rows of one segment). See :mod:`pipeline.correlate.influence`.
"""

# ruff: noqa: PLR0917  (compiled functions take everything by position)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from pipeline.correlate.influence import effective_number, fisher_interval, p_above_zero
from storage.jit import cached_njit

#: A variance below this share of the mean square is rounding.
CONSTANT = 1e-12

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


class Cells(NamedTuple):
    """The rows of one half, ordered by segment and document; rows of one segment and document are a cell.

    Attributes
    ----------
    place
        (token,) int32, where each row is in this order; -1 for rows of the other half, sinks, and rows whose segment no
        other document has.
    cell
        (place,) int32.
    n
        (cell,) float64, rows.
    n_segment
        (cell,) float64, rows of the cell's segment.
    segment, document
        (cell,) int32, from 0.
    first
        (segment + 1,) int32, where the cells of each segment begin.
    idle
        (cell,) float64, the influence of a cell in which neither feature fires, per product of the segment's sums.
    weight
        (document,) float64, the sum of its rows' weights.
    n_left_out
        Rows of the half whose segment no other document has.
    """

    place: Ints
    cell: Ints
    n: Floats
    n_segment: Floats
    segment: Ints
    document: Ints
    first: Ints
    idle: Floats
    weight: Floats
    n_left_out: int


def make_cells(segment: NDArray[np.integer], unit: NDArray[np.integer]) -> Cells:
    """Return the cells of rows with these segments and documents; document -1 is left out.

    >>> cells = make_cells(np.array([5, 5, 7, 5, 9]), np.array([0, 1, 1, 0, -1]))
    >>> cells.place.tolist(), cells.n.tolist(), cells.n_left_out
    ([0, 2, -1, 1, -1], [2.0, 1.0], 1)
    """
    rows = np.flatnonzero(unit >= 0)
    order = rows[np.lexsort((unit[rows], segment[rows]))]
    ordered = segment[order], unit[order]
    new_segment = np.diff(ordered[0], prepend=-1) != 0
    new_cell = new_segment | (np.diff(ordered[1], prepend=-1) != 0)
    cells_of_segment = np.bincount(np.cumsum(new_segment) - 1, weights=new_cell)
    shared = np.repeat(cells_of_segment, np.bincount(np.cumsum(new_segment) - 1)) > 1 if len(order) else new_cell
    order, new_segment, new_cell = order[shared], new_segment[shared], new_cell[shared]
    cell, of_row = np.cumsum(new_cell) - 1, np.cumsum(new_segment) - 1
    n, n_segment = np.bincount(cell).astype(np.float64), np.bincount(of_row).astype(np.float64)
    of_cell, document = of_row[new_cell], unit[order][new_cell]
    place = np.full(len(segment), -1, np.int32)
    place[order] = np.arange(len(order))
    others = n_segment[of_cell] - n
    weight = n * others / (n_segment[of_cell] - 1)
    n_documents = int(unit.max(initial=-1)) + 1
    return Cells(
        place, cell.astype(np.int32), n, n_segment[of_cell], of_cell.astype(np.int32), document.astype(np.int32),
        np.searchsorted(of_cell, np.arange(len(n_segment) + 1)).astype(np.int32),
        np.sqrt(others / n_segment[of_cell]) * weight / others**2,
        np.bincount(document, weights=weight, minlength=n_documents).astype(np.float64), len(rows) - len(order),
    )  # fmt: skip


class Column(NamedTuple):
    """A feature's values that are not 0, and where they are.

    Attributes
    ----------
    place
        (value,) int32, ascending.
    value
        (value,) float32.
    """

    place: Ints
    value: NDArray[np.float32]


class Excess(NamedTuple):
    """Estimates of pairs, each (pair,) float64; NaN where they are not defined.

    Attributes
    ----------
    r
        Correlation over the rows whose segment is in several documents.
    token_part
        Correlation with B's value in a row of the same segment in another document.
    excess
        The difference.
    excess_low, excess_high
        Ends of its interval.
    excess_p
        One-sided p of the hypothesis that the excess is 0.
    n_effective
        Effective number of documents.
    """

    r: Floats
    token_part: Floats
    excess: Floats
    excess_low: Floats
    excess_high: Floats
    excess_p: Floats
    n_effective: Floats


#: Columns of the sums over each document: Σwx, Σwy, Σwx², Σwy², Σwxy, and its influence on the sum within segments.
X, Y, XX, YY, XY, WITHIN = range(6)


def excess_of_pairs(
    a: scipy.sparse.csc_array,
    b: scipy.sparse.csc_array,
    pairs: tuple[NDArray[np.integer], NDArray[np.integer]],
    cells: Cells,
    *,
    level: float = 0.95,
) -> Excess:
    """Return what pairs share beyond the segment.

    Parameters
    ----------
    a, b
        (place, feature) float32, sorted indices: the rows in the order of the cells.
    pairs
        (pair,) columns of A and of B.
    cells
        The rows.
    level
        Nominal coverage of the intervals.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> segment, document, sense = np.arange(900) % 3, np.arange(900) // 9, rng.random(900) < 0.5
    >>> cells = make_cells(segment, document)
    >>> order = np.argsort(cells.place)
    >>> x, y = (scipy.sparse.csc_array(sense[order, None] * rng.random((900, 1), np.float32)) for _ in "ab")
    >>> found = excess_of_pairs(x, y, ([0], [0]), cells)
    >>> bool(found.excess[0] > 0.4), bool(found.excess_p[0] < 1e-6), bool(abs(found.token_part[0]) < 0.1)
    (True, True, True)
    """
    sides = [(side.indptr.astype(np.int64), side.indices.astype(np.int32), side.data) for side in (a, b)]
    ids = [np.asarray(features, np.int64) for features in pairs]
    r, excess, squares, fourths, squares_within, fourths_within = _sum_pairs(*sides, *ids, cells).T
    n_effective = np.fmin(effective_number(squares, fourths), effective_number(squares_within, fourths_within))
    low, high = fisher_interval(excess, squares, n_effective, level)
    p = p_above_zero(excess, squares_within, n_effective)
    return Excess(r, r - excess, excess, low, high, p, n_effective)


#: r and the excess; sums of squares and of fourth powers of the influences on the excess, and on it with the standard
#: deviations as they are.
N_STATISTICS = 6
#: Both features fire in a segment.
BOTH = 3


@cached_njit(error_model="numpy")
def _sum_pairs(a: Any, b: Any, ids_a: NDArray[np.int64], ids_b: NDArray[np.int64], cells: Cells) -> Floats:
    """Return the statistics of pairs of columns of two matrices, (pair, 6)."""
    out = np.empty((ids_a.size, N_STATISTICS))
    by_cell, by_segment = np.zeros((cells.n.size, 3)), np.zeros((cells.first.size - 1, 2))
    fires, sums = np.zeros(cells.first.size - 1, np.int8), np.zeros((cells.weight.size, 6))
    for pair in range(ids_a.size):
        of_a = slice(a[0][ids_a[pair]], a[0][ids_a[pair] + 1])
        of_b = slice(b[0][ids_b[pair]], b[0][ids_b[pair] + 1])
        x, y = Column(a[1][of_a], a[2][of_a]), Column(b[1][of_b], b[2][of_b])
        _sum_pair(x, y, cells, by_cell, by_segment, fires, sums, out[pair])
    return out


@cached_njit(error_model="numpy")
def _sum_pair(
    a: Column, b: Column, cells: Cells, by_cell: Floats, by_segment: Floats, fires: Any, sums: Floats, out: Floats
) -> None:
    """Write the statistics of one pair. Sums over cells and segments, and `fires`, are 0 before and after."""
    sums[:] = 0.0
    _scatter(a, cells, X, by_cell, by_segment, sums)
    _scatter(b, cells, Y, by_cell, by_segment, sums)
    _multiply(a, b, cells, by_cell)
    for place in a.place:
        fires[cells.segment[cells.cell[place]]] |= 1
    for place in b.place:
        fires[cells.segment[cells.cell[place]]] |= 2
    _add_idle(a, cells, by_segment, fires, sums)
    within = _take_cells(a, cells, by_cell, by_segment, fires, sums)
    within += _take_cells(b, cells, by_cell, by_segment, fires, sums)
    _summarise(within, cells.weight, sums, out)
    for column in (a, b):
        for place in column.place:
            g = cells.segment[cells.cell[place]]
            by_segment[g, 0] = by_segment[g, 1] = 0.0
            fires[g] = 0


@cached_njit
def _scatter(column: Column, cells: Cells, side: int, by_cell: Floats, by_segment: Floats, sums: Floats) -> None:
    """Add a feature to the sums of cells, segments and documents."""
    for k in range(column.place.size):
        c, value = cells.cell[column.place[k]], np.float64(column.value[k])
        weight = (cells.n_segment[c] - cells.n[c]) / (cells.n_segment[c] - 1)
        by_cell[c, side] += value
        by_segment[cells.segment[c], side] += value
        sums[cells.document[c], side] += weight * value
        sums[cells.document[c], XX + side] += weight * value * value


@cached_njit
def _multiply(a: Column, b: Column, cells: Cells, by_cell: Floats) -> None:
    """Add the products of both features to the sums of cells."""
    i = j = 0
    while i < a.place.size and j < b.place.size:
        if a.place[i] == b.place[j]:
            by_cell[cells.cell[a.place[i]], 2] += np.float64(a.value[i]) * np.float64(b.value[j])
        i, j = i + (a.place[i] <= b.place[j]), j + (b.place[j] <= a.place[i])


@cached_njit
def _add_idle(a: Column, cells: Cells, by_segment: Floats, fires: Any, sums: Floats) -> None:
    """Add the influences of documents as if the features fired in no cell of the segments: in most, they do not."""
    last = -1
    for place in a.place:
        g = cells.segment[cells.cell[place]]
        if g != last and fires[g] == BOTH:
            product = by_segment[g, 0] * by_segment[g, 1]
            for c in range(cells.first[g], cells.first[g + 1]):
                sums[cells.document[c], WITHIN] += cells.idle[c] * product
        last = g


@cached_njit
def _take_cells(column: Column, cells: Cells, by_cell: Floats, by_segment: Floats, fires: Any, sums: Floats) -> float:
    """Return the part of the sum within segments of the cells in which a feature fires, and set their sums to 0.

    The influences of their documents are corrected by what they were taken for.
    """
    within = 0.0
    for place in column.place:
        c = cells.cell[place]
        g, x, y, xy = cells.segment[c], by_cell[c, 0], by_cell[c, 1], by_cell[c, 2]
        by_cell[c, 0] = by_cell[c, 1] = by_cell[c, 2] = 0.0
        if fires[g] != BOTH or (x == 0 and y == 0 and xy == 0):
            continue
        others = cells.n_segment[c] - cells.n[c]
        weight = others / (cells.n_segment[c] - 1)
        mean_x, mean_y = (by_segment[g, 0] - x) / others, (by_segment[g, 1] - y) / others
        deviations = xy - x * mean_y - y * mean_x + cells.n[c] * mean_x * mean_y
        idle = cells.idle[c] * by_segment[g, 0] * by_segment[g, 1]
        within += weight * (xy - x * mean_y)
        sums[cells.document[c], XY] += weight * xy
        sums[cells.document[c], WITHIN] += np.sqrt(others / cells.n_segment[c]) * weight * deviations - idle
    return within


@cached_njit(error_model="numpy")
def _summarise(within: float, weight: Floats, sums: Floats, out: Floats) -> None:
    """Write r, the excess, and the sums of powers of the influences; NaN where a feature does not vary."""
    n = weight.sum()
    mean_x, mean_y = sums[:, X].sum() / n, sums[:, Y].sum() / n
    square_x, square_y = sums[:, XX].sum() / n, sums[:, YY].sum() / n
    var_x, var_y = square_x - mean_x * mean_x, square_y - mean_y * mean_y
    if not (var_x > CONSTANT * square_x and var_y > CONSTANT * square_y):
        out[:] = np.nan
        return
    scale = np.sqrt(var_x * var_y)
    excess = within / n / scale
    out[0], out[1] = (sums[:, XY].sum() / n - mean_x * mean_y) / scale, excess
    out[2:] = 0.0
    for d in range(weight.size):
        x = sums[d, XX] - 2 * mean_x * sums[d, X] + weight[d] * mean_x * mean_x
        y = sums[d, YY] - 2 * mean_y * sums[d, Y] + weight[d] * mean_y * mean_y
        influence = sums[d, WITHIN] / scale
        on_excess = (influence - excess / 2 * (x / var_x + y / var_y)) / n
        on_within = (influence - excess * weight[d]) / n
        out[2] += on_excess**2
        out[3] += on_excess**4
        out[4] += on_within**2
        out[5] += on_within**4
