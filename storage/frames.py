"""What compressed chunks are unpacked to, by the headers of their frames: Zstandard (RFC 8878) and Blosc.

A few bytes can be unpacked to gigabytes, whatever the array says of its chunks, and a decoder asks for the memory
before it unpacks anything. So the headers are read first.

>>> import numcodecs.zstd
>>> data = numcodecs.zstd.compress(bytes(10**8))
>>> len(data) < 10**4, frame_size(lambda start, n: data[start : start + n])
(True, 100000000)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from storage.bounds import SMALL, check_expansion, check_memory
from storage.errors import CorruptError
from storage.listing import files_below

#: Returns so many bytes from a place on; fewer at the end.
Read = Callable[[int, int], bytes]

MAGIC = b"\x28\xb5\x2f\xfd"
LONGEST_HEADER = 18
LARGEST_BLOCK = 2**17
REPEATED = 1
#: Of the offset and of the length of a chunk in the index of a shard.
INDEX_ENTRY = np.dtype("<u8")


def frame_size(read: Read, start: int = 0) -> int:
    """Return how many bytes a frame is unpacked to, at most; 0 if none begins there."""
    header = read(start, LONGEST_HEADER)
    if len(header) < 5 or not header.startswith(MAGIC):
        return 0
    descriptor = header[4]
    is_single = descriptor >> 5 & 1
    position = 5 + (1 - is_single) + (0, 1, 2, 4)[descriptor & 3]
    width = (is_single, 2, 4, 8)[descriptor >> 6]
    if width:
        return int.from_bytes(header[position : position + width], "little") + (256 if width == 2 else 0)
    return LARGEST_BLOCK * sum(1 for _ in _blocks(read, start + position))  # it does not say


def _blocks(read: Read, position: int) -> Iterator[int]:
    """Yield where each block of a frame begins."""
    is_last = False
    while not is_last and len(header := read(position, 3)) == 3:
        yield position
        number = int.from_bytes(header, "little")
        is_last, kind, length = bool(number & 1), number >> 1 & 3, number >> 3
        position += 3 + (1 if kind == REPEATED else length)


def blosc_size(read: Read, start: int = 0) -> int:
    """Return how many bytes a buffer of Blosc is unpacked to."""
    return int.from_bytes(read(start, 8)[4:], "little")


#: Says how many bytes a chunk is unpacked to, by the name of its codec.
SIZES = {"zstd": frame_size, "blosc": blosc_size}


def check_size(what: str, size: int, largest: int) -> None:
    """Refuse to unpack a chunk to more than the largest that there can be in its array, or than fits the memory.

    Raises
    ------
    CorruptError
        If it is larger than any chunk of its array, and large at all.
    BudgetError
        If it does not fit the memory.
    """
    if size <= SMALL:
        return
    if size > largest:
        raise CorruptError(
            f"{what} holds a chunk that unpacks to {size:,} bytes, and no chunk of its array has more than "
            f"{largest:,}: the file is damaged, or made to do harm"
        )
    check_memory(f"A chunk of {what}", size, "Save it in smaller chunks")


def check_frames(array: Path, metadata: Mapping[str, Any], largest: int) -> None:
    """Do what :func:`check_size` does for every chunk of a Zarr array, if its codec is among :data:`SIZES`.

    Parameters
    ----------
    array
        The folder of the array.
    metadata
        What is in its ``zarr.json``, or ``.zarray``.
    largest
        Bytes of its largest chunk; 0 where that does not follow from the metadata, as for texts.
    """
    if "compressor" in metadata:  # format 2
        codec, sharding = (metadata["compressor"] or {}).get("id"), None
    else:
        codecs = metadata.get("codecs") or []
        sharding = codecs[0]["configuration"] if codecs and codecs[0].get("name") == "sharding_indexed" else None
        names = [codec.get("name") for codec in (codecs if sharding is None else sharding["codecs"])]
        codec = next((name for name in reversed(names) if name != "crc32c"), None)
    if codec in SIZES:
        for file in files_below(array):
            if file.parent != array or not file.name.startswith((".", "zarr.json")):
                _check_file(file, codec, largest, _index_of(metadata, sharding))


#: Of the index of a shard: how many chunks it is of, how many bytes its checksum has, and whether it comes first.
_Index = tuple[int, int, bool]


def _index_of(metadata: Mapping[str, Any], sharding: Mapping[str, Any] | None) -> _Index | None:
    if sharding is None:
        return None
    outer = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    n_chunks = math.prod(-(-n // step) for n, step in zip(outer, sharding["chunk_shape"], strict=True))
    checksum = 4 * any(codec.get("name") == "crc32c" for codec in sharding["index_codecs"])
    return n_chunks, checksum, sharding.get("index_location") == "start"


def _check_file(file: Path, codec: str, largest: int, index: _Index | None) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for start, length in _chunks(descriptor, index):
            size = SIZES[codec](lambda place, n: os.pread(descriptor, n, place), start)
            if largest:
                check_size(str(file), size, largest)
            else:
                check_expansion(f"A chunk in {file}", size, length)
    finally:
        os.close(descriptor)


def _chunks(descriptor: int, index: _Index | None) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of an open file begin, and their lengths."""
    length = os.fstat(descriptor).st_size
    if index is None:
        yield 0, length
        return
    n_chunks, checksum, comes_first = index
    index_bytes = 2 * INDEX_ENTRY.itemsize * n_chunks
    place = 0 if comes_first else length - index_bytes - checksum
    if place < 0 or len(data := os.pread(descriptor, index_bytes, place)) < index_bytes:
        return  # too short for an index: whoever reads it says so
    entries = np.frombuffer(data, INDEX_ENTRY).reshape(-1, 2)
    ends = entries.sum(axis=1, dtype="u8")
    # what lies outside of the file is absent, or the index is damaged, which its checksum says
    yield from entries[(entries[:, 0] < length) & (ends <= length) & (ends > entries[:, 0])].tolist()
