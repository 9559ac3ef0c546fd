"""Activation stores from other programs' files, and back.

>>> import tempfile, storage
>>> folder = Path(tempfile.mkdtemp())
>>> np.save(folder / "x.npy", np.eye(9, 30, dtype="f4"))
>>> _ = import_activations(folder / "x.npy", folder / "a.zarr", attrs={"kind": "post"})
>>> _ = export_activations(folder / "a.zarr", folder / "x.npz", "npz")
>>> scipy.sparse.load_npz(folder / "x.npz").shape
(9, 30)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import re
import resource
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse
import xarray as xr
import zarr
from numpy.typing import DTypeLike, NDArray

from storage.activations import SPARSE_BELOW, is_sparse, iter_shards, open_activations
from storage.bounds import check_file
from storage.codec import canonical
from storage.errors import BudgetError, CorruptError, InputError, shown
from storage.extras import need
from storage.files import free_space
from storage.kinds import KINDS
from storage.listing import entries_below, files_below
from storage.manifest import CONTENT_HASH, MANIFEST, json_values, new_manifest
from storage.readers import ATTRS_KEY, TOKEN_PREFIX, Source, importer_of, open_source, read_decoder
from storage.rows import ROW_HASH, TOKEN_COORDINATES, TOKEN_HASH, check_tokens
from storage.shards import iter_slices
from storage.slabs import reslab, share_not_zero
from storage.targets import IMPORT_STAGE, STORE, Target, claim, claim_file
from storage.token_tables import read_documents, read_tokens
from storage.writer import ACTIVATION, DEFAULT_SHARD_ROWS, ActivationWriter, coordinates

logger = logging.getLogger(__name__)

Format = Literal["anndata", "npz", "npy"]
FORMATS: tuple[Format, ...] = get_args(Format)
#: A dense array above this is refused unless it is asked for.
LARGEST_DENSE = 4 * 10**9
#: At most, of an HDF5 file: bytes of the coordinates of a row or feature, and of metadata.
_ROW_BYTES, _HDF5_BYTES = 160, 256 * 1024
#: Attributes that every store gets new.
OWN_ATTRS = (
    *("schema_version", "layout", "versions", "coordinates", "n_sinks"),
    *(MANIFEST, CONTENT_HASH, ROW_HASH, TOKEN_HASH),
)


def import_activations(
    source: str | Path,
    out: str | Path,
    *,
    key: str | None = None,
    decoder: str | Path | None = None,
    tokens: str | Path | None = None,
    documents: str | Path | None = None,
    attrs: Mapping[str, Any] | None = None,
    dtype: DTypeLike | None = None,
    drop_tokens: Collection[int] = (),
    mask: str | Path | None = None,
    shard_rows: int = DEFAULT_SHARD_ROWS,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make an activation store from a file that another program wrote.

    A store that came from the same files with the same settings is left as it is; the files are read to know it.
    Memory: one shard, and three slabs of 16 MB; a sparse matrix stays sparse. A ``.npz`` in other than csr or C order
    is read whole.

    Parameters
    ----------
    source
        A file or folder of any kind in :mod:`storage.readers`: arrays, tensors, tables, AnnData, caches of sae-lens and
        delphi.
    out
        Where the store is to be.
    key
        Which array of several.
    decoder
        File of the dictionary's decoder rows, (feature, d_model).
    tokens
        Table of tokens: the document of each row, and its text or its place in the text
        (:mod:`storage.token_tables`).
    documents
        The document of each row, where nothing else is known: halves are then of whole documents. A ``.npy``, or the
        column ``document`` of such a table.
    attrs
        ``model``, ``site``, ``dictionary``, ``kind``; they win over what the file says.
    dtype
        Type in the store; that of the source if absent (float32 for integers).
    drop_tokens
        Ids of tokens that are not rows, such as BOS; for sae-lens' and delphi's caches.
    mask
        Which positions of an array (sequence, position, feature) are rows; see :func:`storage.readers.open_source`.
    shard_rows
        Rows of a shard.
    overwrite
        Whether an activation store at `out` that came from other files may be replaced.

    Returns
    -------
    dict
        What the store is: path, tokens, features, layout, dtype, and whether coordinates and decoder are there.

    Raises
    ------
    InputError
        If the source is no matrix of finite real numbers, what comes with it does not fit, or something else stands at
        `out` (:mod:`storage.targets`). Nothing is left then.
    BusyError
        If another process is writing there.
    MissingDependencyError
        If the library that reads it is not installed.
    """
    if tokens is not None and documents is not None:
        raise InputError(f"{tokens} names the documents too: give tokens or documents (--tokens, --documents)")
    files = {"source": source, "decoder": decoder, "tokens": tokens, "documents": documents}
    files["mask"] = None if mask == "all" else mask
    importer_of(Path(source))  # what is no source is not read to its end first
    before = {name: _times_of(file) for name, file in files.items() if file is not None}
    manifest = new_manifest(
        IMPORT_STAGE,
        {name: identity_of_file(file) for name, file in files.items() if file is not None},
        {
            "key": key,
            "attrs": dict(attrs or {}),
            "dtype": None if dtype is None else str(np.dtype(dtype)),
            "drop_tokens": sorted(drop_tokens),
            "shard_rows": shard_rows,
            **({"mask": mask} if mask == "all" else {}),
        },
    )
    with claim(out, manifest, kind=STORE, overwrite=overwrite) as target:
        if target.is_current():
            logger.info("%s is up to date", out)
        else:
            opened = open_source(source, key=key, drop_tokens=drop_tokens, mask=mask)
            if decoder is not None:
                opened.decoder = read_decoder(decoder, opened.n_features)
            _check_decoder(opened.decoder, decoder or source)
            _add_coordinates(opened, source, tokens, documents)
            _write(opened, Path(source), target, manifest.settings, lambda: _check_unchanged(files, before))
        written = _summary(target.path)
    if not written["coordinates"]:
        logger.warning("%s has no token coordinates: row i is assumed to be the same text in every store", out)
    return {"store": str(out), **written}


