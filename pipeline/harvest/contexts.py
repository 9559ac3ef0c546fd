"""Where each feature fires: its top activating rows, samples along its activations, and the tokens it fires on.

A task owns one panel of features and streams the store's slabs of rows past it, so it holds one slab of one panel and
what is kept of its features, whatever the length of the store::

    panel of features ─▶  slab 0 ─▶ slab 1 ─▶ … ─▶ slab n      (read as CSR; never dense for sparse stores)
                              └── what is kept of each feature ──▶ row, value, quantile_row, histogram, token_count, …

No text is kept: a context is the number of a row, whose text :func:`pipeline.text.feature_contexts.read_contexts`
looks up. Rows marked as attention sinks, and rows where the activation is zero, are passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from pipeline.settings.base import keywords
from pipeline.settings.harvest import COUNTERS, ContextsSettings
from pipeline.work.workers import ClientSource, ensure_client, run_tasks
from storage import (
    Manifest,
    fingerprint,
    is_sparse,
    make_result,
    new_manifest,
    open_activations,
    read_csr,
    read_dense,
)
from storage.errors import InputError
from storage.shards import iter_slices

logger = logging.getLogger(__name__)

STAGE = "contexts"
#: Bytes of one slab of one panel, in the worst case.
SLAB_BYTES = 64 * 2**20
#: Bytes of an entry of a sparse slab: its id and its value.
ENTRY_BYTES = 8
#: Rows whose coordinates are read at once.
BLOCK_ROWS = 2**20
#: Firing rows of each feature from which quantiles are taken.
SAMPLE = 64
#: Attributes of a store that its contexts carry on.
CARRIED = ("model", "model_revision", "site", "dictionary", "kind", "row_hash", "corpus_hash")

Arrays = dict[str, NDArray[Any]]


@keywords(ContextsSettings)
def contexts(
    store_path: str | Path,
    out: str | Path | None = None,
    top_n: int = 8,
    *,
    settings: ContextsSettings,
    overwrite: bool = False,
    client: ClientSource = None,
) -> xr.Dataset:
    """Find the rows on which each feature of a store is most active, and more of what it fires on.

    Parameters
    ----------
    store_path
        A finished activation store of (token, feature) activations.
    out
        Where the result is written as a Zarr group; a finished result of the same store and settings that is already
        there is returned as it is. In memory only if absent.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    top_n
        Rows kept for each feature, at least 1.
    settings
        What else is kept of each feature.
    client
        Dask client; a local one by default. One task reads one panel of features, in at most about 100 MB.

    Returns
    -------
    xarray.Dataset
        ``row(feature, rank)`` int64, the rows by descending activation, ties by the lowest row, −1 where the feature
        has fewer; ``value(feature, rank)`` float32, their activations, NaN where there is none;
        ``quantile_row(feature, quantile)`` int64 and ``quantile_value`` float32 alike; ``firing_rate(feature)``
        float64, the share of rows on which the feature is not 0; ``histogram(feature, bin)`` int32, rows by
        activation, with the coordinate ``bin``, the upper edge ÷ the maximum; ``token_row(feature, token)`` int64, a
        row that stands for each of the commonest tokens, ``token_count`` int32, the least number of firing rows with
        this token, and ``token_missed(feature)`` int32, how many more there may be at most.

    Raises
    ------
    InputError
        If a number is out of range, or the store is missing or unfinished, or has no documents to tell apart.

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
    store = open_activations(store_path)
    if top_n < 1:
        raise InputError(f"top_n is {top_n}; at least one row must be kept for each feature")
    if settings.distinct_documents and "document" not in store.variables:
        raise InputError(
            f"{store_path} does not say which document its rows are of, so contexts cannot be from distinct documents; "
            "leave distinct_documents out, or harvest it again"
        )
    manifest = contexts_manifest(store_path, top_n, settings)

    def make() -> xr.Dataset:
        return _dataset(_gather(str(store_path), top_n, settings, client), store, settings)

    return make_result(out, manifest, make, overwrite=overwrite)


