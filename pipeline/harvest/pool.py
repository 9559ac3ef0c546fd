"""From the activations of tokens to those of rows: pure functions over runs of tokens.

A row's segment may hold several tokens of one side. Pooled are their *feature activations*, never the residual
stream: a feature that fires anywhere in a word then fires for the word. A feature that is absent at a token counts as
0 there, so ``max`` is the dense maximum, and ``mean`` divides by all tokens of the segment. Sparse rows stay sparse:
the result holds the union of the tokens' features, less those that come out as 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pipeline.settings.harvest import Pool
from storage.codec import is_sparse_matrix

Ints = NDArray[np.int64]


def runs(numbers: Ints) -> tuple[Ints, Ints]:
    """Return where each run of equal numbers starts, and how long it is.

    >>> runs(np.array([4, 4, 9]))
    (array([0, 2]), array([2, 1]))
    """
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(numbers)), bool), np.diff(numbers) != 0]))
    return starts, np.diff(np.append(starts, len(numbers)))


def pool_tokens(encoded: Any, numbers: Ints, how: Pool) -> Any:
    """Return one row of activations for each run of equal row numbers; of the type of `encoded`, sums in float64.

    `encoded` is a float32 array or csr_array (tokens, features), `numbers` the row number of each token: those of a
    row stand together, in the order of the text. Memory: about 40 bytes for each entry of a sparse `encoded`; the size
    of a dense one.

    >>> tokens = sp.csr_array(np.array([[1, 0, -2], [3, 0, 0], [0, 5, 0]], np.float32))
    >>> pool_tokens(tokens, np.array([0, 0, 1]), "max").toarray()
    array([[3., 0., 0.],
           [0., 5., 0.]], dtype=float32)
    >>> pool_tokens(tokens, np.array([0, 0, 1]), "mean").toarray()
    array([[ 2.,  0., -1.],
           [ 0.,  5.,  0.]], dtype=float32)
    """
    starts, sizes = runs(numbers)
    if len(starts) == len(numbers):
        return encoded
    if how == "last":
        return encoded[starts + sizes - 1]
    if is_sparse_matrix(encoded):
        return _pool_sparse(encoded, sizes, how)
    if how == "max":
        return np.maximum.reduceat(encoded, starts, axis=0)
    sums = np.add.reduceat(encoded, starts, axis=0, dtype=np.float64)
    return (sums / sizes[:, None]).astype(encoded.dtype)


def _pool_sparse(encoded: sp.csr_array, sizes: Ints, how: Pool) -> sp.csr_array:
    """Pool runs of rows of a csr array by sorting their entries by (run, feature)."""
    n_features = encoded.shape[1]
    run_of_entry = np.repeat(np.repeat(np.arange(len(sizes)), sizes), np.diff(encoded.indptr))
    key = run_of_entry * n_features + encoded.indices
    order = np.argsort(key, kind="stable")
    first, present = runs(key[order])
    run, feature = np.divmod(key[order][first], n_features)
    values = encoded.data[order]
    if len(first) == 0:
        pooled = values
    elif how == "max":
        pooled = np.maximum.reduceat(values, first)
        pooled = np.where(present < sizes[run], np.maximum(pooled, 0), pooled)
    else:
        pooled = (np.add.reduceat(values, first, dtype=np.float64) / sizes[run]).astype(values.dtype)
    is_active = pooled != 0
    indptr = np.concatenate([[0], np.cumsum(np.bincount(run[is_active], minlength=len(sizes)))])
    return sp.csr_array(
        (pooled[is_active], feature[is_active].astype(np.int32), indptr.astype(np.int32)),
        shape=(len(sizes), n_features),
    )


def any_of_tokens(marked: NDArray[np.bool_], numbers: Ints) -> NDArray[np.bool_]:
    """Return for each run of equal row numbers whether any of its tokens is marked; bool (rows,).

    >>> any_of_tokens(np.array([True, False, False]), np.array([4, 4, 9]))
    array([ True, False])
    """
    starts, _ = runs(numbers)
    return np.logical_or.reduceat(marked, starts) if len(starts) else marked