def _add_coordinates(
    opened: Source, source: str | Path, tokens: str | Path | None, documents: str | Path | None
) -> None:
    """Give a source the coordinates of its rows from the files that were named, and check those that it has."""
    if tokens is not None:
        opened.tokens = read_tokens(tokens, opened.n_tokens)
    elif documents is not None:
        opened.tokens = read_documents(documents, opened.n_tokens)
    if opened.tokens is not None:
        with _naming(tokens or documents or source):
            opened.tokens = check_tokens(opened.tokens, opened.n_tokens)


def identity_of_file(path: str | Path) -> str:
    """Return the SHA-256 and the size of a file; of a folder, the SHA-256 of those of every file below it, by name.

    Raises
    ------
    MissingInputError
        If there is nothing at the path.
    InputError
        If it is a pipe, a socket or a device.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "x.npy")
    >>> _ = file.write_bytes(b"123456789")
    >>> identity_of_file(file)
    'sha256 15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225 of 9 bytes'
    """
    path = Path(path)
    if path.is_dir():
        lines = (f"{file.relative_to(path).as_posix()} {identity_of_file(file)}\n" for file in files_below(path))
        return f"sha256 {hashlib.sha256(''.join(lines).encode('utf-8', 'surrogateescape')).hexdigest()} of a folder"
    size = check_file(path, f"There is nothing at {path}; check the path")
    with path.open("rb") as stream:
        return f"sha256 {hashlib.file_digest(stream, 'sha256').hexdigest()} of {size} bytes"


def _times_of(path: str | Path) -> list[tuple[str, int, int, int]]:
    """Return name, inode, size and time of modification of a file, or of every file of a folder."""
    path = Path(path)
    statuses = ((file, file.stat()) for file in (files_below(path) if path.is_dir() else [path]) if file.exists())
    return [(str(file), status.st_ino, status.st_size, status.st_mtime_ns) for file, status in statuses]


