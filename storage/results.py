"""Results of the stages: small xarray datasets in Zarr, each with the manifest of what it was made from.

A result is written to ``PATH.partial`` and renamed when complete. :func:`write_result` does both. A stage that
writes piecewise calls :func:`begin_result`, fills the folder that it returns with :func:`add_variables` and
:func:`storage.create_sparse_array`, and calls :func:`finish_result`.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xarray as xr
import zarr
import zarr.codecs

from storage.errors import FormatError, MissingInputError
from storage.files import PARTIAL_SUFFIX, partial_path, remove_folder, remove_stray_files, replace_folder
from storage.manifest import MANIFEST, Manifest, canonical_json, is_current, read_attrs, read_manifest
from storage.sparse_array import read_metadata

logger = logging.getLogger(__name__)

# How many files each array has, and the hash of the attributes; for `verify`.
INVENTORY = "inventory"


def begin_result(path: str | Path, manifest: Manifest) -> Path:
    """Return the folder in which to write the result for `path` piece by piece.

    If unfinished work with the same manifest is there, it is kept, so that the caller can go on with it. Anything
    else there is replaced by an empty Zarr group that carries the manifest.
    """
    partial = partial_path(path)
    if not same_work(partial, manifest):
        remove_folder(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        zarr.create_group(str(partial), zarr_format=3, attributes=manifest.to_attrs())
    return partial


def same_work(partial: Path, manifest: Manifest) -> bool:
    """Say whether the folder `partial` holds unfinished work of the same manifest."""
    stored = read_manifest(partial)
    return stored is not None and stored.fingerprint == manifest.fingerprint


def finish_result(path: str | Path, manifest: Manifest | None = None) -> None:
    """Declare the work in ``PATH.partial`` complete: it becomes `path`; a result already there is replaced.

    Parameters
    ----------
    path
        Where the result is to be.
    manifest
        Written to its attributes; not needed after :func:`begin_result`, unless the attributes were overwritten.

    Raises
    ------
    MissingInputError
        If there is no unfinished work for `path`.
    FormatError
        If it has no manifest.
    """
    partial = partial_path(path)
    if manifest is not None:
        update_attrs(partial, manifest.to_attrs())
    if read_manifest(partial) is None:
        read_attrs(partial)
        raise FormatError(f"{partial} has no manifest; give finish_result the one of the stage")
    close_group(partial)
    replace_folder(partial, Path(path))


def close_group(folder: Path) -> None:
    """Clean a group that is complete, take its inventory, and gather the metadata of its arrays in one file."""
    remove_stray_files(folder)
    update_attrs(folder, {INVENTORY: take_inventory(folder)})
    with warnings.catch_warnings():
        # Consolidated metadata is not in the Zarr 3 specification yet; readers that do not know it ignore it
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        zarr.consolidate_metadata(str(folder), zarr_format=3)


def take_inventory(folder: Path) -> dict[str, Any]:
    """Return what tells later whether something is gone from a group: files of each array, a hash of the attributes.

    Zarr takes a missing chunk for a chunk of fill values; with the number of files on record, it is known to be lost.
    """
    attrs = {name: value for name, value in read_attrs(folder).items() if name != INVENTORY}
    arrays = sorted(file.parent for file in folder.glob("*/zarr.json"))
    return {
        "chunk_files": {array.name: sum(1 for _ in chunk_files(array)) for array in arrays},
        "attributes_sha256": hashlib.sha256(canonical_json(attrs).encode()).hexdigest(),
    }


def chunk_files(array: Path) -> Iterator[Path]:
    """Yield the files of an array's chunks or shards."""
    root = array / "c"
    found = [root] if root.is_file() else root.rglob("*")
    return (file for file in found if file.is_file() and not file.name.endswith(PARTIAL_SUFFIX))


def update_attrs(folder: Path, attrs: dict[str, Any]) -> None:
    """Add attributes to the group in `folder`."""
    if not folder.exists():
        raise MissingInputError(f"There is no unfinished work at {folder}")
    zarr.open_group(str(folder), mode="r+", zarr_format=3).attrs.update(attrs)


