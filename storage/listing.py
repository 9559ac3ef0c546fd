"""Files below folders in which other processes write, rename and delete while they are listed."""

from __future__ import annotations

import contextlib
import filecmp
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def entries_below(folder: str | Path) -> Iterator[Path]:
    """Yield everything below a folder that is no folder, links and pipes too, folder by folder, in order of names.

    A folder that is renamed or deleted while it is listed is passed over, where ``Path.rglob`` of Python 3.11 raises
    FileNotFoundError. Links to folders are not followed.
    """
    for root, folders, names in os.walk(folder):
        folders.sort()
        links = (name for name in folders if Path(root, name).is_symlink())
        for name in sorted([*names, *links]):
            yield Path(root, name)


def groups_below(folder: str | Path, group_file: str) -> Iterator[Path]:
    """Yield the folders below a folder that hold a file of this name, in order of names, and none inside of them.

    A store has a folder for every shard: there is nothing else to be found there.
    """
    for root, folders, names in os.walk(folder):
        folders.sort()
        if group_file in names:
            folders.clear()
            yield Path(root)


def files_below(folder: str | Path) -> Iterator[Path]:
    """Yield the regular files among :func:`entries_below`.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "c").mkdir()
    >>> _ = (folder / "b").write_text("b"), (folder / "c" / "a").write_text("a")
    >>> [file.name for file in files_below(folder)]
    ['b', 'a']
    """
    return (entry for entry in entries_below(folder) if entry.is_file())


def same_content(first: Path, second: Path) -> bool:
    """Return whether two files have the same bytes, or two folders the same files.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "a")
    >>> _ = file.write_text("a")
    >>> same_content(file, file), same_content(file, file.parent)
    (True, False)
    """
    if first.is_file() and second.is_file():
        return filecmp.cmp(first, second, shallow=False)
    if not (first.is_dir() and second.is_dir()):
        return False
    names = [sorted(str(file.relative_to(folder)) for file in files_below(folder)) for folder in (first, second)]
    return names[0] == names[1] and all(filecmp.cmp(first / name, second / name, shallow=False) for name in names[0])


def size_on_disk(path: str | Path) -> int:
    """Return the bytes of a file, or of all files below a folder; 0 if there is none.

    >>> size_on_disk("/nowhere")
    0
    """
    path = Path(path)
    return sum(map(_size, files_below(path) if path.is_dir() else [path]))


def _size(file: Path) -> int:
    with contextlib.suppress(OSError):
        status = file.stat()
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0