def _check_unchanged(
    files: Mapping[str, str | Path | None], before: Mapping[str, list[tuple[str, int, int, int]]]
) -> None:
    """Raise if a file was written to since: what was read may be half of the one content, half of the other."""
    for name, times in before.items():
        if _times_of(str(files[name])) != times:
            raise InputError(f"{files[name]} was changed while it was imported: run the command again when it is whole")


def _summary(store: Path) -> dict[str, Any]:
    """Return what a finished store is, as an import tells it."""
    writer = ActivationWriter.from_disk(store, store)
    return {
        "tokens": writer.n_tokens,
        "features": writer.n_features,
        "layout": writer.layout,
        "dtype": str(writer.dtype),
        "coordinates": "char_start" in (columns := coordinates(store)),
        "documents": "document" in columns,
        "decoder": (store / "decoder").is_dir(),
    }


@contextlib.contextmanager
def _naming(file: str | Path) -> Iterator[None]:
    """Have errors about values name the file that they come from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _write(
    source: Source, file: Path, target: Target, settings: Mapping[str, Any], check_source: Callable[[], None]
) -> None:
    attrs = settings["attrs"]
    kind = attrs.get("kind", source.attrs.get("kind", KINDS[0]))
    if kind not in KINDS:
        raise InputError(f"The kind of activations is one of {', '.join(KINDS)}, not {shown(kind)}")
    file_attrs = {name: value for name, value in source.attrs.items() if name not in {*OWN_ATTRS, "dtype", "layout"}}
    slabs = (slab for slab in source.slabs(source.slab_rows) if slab.shape[0])  # all of a slab may be dropped tokens
    first = next(slabs, None)
    if first is None:
        raise CorruptError(f"{file} declares {source.n_tokens} rows, and has none; is it complete?")
    sparse = source.sparse or (source.attrs.get("layout") != "dense" and share_not_zero(first) < SPARSE_BELOW)
    _check_sinks(source, file)
    writer = ActivationWriter.create(
        target.path,
        n_tokens=source.n_tokens,
        n_features=source.n_features,
        tokens=source.tokens,
        decoder=source.decoder,
        attrs={**file_attrs, **attrs},
        dtype=settings["dtype"] or _stored_dtype(source, file),
        layout="csr" if sparse else "dense",
        shard_rows=settings["shard_rows"],
        manifest=target.manifest,
        overwrite=target.overwrite,
    )
    try:
        whole = itertools.chain([first], slabs)
        for i, slab in enumerate(reslab((canonical(part) for part in whole) if sparse else whole, writer.shard_rows)):
            with _naming(file):
                writer.write_shard(i, slab, None if source.sink is None else source.sink[writer.shard_slice(i)])
        check_source()
        writer.finalise()
    except BaseException:
        writer.discard()
        raise


def _stored_dtype(source: Source, file: Path) -> np.dtype[Any]:
    """Return the type in the store: that of the store that was exported, or of the source."""
    exported = source.attrs.get("dtype")
    if exported is None:
        return source.dtype if source.dtype.kind == "f" else np.dtype("float32")
    if exported not in ("float16", "float32", "float64"):
        raise CorruptError(
            f"{file} says that its store had the type {shown(exported)}, which no store has; give one with --dtype"
        )
    return np.dtype(exported)


def _check_sinks(source: Source, file: Path) -> None:
    if source.sink is not None and np.shape(source.sink) != (source.n_tokens,):
        raise InputError(
            f"{file} marks sinks in {shown(np.shape(source.sink))} rows, but has {source.n_tokens} rows; "
            "mark each row, or leave them out"
        )


def _check_decoder(decoder: NDArray[Any] | None, file: str | Path) -> None:
    if decoder is not None and (decoder.dtype.kind not in "fiu" or not np.isfinite(decoder).all()):
        raise InputError(
            f"The decoder in {file} holds {decoder.dtype} values that are not finite numbers; save it as float32"
        )
    if decoder is not None and np.abs(decoder).max(initial=0) > np.finfo(np.float32).max:
        raise InputError(f"The decoder in {file} holds values that are more than float32 can hold: rescale it")


def export_activations(
    store: str | Path,
    out: str | Path,
    fmt: Format,
    *,
    largest_dense: int = LARGEST_DENSE,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write an activation store in a format of other programs.

    A sparse store stays sparse in ``anndata`` and ``npz``; coordinates, sinks, decoder and attributes go with it, so
    that importing the file gives a store with the same content hash. Memory: one shard, the coordinates, and for
    AnnData the names of the rows (about 70 bytes each).

    Parameters
    ----------
    store
        The store.
    out
        The file; for ``anndata`` a ``.h5ad`` or a ``.zarr``.
    fmt
        ``anndata``, ``npz`` (``scipy.sparse.load_npz`` reads it), or ``npy`` (one dense array, nothing else).
    largest_dense
        Bytes above which a dense array is refused.
    overwrite
        Whether an earlier export at `out` may be replaced, when the new one is complete; one with the same content
        always stays. A ``.npy`` with other values is never replaced: nothing in it says where it comes from.

    Returns
    -------
    dict
        Path, format, bytes, and what was ``left_out``.

    Raises
    ------
    InputError
        If the name does not fit the format, or something else stands at `out`.
    BudgetError
        If a dense array would be larger than allowed.
    MissingDependencyError
        If anndata is not installed.
    """
    suffixes = {"anndata": (".h5ad", ".zarr"), "npz": (".npz",), "npy": (".npy",)}
    if fmt not in suffixes:
        raise InputError(f"There is no format {fmt!r}; it is one of {', '.join(FORMATS)}")
    with claim_file(out, partial(_is_export, Path(store)), suffixes=suffixes[fmt], overwrite=overwrite) as target:
        ds = open_activations(store)
        if fmt == "npy":
            _check_size(ds, largest_dense)
        writers = {"npz": _write_npz, "npy": _write_npy, "anndata": _write_anndata}
        with target.writing() as path:
            left_out = writers[fmt](Path(store), ds, path, path.suffix)
    return {"file": str(out), "format": fmt, "tokens": ds.sizes["token"], "features": ds.sizes["feature"]} | {
        "left_out": left_out
    }


