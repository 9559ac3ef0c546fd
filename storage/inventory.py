"""What a finished group consists of: every file with its size and checksum, so that a loss is not taken for zeros.

Zarr reads a missing chunk as fill values. So a group that is finished (:func:`close_group`) gets an inventory, kept
in its ``zarr.json`` beside the consolidated metadata. It is not among the attributes on purpose: a program that
writes the group anew copies attributes, but makes or drops consolidated metadata of its own. Therefore

* a group with an inventory must agree with it, and is damaged where it does not;
* a group without one was written or changed by another program (or an early version of this one): it can be read,
  but what its attributes say of its content has to be computed again before it is believed.

The checksum is CRC-32 and not CRC-32C: a chunk ends with its own CRC-32C, and the CRC-32C of data that its own
CRC-32C follows is the same number whatever the data, so that one whole chunk would pass for another of its size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.bounds import check_chunk, check_tree
from storage.damage import reading
from storage.errors import CorruptError, MissingInputError
from storage.files import PARTIAL_SUFFIX, is_stray_file, leftover_of, remove_stray_files, write_atomically
from storage.frames import check_frames
from storage.listing import entries_below
from storage.sparse_array import chunk_bytes, largest_chunk, read_metadata

logger = logging.getLogger(__name__)

GROUP_FILE = "zarr.json"
CONSOLIDATED = "consolidated_metadata"
INVENTORY = "inventory"
#: The checksum of files, as an inventory names it.
CHECKSUM = "crc32"
#: Bytes of a group up to which every file is read when the group is opened after it was copied or touched.
READ_WHEN_OPENED = 2**30
READ_BYTES = 2**22
#: Folders in unfinished work that are no arrays; they go when it is finished.
WORKING_FOLDERS = ("panels", "draws")
_NUMBER = re.compile("0|[1-9][0-9]{0,18}")
_CHUNK_KEY = re.compile(rf"c(/({_NUMBER.pattern}))*")


@dataclass(frozen=True)
class Inventory:
    """What a finished group consists of.

    Attributes
    ----------
    files
        Path below the group, with ``/`` → size in bytes and CRC-32, of every file but the group's ``zarr.json``.
    attributes
        SHA-256 of the group's attributes.
    stamp
        SHA-256 of names, sizes and times of modification: where it still holds, nothing was touched. It is not kept
        by every way of copying; then checksums decide.
    """

    files: dict[str, tuple[int, int]]
    attributes: str
    stamp: str

    @classmethod
    def read(cls, metadata: dict[str, Any], where: Path) -> Inventory | None:
        """Return the inventory in a group's metadata, or None if there is none.

        Raises
        ------
        CorruptError
            If there is one that cannot be read.
        """
        stored = (metadata.get(CONSOLIDATED) or {}).get(INVENTORY)
        # Early versions named no checksum; theirs tells nothing of the content of a chunk
        if stored is None or (isinstance(stored, dict) and stored.get("checksum") != CHECKSUM):
            return None
        try:
            files = {str(name): (int(size), int(crc)) for name, (size, crc) in stored["files"].items()}
            return cls(files, str(stored["attributes_sha256"]), str(stored["stamp"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(f"The inventory in {where / GROUP_FILE} cannot be read ({error!r}); {REMEDY}") from error


REMEDY = "the result is damaged: delete it and run the stage that wrote it again"


def close_group(folder: Path, attrs: Mapping[str, Any] | None = None, *, drop: Collection[str] = ()) -> None:
    """Complete a group with one write of its ``zarr.json``: attributes, consolidated metadata and inventory.

    Only arrays that are the group's own are taken in; folders of working files are not.

    Parameters
    ----------
    folder
        The group.
    attrs
        Attributes to add to those that it has.
    drop
        Names of attributes that go.
    """
    remove_stray_files(folder)
    metadata = read_metadata(folder)
    attributes = {**metadata.get("attributes", {}), **(attrs or {})}
    attributes = {name: value for name, value in attributes.items() if name not in drop}
    arrays = {name: array for name in array_names(folder) if (array := read_metadata(folder / name))}
    inventory = {
        "checksum": CHECKSUM,
        "files": listed_checksums(folder, list(arrays)),
        "attributes_sha256": attributes_hash(attributes),
        "stamp": stamp(folder, list(arrays)),
    }
    closed = {
        "attributes": attributes,
        "zarr_format": 3,
        "node_type": "group",
        CONSOLIDATED: {"kind": "inline", "must_understand": False, "metadata": arrays, INVENTORY: inventory},
    }
    write_atomically(folder / GROUP_FILE, [json.dumps(closed, indent=2).encode()])


def is_closed(folder: Path) -> bool:
    """Say whether a group is complete."""
    return Inventory.read(read_metadata(folder), folder) is not None


def array_names(folder: Path) -> list[str]:
    """Return the names of a group's arrays."""
    names = sorted(file.parent.name for file in folder.glob(f"*/{GROUP_FILE}"))
    return [name for name in names if read_metadata(folder / name).get("node_type") == "array"]


