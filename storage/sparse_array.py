"""A sparse two-dimensional Zarr array, written one shard at a time and read by slices, never dense.

The array is ordinary Zarr v3: any program that has the ``csr`` codec reads it. But Zarr's own machinery only knows
dense chunks, so this module writes and reads the files itself::

    one shard = one file = `shard_rows` rows × all columns
    ┌──────────┬──────────┬─ … ─┬──────────┬───────────────────────────────┐
    │ chunk    │ chunk    │     │ chunk    │ index: offset and length of   │
    │ (0, 0)   │ (0, 1)   │     │ (m, n)   │ each chunk, then its crc32c   │
    └──────────┴──────────┴─ … ─┴──────────┴───────────────────────────────┘
    each chunk = csr payload → zstd → crc32c; a chunk without entries is absent (offset and length 2⁶⁴ − 1)

Chunks are panels of columns: reading one feature of all rows touches only the chunks that can hold it.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import google_crc32c
import numcodecs.zstd
import numpy as np
import scipy.sparse
import zarr
import zarr.codecs
from numpy.typing import DTypeLike, NDArray

from storage.bounds import n_bytes
from storage.codec import (
    CODEC_NAME,
    LARGEST_INT32,
    CsrCodec,
    Panel,
    bits_dtype,
    canonical,
    id_dtype,
    is_sparse_matrix,
    largest_payload,
    pack,
    scipy_dtype,
    unpack,
)
from storage.errors import CorruptError, FormatError, InputError, shown
from storage.files import write_atomically
from storage.frames import check_size, frame_size
from storage.json_files import read_json_object
from storage.kernels import count_by_panel, cut_columns, place_panel, scatter_by_panel
from storage.shards import Shards

ZSTD_LEVEL = 3
#: Chunks, or shards where there are any, that no array has: each is a file.
MOST_CHUNKS = 10**7
CHECKSUM_BYTES = 4
INDEX_ENTRY_BYTES = 16
NO_CHUNK = 2**64 - 1
DEFAULT_CHUNK = (4096, 4096)
#: Rows and features of a chunk of dense layout: 8 MiB, since no part of it can be read alone.
DENSE_CHUNK = (1024, 2048)
# Every shard is a file, also one without entries: a missing file is a fault, not zeros.
ALL_SHARDS = "every_shard_has_a_file"

KEEP_ENCODING = (
    "give the changed variable the `.encoding` of the original, which arithmetic drops, and save it again: its values "
    "are all there"
)


@dataclass(frozen=True)
class SparseLayout(Shards):
    """Where the parts of a sparse array are: all that is needed to read or write its files.

    Attributes
    ----------
    dtype
        Of the values.
    chunk
        Rows and columns of an inner chunk.
    compression
        Names of the codecs after ``csr``, in the order of encoding.
    checked_index
        Whether the shard index is followed by its crc32c.
    all_shards
        Whether a missing shard is an error rather than a shard without entries.
    """

    dtype: np.dtype[Any]
    chunk: tuple[int, int]
    compression: tuple[str, ...]
    checked_index: bool
    all_shards: bool

    @property
    def grid(self) -> tuple[int, int]:
        """How many inner chunks a shard has, down and across."""
        return self.shard_rows // self.chunk[0], -(-self.shape[1] // self.chunk[1])

    @property
    def index_bytes(self) -> int:
        """Size of a shard's index, with its checksum."""
        return INDEX_ENTRY_BYTES * self.grid[0] * self.grid[1] + CHECKSUM_BYTES * self.checked_index


def read_layout(path: str | Path, name: str) -> SparseLayout:
    """Read the layout of array `name` in the group at `path` from its Zarr metadata.

    MissingInputError if there is no such array, FormatError if it is not a csr array of the kind that this module
    writes.
    """
    folder = Path(path) / name
    metadata = read_metadata(folder)
    try:
        return parse_layout(folder, metadata, CODEC_NAME)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(
            f"{folder} is not a sharded csr array ({error}); xarray.open_zarr reads it. If xarray saved it, "
            f"{KEEP_ENCODING}"
        ) from error


def read_shards(path: str | Path, name: str) -> Shards:
    """Return the shards of array `name`, sparse or dense, in the group at `path`."""
    folder = Path(path) / name
    metadata = read_metadata(folder)
    (rows, columns), step = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    return Shards(folder, (rows, columns), step)