#: Files of an export as AnnData in Zarr: metadata, and chunks where we have any.
_EXPORTED = re.compile(
    r"(?:(?:layers|obsm|obsp|varp|raw)/)?zarr\.json|(?:X|obs|var|uns|varm)(?:/[^/]+)*/(?:zarr\.json|c(?:/\d+)*)"
)


def _is_export(store: Path, path: Path) -> bool:
    """Return whether the file at a path has a store's attributes, as exports do, or all of the store's values.

    Of a ``.npy`` with other values, raise an InputError that says why it is never replaced.
    """
    if path.is_dir():
        names = (entry.relative_to(path).as_posix() for entry in entries_below(path))
        return (path / "uns" / ATTRS_KEY).is_dir() and all(map(_EXPORTED.fullmatch, names))
    if path.suffix == ".npy":
        try:
            there = open_source(path)
        except InputError:
            return False
        if not _has_values_of(store, there):
            raise InputError(
                f"{path} holds other values than {store}, and nothing in a .npy says where it comes from, so that it "
                "is never replaced: delete it, or give another path"
            )
        return True
    return path.is_file() and _carries_attributes(path)  # a pipe would be waited for


def _carries_attributes(path: Path) -> bool:
    """Return whether a ``.npz`` or ``.h5ad`` carries a store's attributes."""
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return f"{ATTRS_KEY}.npy" in archive.namelist()
        if path.suffix == ".h5ad":
            with need("h5py", "exchange").File(path, "r") as file:
                return f"uns/{ATTRS_KEY}" in file
    except (OSError, zipfile.BadZipFile):
        return False
    return False