def contexts_manifest(
    store_path: str | Path, top_n: int, settings: ContextsSettings, identify: Callable[[str | Path], str] = fingerprint
) -> Manifest:
    """Return what contexts depend on; `identify` returns the fingerprint of what is, or will be, at a path."""
    return new_manifest(STAGE, {"activations": identify(store_path)}, {"top_n": top_n, **settings.model_dump()})


def _gather(path: str, top_n: int, settings: ContextsSettings, client: ClientSource) -> Arrays:
    """Return what is kept of all features, from one task for each panel of them."""
    array = zarr.open_array(f"{path}/activation", mode="r")
    n_features = array.shape[1]
    panels = list(iter_slices(n_features, array.chunks[1]))
    whole: Arrays = {}
    with ensure_client(client) as used:
        label = f"top contexts, {Path(path).stem}"
        for panel, part in run_tasks(
            used, _panel_task, panels, name="contexts-panel", label=label, args=(path, top_n, settings)
        ):
            for name, values in part.items():
                whole.setdefault(name, np.empty((n_features, *values.shape[1:]), values.dtype))[panel] = values
    return whole


def _panel_task(panel: slice, path: str, top_n: int, settings: ContextsSettings) -> Arrays:
    """Return what is kept of one panel's features."""
    from pipeline.harvest import contexts_kernels as kernels

    store = open_activations(path)
    state = _nothing_kept(store, panel, top_n, settings)
    sparse = is_sparse(path)
    for where, rows in _slabs(path, store, panel, settings):
        if sparse:
            slab = read_csr(path, where, panel)
            entries = slab.indptr, slab.indices, slab.data.astype(np.float32, copy=False)
            kernels.take_csr(entries, rows, state)
        else:
            dense = read_dense(path, where, panel).astype(np.float32, copy=False)
            kernels.take_dense(dense, rows, state)
    return _finished(state, settings, tokens="token_id" in store.variables)


def _nothing_kept(store: xr.Dataset, panel: slice, top_n: int, settings: ContextsSettings) -> Any:
    from pipeline.harvest.contexts_kernels import Kept

    n = panel.stop - panel.start
    sample = SAMPLE if settings.quantiles else 0
    counters = COUNTERS if settings.tokens else 0
    largest = store["max"].values[panel]
    return Kept(
        values=np.full((n, top_n), -np.inf, np.float32),
        rows=np.full((n, top_n), -1, np.int64),
        documents=np.full((n, top_n), -1, np.int64),
        sample_hash=np.full((n, sample), np.iinfo(np.uint64).max, np.uint64),
        sample_rows=np.full((n, sample), -1, np.int64),
        sample_values=np.full((n, sample), np.nan, np.float32),
        bins=np.zeros((n, settings.bins), np.int64),
        scale=np.divide(settings.bins, largest, out=np.zeros(n), where=largest > 0),
        tokens=np.full((n, counters), -1, np.int64),
        token_counts=np.zeros((n, counters), np.int64),
        token_rows=np.full((n, counters), -1, np.int64),
        missed=np.zeros(n, np.int64),
        first=panel.start,
        seed=np.uint64(settings.seed),
    )


