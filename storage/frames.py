"""What compressed chunks are unpacked to: by the headers of their frames, or unpacked piece by piece.

A few bytes can be unpacked to gigabytes, whatever the array says of its chunks, and decoders ask for the memory before
they unpack anything, or never stop. So the headers of Zstandard (RFC 8878), Blosc and LZ4 are read first. Those of
gzip, zlib, bzip2 and LZMA say nothing that can be believed: such chunks are unpacked and counted, a piece in memory at
a time, where they are large enough to do harm.

>>> import numcodecs.zstd
>>> data = numcodecs.zstd.compress(bytes(10**8))
>>> len(data) < 10**4, frame_size(lambda start, n: data[start : start + n])
(True, 100000000)
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from storage.bounds import LARGEST_EXPANSION, SMALL, check_expansion, check_memory
from storage.errors import CorruptError
from storage.listing import files_below

#: Returns N bytes from a place on; fewer at the end.
Read = Callable[[int, int], bytes]

MAGIC = b"\x28\xb5\x2f\xfd"
LONGEST_HEADER = 18
LARGEST_BLOCK = 2**17
REPEATED = 1
#: A frame of anything, which decoders leave out, begins with a byte of 0x50 to 0x5f and these.
SKIPPABLE, SKIPPABLE_NIBBLE = b"\x2a\x4d\x18", 5
SHARDING = "sharding_indexed"
#: Of the offset and of the length of a chunk in the index of a shard.
INDEX_ENTRY = np.dtype("<u8")


def frame_size(read: Read, start: int = 0) -> int:
    """Return how many bytes the frames that follow each other from a place on are unpacked to, at most."""
    total, position = 0, start
    while len(header := read(position, LONGEST_HEADER)) >= 8:
        if header[1:4] == SKIPPABLE and header[0] >> 4 == SKIPPABLE_NIBBLE:
            position += 8 + int.from_bytes(header[4:8], "little")
            continue
        if not header.startswith(MAGIC):
            break
        size, position = _frame(read, header, position)
        total += size
    return total


def _frame(read: Read, header: bytes, start: int) -> tuple[int, int]:
    """Return how many bytes a frame is unpacked to, at most, and where it ends."""
    descriptor = header[4]
    is_single = descriptor >> 5 & 1
    place = 5 + (1 - is_single) + (0, 1, 2, 4)[descriptor & 3]
    width = (is_single, 2, 4, 8)[descriptor >> 6]
    says = int.from_bytes(header[place : place + width], "little") + (256 if width == 2 else 0)
    n_blocks, position, is_last = 0, start + place + width, False
    while not is_last and len(block := read(position, 3)) == 3:
        number = int.from_bytes(block, "little")
        is_last, kind, length = bool(number & 1), number >> 1 & 3, number >> 3
        position += 3 + (1 if kind == REPEATED else length)
        n_blocks += 1
    return says if width else n_blocks * LARGEST_BLOCK, position + 4 * (descriptor >> 2 & 1)


def blosc_size(read: Read, start: int = 0) -> int:
    """Return how many bytes a buffer of Blosc is unpacked to."""
    return int.from_bytes(read(start, 8)[4:], "little")


def lz4_size(read: Read, start: int = 0) -> int:
    """Return how many bytes a chunk is unpacked to that numcodecs compressed as LZ4."""
    return int.from_bytes(read(start, 4), "little")


#: Says how many bytes a chunk is unpacked to, by the name of its codec.
SIZES = {"zstd": frame_size, "blosc": blosc_size, "lz4": lz4_size}
#: Make a decoder for codecs without such headers; bytes of memory that LZMA may ask for.
MOST_OF_LZMA = 2**28
DECODERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    "zlib": zlib.decompressobj,
    "bz2": bz2.BZ2Decompressor,
    "lzma": lambda: lzma.LZMADecompressor(memlimit=MOST_OF_LZMA),
}
#: What they make of a byte at most.
MOST_EXPANSION = {"gzip": 1_032, "zlib": 1_032, "bz2": 50_000_000, "lzma": 100_000}
#: Bytes that are unpacked at a time.
PIECE = 2**20


def unpacked_size(codec: str, data: bytes, limit: int) -> int:
    """Return how many bytes a chunk is unpacked to; more than `limit` where it is not unpacked to its end.

    Members that follow each other are all counted. What is damaged is counted up to there: whoever reads it says so.

    >>> unpacked_size("gzip", zlib.compress(bytes(10**6), wbits=31) * 2, 10**7)
    2000000
    """
    total = 0
    with contextlib.suppress(zlib.error, OSError, EOFError, lzma.LZMAError):
        while data and total <= limit:
            decoder = DECODERS[codec]()
            while not decoder.eof and total <= limit:
                piece = decoder.decompress(data, PIECE)
                data = getattr(decoder, "unconsumed_tail", b"")  # zlib's, which does not keep it
                total += len(piece)
                if not (piece or data):
                    return total  # cut short
            data = decoder.unused_data
    return total


def check_size(what: str, size: int, largest: int) -> None:
    """Refuse to unpack a chunk to more than the largest that there can be in its array, or than fits in memory.

    Raises
    ------
    CorruptError
        If it is larger than any chunk of its array, and large at all.
    BudgetError
        If it does not fit in memory.
    """
    if size <= SMALL:
        return
    if size > largest:
        raise CorruptError(
            f"{what} holds a chunk that unpacks to {size:,} bytes or more, and no chunk of its array has more than "
            f"{largest:,}: the file is damaged, or made to do harm"
        )
    check_memory(f"A chunk of {what}", size, "Save it in smaller chunks")


def check_frames(array: Path, metadata: Mapping[str, Any], largest: int) -> None:
    """Do what :func:`check_size` does for every chunk of a Zarr array.

    Parameters
    ----------
    array
        The folder of the array.
    metadata
        What is in its ``zarr.json``, or ``.zarray``.
    largest
        Bytes of its largest chunk; 0 where that does not follow from the metadata, as for texts.

    Raises
    ------
    CorruptError
        If a chunk is larger than any chunk of its array, or chunks are compressed twice: the outer codec says nothing
        of what the inner one makes.
    BudgetError
        If a chunk does not fit in memory.
    """
    sharding = None
    if "compressor" in metadata:  # format 2
        ids = [(codec or {}).get("id") for codec in (*(metadata.get("filters") or []), metadata["compressor"])]
    else:
        codecs = metadata.get("codecs") or []
        sharding = next((codec["configuration"] for codec in codecs if codec.get("name") == SHARDING), None)
        ids = [codec.get("name") for codec in (*codecs, *(sharding["codecs"] if sharding is not None else ()))]
    names = [str(name).removeprefix("numcodecs.") for name in ids]
    compressors = [name for name in names if name in SIZES or name in DECODERS]
    if len(compressors) > 1 or names.count(SHARDING) > 1:
        raise CorruptError(f"{array} is compressed or sharded twice ({', '.join(names)}): save it with one compressor")
    for codec in compressors:
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
            size = _size_of_chunk(descriptor, codec, (start, length), largest)
            if largest:
                check_size(str(file), size, largest)
            else:
                check_expansion(f"A chunk in {file}", size, length)
    finally:
        os.close(descriptor)


def _size_of_chunk(descriptor: int, codec: str, place: tuple[int, int], largest: int) -> int:
    start, length = place
    if codec in SIZES:
        return SIZES[codec](lambda at, n: os.pread(descriptor, max(0, min(n, start + length - at)), at), start)
    if length * MOST_EXPANSION[codec] <= SMALL:
        return 0
    limit = max(SMALL, largest or LARGEST_EXPANSION * length)
    return unpacked_size(codec, os.pread(descriptor, length, start), limit)


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