def _has_values_of(store: Path, there: Source) -> bool:
    """Return whether an array is that of a store; one shard is in memory at a time."""
    writer = ActivationWriter.from_disk(store, store)
    if (there.n_tokens, there.n_features, there.dtype) != (writer.n_tokens, writer.n_features, writer.dtype):
        return False
    shards = (shard if isinstance(shard, np.ndarray) else shard.toarray() for _, shard in iter_shards(store))
    return all(map(np.array_equal, there.slabs(writer.shard_rows), shards))


def _check_size(ds: xr.Dataset, allowed: int) -> None:
    size = ds[ACTIVATION].nbytes
    if size > allowed:
        raise BudgetError(
            f"As one dense array this store would be {size / 1e9:.1f} GB; {allowed / 1e9:.1f} GB are allowed. "
            "Export it as npz or anndata, which stay sparse, or allow more with --largest-dense"
        )


def _attrs_of(ds: xr.Dataset) -> str:
    attrs = {name: value for name, value in ds.attrs.items() if name not in OWN_ATTRS}
    types = {"dtype": str(ds[ACTIVATION].dtype), "layout": ds.attrs["layout"]}
    return json.dumps(json_values({**attrs, **types}), sort_keys=True)


def _coordinates(ds: xr.Dataset) -> dict[str, NDArray[Any]]:
    return {name: ds[name].values for name in TOKEN_COORDINATES if name in ds.variables}


