"""Compiled loops of :mod:`pipeline.harvest.contexts`, apart from it so that importing the stage compiles nothing.

Rows are offered in ascending order, whatever the sizes of the slabs, so that all results are the same.

*Top rows.* Every feature keeps its best rows in descending order of activation. A row displaces another only by a
strictly larger activation: ties stay with the lowest row.

*Sample.* Every feature keeps the firing rows with the smallest hash of (seed, feature, row): a simple random sample
without replacement that does not depend on the order of the rows ("bottom-k sampling", Cohen and Kaplan, PODC 2007).

*Tokens.* Every feature keeps a fixed number of counters (Misra and Gries, Science of Computer Programming 2 (1982)): a
token that finds none free takes one off each. A count is too low by at most the number of times that this happened.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from storage.jit import cached_njit

#: What is inserted at one place of three arrays (f, size).
Lists = tuple[np.ndarray, np.ndarray, np.ndarray]


class Kept(NamedTuple):
    """What is kept of the features of a panel, changed in place; f is the number of features.

    Attributes
    ----------
    values, rows, documents
        Best activations (float32, −inf where none), their rows and documents (int64, −1 where none); (f, top_n).
    sample_hash, sample_rows, sample_values
        The sample by ascending hash (uint64, the largest where none), its rows (int64) and activations (float32);
        (f, size).
    bins
        Firing rows by activation, from 0 to the maximum; int64, (f, number of bins).
    scale
        Bins ÷ the feature's maximum, 0 if that is not positive; float64, (f,).
    tokens, token_counts, token_rows
        Token ids (int64), counts (int64, 0 where free) and a row of each (int64); (f, counters).
    missed
        How often a token took one off each count; int64, (f,).
    first
        The panel's first feature, counted in the store.
    seed
        Of the sample; uint64.
    """

    values: np.ndarray
    rows: np.ndarray
    documents: np.ndarray
    sample_hash: np.ndarray
    sample_rows: np.ndarray
    sample_values: np.ndarray
    bins: np.ndarray
    scale: np.ndarray
    tokens: np.ndarray
    token_counts: np.ndarray
    token_rows: np.ndarray
    missed: np.ndarray
    first: int
    seed: np.uint64


class Rows(NamedTuple):
    """What is known of the rows of a slab.

    Attributes
    ----------
    first
        The slab's first row, counted in the store.
    skip
        Boolean: rows that are passed over (attention sinks).
    documents
        int64: of which a feature keeps one row each; empty if it may keep any.
    tokens
        int64 token ids; empty if they are not counted.
    """

    first: int
    skip: np.ndarray
    documents: np.ndarray
    tokens: np.ndarray


@cached_njit
def _offer(best: Lists, feature: int, value: float, row: int, document: int) -> None:
    """Insert `row` into one feature's descending list, if `value` beats its last entry or its document's."""
    values, rows, documents = best
    last = values.shape[1] - 1
    if document >= 0:
        for k in range(values.shape[1]):
            if documents[feature, k] == document:
                last = k
                break
    place = last + 1
    while place > 0 and value > values[feature, place - 1]:
        place -= 1
    if place > last:
        return
    for k in range(last, place, -1):
        values[feature, k] = values[feature, k - 1]
        rows[feature, k] = rows[feature, k - 1]
        documents[feature, k] = documents[feature, k - 1]
    values[feature, place] = value
    rows[feature, place] = row
    documents[feature, place] = document


@cached_njit
def _hash(seed: np.uint64, feature: int, row: int) -> np.uint64:
    """Mix three numbers to 64 bits (the finalizer of SplitMix64, Steele et al., OOPSLA 2014)."""
    x = seed + np.uint64(feature) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(row) * np.uint64(0xD1B54A32D192ED03)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@cached_njit
def _draw(sample: Lists, feature: int, key: np.uint64, value: float, row: int) -> None:
    """Insert a row, whose hash is among the smallest, into one feature's sample."""
    hashes, rows, values = sample
    place = hashes.shape[1] - 1
    while place > 0 and key < hashes[feature, place - 1]:
        hashes[feature, place] = hashes[feature, place - 1]
        rows[feature, place] = rows[feature, place - 1]
        values[feature, place] = values[feature, place - 1]
        place -= 1
    hashes[feature, place] = key
    rows[feature, place] = row
    values[feature, place] = value


@cached_njit
def _count_token(counters: Lists, missed: np.ndarray, feature: int, token: int, row: int) -> None:
    """Count one token of one feature."""
    tokens, counts, rows = counters
    free = -1
    for k in range(tokens.shape[1]):
        if counts[feature, k] == 0:
            free = k
        elif tokens[feature, k] == token:
            counts[feature, k] += 1
            return
    if free >= 0:
        tokens[feature, free] = token
        counts[feature, free] = 1
        rows[feature, free] = row
    else:
        for k in range(tokens.shape[1]):
            counts[feature, k] -= 1
        missed[feature] += 1


@cached_njit
def _take_row(kept: Kept, rows: Rows, i: int, features: np.ndarray, data: np.ndarray) -> None:
    """Take the entries of a row that are not zero into all that is kept.

    The arrays are taken out of their tuples once a row: once an entry would take twenty times as long as what most
    entries need, which are in no list and no sample.
    """
    best, sample = (kept.values, kept.rows, kept.documents), (kept.sample_hash, kept.sample_rows, kept.sample_values)
    counters, missed, bins, scale = (
        (kept.tokens, kept.token_counts, kept.token_rows),
        kept.missed,
        kept.bins,
        kept.scale,
    )
    values, hashes = kept.values, kept.sample_hash
    last_value, last_hash, last_bin = values.shape[1] - 1, hashes.shape[1] - 1, bins.shape[1] - 1
    row = rows.first + i
    document = rows.documents[i] if len(rows.documents) else -1
    token = rows.tokens[i] if len(rows.tokens) else -1
    for j in range(len(features)):
        feature, value = features[j], data[j]
        if value > values[feature, last_value] and value != 0:
            _offer(best, feature, value, row, document)
        if value > 0:
            if last_bin >= 0:
                bins[feature, min(int(value * scale[feature]), last_bin)] += 1
            if last_hash >= 0:
                key = _hash(kept.seed, kept.first + feature, row)
                if key < hashes[feature, last_hash]:
                    _draw(sample, feature, key, value, row)
            if len(rows.tokens):
                _count_token(counters, missed, feature, token, row)


@cached_njit
def take_csr(slab: tuple[np.ndarray, np.ndarray, np.ndarray], rows: Rows, kept: Kept) -> None:
    """Take the stored entries of a CSR slab (row pointers, column ids, float32 values) into all that is kept."""
    indptr, indices, data = slab
    for i in range(len(indptr) - 1):
        if not rows.skip[i]:
            entries = slice(indptr[i], indptr[i + 1])
            _take_row(kept, rows, i, indices[entries], data[entries])


@cached_njit
def take_dense(slab: np.ndarray, rows: Rows, kept: Kept) -> None:
    """Take the entries of a dense slab that are not zero into all that is kept."""
    features = np.arange(slab.shape[1])
    for i in range(slab.shape[0]):
        if not rows.skip[i]:
            _take_row(kept, rows, i, features, slab[i])