def write_result(ds: xr.Dataset, path: str | Path, manifest: Manifest) -> None:
    """Write a whole result at once; it is there completely, or what was there before still is.

    Parameters
    ----------
    ds
        The result; see :func:`add_variables`.
    path
        Where it is to be.
    manifest
        What it was made from.

    Examples
    --------
    >>> import tempfile, storage
    >>> path = tempfile.mkdtemp() + "/pairs.zarr"
    >>> manifest = storage.new_manifest("match", {}, {"method": "greedy"})
    >>> storage.write_result(xr.Dataset({"r": ("pair", [0.9, 0.4])}), path, manifest)
    >>> storage.open_result(path, stage="match").r.values
    array([0.9, 0.4])
    """
    partial = partial_path(path)
    remove_folder(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        add_variables(ds, partial)
        finish_result(path, manifest)
    except BaseException:
        remove_folder(partial)
        raise


def add_variables(ds: xr.Dataset, folder: str | Path) -> None:
    """Write the variables and attributes of `ds` into a group, beside what is there.

    Parameters
    ----------
    ds
        Small variables. How they were encoded on disk before does not matter. Every chunk gets a checksum; strings
        get the variable-length type, since Zarr 3 has no stable one of fixed length.
    folder
        What :func:`begin_result` returned, or a new folder.
    """
    plain = ds.drop_encoding()
    strings = {
        name: variable.astype(object) for name, variable in plain.variables.items() if variable.dtype.kind == "U"
    }
    plain = plain.assign(strings)
    compressors = (zarr.codecs.ZstdCodec(level=3), zarr.codecs.Crc32cCodec())
    encoding = {name: {"compressors": compressors} for name in plain.variables}
    plain.to_zarr(folder, mode="a", zarr_format=3, consolidated=False, encoding=encoding)


def make_result(out: str | Path | None, manifest: Manifest, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """Return the result at `out`, made only if it is not there yet or was made from other inputs or settings.

    Parameters
    ----------
    out
        Where it is kept; in memory only if absent.
    manifest
        What it is made from.
    make
        Computes it.

    Examples
    --------
    >>> import tempfile
    >>> from storage.manifest import new_manifest
    >>> path, manifest = f"{tempfile.mkdtemp()}/one.zarr", new_manifest("example", {}, {"n": 1})
    >>> make_result(path, manifest, lambda: xr.Dataset({"x": ("i", [1, 2])})).x.values
    array([1, 2])
    >>> make_result(path, manifest, lambda: 1 / 0).x.values
    array([1, 2])
    """
    if out is not None and is_current(out, manifest):
        logger.info("%s is up to date", out)
        return open_result(out, manifest.stage)
    result = make()
    if out is None:
        return result
    write_result(result, out, manifest)
    return open_result(out, manifest.stage)


def open_result(path: str | Path, stage: str | None = None) -> xr.Dataset:
    """Open a finished result lazily.

    Parameters
    ----------
    path
        Where it is.
    stage
        The stage that must have written it; any if absent.

    Returns
    -------
    xarray.Dataset
        With ``encoding["source"]`` set to the path.

    Raises
    ------
    MissingInputError
        If there is no finished result.
    FormatError
        If another stage wrote it, or it is no result.
    """
    attrs = read_finished_attrs(path)
    if stage is not None and (found := attrs.get(MANIFEST, {}).get("stage")) != stage:
        raise FormatError(
            f"{path} was written by the stage {found!r}, not {stage!r}: give the path of a {stage} result"
        )
    return open_group(path)


def read_finished_attrs(path: str | Path) -> dict[str, Any]:
    """Return the attributes of a finished store or result; say so if there is only unfinished work."""
    path = Path(path)
    if path.name.endswith(PARTIAL_SUFFIX):
        raise FormatError(f"{path} is unfinished work; run the stage again to finish it")
    try:
        return read_attrs(path)
    except MissingInputError:
        if partial_path(path).exists():
            raise MissingInputError(
                f"{path} is not finished: there is only {partial_path(path).name}; run the stage again to finish it"
            ) from None
        raise MissingInputError(f"There is no store or result at {path}; check the path") from None


def open_group(path: str | Path) -> xr.Dataset:
    """Open a group lazily with xarray, without Dask, and note where it came from."""
    # Ours have it; copies that users write with xarray may not, and guessing would warn
    consolidated = read_metadata(Path(path)).get("consolidated_metadata") is not None
    ds = xr.open_zarr(str(path), chunks=None, consolidated=consolidated, zarr_format=3)
    ds.encoding["source"] = str(path)
    # It is about the files here, not about what is made from them
    ds.attrs.pop(INVENTORY, None)
    return ds
