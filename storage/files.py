"""Files and folders that exist whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path

from storage.errors import InputError

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


def private_folder(path: Path) -> Path:
    """Return a folder that only the user may write to; it and missing folders above it are made, whatever the umask.

    Parameters
    ----------
    path
        Where keys, state, or code that is run will be.

    Returns
    -------
    Path
        `path`; new folders have mode 0700.

    Raises
    ------
    InputError
        If it belongs to somebody else, or others may write to it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     oct(private_folder(Path(folder) / "new" / "state").stat().st_mode)
    '0o40700'
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process made it since
            folder.mkdir(mode=0o700)
    # a link of one's own may lead to another file system; one of somebody else's leads where they like
    for state in (path.lstat(), path.stat()):
        if state.st_uid != os.getuid():
            raise InputError(f"{path} belongs to user {state.st_uid}, not to you ({os.getuid()}): remove or rename it")
    if not stat.S_ISDIR(state.st_mode):
        raise InputError(f"{path} is no folder: remove or rename it")
    if state.st_mode & 0o022:
        raise InputError(f"Others may write to {path}, and could put anything there: chmod go-w it, or remove it")
    return path


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
