"""A copy of a store whose rows have changed places, made in several passes over the store where memory asks for it.

A copy on disk is read by every kernel, on every worker, as the store itself is. The rows of a stretch of it come from
all of the store: as many rows are made in one pass as fit in memory, and the store is read once in each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr
from numpy.typing import NDArray

from storage import free_space, open_activations, write_activations
from storage.activations import iter_shards
from storage.errors import BudgetError
from storage.rows import TOKEN_COORDINATES
from storage.shards import iter_slices

#: Attributes of a store that say what it is.
DESCRIPTION = ("model", "site", "dictionary", "kind")
#: How often the rows of a pass are in memory: as they were gathered, and joined.
COPIES = 2


def write_permuted(source: Path, order: NDArray[np.int64], path: Path, *, memory: int) -> None:
    """Write a store in which row i is row ``order[i]`` of `source`; all features are 0 where that is -1.

    Memory is two shards, and rows for as much as `memory`, or for one shard if that is more.

    Parameters
    ----------
    source
        The store. Its token coordinates and layout are those of the copy; decoder and sinks are left out.
    order
        int64, (token,).
    path
        Where the copy is to be.
    memory
        Bytes.

    Raises
    ------
    BudgetError
        If the disk has no room for the copy.
    """
    store = open_activations(source)
    array = store["activation"]
    shard_rows, _ = array.encoding["shards"]
    sparse = store.attrs["layout"] == "csr"
    _check_disk(source, path)
    row_bytes = COPIES * (12 * float(store["n_active"].sum()) / len(order) if sparse else 4 * array.shape[1])
    rows_a_pass = max(shard_rows, int(memory / max(row_bytes, 1)) // shard_rows * shard_rows)
    write_activations(
        path,
        itertools.chain.from_iterable(
            _gathered(source, order[rows], array.shape[1], shard_rows) for rows in iter_slices(len(order), rows_a_pass)
        ),
        tokens={name: store[name].values for name in TOKEN_COORDINATES if name in store.variables} or None,
        attrs={name: store.attrs[name] for name in DESCRIPTION if name in store.attrs},
        dtype=array.dtype,
        layout=store.attrs["layout"],
        shard_rows=shard_rows,
        chunk=array.encoding["chunks"],
    )


def _gathered(source: Path, order: NDArray[np.int64], n_features: int, shard_rows: int) -> Iterator[Any]:
    """Yield some rows of a store, shard by shard of the copy, from one pass over the store."""
    places, parts = [], []
    for rows, shard in iter_shards(source):
        here = np.flatnonzero((order >= rows.start) & (order < rows.stop))
        places.append(here)
        parts.append(shard[order[here] - rows.start])
    # behind all others stands an empty row, for places to which none is moved
    dtype, dense = parts[0].dtype, isinstance(parts[0], np.ndarray)
    parts.append(np.zeros((1, n_features), dtype) if dense else scipy.sparse.csr_array((1, n_features), dtype=dtype))
    joined = np.concatenate(parts) if dense else scipy.sparse.vstack(parts, format="csr")
    parts.clear()
    at = np.full(len(order), joined.shape[0] - 1)
    at[np.concatenate(places)] = np.arange(joined.shape[0] - 1)
    for rows in iter_slices(len(order), shard_rows):
        yield joined[at[rows]]


def _check_disk(source: Path, path: Path) -> None:
    needed = stored_bytes(source)
    free, folder = free_space(path)
    if needed > free:
        raise BudgetError(
            f"A permuted copy of {source} takes about {needed / 1e9:.2f} GB (projected), and {free / 1e9:.2f} GB is "
            f"free at {folder}: give --out on another disk"
        )


def stored_bytes(store: Path) -> int:
    """Return the bytes of the activations of a store on disk."""
    return sum(file.stat().st_size for file in (store / "activation").rglob("*") if file.is_file())


def documents_of_features(path: Path, counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return in how many documents each feature fires on counted rows, int64, (feature,).

    The rows of a document follow each other. Memory is one shard, and a bit more than 8 bytes a feature.
    """
    store: xr.Dataset = open_activations(path)
    document = store["document"].values
    counts, last = np.zeros(store.sizes["feature"], np.int64), np.full(store.sizes["feature"], -1, np.int64)
    # documents by their place in the text, so that one that two shards share is known again
    number = np.cumsum(np.diff(document, prepend=document[:1]) != 0)
    for rows, shard in iter_shards(path):
        active = scipy.sparse.coo_array(shard[counted[rows]] != 0)
        row, feature = active.coords
        fired = np.unique(number[rows][counted[rows]][row].astype(np.int64) * len(counts) + feature)
        of_document, of_feature = np.divmod(fired, len(counts))
        again = of_document == last[of_feature]
        counts += np.bincount(of_feature[~again], minlength=len(counts))
        np.maximum.at(last, of_feature, of_document)
    return counts
