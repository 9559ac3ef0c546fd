"""Files and folders that exist whole or not at all, and the names of what is not whole yet.

Everything that a target leaves beside it while it is written, or after a process died, has one of these names:

==========================  ==================================================================================
``PATH.partial``            unfinished work that the next call goes on with
``PATH.<token>.new``        something that is being built; worthless after a death
``PATH.<token>.old``        what stood at PATH before, for the moment between two renames
``PATH.<token>.trash``      something that is being deleted
``PATH.lock``               who writes PATH now (:mod:`storage.locks`)
``NAME.<32 hex>.partial``   a file that is being written (Zarr's own are named alike)
==========================  ==================================================================================

A token is 24 random hexadecimal digits and 8 that are a checksum of them and of PATH's name: nothing of a user's has
such a name, so what has one may be removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path

from storage.errors import InputError
from storage.listing import files_below

PARTIAL_SUFFIX = ".partial"
#: The file that makes a folder a run directory.
EXPERIMENT = "experiment.json"
LOCK_SUFFIX = ".lock"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_STRAY_FILE = re.compile(r".*\.[0-9a-f]{32}\.partial", re.DOTALL)
_LEFTOVER = re.compile(
    r"(?P<name>.*)\.(?P<random>[0-9a-f]{24})(?P<sum>[0-9a-f]{8})\.(?P<ending>new|old|trash|partial)", re.DOTALL
)
_NO_TARGET = re.compile(rf".*(\{PARTIAL_SUFFIX}|\{LOCK_SUFFIX})", re.DOTALL)


def target_path(path: str | Path) -> Path:
    """Return a path to which something may be written; see :func:`local_path`.

    Raises
    ------
    InputError
        If it is no path of a file system, or has a name that unfinished work and locks have.
    """
    local = local_path(path)
    if local.name in ("", ".."):  # of the working directory, or of one above it
        local = Path(os.path.realpath(local))
    elif ".." in local.parts:
        local = Path(os.path.realpath(local.parent), local.name)
    name = local.name
    if not name:
        raise InputError(f"{local} is the root of the file system: give the path of a folder that is to be made in it")
    if _NO_TARGET.fullmatch(name) or leftover_of(name) is not None:
        raise InputError(f"{local} has a name that unfinished work or a lock of this package has: give another one")
    return local


def local_path(path: str | Path) -> Path:
    """Return a path as given, with ``~`` expanded, or that of a ``file://`` address.

    Raises
    ------
    InputError
        If it is the address of an object store or of another host: stores are folders of a file system.

    Examples
    --------
    >>> local_path("file:///data/a.zarr").as_posix()
    '/data/a.zarr'
    """
    text = os.fspath(path)
    if "\0" in text or not text:
        raise InputError(f"{text!r} is not a path")
    url = _URL.match(text)
    if url is None:
        try:  # the shell leaves ``~`` alone where it is quoted
            return Path(path).expanduser() if text.startswith("~") else Path(path)
        except RuntimeError as error:
            raise InputError(f"{text!r} begins with a home folder that is not known: write the path in full") from error
    if url[1].lower() == "file":
        return Path("/" + url[2].removeprefix("localhost/"))
    raise InputError(
        f"{url[1]}://{url[2]} is not on a file system: stores are read and written as folders. Copy the store to a "
        "local or shared disk, or mount the bucket, and give the path of the folder"
    )


#: Files that make a folder a Zarr group or array, of format 3 or 2.
ZARR_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


def refuse_inside_of_store(path: Path, remedy: str = "give a path next to it") -> None:
    """Raise :class:`InputError` if a path lies in a Zarr group or array, be it through links."""
    for parent in {**dict.fromkeys(path.absolute().parents), **dict.fromkeys(Path(os.path.realpath(path)).parents)}:
        if any((parent / name).is_file() for name in ZARR_FILES):
            raise InputError(f"{path} is inside of the store or result {parent}: {remedy}")


def free_space(path: str | Path) -> tuple[int, Path]:
    """Return the bytes that are free where `path` is or will be, and the nearest folder above it that exists."""
    absolute = Path(path).absolute()
    folder = next(parent for parent in (absolute, *absolute.parents) if parent.is_dir())
    return shutil.disk_usage(folder).free, folder


def partial_path(path: str | Path) -> Path:
    """Return where unfinished work for `path` lives: beside it, with ``.partial`` appended to the name.

    >>> partial_path("run/pairs.zarr").name
    'pairs.zarr.partial'
    """
    path = Path(path)
    return path.parent / (path.name + PARTIAL_SUFFIX)  # of a path without a name, there is none


def temporary_path(path: Path, ending: str) -> Path:
    """Return a random name beside `path` that says what it is for: ``new``, ``old``, ``trash`` or ``partial``."""
    digits = uuid.uuid4().hex[:24]
    return path.with_name(f"{path.name}.{digits}{_checksum(path.name, digits)}.{ending}")


def _checksum(name: str, digits: str) -> str:
    return f"{zlib.crc32(f'{name}.{digits}'.encode(errors='surrogateescape')):08x}"


def _match_leftover(name: str) -> re.Match[str] | None:
    match = _LEFTOVER.fullmatch(name)
    return match if match is not None and _checksum(match["name"], match["random"]) == match["sum"] else None


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
    for status in (folder.lstat(), folder.stat()):
        if status.st_uid != os.getuid():
            raise InputError(
                f"{folder} belongs to user {status.st_uid}, not to you ({os.getuid()}): use another folder"
            )
    if not stat.S_ISDIR(status.st_mode):
        raise InputError(f"{folder} is not a folder: rename it")
    if status.st_mode & 0o022:
        raise InputError(f"Others may write to {folder}, and so change what is run as you: chmod go-w {folder}")


def write_atomically(path: Path, parts: Iterable[bytes], *, mode: int = 0o666) -> None:
    """Write a file under a temporary name beside `path`, bring it to disk, and rename it.

    A process that dies on the way leaves `path` as it was, and at worst a stray file
    (see :func:`remove_stray_files`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path, "partial")
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


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8 with Unix line ends, whole or not at all."""
    write_atomically(path, [text.encode()])


def is_stray_file(name: str) -> bool:
    """Return whether a file's name is one that a writer gives before the file is whole."""
    return _STRAY_FILE.fullmatch(name) is not None