def _slabs(path: str, store: xr.Dataset, panel: slice, settings: ContextsSettings) -> Iterator[tuple[slice, Any]]:
    """Yield slabs of whole chunks that stay below :data:`SLAB_BYTES`."""
    from pipeline.harvest.contexts_kernels import Rows

    array = zarr.open_array(f"{path}/activation", mode="r")
    chunk_rows, n_rows = array.chunks[0], array.shape[0]
    step = chunk_rows * max(1, _most_rows(store, panel) // chunk_rows)
    documents = "document" if settings.distinct_documents else None
    tokens = "token_id" if settings.tokens and "token_id" in store.variables else None
    per_block = max(1, BLOCK_ROWS // step) * step
    for block in iter_slices(n_rows, per_block):
        skip, document, token = (
            store["sink"][block].values,
            _column(store, documents, block),
            _column(store, tokens, block),
        )
        for rows in iter_slices(block.stop, step, block.start):
            part = slice(rows.start - block.start, rows.stop - block.start)
            yield rows, Rows(rows.start, skip[part], document[part], token[part])


def _most_rows(store: xr.Dataset, panel: slice) -> int:
    """Return how many rows of a panel fit a slab wherever its entries lie, up to :data:`BLOCK_ROWS`.

    All of them fit if all entries do: those of sinks, which are not counted, may be everywhere.
    """
    width = panel.stop - panel.start
    entries = int(store["n_active"].values[panel].sum()) + int(store.attrs["n_sinks"]) * width
    if store.attrs["layout"] == "csr" and ENTRY_BYTES * entries <= SLAB_BYTES:
        return BLOCK_ROWS
    return SLAB_BYTES // (4 * width)


def _column(store: xr.Dataset, name: str | None, rows: slice) -> NDArray[np.int64]:
    return np.zeros(0, np.int64) if name is None else store[name][rows].values.astype(np.int64)


def _finished(state: Any, settings: ContextsSettings, *, tokens: bool) -> Arrays:
    """Return what is kept in the form of the result."""
    state.values[state.rows < 0] = np.nan
    arrays: Arrays = {"row": state.rows, "value": state.values}
    if settings.quantiles:
        arrays |= _at_quantiles(state, settings.quantiles)
    if settings.bins:
        arrays["histogram"] = state.bins.astype(np.int32)
    if settings.tokens and tokens:
        arrays |= _commonest(state, settings.tokens)
    return arrays


def _at_quantiles(state: Any, quantiles: Sequence[float]) -> Arrays:
    """Return the rows of each sample that are nearest to the quantiles of its activations."""
    # by activation, then by row; what is no row comes last
    order = np.lexsort((state.sample_rows, state.sample_values), axis=1)
    size = np.count_nonzero(state.sample_rows >= 0, axis=1)
    at = np.rint(np.maximum(size - 1, 0)[:, None] * np.array(quantiles)).astype(np.int64)
    chosen = np.take_along_axis(order, at, axis=1)
    return {
        "quantile_row": np.take_along_axis(state.sample_rows, chosen, axis=1),
        "quantile_value": np.take_along_axis(state.sample_values, chosen, axis=1),
    }


def _commonest(state: Any, n: int) -> Arrays:
    """Return the tokens with the highest counts, ties by the row that stands for them."""
    order = np.lexsort((state.token_rows, -state.token_counts), axis=1)[:, :n]
    counts = np.take_along_axis(state.token_counts, order, axis=1)
    rows = np.where(counts > 0, np.take_along_axis(state.token_rows, order, axis=1), -1)
    return {"token_row": rows, "token_count": counts.astype(np.int32), "token_missed": state.missed.astype(np.int32)}


#: Dimensions besides `feature`, and what each variable is.
_VARIABLES = {
    "row": ("rank", "row of the store, −1 where there is none"),
    "value": ("rank", "activation in that row"),
    "quantile_row": ("quantile", "row at a quantile of the positive activations, −1 where there is none"),
    "quantile_value": ("quantile", "activation in that row"),
    "histogram": ("bin", "rows by activation, from 0 to the maximum"),
    "token_row": ("token", "a row that stands for the token, −1 where there is none"),
    "token_count": ("token", "firing rows with this token, at least"),
    "token_missed": (None, "how many more firing rows a token may have at most"),
}


def _dataset(arrays: Arrays, store: xr.Dataset, settings: ContextsSettings) -> xr.Dataset:
    variables: dict[str, Any] = {}
    for name, values in arrays.items():
        dim, long_name = _VARIABLES[name]
        variables[name] = (("feature",) if dim is None else ("feature", dim), values, {"long_name": long_name})
    n_rows = store.sizes["token"] - int(store.attrs["n_sinks"])
    rate = store["n_active"].values / max(1, n_rows)
    variables["firing_rate"] = ("feature", rate, {"long_name": "share of rows on which the feature is not 0"})
    coords: dict[str, Any] = {}
    if settings.quantiles:
        coords["quantile"] = list(settings.quantiles)
    if settings.bins:
        coords["bin"] = np.arange(1, settings.bins + 1) / settings.bins
    return xr.Dataset(variables, coords, attrs={name: store.attrs[name] for name in CARRIED if name in store.attrs})
