"""Small xarray datasets as variables of a Zarr group: how they are encoded, and how they join what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr
import zarr
import zarr.codecs

from storage.errors import MissingInputError
from storage.files import remove_folder, temporary_path
from storage.inventory import GROUP_FILE
from storage.manifest import read_attrs


def write_variables(ds: xr.Dataset, folder: Path) -> None:
    """Write a dataset as a new group. Every chunk gets a checksum; strings get the variable-length type of Zarr 3."""
    plain = ds.drop_encoding()
    strings = {
        name: variable.astype(object) for name, variable in plain.variables.items() if variable.dtype.kind == "U"
    }
    plain = plain.assign(strings)
    compressors = (zarr.codecs.ZstdCodec(level=3), zarr.codecs.Crc32cCodec())
    encoding = {name: {"compressors": compressors} for name in plain.variables}
    plain.to_zarr(folder, mode="w-", zarr_format=3, consolidated=False, encoding=encoding)


def add_variables(ds: xr.Dataset, folder: str | Path) -> None:
    """Write the variables and attributes of `ds` into unfinished work, in place of variables of the same names.

    Parameters
    ----------
    ds
        Small variables. How they were encoded on disk before does not matter.
    folder
        The unfinished work (:meth:`storage.Target.begin`). A process that dies on the way leaves each variable whole
        or absent, and the attributes as they were: the caller writes all of them again.
    """
    folder = Path(folder)
    # Beside the target, where the next claim of it sweeps what a dead process left
    new = temporary_path(folder.with_suffix(""), "new")
    try:
        write_variables(ds, new)
        for array in [entry for entry in new.iterdir() if entry.is_dir()]:
            remove_folder(folder / array.name)
            array.rename(folder / array.name)
        update_attrs(folder, read_attrs(new))
    finally:
        remove_folder(new)


def update_attrs(folder: Path, attrs: dict[str, Any]) -> None:
    """Add attributes to the group in `folder`, in one write."""
    if not (folder / GROUP_FILE).is_file():
        raise MissingInputError(f"There is no unfinished work at {folder}")
    zarr.open_group(str(folder), mode="r+", zarr_format=3).attrs.update(attrs)
