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


def private_folder(path: Path, *, exist_ok: bool = True) -> Path:
    """Make a folder that only the user may enter, and missing ones above it, whatever the umask; return it.

    Parameters
    ----------
    path
        Where keys, state, or code that is run will be.
    exist_ok
        Whether it may be there already.

    Returns
    -------
    Path
        `path`; new folders have mode 0700.

    Raises
    ------
    InputError
        If it is there and not private, see :func:`require_private`.
    FileExistsError
        If it is there, and `exist_ok` is false.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     oct(private_folder(Path(folder) / "new" / "state").stat().st_mode)
    '0o40700'
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(missing):
        private_folder(folder)
    try:
        path.mkdir(mode=0o700)
        path.chmod(0o700)
    except FileExistsError:
        if not exist_ok:
            raise
        require_private(path)
    return path


def require_private(folder: Path) -> None:
    """Refuse a folder that others than the user may write to.

    Raises
    ------
    InputError
        If it belongs to somebody else, or its group or all may write to it, or it is no folder.
    """
    # a link of one's own may lead to another file system; one of somebody else's leads where they like
    for found in (folder.lstat(), folder.stat()):
        if found.st_uid != os.getuid():
            raise InputError(f"{folder} belongs to user {found.st_uid}, not to you ({os.getuid()}): use another folder")
    if not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{folder} is not a folder: rename it")
    if found.st_mode & 0o022:
        raise InputError(f"Others may write to {folder}, and so change what is run as you: chmod go-w {folder}")


def write_atomically(path: Path, parts: Iterable[bytes], *, mode: int = 0o666) -> None:
    """Write a file under a temporary name beside `path`, bring it to disk, and rename it.

    The umask takes bits from `mode`; 0o600 is private. A process that dies on the way leaves `path` as it was, and at
    worst a stray ``*.partial`` file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
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
