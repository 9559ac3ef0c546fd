"""The one-to-one matching with the highest total r, exact, from the kept pairs alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from pipeline.match.edges import Edges
from pipeline.settings.registries import METHODS

#: Share of a matrix that edges fill from where on the matrix is solved faster (2,048²: at .2 in equal time).
DENSE_SHARE = 0.25


@METHODS.register
def optimal(edges: Edges) -> NDArray[np.int64]:
    """Match one to one so that the sum of r is as high as it can be.

    A sparse assignment problem [1]_: every A feature that has an edge is a row, and besides its edges it has a column
    of its own that stands for "unmatched" and adds nothing. A full matching of the rows therefore always exists, and
    the cheapest one is the best partial matching of the features. Where edges fill much of the matrix of these
    features, the matrix itself is solved, with 0 where there is no edge. A pair with r ≤ 0 could only lower the sum and
    is never matched. Where several matchings share the highest sum, it is one of them, the same every time.

    References
    ----------
    .. [1] R. Jonker, A. Volgenant, A shortest augmenting path algorithm for dense and sparse linear assignment
       problems, Computing 38 (1987), as implemented in ``scipy.sparse.csgraph`` and, for matrices, by Crouse (IEEE
       Transactions on Aerospace and Electronic Systems 52, 2016) in ``scipy.optimize``.

    Examples
    --------
    >>> from pipeline.match.edges import make_edges
    >>> edges = make_edges([0, 0, 1, 1], [0, 1, 0, 1], [0.9, 0.8, 0.7, 0.1], n_a=2, n_b=2)
    >>> optimal(edges).tolist()
    [1, 2]
    """
    useful = np.flatnonzero(edges.r > 0)
    if not len(useful):
        return useful
    rows, columns = _numbered(edges.ids_a[useful], edges.n_a), _numbered(edges.ids_b[useful], edges.n_b)
    cells = (int(rows.max()) + 1) * (int(columns.max()) + 1)
    solve = _solve_matrix if len(useful) >= DENSE_SHARE * cells else _solve_edges
    chosen = useful[solve(rows, columns, edges.r[useful])[rows] == columns]
    return chosen[np.argsort(-edges.r[chosen], kind="stable")]


def _numbered(ids: NDArray[np.int32], n: int) -> NDArray[np.int64]:
    """Return ids below n as places among the different ones, ascending."""
    present = np.zeros(n, bool)
    present[ids] = True
    return (np.cumsum(present) - 1)[ids]


def _solve_matrix(rows: NDArray[np.int64], columns: NDArray[np.int64], r: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the column of every row, -1 of a row that is left over; edges or not."""
    matrix = np.zeros((int(rows.max()) + 1, int(columns.max()) + 1))
    matrix[rows, columns] = r
    matched = np.full(len(matrix), -1)
    own, partners = linear_sum_assignment(matrix, maximize=True)
    matched[own] = partners
    return matched


def _solve_edges(rows: NDArray[np.int64], columns: NDArray[np.int64], r: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the column of every row, or one beyond them for a row that is unmatched."""
    return np.asarray(min_weight_full_bipartite_matching(_costs(rows, columns, r))[1], np.int64)


def _costs(rows: NDArray[np.int64], columns: NDArray[np.int64], r: NDArray[np.float64]) -> sparse.csr_array:
    """Return the cost of every edge and, right of them, of every row's own "unmatched" column.

    Each row is matched exactly once, so that a constant added to all of a row's costs changes no comparison: ``1 - r``
    against 1 for unmatched, raised by another 1 because the solver takes a cost of 0 for a missing entry.
    """
    n_rows, n_columns = int(rows.max()) + 1, int(columns.max()) + 1
    own = np.arange(n_rows)
    i = np.concatenate([rows, own]).astype(np.int32)
    j = np.concatenate([columns, n_columns + own]).astype(np.int32)
    cost = np.concatenate([2.0 - r, np.full(n_rows, 2.0)])
    return sparse.csr_array((cost, (i, j)), shape=(n_rows, n_columns + n_rows))
