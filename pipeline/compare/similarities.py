"""How alike the rows of one side are: cosine, Pearson's correlation, or (negative) Euclidean distance.

Rounded to :data:`DECIMALS`, so that similarities that are equal in truth tie in spite of rounding errors: features
that are used many times make many of them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.base import Rows

Inside = Literal["cosine", "pearson", "euclidean"]

#: Similarities are told apart to this many decimals, in units of the longest row for distances.
DECIMALS = 12
#: Rows of the similarity matrix that are computed at once.
BLOCK_ROWS = 256


def scaled(rows: Rows, inside: Inside) -> Rows:
    """Return rows (n, d) whose dot products are the similarities, or from which distances follow.

    ``cosine``: rows of length 1; ``pearson``: the same of centred rows. ``euclidean``: columns are centred (distances
    do not change, rounding does) and divided by the length of the longest row. NaN where a row has no direction.
    """
    if inside == "euclidean":
        centred = rows - rows.mean(axis=0)
        longest = np.linalg.norm(centred, axis=1).max(initial=0.0)
        return centred / longest if longest > 0 else centred
    if inside == "pearson":
        means = rows.mean(axis=1, keepdims=True)
        # a constant row leaves rounding errors when it is centred, which have no direction
        rows = np.where(np.ptp(rows, axis=1, keepdims=True) > 0, rows - means, 0.0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.full_like(rows, np.nan), where=lengths > 0)


def block_similarities(first: Rows, second: Rows, inside: Inside) -> NDArray[np.float64]:
    """Return the similarity of every row of `first` with every row of `second`, both from :func:`scaled`.

    Shapes (…, m, d) and (…, n, d) give (…, m, n).

    Examples
    --------
    >>> rows = scaled(np.array([[3.0, 0.0], [0.0, 4.0]]), "cosine")
    >>> block_similarities(rows, rows, "cosine").tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    products = first @ np.swapaxes(second, -1, -2)
    if inside != "euclidean":
        return np.round(products, DECIMALS)
    squares = [np.einsum("...ij,...ij->...i", side, side) for side in (first, second)]
    distances = squares[0][..., :, None] + squares[1][..., None, :] - 2 * products
    # rounded before the root: what is left of cancellation must not become a distance
    return -np.sqrt(np.maximum(np.round(distances, DECIMALS), 0.0))


def upper_triangle(rows: Rows, inside: Inside) -> NDArray[np.float64]:
    """Return the similarity of every two rows, (n, d) to (n(n-1)/2,): the upper triangle, row after row.

    NaN where a row has no direction. Memory: this, and blocks of :data:`BLOCK_ROWS` × n.

    Examples
    --------
    >>> upper_triangle(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), "cosine").tolist()
    [0.0, 1.0, 0.0]
    >>> upper_triangle(np.array([[1.0], [2.0], [4.0]]), "euclidean").round(3).tolist()
    [-0.6, -1.8, -1.2]
    """
    n, unit = len(rows), scaled(rows, inside)
    upper, filled = np.empty(n * (n - 1) // 2), 0
    for start in range(0, n - 1, BLOCK_ROWS):
        block = block_similarities(unit[start : start + BLOCK_ROWS], unit[start:], inside)
        for i, row in enumerate(block[: n - 1 - start]):
            upper[filled : filled + n - 1 - start - i] = row[i + 1 :]
            filled += n - 1 - start - i
    return upper


def duplicates(rows: Rows) -> int:
    """Return how many rows are equal to an earlier one.

    Examples
    --------
    >>> duplicates(np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
    1
    """
    # rows that differ in their first number are no copies: sorting whole rows takes longer than all the rest of a draw
    if len(np.unique(rows[:, 0])) == len(rows):
        return 0
    return len(rows) - len(np.unique(rows, axis=0))
