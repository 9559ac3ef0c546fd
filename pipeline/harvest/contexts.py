"""Where each feature fires most: the top activating rows of every feature of a store.

A task owns one panel of features and streams the store's slabs of rows past it, so it holds one slab of one panel and
a list of `top_n` rows for each of its features, whatever the length of the store::

    panel of features ─▶  slab 0 ─▶ slab 1 ─▶ … ─▶ slab n      (read as CSR; never dense for sparse stores)
                              └── best rows so far, per feature ──▶ row(feature, rank), value(feature, rank)

Rows are listed by descending activation, ties by the lowest row. Rows marked as attention sinks, and rows where the
activation is zero, are never listed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from distributed import Client

from pipeline.workers import ensure_client, run_tasks
from storage import (
    fingerprint,
    is_sparse,
    make_result,
    new_manifest,
    open_activations,
    read_csr,
    read_dense,
)
from storage.errors import InputError

logger = logging.getLogger(__name__)

STAGE = "contexts"
#: Bytes of one slab of one panel, in the worst case that all of it is active.
SLAB_BYTES = 64 * 2**20
#: Attributes of a store that its contexts carry on.
CARRIED = ("model", "model_revision", "site", "dictionary", "kind", "row_hash", "corpus_hash")

Panel = tuple[int, int]


def contexts(
    store_path: str | Path, out: str | Path | None = None, top_n: int = 8, client: Client | None = None
) -> xr.Dataset:
    """Find the rows on which each feature of a store is most active.

    Parameters
    ----------
    store_path
        A finished activation store of (token, feature) activations.
    out
        Where the result is written as a Zarr group; a finished result of the same store and `top_n` that is already
        there is returned as it is. In memory only if absent.
    top_n
        Rows kept for each feature, at least 1.
    client
        Dask client; a local one by default. One task reads one panel of features, in at most about 100 MB.

    Returns
    -------
    xarray.Dataset
        ``row(feature, rank)`` int64, the rows by descending activation, ties by the lowest row, −1 where the feature
        has fewer; ``value(feature, rank)`` float32, their activations, NaN where there is none.

    Raises
    ------
    InputError
        If `top_n` is below 1, or the store is missing or unfinished.

    Examples
    --------
    >>> import numpy as np, scipy.sparse, tempfile, storage
    >>> folder = tempfile.mkdtemp()
    >>> active = scipy.sparse.csr_array(np.array([[0, 2], [3, 0], [1, 2]], dtype=np.float32))
    >>> _ = storage.write_activations(f"{folder}/a.zarr", active)
    >>> contexts(f"{folder}/a.zarr", top_n=2)["row"].values
    array([[1, 2],
           [0, 2]])
    """
    if top_n < 1:
        raise InputError(f"top_n is {top_n}; at least one row must be kept for each feature")
    store = open_activations(store_path)
    manifest = new_manifest(STAGE, {"activations": fingerprint(store_path)}, {"top_n": top_n})

    def make() -> xr.Dataset:
        return _dataset(*_top_rows(str(store_path), dict(store.sizes), top_n, client), store.attrs)

    return make_result(out, manifest, make)


def _top_rows(path: str, sizes: dict[Any, int], top_n: int, client: Client | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, values), each (feature, top_n), gathered from one task for each panel of features."""
    rows = np.full((sizes["feature"], top_n), -1, dtype=np.int64)
    values = np.full((sizes["feature"], top_n), np.nan, dtype=np.float32)
    chunk_features = zarr.open_array(f"{path}/activation", mode="r").chunks[1]
    panels = [(start, min(start + chunk_features, len(rows))) for start in range(0, len(rows), chunk_features)]
    name = f"top contexts, {Path(path).stem}"
    with ensure_client(client) as own:
        done = run_tasks(own, _panel_task, panels, name="contexts-panel", label=name, args=(path, top_n))
        for (start, stop), (panel_rows, panel_values) in done:
            rows[start:stop] = panel_rows
            values[start:stop] = panel_values
    return rows, values


def _panel_task(panel: Panel, path: str, top_n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best rows and activations of one panel's features."""
    from pipeline.harvest import contexts_kernels as kernels

    values = np.full((panel[1] - panel[0], top_n), -np.inf, dtype=np.float32)
    rows = np.full(values.shape, -1, dtype=np.int64)
    sink = open_activations(path)["sink"]
    sparse = is_sparse(path)
    for start, stop in _slabs(path, panel):
        skip = sink[start:stop].values
        if sparse:
            slab = read_csr(path, slice(start, stop), slice(*panel))
            entries = slab.indptr, slab.indices, slab.data.astype(np.float32, copy=False)
            kernels.offer_csr(entries, skip, start, values, rows)
        else:
            dense = read_dense(path, slice(start, stop), slice(*panel))
            kernels.offer_dense(dense.astype(np.float32, copy=False), skip, start, values, rows)
    values[rows < 0] = np.nan
    return rows, values


def _slabs(path: str, panel: Panel) -> list[tuple[int, int]]:
    """Cut the rows into slabs of whole chunks that stay below :data:`SLAB_BYTES` even if all of it is active."""
    array = zarr.open_array(f"{path}/activation", mode="r")
    chunk_rows = array.chunks[0]
    affordable = SLAB_BYTES // (4 * (panel[1] - panel[0]))
    step = chunk_rows * max(1, affordable // chunk_rows)
    return [(start, min(start + step, array.shape[0])) for start in range(0, array.shape[0], step)]


def _dataset(rows: np.ndarray, values: np.ndarray, attrs: dict[Any, Any]) -> xr.Dataset:
    return xr.Dataset(
        {
            "row": (("feature", "rank"), rows, {"long_name": "row of the store, −1 where there is none"}),
            "value": (("feature", "rank"), values, {"long_name": "activation in that row"}),
        },
        attrs={name: attrs[name] for name in CARRIED if name in attrs},
    )