def remove_stray_files(folder: Path) -> None:
    """Delete the temporary files that killed writers left below `folder`, which is ours."""
    for stray in list(files_below(folder)):
        if is_stray_file(stray.name):
            stray.unlink(missing_ok=True)


def leftovers(path: Path) -> dict[str, list[Path]]:
    """Return what dead processes left beside `path`, by kind: ``new``, ``old``, ``trash`` and ``partial``."""
    remains: dict[str, list[Path]] = {"new": [], "old": [], "trash": [], "partial": []}
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(path.parent):
            match = _match_leftover(entry.name)
            if match is not None and match["name"] == path.name:
                remains[match["ending"]].append(Path(entry.path))
    return remains


def leftover_of(name: str) -> str | None:
    """Return the name of the target that something with such a name is left over from; None if it is none.

    >>> name = temporary_path(Path("pairs.zarr"), "old").name
    >>> leftover_of(name), leftover_of("pairs.zarr.old")
    ('pairs.zarr', None)
    """
    match = _match_leftover(name)
    return None if match is None else match["name"]


def remove_folder(path: Path) -> None:
    """Delete a folder and all in it, if it is there; it is renamed first, so that no half of it is ever seen.

    That of something new is not: nobody reads it, and a full disk may have no room for another name.
    """
    # Named after the target, so that the next claim of it finds what a dead process left of the trash
    target = path.with_name(leftover_of(path.name) or path.name)
    doomed = leftover_of(path.name) is not None and path.suffix in (".trash", ".new")
    trash = path if doomed else temporary_path(target, "trash")
    with contextlib.suppress(FileNotFoundError):
        if path != trash:
            path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
