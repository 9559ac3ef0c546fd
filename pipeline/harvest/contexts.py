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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from distributed import Client
from numpy.typing import NDArray

from pipeline.work.workers import ensure_client, run_tasks
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

logger = logging.getLogger(__name__)

STAGE = "contexts"
#: Bytes of one slab of one panel, in the worst case that all of it is active.
SLAB_BYTES = 64 * 2**20
#: Rows whose coordinates are read at once.
BLOCK_ROWS = 2**20
#: Firing rows of each feature from which quantiles are taken.
SAMPLE = 64
#: Counters of each feature's tokens; counts are exact where a feature fires on no more different ones.
COUNTERS = 64
#: Attributes of a store that its contexts carry on.
CARRIED = ("model", "model_revision", "site", "dictionary", "kind", "row_hash", "corpus_hash")

Panel = tuple[int, int]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Wanted:
    """What is kept of each feature; the arguments of :func:`contexts` that a result depends on."""

    top_n: int
    distinct_documents: bool
    quantiles: tuple[float, ...]
    bins: int
    tokens: int
    seed: int


def contexts(
    store_path: str | Path,
    out: str | Path | None = None,
    top_n: int = 8,
    *,
    distinct_documents: bool = False,
    quantiles: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    bins: int = 20,
    tokens: int = 16,
    seed: int = 0,
    overwrite: bool = False,
    client: Client | None = None,
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
    distinct_documents
        Keep at most one row of a document for each feature, its best one: a text that repeats itself then does not
        fill the list.
    quantiles
        At which quantiles of its positive activations a row is kept for each feature. They are those of a simple random
        sample of :data:`SAMPLE` of its firing rows, which is all of them for features that fire no more often.
    bins
        Bins of the histogram of positive activations, from 0 to the feature's maximum.
    tokens
        Commonest tokens kept for each feature. They are counted over all firing rows with :data:`COUNTERS` counters a
        feature, so memory is bounded; ``token_missed`` says by how much counts may be too low. Not without the store's
        coordinate ``token_id``.
    seed
        Of the samples.
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
    wanted = Wanted(top_n, distinct_documents, tuple(map(float, quantiles)), bins, tokens, seed)
    _check(wanted, store, store_path)
    manifest = contexts_manifest(store_path, wanted)

    def make() -> xr.Dataset:
        return _dataset(_gather(str(store_path), dict(store.sizes), wanted, client), store, wanted)

    return make_result(out, manifest, make, overwrite=overwrite)


def contexts_manifest(
    store_path: str | Path, wanted: Wanted, identify: Callable[[str | Path], str] = fingerprint
) -> Manifest:
    """Return what contexts depend on; `identify` returns the fingerprint of what is, or will be, at a path."""
    return new_manifest(STAGE, {"activations": identify(store_path)}, asdict(wanted))


def _check(wanted: Wanted, store: xr.Dataset, path: str | Path) -> None:
    if wanted.top_n < 1:
        raise InputError(f"top_n is {wanted.top_n}; at least one row must be kept for each feature")
    if not all(0 <= q <= 1 for q in wanted.quantiles):
        raise InputError(f"quantiles are {wanted.quantiles}; each is from 0 to 1")
    if wanted.bins < 0 or not 0 <= wanted.tokens <= COUNTERS:
        raise InputError(
            f"bins is {wanted.bins}, tokens {wanted.tokens}; give 0 or more, and at most {COUNTERS} tokens"
        )
    if wanted.distinct_documents and "document" not in store.variables:
        raise InputError(
            f"{path} does not say which document its rows are of, so contexts cannot be from distinct documents; leave "
            "distinct_documents out, or harvest it again"
        )


def _gather(path: str, sizes: dict[Any, int], wanted: Wanted, client: Client | None) -> Arrays:
    """Return what is kept of all features, from one task for each panel of them."""
    n_features = sizes["feature"]
    chunk_features = zarr.open_array(f"{path}/activation", mode="r").chunks[1]
    panels = [(start, min(start + chunk_features, n_features)) for start in range(0, n_features, chunk_features)]
    whole: Arrays = {}
    with ensure_client(client) as own:
        label = f"top contexts, {Path(path).stem}"
        for (start, stop), part in run_tasks(
            own, _panel_task, panels, name="contexts-panel", label=label, args=(path, wanted)
        ):
            for name, values in part.items():
                all_values = whole.setdefault(name, np.empty((n_features, *values.shape[1:]), values.dtype))
                all_values[start:stop] = values
    return whole


def _panel_task(panel: Panel, path: str, wanted: Wanted) -> Arrays:
    """Return what is kept of one panel's features."""
    from pipeline.harvest import contexts_kernels as kernels

    store = open_activations(path)
    kept = _nothing_kept(store, panel, wanted)
    sparse = is_sparse(path)
    for start, rows in _slabs(path, store, panel, wanted):
        where = slice(start, start + len(rows.skip))
        if sparse:
            slab = read_csr(path, where, slice(*panel))
            entries = slab.indptr, slab.indices, slab.data.astype(np.float32, copy=False)
            kernels.take_csr(entries, rows, kept)
        else:
            dense = read_dense(path, where, slice(*panel)).astype(np.float32, copy=False)
            kernels.take_dense(dense, rows, kept)
    return _finished(kept, wanted, tokens="token_id" in store.variables)


def _nothing_kept(store: xr.Dataset, panel: Panel, wanted: Wanted) -> Any:
    from pipeline.harvest.contexts_kernels import Kept

    n = panel[1] - panel[0]
    sample = SAMPLE if wanted.quantiles else 0
    counters = COUNTERS if wanted.tokens else 0
    largest = store["max"].values[slice(*panel)]
    return Kept(
        values=np.full((n, wanted.top_n), -np.inf, np.float32),
        rows=np.full((n, wanted.top_n), -1, np.int64),
        documents=np.full((n, wanted.top_n), -1, np.int64),
        sample_hash=np.full((n, sample), np.iinfo(np.uint64).max, np.uint64),
        sample_rows=np.full((n, sample), -1, np.int64),
        sample_values=np.full((n, sample), np.nan, np.float32),
        bins=np.zeros((n, wanted.bins), np.int64),
        scale=np.divide(wanted.bins, largest, out=np.zeros(n), where=largest > 0),
        tokens=np.full((n, counters), -1, np.int64),
        token_counts=np.zeros((n, counters), np.int64),
        token_rows=np.full((n, counters), -1, np.int64),
        missed=np.zeros(n, np.int64),
        first=panel[0],
        seed=np.uint64(wanted.seed),
    )


def _slabs(path: str, store: xr.Dataset, panel: Panel, wanted: Wanted) -> Iterator[tuple[int, Any]]:
    """Yield slabs of whole chunks that stay below :data:`SLAB_BYTES` even if all of it is active: first row, rows."""
    from pipeline.harvest.contexts_kernels import Rows

    array = zarr.open_array(f"{path}/activation", mode="r")
    chunk_rows, n_rows = array.chunks[0], array.shape[0]
    step = chunk_rows * max(1, SLAB_BYTES // (4 * (panel[1] - panel[0])) // chunk_rows)
    documents = "document" if wanted.distinct_documents else None
    tokens = "token_id" if wanted.tokens and "token_id" in store.variables else None
    per_block = max(1, BLOCK_ROWS // step) * step
    for block in range(0, n_rows, per_block):
        rows = slice(block, min(block + per_block, n_rows))
        skip, document, token = (
            store["sink"][rows].values,
            _column(store, documents, rows),
            _column(store, tokens, rows),
        )
        for start in range(0, len(skip), step):
            part = slice(start, start + step)
            yield block + start, Rows(block + start, skip[part], document[part], token[part])


def _column(store: xr.Dataset, name: str | None, rows: slice) -> NDArray[np.int64]:
    return np.zeros(0, np.int64) if name is None else store[name][rows].values.astype(np.int64)


def _finished(kept: Any, wanted: Wanted, *, tokens: bool) -> Arrays:
    """Return what is kept in the form of the result."""
    kept.values[kept.rows < 0] = np.nan
    found: Arrays = {"row": kept.rows, "value": kept.values}
    if wanted.quantiles:
        found |= _at_quantiles(kept, wanted.quantiles)
    if wanted.bins:
        found["histogram"] = kept.bins.astype(np.int32)
    if wanted.tokens and tokens:
        found |= _commonest(kept, wanted.tokens)
    return found


def _at_quantiles(kept: Any, quantiles: Sequence[float]) -> Arrays:
    """Return the rows of each sample that are nearest to the quantiles of its activations."""
    # by activation, then by row; what is no row comes last
    order = np.lexsort((kept.sample_rows, kept.sample_values), axis=1)
    size = np.count_nonzero(kept.sample_rows >= 0, axis=1)
    at = np.rint(np.maximum(size - 1, 0)[:, None] * np.array(quantiles)).astype(np.int64)
    chosen = np.take_along_axis(order, at, axis=1)
    return {
        "quantile_row": np.take_along_axis(kept.sample_rows, chosen, axis=1),
        "quantile_value": np.take_along_axis(kept.sample_values, chosen, axis=1),
    }


def _commonest(kept: Any, n: int) -> Arrays:
    """Return the tokens with the highest counts, ties by the row that stands for them."""
    order = np.lexsort((kept.token_rows, -kept.token_counts), axis=1)[:, :n]
    counts = np.take_along_axis(kept.token_counts, order, axis=1)
    rows = np.where(counts > 0, np.take_along_axis(kept.token_rows, order, axis=1), -1)
    return {"token_row": rows, "token_count": counts.astype(np.int32), "token_missed": kept.missed.astype(np.int32)}


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


def _dataset(found: Arrays, store: xr.Dataset, wanted: Wanted) -> xr.Dataset:
    variables: dict[str, Any] = {}
    for name, values in found.items():
        dim, long_name = _VARIABLES[name]
        variables[name] = (("feature",) if dim is None else ("feature", dim), values, {"long_name": long_name})
    n_rows = store.sizes["token"] - int(store.attrs["n_sinks"])
    rate = store["n_active"].values / max(1, n_rows)
    variables["firing_rate"] = ("feature", rate, {"long_name": "share of rows on which the feature is not 0"})
    coords: dict[str, Any] = {}
    if wanted.quantiles:
        coords["quantile"] = list(wanted.quantiles)
    if wanted.bins:
        coords["bin"] = np.arange(1, wanted.bins + 1) / wanted.bins
    return xr.Dataset(variables, coords, attrs={name: store.attrs[name] for name in CARRIED if name in store.attrs})