def is_csr_array(path: str | Path, name: str) -> bool:
    """Return whether array `name` in the group at `path` is a csr array that :func:`read_csr` can read."""
    try:
        read_layout(path, name)
    except FormatError:  # an array that is not there is no FormatError
        return False
    return True


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the content of a Zarr node's ``zarr.json``."""
    missing = f"There is no Zarr array or group at {folder}"
    content = read_json_object(folder / "zarr.json", missing, "delete it and run what wrote it again")
    content.setdefault("attributes", {})
    if problem := _problem_of(content):
        raise CorruptError(f"{folder / 'zarr.json'} {problem}: it is damaged; delete it and run what wrote it again")
    return content


def _problem_of(metadata: dict[str, Any]) -> str:
    """Say what is wrong with a node's metadata, of what is read without Zarr."""
    if not isinstance(metadata.get("attributes", {}), dict):
        return "has attributes that are not a JSON object"
    if not isinstance(metadata.get("consolidated_metadata") or {}, dict):
        return "has a copy of its arrays' metadata that is not a JSON object"
    if metadata.get("node_type") != "array":
        return "" if metadata.get("node_type") == "group" else "describes neither an array nor a group"
    return _problem_of_array(metadata)


def _problem_of_array(metadata: dict[str, Any]) -> str:
    shape, grid = metadata.get("shape"), metadata.get("chunk_grid")
    if not _is_shape(shape):
        return f"has the shape {shown(shape)}"
    configuration = grid.get("configuration") if isinstance(grid, dict) else None
    chunk = configuration.get("chunk_shape") if isinstance(configuration, dict) else None
    if not _is_shape(chunk) or len(chunk) != len(shape) or 0 in chunk:
        return f"has chunks of the shape {shown(chunk)} in an array of the shape {shown(shape)}"
    chunks = math.prod(-(-length // step) for length, step in zip(shape, chunk, strict=True))
    if chunks > MOST_CHUNKS:
        return f"has the shape {shown(shape)}, which are {chunks:,} chunks"
    return "" if "data_type" in metadata else "names no type of values"


def inner_chunk(metadata: Mapping[str, Any]) -> tuple[list[int], str | None]:
    """Return the shape of an array's chunks, inside of shards if it has any, and the name of their first codec."""
    shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    codec = next(iter(metadata.get("codecs") or [{}]))
    if codec.get("name") == "sharding_indexed":
        shape, inner = codec["configuration"]["chunk_shape"], codec["configuration"]["codecs"]
        codec = next(iter(inner or [{}]))
    return shape, codec.get("name")


def chunk_bytes(metadata: Mapping[str, Any]) -> int:
    """Return the bytes that a chunk of an array is unpacked to, by its metadata; 0 if it is sparse and never is."""
    shape, codec = inner_chunk(metadata)
    if codec == CODEC_NAME or not isinstance(metadata["data_type"], str):
        return 0
    # of a text there is at least where it is
    itemsize = 8 if metadata["data_type"] == "string" else np.dtype(metadata["data_type"]).itemsize
    return n_bytes(shape, itemsize)


def largest_chunk(metadata: Mapping[str, Any]) -> int:
    """Return the bytes that a chunk of an array is decompressed to at most; 0 if it is of texts."""
    if metadata["data_type"] == "string" or not isinstance(metadata["data_type"], str):
        return 0
    shape, codec = inner_chunk(metadata)
    dtype = np.dtype(metadata["data_type"])
    return largest_payload((shape[0], shape[1]), dtype) if codec == CODEC_NAME else n_bytes(shape, dtype.itemsize)


def _is_shape(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(length, int) and length >= 0 for length in value)


def parse_layout(folder: Path, metadata: Mapping[str, Any], codec: str) -> SparseLayout:
    """Return the layout of a sharded array whose chunks `codec` encodes; raise ValueError if it is none of ours."""
    sharding, *more = metadata["codecs"]
    _require(sharding["name"], "sharding_indexed")
    _require(more, [])
    settings = sharding["configuration"]
    names = [codec["name"] for codec in settings["codecs"]]
    index_names = [codec["name"] for codec in settings["index_codecs"]]
    _require(names[0], codec)
    _require(set(names[1:]) <= {"zstd", "crc32c"}, True)
    _require(index_names in (["bytes"], ["bytes", "crc32c"]), True)
    _require(settings["index_codecs"][0].get("configuration", {}).get("endian", "little"), "little")
    _require(settings.get("index_location", "end"), "end")
    _require(metadata["chunk_key_encoding"], {"name": "default", "configuration": {"separator": "/"}})
    _require(float(metadata["fill_value"]), 0.0)
    shard_rows, shard_columns = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    rows, columns = metadata["shape"]
    _require(shard_columns >= columns, True)
    return SparseLayout(
        folder=folder,
        shape=(rows, columns),
        dtype=np.dtype(metadata["data_type"]),
        shard_rows=shard_rows,
        chunk=(settings["chunk_shape"][0], settings["chunk_shape"][1]),
        compression=tuple(names[1:]),
        checked_index=len(index_names) == 2,
        all_shards=bool(metadata.get("attributes", {}).get(ALL_SHARDS)),
    )


def _require(value: Any, expected: Any) -> None:
    if value != expected:
        raise ValueError(f"found {value!r} in place of {expected!r}")


def fit_shards(n_rows: int, n_columns: int, shard_rows: int, chunk: Sequence[int]) -> tuple[int, tuple[int, int]]:
    """Return the rows of a shard and the shape of a chunk, shrunk to a small array.

    A chunk gets fewer rows than asked for where those do not divide a shard; InputError if no number near it does, or
    the array is empty.

    >>> fit_shards(100_000, 32_768, 16_384, (4096, 4096))
    (16384, (4096, 4096))
    >>> fit_shards(10, 300, 16_384, (4096, 4096))
    (10, (10, 300))
    """
    if n_rows < 1 or n_columns < 1:
        raise InputError(f"An array of {n_rows} rows and {n_columns} columns holds nothing; both must be at least 1")
    if shard_rows < 1 or min(chunk) < 1:
        raise InputError(f"Shards of {shard_rows} rows and chunks of {tuple(chunk)} are not possible: all must be ≥ 1")
    columns = min(chunk[1], n_columns)
    if shard_rows >= n_rows:
        rows = min(chunk[0], shard_rows, n_rows)
        return -(-n_rows // rows) * rows, (rows, columns)
    return shard_rows, (_chunk_rows(shard_rows, chunk[0]), columns)


def _chunk_rows(shard_rows: int, wanted: int) -> int:
    """Return the number of rows of a chunk that divides a shard and is nearest below `wanted`."""
    if shard_rows <= wanted:
        return shard_rows
    for rows in range(wanted, wanted // 4, -1):
        if shard_rows % rows == 0:
            return rows
    raise InputError(
        f"A shard of {shard_rows} rows cannot be cut into equal chunks of {wanted} rows or a little fewer; "
        f"take {round(shard_rows / wanted) * wanted} rows, or at most {wanted}"
    )


def create_sparse_array(
    group_path: str | Path,
    name: str,
    shape: tuple[int, int],
    dtype: DTypeLike,
    *,
    dims: tuple[str, str],
    shard_rows: int,
    chunk: tuple[int, int] = DEFAULT_CHUNK,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Create an empty sparse array in a Zarr group; an array of that name is replaced.

    Parameters
    ----------
    group_path
        Folder of the group, made if absent.
    name
        Name of the array.
    shape
        Rows and columns.
    dtype
        float16, float32 or float64.
    dims
        Names of the two dimensions.
    shard_rows
        Rows that one call of :func:`write_sparse_shard` writes; best a multiple of the rows of a chunk, or fewer.
    chunk
        Rows and columns of the chunks inside a shard; shrunk where the array is smaller.
    attrs
        Attributes of the array.

    Raises
    ------
    InputError
        If the type is not one of those, the shape is empty, or no chunks of about that size divide a shard.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> create_sparse_array(folder, "r", (5, 4), "f8", dims=("feature_a", "feature_b"), shard_rows=3)
    >>> for i, rows in enumerate([3, 2]):
    ...     write_sparse_shard(folder, "r", i, scipy.sparse.csr_array(np.eye(rows, 4)))
    >>> read_csr(folder, rows=slice(2, 4), name="r").toarray()
    array([[0., 0., 1., 0.],
           [1., 0., 0., 0.]])
    """
    if np.dtype(dtype) not in (np.float16, np.float32, np.float64):
        raise InputError(f"Sparse arrays keep float16, float32 or float64, not {np.dtype(dtype)}")
    shard_rows, chunk = fit_shards(*shape, shard_rows, chunk)
    group = zarr.open_group(str(group_path), mode="a", zarr_format=3)
    group.create_array(
        name,
        shape=shape,
        dtype=np.dtype(dtype),
        chunks=chunk,
        shards=(shard_rows, -(-shape[1] // chunk[1]) * chunk[1]),
        serializer=CsrCodec(),
        compressors=[zarr.codecs.ZstdCodec(level=ZSTD_LEVEL), zarr.codecs.Crc32cCodec()],
        fill_value=0.0,
        dimension_names=dims,
        attributes={**(attrs or {}), ALL_SHARDS: True},
        overwrite=True,
    )


def write_sparse_shard(group_path: str | Path, name: str, i: int, csr: Any) -> None:
    """Write one whole shard of a sparse array: it exists completely, or not at all.

    Different shards may be written at once by any number of threads and processes. The same input gives the same
    bytes. Memory beyond the input: the encoded shard and one row of chunks.

    Parameters
    ----------
    group_path, name
        The array.
    i
        Number of the shard.
    csr
        SciPy sparse matrix with the shard's rows and all columns. Duplicates are summed and column ids sorted;
        explicit zeros and NaN are kept.

    Raises
    ------
    InputError
        If the shape is not that of the shard, `csr` is not sparse, or a value overflows the array's type.
    """
    layout = read_layout(group_path, name)
    rows = layout.shard_slice(i)
    expected = (rows.stop - rows.start, layout.shape[1])
    if not is_sparse_matrix(csr) or csr.shape != expected:
        raise InputError(
            f"Shard {i} of {layout.folder} takes a SciPy sparse matrix of shape {expected}, "
            f"not {type(csr).__name__} of shape {getattr(csr, 'shape', None)}"
        )
    if layout.compression != ("zstd", "crc32c") or not layout.checked_index:
        raise FormatError(f"{layout.folder} was not created by create_sparse_array; write to it through Zarr")
    write_atomically(layout.shard_file(i), encode_shard(layout, canonical(csr)))


def encode_shard(layout: SparseLayout, csr: scipy.sparse.csr_array) -> list[bytes]:
    """Return the content of a shard's file, chunk by chunk, then the index; `csr` is in canonical form."""
    bits = cast_values(csr.data, layout.dtype).view(bits_dtype(layout.dtype))
    index = np.full((*layout.grid, 2), NO_CHUNK, "<u8")
    parts: list[bytes] = []
    offset = 0
    for down in range(layout.grid[0]):
        for across, panel in _split_panels(layout, csr, bits, down * layout.chunk[0]):
            parts.append(_compress(pack(panel)))
            index[down, across] = offset, len(parts[-1])
            offset += len(parts[-1])
    return [*parts, _with_checksum(index.tobytes())]


def cast_values(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `values` as `dtype`, little endian; a finite value that would become infinite is an error."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype.newbyteorder("<"))
    if cast.dtype.itemsize < values.dtype.itemsize:
        lost = np.isinf(cast) & np.isfinite(values)
        if lost.any():
            raise InputError(f"{values[lost][0]!r} does not fit {dtype}; keep the array in a wider type")
    return cast


def _split_panels(
    layout: SparseLayout, csr: scipy.sparse.csr_array, bits: NDArray[Any], first: int
) -> Iterator[tuple[int, Panel]]:
    """Yield the number and the parts of every chunk with entries in the row of chunks that starts at row `first`."""
    last = min(first + layout.chunk[0], csr.shape[0])
    if first >= last:
        return
    width = layout.chunk[1]
    lengths = np.zeros((layout.grid[1], layout.chunk[0]), "<u4")
    count_by_panel(csr.indptr, csr.indices, first, width, lengths)
    ends = np.cumsum(lengths.sum(axis=1, dtype=np.int64))
    starts = np.concatenate([[0], ends[:-1]])
    ids, out = np.empty(ends[-1], id_dtype(width)), np.empty(ends[-1], bits.dtype)
    scatter_by_panel(csr.indptr, csr.indices, bits, (first, last), width, starts.copy(), ids, out)
    for across in np.flatnonzero(ends > starts):
        part = slice(starts[across], ends[across])
        yield int(across), Panel(lengths[across], ids[part], out[part])


def _compress(payload: bytes) -> bytes:
    return _with_checksum(numcodecs.zstd.compress(payload, ZSTD_LEVEL))


def _with_checksum(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(CHECKSUM_BYTES, "little")


def missing_shards(path: str | Path, name: str) -> list[int]:
    """Return the numbers of the shards of array `name` in the group at `path` that have not been written."""
    return read_shards(path, name).missing()


def read_csr(
    path: str | Path, rows: slice = slice(None), features: slice = slice(None), name: str = "activation"
) -> scipy.sparse.csr_array:
    """Read a slice of a sparse array without making anything dense.

    Only the chunks that the slice touches are read. Peak memory is a little above that of the result plus one row
    of chunks. Safe to call from many threads; the GIL is released where the time goes.

    Parameters
    ----------
    path
        Folder of the store or result.
    rows, features
        Which rows and columns, as slices with any start, stop and step.
    name
        Name of the array.

    Returns
    -------
    scipy.sparse.csr_array
        Of the stored type (float32 for float16, which SciPy does not have), in canonical form. Column ids count
        from the start of `features`. Ids are int32, or int64 where there are more than 2³¹ − 1 entries.

    Raises
    ------
    MissingInputError
        If there is no such array.
    FormatError
        If the array is not sparse.
    CorruptError
        If a shard is missing or damaged.

    Examples
    --------
    >>> import tempfile, storage
    >>> path = tempfile.mkdtemp() + "/a.zarr"
    >>> storage.write_activations(path, scipy.sparse.csr_array(np.eye(6, 8, dtype="f4")))
    >>> read_csr(path, rows=slice(2, 4), features=slice(3, None)).toarray()
    array([[0., 0., 0., 0., 0.],
           [1., 0., 0., 0., 0.]], dtype=float32)
    """
    layout = read_layout(path, name)
    row_hull, row_step = _hull(rows, layout.shape[0])
    column_hull, column_step = _hull(features, layout.shape[1])
    matrix = _read_block(layout, row_hull, column_hull)
    return matrix if row_step == column_step == 1 else matrix[::row_step, ::column_step]


def _hull(wanted: slice, length: int) -> tuple[range, int]:
    """Return the contiguous range that a slice lies in, and the step with which to walk it."""
    if not isinstance(wanted, slice):
        raise InputError(f"Rows and features are chosen by slices, not {type(wanted).__name__}: slice(0, 10)")
    chosen = range(*wanted.indices(length))
    if not chosen:
        return range(0), 1
    low, high = sorted((chosen[0], chosen[-1]))
    return range(low, high + 1), chosen.step if len(chosen) > 1 else 1


def _read_block(layout: SparseLayout, rows: range, columns: range) -> scipy.sparse.csr_array:
    """Read contiguous rows and columns, one row of chunks after the other, into growing output arrays."""
    indptr = np.zeros(len(rows) + 1, np.int64)
    builder = _Builder(layout, len(rows))
    for first, chunk_rows, panels in _read_panels(layout, rows, columns):
        counts = builder.append(chunk_rows, panels)
        indptr[first + 1 : first + 1 + len(counts)] = counts
        panels.clear()  # so that the next row of chunks is not decoded beside this one
    np.cumsum(indptr, out=indptr)
    return builder.finish(indptr, len(columns))


@dataclass
class _PanelRows:
    """A decoded chunk: entries ``starts[row]:stops[row]`` of each wanted row, and what to add to the ids."""

    panel: Panel
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    shift: int


def _read_panels(layout: SparseLayout, rows: range, columns: range) -> Iterator[tuple[int, int, list[_PanelRows]]]:
    """Yield, for every row of chunks: its first row in the output, its number of rows, and its chunks."""
    if not rows or not columns:
        return
    height = layout.chunk[0]
    for i in range(rows.start // layout.shard_rows, (rows.stop - 1) // layout.shard_rows + 1):
        with Shard(layout, i) as shard:
            for down in range(layout.grid[0]):
                start = i * layout.shard_rows + down * height
                low, high = max(rows.start, start), min(rows.stop, start + height)
                if low < high:
                    within = slice(low - start, high - start)
                    yield low - rows.start, high - low, list(shard.panels(down, within, columns))


class Shard:
    """An open shard: hands out decoded chunks by seeking to them."""

    def __init__(self, layout: SparseLayout, i: int) -> None:
        self.layout = layout
        self.path = layout.shard_file(i)
        self.descriptor = -1

    def __enter__(self) -> Shard:
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would be waited for
        except FileNotFoundError:
            if self.layout.all_shards and not _was_rewritten(self.layout.folder.parent):
                raise CorruptError(
                    f"The shard {self.path} is missing: the store is unfinished or damaged; write it again"
                ) from None
            self.index = np.full((*self.layout.grid, 2), NO_CHUNK, "<u8")
            return self
        try:
            self.index = self._read_index()
        except BaseException:
            os.close(self.descriptor)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def _read_index(self) -> NDArray[np.uint64]:
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptError(f"{self.path} is not a file; {REMEDY}")
        size, length = status.st_size, self.layout.index_bytes
        if size < length:
            raise CorruptError(f"{self.path} is {size} bytes long, shorter than its index of {length}; {REMEDY}")
        data = self._read(size - length, length)
        if self.layout.checked_index:
            data = self._verified(data, "index")
        index = np.frombuffer(data, "<u8").reshape(*self.layout.grid, 2)
        present = index[index[..., 0] != NO_CHUNK]
        if (present > size).any() or (present.sum(axis=-1) > size - length).any():
            raise CorruptError(f"The index of {self.path} points outside of the file; {REMEDY}")
        return index

    def panels(self, down: int, rows: slice, columns: range) -> Iterator[_PanelRows]:
        """Yield what the chunks of row `down` have in `rows` (within the chunk) and `columns` (of the array)."""
        width = self.layout.chunk[1]
        for across in range(columns.start // width, (columns.stop - 1) // width + 1):
            if self.index[down, across, 0] != NO_CHUNK:
                yield _cut(self.chunk(down, across), rows, columns, across * width, width)

    def chunk(self, down: int, across: int) -> Panel:
        """Return the content of one chunk that is there."""
        offset, length = (int(number) for number in self.index[down, across])
        return unpack(self.payload(offset, length), self.layout.chunk, self.layout.dtype)

    def payload(self, offset: int, length: int) -> bytes:
        """Read one chunk and undo what follows the codec that made bytes of an array."""
        codecs = list(self.layout.compression)
        what = f"chunk at byte {offset}"
        if codecs[-1:] == ["crc32c"]:  # the content is read apart from its checksum: to cut one off would copy it
            data = self._checked(offset, length, what)
            codecs.pop()
        else:
            data = self._read(offset, length)
        for codec in reversed(codecs):
            data = self._verified(data, what) if codec == "crc32c" else self._decompressed(data)
        return data

    def read_into(self, offset: int, length: int, buffer: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """Read one chunk into a buffer, and return the part that is filled; None where more is to be undone."""
        if self.layout.compression not in {(), ("crc32c",)}:
            return None
        view = buffer[:length]
        if os.preadv(self.descriptor, [view.data], offset) != length:
            return None  # what _read makes of it
        if not self.layout.compression:
            return view
        content, checksum = view[:-CHECKSUM_BYTES], view[-CHECKSUM_BYTES:]
        self._compared(content, checksum.tobytes(), f"chunk at byte {offset}")
        return content

    def _checked(self, offset: int, length: int, what: str) -> bytes:
        """Read bytes that their checksum follows."""
        content = self._read(offset, length - CHECKSUM_BYTES)
        return self._compared(content, self._read(offset + length - CHECKSUM_BYTES, CHECKSUM_BYTES), what)

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self.descriptor, length, offset)
        while len(data) < length:
            more = os.pread(self.descriptor, length - len(data), offset + len(data))
            if not more:
                raise CorruptError(f"{self.path} ends before byte {offset + length}; {REMEDY}")
            data += more
        return data

    def _verified(self, data: bytes, what: str) -> bytes:
        return self._compared(data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:], what)

    def _compared(self, content: Any, checksum: bytes, what: str) -> Any:
        if google_crc32c.value(content) != int.from_bytes(checksum, "little"):
            raise CorruptError(f"The {what} of {self.path} fails its checksum; {REMEDY}")
        return content

    def _decompressed(self, data: bytes) -> bytes:
        size = frame_size(lambda start, n: data[start : start + n])
        check_size(str(self.path), size, largest_payload(self.layout.chunk, self.layout.dtype))
        try:
            return numcodecs.zstd.decompress(data)
        except RuntimeError as error:
            raise CorruptError(f"{self.path} holds a chunk that does not decompress ({error}); {REMEDY}") from error


def _was_rewritten(group: Path) -> bool:
    """Return whether another program wrote a group: it copied attributes, but leaves out what has no entries.

    What this package finishes has an inventory (:mod:`storage.inventory`); what it has not finished is below a folder
    that ends in ``.partial``, or was begun without a group of its own.
    """
    metadata = read_metadata(group)
    ours = "inventory" in (metadata.get("consolidated_metadata") or {})
    return not ours and "content_hash" in metadata.get("attributes", {})


REMEDY = "the file is damaged: delete it and run the stage that wrote it again"


def iter_chunks(layout: SparseLayout, i: int) -> Iterator[tuple[tuple[int, int], Panel | CorruptError]]:
    """Yield the place (down, across) and the content of every chunk of shard `i`, one in memory at a time.

    Of a damaged chunk, the error is yielded in place of the content, so that the others can still be looked at. If the
    shard itself is missing, too short, or its index is damaged, a CorruptError is raised.
    """
    with Shard(layout, i) as shard:
        for down, across in np.argwhere(shard.index[..., 0] != NO_CHUNK).tolist():
            try:
                yield (down, across), shard.chunk(down, across)
            except CorruptError as error:
                yield (down, across), error


def _cut(panel: Panel, rows: slice, columns: range, first_column: int, width: int) -> _PanelRows:
    """Return the entries of a chunk that lie in the wanted rows and columns."""
    ends = np.cumsum(panel.lengths, dtype=np.int64)
    stops = ends[rows].copy()
    starts = stops - panel.lengths[rows]
    low, high = columns.start - first_column, columns.stop - first_column
    if low > 0 or high < width:
        cut_columns(panel.ids, starts, stops, max(low, 0), min(high, width))
    return _PanelRows(panel, starts, stops, first_column - columns.start)


class _Builder:
    """Column ids and values of the result, grown as rows of chunks come in.

    The number of entries is known only once all chunks are decompressed, and keeping those would double the peak.
    So the size is guessed from the rows seen so far, and the arrays are resized in place.
    """

    MARGIN = 1.05

    def __init__(self, layout: SparseLayout, n_rows: int) -> None:
        self.layout = layout
        self.n_rows = n_rows
        self.rows = 0
        self.n = 0
        self.ids = np.empty(0, np.int32 if layout.shape[1] <= LARGEST_INT32 else np.int64)
        self.bits = np.empty(0, bits_dtype(layout.dtype))

    def append(self, n_rows: int, panels: list[_PanelRows]) -> NDArray[np.int64]:
        """Add rows that lie in the given panels (in the order of columns); return how many entries each has."""
        counts = np.zeros(n_rows, np.int64)
        for part in panels:
            counts += part.stops - part.starts
        cursor = self.n + np.cumsum(counts) - counts
        self.rows += n_rows
        self.n += int(counts.sum())
        self._reserve()
        if len(panels) == 1 and n_rows and np.array_equal(panels[0].starts[1:], panels[0].stops[:-1]):
            self._copy(panels[0])
        else:
            for part in panels:
                place_panel(*part.panel[1:], part.starts, part.stops, part.shift, cursor, self.ids, self.bits)
        return counts

    def _copy(self, part: _PanelRows) -> None:
        """Add rows that lie one after the other in their only chunk; small results then need no compiled code."""
        _, ids, bits = part.panel
        entries = slice(int(part.starts[0]), int(part.stops[-1]))
        place = slice(self.n - (entries.stop - entries.start), self.n)
        np.add(ids[entries], part.shift, out=self.ids[place], dtype=self.ids.dtype, casting="unsafe")
        self.bits[place] = bits[entries]

    def _reserve(self) -> None:
        if self.n > len(self.ids):
            self._resize(max(self.n, int(self.n / self.rows * self.n_rows * self.MARGIN)))

    def _resize(self, size: int) -> None:
        # No one else refers to these arrays; the check would count debuggers and tracers
        self.ids.resize(size, refcheck=False)
        self.bits.resize(size, refcheck=False)

    def finish(self, indptr: NDArray[np.int64], n_columns: int) -> scipy.sparse.csr_array:
        """Return the result."""
        self._resize(self.n)
        values = self.bits.view(self.layout.dtype.newbyteorder("<")).astype(scipy_dtype(self.layout.dtype), copy=False)
        pointers = indptr.astype(np.int32) if self.n <= LARGEST_INT32 else indptr
        ids = self.ids.astype(pointers.dtype, copy=False)
        matrix = scipy.sparse.csr_array((values, ids, pointers), shape=(len(indptr) - 1, n_columns))
        matrix.has_sorted_indices = matrix.has_canonical_format = True
        return matrix