def attributes_hash(attributes: dict[str, Any]) -> str:
    """Return the SHA-256 of attributes, whatever their order."""
    plain = json.dumps(attributes, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def listed_checksums(folder: Path, arrays: list[str]) -> dict[str, tuple[int, int]]:
    """Return path below the group → size and CRC-32 of every file of some arrays."""
    return {name: (size, crc32(folder / name)) for name, size, _ in _listing(folder, arrays)}


def stamp(folder: Path, arrays: list[str]) -> str:
    """Return the SHA-256 over name, size and time of modification of the files of some arrays."""
    listing = sorted(f"{name} {size} {modified}\n" for name, size, modified in _listing(folder, arrays))
    return hashlib.sha256("".join(listing).encode()).hexdigest()


def faults(folder: Path, *, checksums: bool, metadata: dict[str, Any] | None = None) -> Iterator[tuple[str, str]]:
    """Yield the file and the fault of everything that is not as the inventory says; nothing where there is none.

    Parameters
    ----------
    folder
        The group.
    checksums
        Whether the content of every file is read and compared, too.
    metadata
        The group's metadata, where they have been read.
    """
    metadata = read_metadata(folder) if metadata is None else metadata
    inventory = Inventory.read(metadata, folder)
    if inventory is None:
        return
    if attributes_hash(metadata.get("attributes", {})) != inventory.attributes:
        yield GROUP_FILE, "the attributes are not those that were written"
    arrays = sorted({name.split("/", 1)[0] for name in inventory.files})
    present = {name: size for name, size, _ in _listing(folder, arrays)}
    for name in sorted({*inventory.files, *present}):
        if fault := _fault(folder, name, inventory.files.get(name), present.get(name), checksums=checksums):
            yield name, fault
    for name, array in (metadata[CONSOLIDATED].get("metadata") or {}).items():
        file = folder / name / GROUP_FILE
        if file.is_file() and _parsed(file) != array:
            yield f"{name}/{GROUP_FILE}", "differs from its copy in the group's zarr.json"


def _fault(folder: Path, name: str, written: tuple[int, int] | None, size: int | None, *, checksums: bool) -> str:
    if written is None:
        return "the file is foreign: it was not there when the group was finished"
    if size is None:
        if not (folder / name).exists():
            return "the file is missing"
        what = "a folder" if (folder / name).is_dir() else "a pipe or device"
        return f"{what} is in the place of the file"
    if size != written[0]:
        return f"the file has {size} bytes, {written[0]} were written"
    if checksums and crc32(folder / name) != written[1]:
        return "the file fails its checksum"
    return ""


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def check_whole(path: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Raise unless a group is as its inventory says.

    Names and sizes of files are compared, which takes some 10 µs a file. Checksums are compared, too, where the files
    were copied or touched since, and are of :data:`READ_WHEN_OPENED` bytes at most.

    Parameters
    ----------
    path
        The group.
    metadata
        Its metadata, where they have been read.

    Raises
    ------
    CorruptError
        If a file is missing, foreign, of another size, or of other content; the message names the first.
    """
    folder = Path(path)
    with reading(folder, REMEDY):
        _check_whole(folder, read_metadata(folder) if metadata is None else metadata)


def _check_whole(folder: Path, metadata: dict[str, Any]) -> None:
    inventory = Inventory.read(metadata, folder)
    if inventory is None:
        check_foreign(folder)
        return
    touched = not _is_untouched(folder, inventory)
    small = sum(size for size, _ in inventory.files.values()) <= READ_WHEN_OPENED
    for name, fault in faults(folder, checksums=touched and small, metadata=metadata):
        raise CorruptError(f"{folder / name}: {fault}; {REMEDY}")
    if touched and not small:
        logger.warning(
            "%s was copied or touched since it was written; its files have the right names and sizes. "
            "`subspace verify` reads them",
            folder,
        )


def check_foreign(folder: Path) -> None:
    """Refuse a group that reading would hang at, or fill the memory with: no inventory vouches for its files.

    Raises
    ------
    FormatError
        If there is anything in its arrays but files and folders, or a chunk is far larger than what is stored of it.
    BudgetError
        If a chunk does not fit in memory.
    """
    for name in array_names(folder):
        check_array(folder / name)


def check_array(array: Path, *, is_vouched_for: bool = False) -> None:
    """Do what :func:`check_foreign` does for one array; its folder may be a link.

    Where an inventory vouches for its metadata, next to nothing may be stored of a large chunk.
    """
    stored = check_tree(array)
    with reading(array):
        metadata = read_metadata(array)
        if metadata["node_type"] == "array":
            check_chunk(str(array), chunk_bytes(metadata), None if is_vouched_for else stored)
            check_frames(array, metadata, largest_chunk(metadata))


def _is_untouched(folder: Path, inventory: Inventory) -> bool:
    arrays = sorted({name.split("/", 1)[0] for name in inventory.files})
    return stamp(folder, arrays) == inventory.stamp


def is_intact(path: str | Path) -> bool:
    """Say whether a group has an inventory and agrees with it, content included.

    Files are read only where they were copied or touched since.

    Raises
    ------
    CorruptError
        If it has an inventory and does not agree: that is damage.
    """
    folder = Path(path)
    metadata = read_metadata(folder)
    inventory = Inventory.read(metadata, folder)
    if inventory is None:
        check_foreign(folder)
        return False
    with reading(folder, REMEDY):
        for name, fault in faults(folder, checksums=not _is_untouched(folder, inventory), metadata=metadata):
            raise CorruptError(f"{folder / name}: {fault}; {REMEDY}")
    return True


def strangers(folder: Path) -> list[str]:
    """Return the names of files below a group, finished or not, that are no part of it.

    The parts of one without an inventory are metadata of arrays, and chunks that lie inside of their arrays. Unfinished
    work has working folders, too (:data:`WORKING_FOLDERS`).
    """
    inventory = Inventory.read(read_metadata(folder), folder)
    is_unfinished = folder.name.endswith(PARTIAL_SUFFIX)
    belongs = inventory.files.__contains__ if inventory is not None else _Parts(folder, is_unfinished=is_unfinished)
    working = WORKING_FOLDERS if is_unfinished else ()
    names = (file.relative_to(folder).as_posix() for file in entries_below(folder))
    return sorted(name for name in names if not (belongs(name) or _passes(name) or name.split("/")[0] in working))


def is_working_folder(entry: Path) -> bool:
    """Say whether something in unfinished work is no part of the result: a working folder, or a dead writer's."""
    return entry.is_dir() and (entry.name in WORKING_FOLDERS or _passes(f"{entry.name}/{GROUP_FILE}"))


def _passes(name: str) -> bool:
    """Say whether a file is the group's own, or one that a dead writer left."""
    first, *inner = name.split("/")
    if is_stray_file(name.rsplit("/", 1)[-1]) or name == GROUP_FILE:
        return True
    return bool(inner) and leftover_of(first) is not None and not first.endswith(".old")


class _Parts:
    """Says whether a file belongs to an array of a group without an inventory; called with its name."""

    def __init__(self, folder: Path, *, is_unfinished: bool) -> None:
        self.folder, self.is_unfinished = folder, is_unfinished
        self.known: dict[str, dict[str, Any] | None] = {}

    def __call__(self, name: str) -> bool:
        array, _, key = name.partition("/")
        if key == GROUP_FILE:
            return True
        if array not in self.known:
            try:
                self.known[array] = read_metadata(self.folder / array)
            except (MissingInputError, CorruptError):
                self.known[array] = None
        metadata = self.known[array]
        if metadata is None:
            # It is deleted file by file when it is written again, or is damaged
            has_metadata = (self.folder / array / GROUP_FILE).is_file()
            return (has_metadata or self.is_unfinished) and _CHUNK_KEY.fullmatch(key) is not None
        return metadata["node_type"] == "array" and _is_chunk_key(key, metadata)


def _is_chunk_key(key: str, metadata: Mapping[str, Any]) -> bool:
    """Say whether a chunk of an array has this key."""
    encoding = metadata.get("chunk_key_encoding") or {}
    style = encoding.get("name", "default") if isinstance(encoding, dict) else encoding
    settings = encoding.get("configuration") if isinstance(encoding, dict) else None
    separator = (settings or {}).get("separator", "/" if style == "default" else ".")
    grid = [
        -(-length // step)
        for length, step in zip(metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"], strict=True)
    ]
    numbers = key.split(separator)
    if style == "default":
        if numbers.pop(0) != "c":
            return False
    elif not grid:
        return key == "0"
    return len(numbers) == len(grid) and all(
        _NUMBER.fullmatch(number) is not None and int(number) < n for number, n in zip(numbers, grid, strict=True)
    )


def _listing(folder: Path, arrays: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of modification (ns) of every file of some arrays; those being written are left out."""
    root = os.fspath(folder)
    for array in arrays:
        for entry in _entries(f"{root}/{array}"):
            if not is_stray_file(entry.name):
                status = entry.stat(follow_symlinks=True)
                yield os.path.relpath(entry.path, root).replace(os.sep, "/"), status.st_size, status.st_mtime_ns


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield the files below a folder; far faster than ``Path.rglob`` for many chunks."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir():
            yield from _entries(entry.path)
        elif entry.is_file():
            yield entry


def crc32(file: Path) -> int:
    """Return the CRC-32 of a file, of which 4 MiB are in memory at a time."""
    checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
