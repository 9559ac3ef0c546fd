"""Files and folders that exist whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


def free_space(path: str | Path) -> tuple[int, Path]:
    """Return the bytes that are free where `path` is or will be, and the nearest folder above it that exists."""
    folder = next(one for one in (Path(path).absolute(), *Path(path).absolute().parents) if one.is_dir())
    return shutil.disk_usage(folder).free, folder


def partial_path(path: str | Path) -> Path:
    """Return where unfinished work for `path` lives: beside it, with ``.partial`` appended to the name.

    >>> partial_path("run/pairs.zarr").name
    'pairs.zarr.partial'
    """
    path = Path(path)
    return path.with_name(path.name + PARTIAL_SUFFIX)


def write_atomically(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file under a temporary name beside `path`, bring it to disk, and rename it.

    A process that dies on the way leaves `path` as it was, and at worst a stray ``*.partial`` file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_stray_files(folder: Path) -> None:
    """Delete the temporary files that killed writers left below `folder`."""
    for stray in folder.rglob(f"*{PARTIAL_SUFFIX}"):
        if stray.is_file():
            stray.unlink(missing_ok=True)


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder `new` in the place of `path`: an old one is first moved away, and deleted last."""
    old = path.with_name(f"{path.name}.{uuid.uuid4().hex}.old")
    with contextlib.suppress(FileNotFoundError):
        path.rename(old)
    new.rename(path)
    remove_folder(old)


def remove_folder(path: Path) -> None:
    """Delete a folder and all in it, if it is there; it is renamed first, so that no half of it is ever found."""
    doomed = path if path.suffix == ".old" else path.with_name(f"{path.name}.{uuid.uuid4().hex}.old")
    with contextlib.suppress(FileNotFoundError):
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
