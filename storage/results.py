"""Results of the stages: small xarray datasets in Zarr, each with the manifest of what it was made from.

:func:`make_result` and :func:`write_result` write one at once. A stage that works piece by piece claims its target
(:func:`storage.claim`), fills the folder that :meth:`storage.Target.begin` returns with :func:`storage.add_variables`
and :func:`storage.create_sparse_array`, and calls :meth:`storage.Target.finish`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr

from storage.damage import reading
from storage.errors import FormatError, MissingInputError
from storage.files import PARTIAL_SUFFIX, local_path, partial_path
from storage.guarded import name_errors
from storage.inventory import GROUP_FILE, REMEDY, check_whole
from storage.manifest import MANIFEST, Manifest
from storage.sparse_array import read_metadata
from storage.targets import claim

logger = logging.getLogger(__name__)


def write_result(ds: xr.Dataset, path: str | Path, manifest: Manifest, *, overwrite: bool = False) -> None:
    """Write a whole result at once; it is there completely, or what was there before still is.

    Parameters
    ----------
    ds
        The result. How its variables were encoded on disk before does not matter.
    path
        Where it is to be.
    manifest
        What it was made from.
    overwrite
        Whether a result of the same stage that came from other inputs may be replaced.

    Raises
    ------
    InputError
        If what stands at the path stays (:mod:`storage.targets`).
    BusyError
        If another process is writing there.

    Examples
    --------
    >>> import tempfile, storage
    >>> path = tempfile.mkdtemp() + "/pairs.zarr"
    >>> manifest = storage.new_manifest("match", {}, {"method": "greedy"})
    >>> storage.write_result(xr.Dataset({"r": ("pair", [0.9, 0.4])}), path, manifest)
    >>> storage.open_result(path, stage="match").r.values
    array([0.9, 0.4])
    """
    with claim(path, manifest, overwrite=overwrite) as target:
        target.write(ds)


def make_result(
    out: str | Path | None, manifest: Manifest, make: Callable[[], xr.Dataset], *, overwrite: bool = False
) -> xr.Dataset:
    """Return the result at `out`, made only if it is not there yet or was made from other inputs or settings.

    Parameters
    ----------
    out
        Where it is written; in memory only if absent.
    manifest
        What it is made from.
    make
        Computes it.
    overwrite
        Whether a result of the same stage that came from other inputs may be replaced.

    Raises
    ------
    InputError
        If what stands at `out` stays (:mod:`storage.targets`); nothing is computed then.
    BusyError
        If another process is writing there.

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
    if out is None:
        return make()
    with claim(out, manifest, overwrite=overwrite) as target:
        if target.is_current():
            logger.info("%s is up to date", out)
        else:
            target.write(make())
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
    with reading(path, REMEDY):
        written_by = attrs.get(MANIFEST, {}).get("stage")
    if stage is not None and written_by != stage:
        raise FormatError(
            f"{path} was written by the stage {written_by!r}, not {stage!r}: give the path of a {stage} result"
        )
    return open_group(path)


def read_finished_attrs(path: str | Path) -> dict[str, Any]:
    """Return the attributes of a finished store or result, after a look at whether all of its files are there.

    MissingInputError if there is none, or only unfinished work; FormatError if the path is that of unfinished work, of
    a file, or of something that is not on a file system; CorruptError if a file of it is missing or foreign.
    """
    path = local_path(path)
    if path.name.endswith(PARTIAL_SUFFIX):
        raise FormatError(f"{path} is unfinished work; run the stage again to finish it")
    try:
        metadata = read_metadata(path)
    except MissingInputError:
        raise MissingInputError(_why_missing(path)) from None
    check_whole(path, metadata)
    attributes: dict[str, Any] = metadata.get("attributes", {})
    return attributes


def _why_missing(path: Path) -> str:
    if partial_path(path).exists():
        return f"{path} is not finished: there is only {partial_path(path).name}; run the stage again to finish it"
    if path.is_file():
        zipped = "; unpack it first" if path.suffix == ".zip" else ""
        return f"{path} is a file, and a store or result is a folder{zipped}"
    if path.is_dir():
        return f"{path} is a folder without a {GROUP_FILE}: it is not a store or result, or it has lost that file"
    return f"There is no store or result at {path}; check the path"


def open_group(path: str | Path) -> xr.Dataset:
    """Open a group lazily with xarray, without Dask, and note where it came from."""
    path = local_path(path)
    # Ours have it; copies that users write with xarray may not, and guessing would warn
    consolidated = read_metadata(path).get("consolidated_metadata") is not None
    with reading(path, REMEDY):
        ds = xr.open_zarr(str(path), chunks=None, consolidated=consolidated, zarr_format=3)
    ds.encoding["source"] = str(path)
    return name_errors(ds, path)