def _write_npy(store: Path, ds: xr.Dataset, out: Path, _: str) -> list[str]:
    shape = ds.sizes["token"], ds.sizes["feature"]
    header = {"descr": np.lib.format.dtype_to_descr(ds[ACTIVATION].dtype), "fortran_order": False, "shape": shape}
    with out.open("wb") as file:  # not mapped: a full disk is an error then, and not the end of the process
        np.lib.format.write_array_header_1_0(file, header)
        for rows, shard in iter_shards(store):
            for some in iter_slices(rows.stop - rows.start, max(1, 2**24 // shape[1])):
                part = shard[some]
                values = part if isinstance(part, np.ndarray) else part.toarray()
                file.write(values.astype(ds[ACTIVATION].dtype, copy=False).tobytes())
    return ["attributes", "sinks", *_coordinates(ds), *(["decoder"] if "decoder" in ds else [])]


def _write_npz(store: Path, ds: xr.Dataset, out: Path, _: str) -> list[str]:
    extras = {TOKEN_PREFIX + name: values for name, values in _coordinates(ds).items()}
    extras |= {"sink": ds["sink"].values, ATTRS_KEY: np.array(_attrs_of(ds))}
    if "decoder" in ds:
        extras["decoder"] = ds["decoder"].values
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, values in extras.items():
            _put(archive, name, values.dtype, values.shape, iter([values]))
        write = _put_sparse if is_sparse(store) else _put_dense
        write(archive, store, ds)
    return []


def _put_dense(archive: zipfile.ZipFile, store: Path, ds: xr.Dataset) -> None:
    shape = ds.sizes["token"], ds.sizes["feature"]
    _put(archive, ACTIVATION, ds[ACTIVATION].dtype, shape, (shard for _, shard in iter_shards(store)))


def _put_sparse(archive: zipfile.ZipFile, store: Path, ds: xr.Dataset) -> None:
    """Write the members that ``scipy.sparse.load_npz`` reads; each member is one pass over the shards."""
    lengths = np.concatenate([np.diff(shard.indptr) for _, shard in iter_shards(store)])
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    shape = np.array([ds.sizes["token"], ds.sizes["feature"]], np.int64)
    for name, values in {"format": np.array(b"csr"), "shape": shape, "indptr": indptr}.items():
        _put(archive, name, values.dtype, values.shape, iter([values]))
    # SciPy has no float16
    dtype = np.promote_types(ds[ACTIVATION].dtype, np.float32)
    n = (int(indptr[-1]),)
    ids = (shard.indices.astype(np.int32, copy=False) for _, shard in iter_shards(store))
    _put(archive, "indices", np.dtype(np.int32), n, ids)
    _put(archive, "data", dtype, n, (shard.data for _, shard in iter_shards(store)))


def _put(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], parts: Iterator[NDArray[Any]]
) -> None:
    """Write one array into the archive, part by part."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_2_0(stream, header)
        for part in parts:
            stream.write(np.ascontiguousarray(part, dtype).tobytes())


def _write_anndata(store: Path, ds: xr.Dataset, out: Path, suffix: str) -> list[str]:
    anndata, io = need("anndata", "exchange"), need("anndata.io", "exchange")
    frame = _anndata_frame(anndata, ds)
    options: dict[str, Any] = {"zarr_write_format": 3}
    if hasattr(anndata.settings, "auto_shard_zarr_v3"):
        options["auto_shard_zarr_v3"] = False  # undecided, it warns at every array
    with anndata.settings.override(**options), warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        if suffix == ".h5ad":
            _check_space(store, ds, out)
            frame.write_h5ad(out)
            group = stack.enter_context(need("h5py", "exchange").File(out, "r+"))
        else:
            frame.write_zarr(out)
            group = zarr.open_group(str(out), mode="r+", use_consolidated=False)
        if "X" in group:
            del group["X"]
        shards = (shard for _, shard in iter_shards(store))
        if is_sparse(store):
            _append_sparse(group, io, shards)
        else:
            _fill_dense(group, ds, shards)
        if suffix == ".zarr":
            zarr.consolidate_metadata(str(out))
    return []


def _check_space(store: Path, ds: xr.Dataset, out: Path) -> None:
    """Raise the error of a full disk before HDF5 meets it, which would end the process at its exit."""
    values = ds[ACTIVATION]
    # a sparse matrix has an index of at most 8 bytes beside each value
    matrix = ds["n_active"].values.sum() * (values.dtype.itemsize + 8) if is_sparse(store) else values.nbytes
    decoder = ds["decoder"].nbytes if "decoder" in ds else 0
    needed = int(matrix) + decoder + _ROW_BYTES * (ds.sizes["token"] + ds.sizes["feature"]) + _HDF5_BYTES
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if resource.RLIM_INFINITY != largest < needed:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(out))
    if free_space(out)[0] < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))


def _anndata_frame(anndata: Any, ds: xr.Dataset) -> Any:
    """Return everything but the matrix."""
    import pandas as pd  # noqa: PLC0415 - half a second, for one option

    rows, features = (pd.RangeIndex(ds.sizes[dim]).astype(str) for dim in ("token", "feature"))
    obs = pd.DataFrame({**_coordinates(ds), "sink": ds["sink"].values}, index=rows)
    var = pd.DataFrame({name: ds[name].values for name in ("mean", "std", "n_active", "max")}, index=features)
    varm = {"decoder": ds["decoder"].values} if "decoder" in ds else {}
    return anndata.AnnData(obs=obs, var=var, varm=varm, uns={ATTRS_KEY: _attrs_of(ds)})


def _append_sparse(group: Any, io: Any, shards: Iterator[scipy.sparse.csr_array]) -> None:
    io.write_elem(group, "X", next(shards), dataset_kwargs={"indptr_dtype": np.int64})
    matrix = io.sparse_dataset(group["X"])
    for shard in shards:
        matrix.append(shard)


def _fill_dense(group: Any, ds: xr.Dataset, shards: Iterator[NDArray[Any]]) -> None:
    """Write the encoding ``array`` 0.2.0 of AnnData, rows by rows."""
    shape = ds.sizes["token"], ds.sizes["feature"]
    chunks = (min(1024, shape[0]), shape[1])
    create = getattr(group, "create_array", None) or group.create_dataset
    array = create("X", shape=shape, dtype=ds[ACTIVATION].dtype, chunks=chunks)
    array.attrs["encoding-type"], array.attrs["encoding-version"] = "array", "0.2.0"
    start = 0
    for shard in shards:
        array[start : start + len(shard)] = shard
        start += len(shard)
