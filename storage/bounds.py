"""What a file may ask for: its kind and what it declares are checked before memory is asked for.

A few bytes can declare anything: a FIFO that never ends, two gigabytes of zeros in two megabytes, an array of 2⁵⁰
values. What is declared is compared with what is there.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterable
from pathlib import Path

from storage.errors import BudgetError, FormatError, InputError, MissingInputError, shown
from storage.listing import entries_below

#: How many times larger than on disk an array may be once it is unpacked. Real activations of a dictionary, dense and
#: compressed, come to about 300; what deflate makes of nothing but zeros is 1,030.
LARGEST_EXPANSION = 500
#: Below this, any expansion is harmless.
SMALL = 64 * 2**20
#: Share of the free memory that what must be read whole may take.
MEMORY_SHARE = 0.5
READ_IN_SLABS = "Save it as csr, uncompressed, or in rows (C order), which are read in slabs"

KINDS_OF_FILES = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISLNK: "a link",
}


def check_file(path: Path, missing: str, largest: int | None = None) -> int:
    """Return the size of a regular file; refuse anything else before it is opened (a pipe would be waited for).

    `missing` is what to say where there is nothing; a file of more than `largest` bytes is an InputError too.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
        raise MissingInputError(missing) from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is {_kind(status.st_mode)}; give a regular file")
    if largest is not None and status.st_size > largest:
        raise InputError(
            f"{path} has {status.st_size / 1e6:,.1f} MB; what is expected there has at most {largest / 1e6:,.0f} MB"
        )
    return status.st_size


def check_expansion(what: str, declared: int, stored: int) -> None:
    """Refuse an array that declares far more bytes than its file can hold.

    >>> check_expansion("x.h5ad, X", 2**40, 800)
    Traceback (most recent call last):
    storage.errors.FormatError: x.h5ad, X declares 1,100 GB, and 800 bytes of it are stored; it is damaged, ...
    """
    if declared > SMALL and declared > LARGEST_EXPANSION * stored:
        raise FormatError(
            f"{what} declares {declared / 1e9:,.4g} GB, and {stored:,} bytes of it are stored; it is damaged, or holds "
            "next to nothing: save it as a sparse matrix"
        )


def check_chunk(what: str, declared: int, stored: int | None) -> None:
    """Refuse an array whose chunks, each unpacked whole, do not fit in memory; nor what is stored of it, if given."""
    if stored is not None:
        check_expansion(f"A chunk of {what}", declared, stored)
    if declared > SMALL:
        check_memory(f"A chunk of {what}", declared, "Save it in smaller chunks")


def check_tree(folder: Path) -> int:
    """Return the bytes below a folder; refuse one with anything in it but regular files and folders, at any depth.

    A pipe would be waited for. Links to regular files are followed; links to folders are not, since what is behind them
    may be anything.
    """
    total = 0
    for path in entries_below(folder):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) and path.is_file():
            status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = _kind(status.st_mode)
            raise FormatError(f"{path} is {kind}; in a Zarr folder there are files and folders: remove it")
        total += status.st_size
    return total


def _kind(mode: int) -> str:
    return next((name for is_kind, name in KINDS_OF_FILES.items() if is_kind(mode)), "no file")


def check_memory(what: str, declared: int, remedy: str = READ_IN_SLABS) -> None:
    """Raise a BudgetError for what has to be read whole and takes more than half of the free memory."""
    import psutil  # noqa: PLC0415 - most files are small

    allowed = int(MEMORY_SHARE * psutil.virtual_memory().available)
    if declared > allowed:
        raise BudgetError(
            f"{what} has to be read whole: {declared / 1e9:,.4g} GB are needed, {allowed / 1e9:,.4g} GB (half of the "
            f"free memory) are allowed. {remedy}"
        )


def n_bytes(shape: Iterable[int], itemsize: int) -> int:
    """Return the bytes of an array, in whole numbers of any size."""
    return math.prod(int(length) for length in shape) * itemsize


def parse_size(size: str | float, name: str = "memory") -> int:
    """Return a positive number of bytes, from how people write it.

    >>> parse_size("4GB"), parse_size("1 MiB")
    (4000000000, 1048576)
    """
    from dask.utils import parse_bytes  # noqa: PLC0415 - half of storage does without Dask

    try:
        number = int(parse_bytes(size)) if str(size).strip() else 0
    except (ValueError, OverflowError, TypeError, AttributeError):  # 1e400 is infinite; Dask does not expect a list
        number = 0
    if not 0 < number < 2**63:
        raise InputError(f"{name} must be a number of bytes, as '4GB', not {shown(size)}")
    return number
