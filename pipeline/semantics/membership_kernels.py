"""Compiled loops of :mod:`pipeline.semantics.membership`, apart from it so that importing it compiles nothing."""

from __future__ import annotations

import numpy as np

from storage.jit import cached_njit


@cached_njit
def count_csr(
    slab: tuple[np.ndarray, np.ndarray, np.ndarray], keywords: tuple[np.ndarray, np.ndarray], counts: np.ndarray
) -> None:
    """Count on how many rows each feature of a CSR slab is active together with each concept.

    Parameters
    ----------
    slab
        Row pointers, column ids and values, shape (rows of the slab, features of the panel).
    keywords
        Row pointers and column ids of (rows of the slab, concept); rows that do not count have none.
    counts
        int64, shape (features of the panel, concept); changed in place.
    """
    indptr, indices, data = slab
    concept_indptr, concept_indices = keywords
    for i in range(len(indptr) - 1):
        for j in range(concept_indptr[i], concept_indptr[i + 1]):
            for k in range(indptr[i], indptr[i + 1]):
                if data[k] != 0:
                    counts[indices[k], concept_indices[j]] += 1


@cached_njit
def count_dense(slab: np.ndarray, keywords: tuple[np.ndarray, np.ndarray], counts: np.ndarray) -> None:
    """Count as :func:`count_csr` does, on a dense slab."""
    concept_indptr, concept_indices = keywords
    for i in range(slab.shape[0]):
        for j in range(concept_indptr[i], concept_indptr[i + 1]):
            for k in range(slab.shape[1]):
                if slab[i, k] != 0:
                    counts[k, concept_indices[j]] += 1
