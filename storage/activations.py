"""Activation stores as a whole: write one from data at hand, open it, read it.

:mod:`storage.writer` writes stores piece by piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike, DTypeLike, NDArray

from storage.codec import is_sparse_matrix
from storage.damage import reading
from storage.dense_array import read_block, read_chunks, read_dense_layout
from storage.errors import FormatError, InputError
from storage.files import local_path
from storage.inventory import REMEDY
from storage.manifest import Manifest
from storage.results import open_group, read_finished_attrs
from storage.rows import check_tokens
from storage.shards import iter_slices
from storage.slabs import iter_slabs, reslab, share_not_zero
from storage.sparse_array import ALL_SHARDS, is_csr_array, read_csr, read_layout, read_shards
from storage.targets import STORE, claim
from storage.writer import (
    ACTIVATION,
    DEFAULT_SHARD_ROWS,
    SCHEMA_VERSION,
    ActivationWriter,
    Layout,
    check_encoding,
    write_coordinates,
)

# Below this share of nonzero values, rows are kept as csr.
SPARSE_BELOW = 0.25
# Largest dense block that open_activations hands to Dask as one chunk.
LARGEST_DASK_CHUNK = 256 * 2**20


def write_activations(
    path: str | Path,
    data: Any,
    *,
    tokens: Mapping[str, ArrayLike] | None = None,
    decoder: ArrayLike | None = None,
    attrs: Mapping[str, Any] | None = None,
    dtype: DTypeLike = "float32",
    layout: Layout | None = None,
    shard_rows: int = DEFAULT_SHARD_ROWS,
    chunk: tuple[int, int] | None = None,
    manifest: Manifest | None = None,
    overwrite: bool = False,
) -> None:
    """Write a whole activation store; it is there completely, or what was there before still is.

    Parameters
    ----------
    path
        Where the store is to be.
    data
        (token, feature): a NumPy array, a SciPy sparse matrix, a Dask array, or an iterable of such slabs (NumPy or
        SciPy) with any numbers of rows. Dask arrays and iterables are taken in one shard at a time.
    tokens, decoder, attrs, dtype, shard_rows, chunk, manifest, overwrite
        As in :meth:`ActivationWriter.create`.
    layout
        ``csr`` or ``dense``; if absent, ``csr`` where less than a quarter of a sample of values is not zero.

    Raises
    ------
    InputError
        If the data are empty, ragged, or not finite, an argument is wrong, or something else stands at the path
        (:mod:`storage.targets`). Nothing is left behind then.
    BusyError
        If another process is writing there.

    Examples
    --------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/a.zarr"
    >>> write_activations(path, (np.eye(3, 50) for _ in range(4)), attrs={"model": "toy", "kind": "post"})
    >>> open_activations(path)["activation"].shape
    (12, 50)
    """
    with claim(path, manifest, kind=STORE, overwrite=overwrite):
        columns = None if tokens is None else check_tokens(tokens, _known_length(data))
        slabs = reslab(iter_slabs(data, shard_rows), shard_rows)
        first = next(slabs, None)
        if first is None:
            raise InputError(f"There are no rows to write to {path}")
        writer = ActivationWriter.create(
            path,
            # A full first shard may be followed by more; the true number is set at the end
            n_tokens=first.shape[0] + (first.shape[0] == shard_rows),
            n_features=first.shape[1],
            decoder=decoder,
            attrs=attrs,
            dtype=dtype,
            layout=layout or _choose_layout(first),
            shard_rows=shard_rows,
            chunk=chunk,
            manifest=manifest,
            overwrite=overwrite,
        )
        try:
            writer = _write_slabs(writer, itertools.chain([first], slabs))
            if columns is not None:
                write_coordinates(writer.partial, check_tokens(columns, writer.n_tokens))
            writer.finalise()
        except BaseException:
            writer.discard()
            raise


def _choose_layout(slab: Any) -> Layout:
    return "csr" if is_sparse_matrix(slab) or share_not_zero(slab) < SPARSE_BELOW else "dense"


def _write_slabs(writer: ActivationWriter, slabs: Iterable[Any]) -> ActivationWriter:
    """Write slabs of exactly one shard each (the last may be short), growing the store as they come."""
    n_tokens = 0
    for i, slab in enumerate(slabs):
        n_tokens += slab.shape[0]
        if n_tokens > writer.n_tokens:
            writer = writer.resized(n_tokens)
        writer.write_shard(i, slab)
    return writer if n_tokens == writer.n_tokens else writer.resized(n_tokens)


def _known_length(data: Any) -> int | None:
    """Return the number of rows of `data` if it can tell before it is read."""
    shape = getattr(data, "shape", None)
    return int(shape[0]) if shape and not np.isnan(shape[0]) else None


def open_activations(path: str | Path) -> xr.Dataset:
    """Open an activation store lazily.

    Parameters
    ----------
    path
        The store.

    Returns
    -------
    xarray.Dataset
        ``activation`` is a Dask array in chunks of one shard, or of one panel of features of a shard where a dense
        shard would be above 256 MB. The other variables are read when they are used. ``encoding["source"]`` is
        the path. Sparse stores are read faster, and never made dense, by :func:`storage.read_csr`.

    Raises
    ------
    MissingInputError
        If there is no store, or only an unfinished one.
    FormatError
        If it is no activation store, or of another version of the format.
    """
    attrs = read_finished_attrs(path)
    _check_schema(path, attrs)
    ds = open_group(path)
    with reading(path, REMEDY):
        rows, columns = ds[ACTIVATION].encoding["shards"]
    if rows * columns * ds[ACTIVATION].dtype.itemsize > LARGEST_DASK_CHUNK:
        columns = ds[ACTIVATION].encoding["chunks"][1]
    # It holds for the files here, not for copies that xarray writes of them
    ds[ACTIVATION].attrs.pop(ALL_SHARDS, None)
    ds[ACTIVATION] = ds[ACTIVATION].chunk({"token": rows, "feature": columns})
    return ds


def _check_schema(path: str | Path, attrs: Mapping[str, Any]) -> None:
    version = attrs.get("schema_version")
    if version is None or "layout" not in attrs:
        raise FormatError(f"{path} is not an activation store; write one with storage.write_activations")
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"{path} is an activation store of format version {version}; this release reads version {SCHEMA_VERSION}. "
            "Harvest it again, or use the release that wrote it"
        )
    with reading(path, REMEDY):
        check_encoding(local_path(path), str(attrs["layout"]))


def is_sparse(path: str | Path) -> bool:
    """Return whether the activation store at `path` keeps its rows as csr.

    Raises
    ------
    MissingInputError
        If there is no store.
    FormatError
        If it is no activation store.
    """
    attrs = read_finished_attrs(path)
    _check_schema(path, attrs)
    return bool(attrs["layout"] == "csr")


def read_dense(
    path: str | Path, rows: slice = slice(None), features: slice = slice(None), name: str = ACTIVATION
) -> NDArray[Any]:
    """Read a slice of an array of a store as a dense array; of a sparse one, only this slice becomes dense.

    Parameters
    ----------
    path
        The store.
    rows, features
        Which rows and columns, as slices.
    name
        Name of the array.

    Returns
    -------
    numpy.ndarray
        (rows, features) of the stored type.

    Raises
    ------
    MissingInputError
        If there is no such array.
    """
    layout, wanted = read_dense_layout(path, name), (rows, features)
    if layout is not None and all(part.step in (None, 1) for part in wanted):
        ranges = [range(length)[part] for part, length in zip(wanted, layout.shape, strict=True)]
        return read_block(layout, ranges[0], ranges[1])
    if is_csr_array(path, name):
        csr = read_csr(path, rows, features, name)
        return csr.toarray().astype(read_layout(path, name).dtype, copy=False)
    return np.asarray(zarr.open_array(str(Path(path) / name), mode="r")[wanted])


def iter_dense(
    path: str | Path, rows: slice, features: slice, step: int
) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
    """Yield a slice of a store's activations as dense blocks, which cover it.

    Parameters
    ----------
    path
        The store.
    rows, features
        Which rows and columns; contiguous.
    step
        Rows of a block, where the store's own chunks are not handed out as they are.

    Yields
    ------
    tuple
        Rows, columns, and (rows, columns) of the stored type. An array is valid until the next is asked for: it may
        be a view of a buffer, since what is copied once less is read in half the time.
    """
    layout = read_dense_layout(path, ACTIVATION)
    if layout is None:
        for part in iter_slices(rows.stop, step, rows.start):
            yield part, features, read_dense(path, part, features)
        return
    ranges = range(rows.start, rows.stop), range(features.start, features.stop)
    for inside, across, chunk in read_chunks(layout, *ranges):
        yield slice(inside.start, inside.stop), slice(across.start, across.stop), chunk


def reads_by_chunk(path: str | Path) -> bool:
    """Return whether :func:`iter_dense` yields the chunks of a store as they are; else rows as wide as wanted."""
    return read_dense_layout(path, ACTIVATION) is not None


def iter_shards(path: str | Path, features: slice = slice(None)) -> Iterator[tuple[slice, Any]]:
    """Yield the rows and the content of every shard of a store, one in memory at a time.

    Parameters
    ----------
    path
        The store.
    features
        Which features.

    Yields
    ------
    tuple
        The slice of rows, and a SciPy CSR array or, for dense stores, a NumPy array.
    """
    read: Callable[..., Any] = read_csr if is_sparse(path) else read_dense
    shards = read_shards(path, ACTIVATION)
    for rows in iter_slices(shards.shape[0], shards.shard_rows):
        yield rows, read(path, rows, features)
