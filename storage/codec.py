"""The ``csr`` codec: a two-dimensional chunk of a Zarr array kept as compressed sparse rows.

A chunk of `rows` × `columns` is written as (all little endian)::

    offset  size            what
    0       4               b"CSR" and the version, 1
    4       1               bytes of a column id: 2, or 4 where the chunk is wider than 65,536 columns
    5       1               bytes of a value: 2, 4 or 8 (float16, float32, float64)
    6       2               zero
    8       8               n, the number of entries kept
    16      4 × rows        how many entries each row has (their running sum is CSR's row pointer)
    …       id bytes × n    column ids within the chunk, strictly increasing inside a row
    …       0 to 7          zeros, so that the values start at a multiple of 8
    …       value bytes × n the values

Entries that are not kept are +0.0. Lengths instead of running sums compress to next to nothing. Compression and
checksum are left to the codecs that follow: ``[csr, zstd, crc32c]`` inside ``sharding_indexed``.

>>> chunk = scipy.sparse.csr_array(np.array([[0, 2.5, 0], [0, 0, 0]], dtype="f4"))
>>> decode_csr(encode_csr(chunk), chunk.shape, "f4").toarray()
array([[0. , 2.5, 0. ],
       [0. , 0. , 0. ]], dtype=float32)
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import scipy.sparse
import zarr.registry
from numpy.typing import DTypeLike, NDArray
from zarr.abc.codec import ArrayBytesCodec

from storage.errors import CorruptError, InputError
from storage.kernels import rows_are_canonical

CODEC_NAME = "csr"
MAGIC = b"CSR\x01"
HEADER = struct.Struct("<4sBBHQ")
WIDEST_UINT16 = 65_536
LARGEST_INT32 = 2**31 - 1
VALUE_ALIGNMENT = 8


class Panel(NamedTuple):
    """The parts of one encoded chunk, as they lie in its payload."""

    lengths: NDArray[np.uint32]
    ids: NDArray[Any]
    bits: NDArray[Any]


def id_dtype(columns: int) -> np.dtype[Any]:
    """Return the type of column ids in a chunk of so many columns: uint16, or uint32 above 65,536."""
    return np.dtype("<u2" if columns <= WIDEST_UINT16 else "<u4")


def bits_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the unsigned integer type that is as wide as the float type `dtype`."""
    return np.dtype(f"<u{np.dtype(dtype).itemsize}")


def scipy_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the type in which SciPy can hold `dtype`: itself, but float32 for float16."""
    return np.dtype("f4") if np.dtype(dtype) == np.float16 else np.dtype(dtype).newbyteorder("=")


def is_sparse_matrix(value: Any) -> bool:
    """Return whether `value` is a SciPy sparse matrix or array."""
    return bool(scipy.sparse.issparse(value))


def canonical(matrix: Any) -> scipy.sparse.csr_array:
    """Return `matrix`, sparse or dense, as a CSR array with sorted, unique column ids.

    Duplicates are summed, explicit zeros stay, the input is never changed. Column ids out of range raise
    :class:`InputError`.
    """
    if not is_sparse_matrix(matrix):
        matrix = np.asarray(matrix)
        matrix = matrix.astype(scipy_dtype(matrix.dtype), copy=False)
    csr = scipy.sparse.csr_array(matrix)
    if csr.indices.dtype != np.int32 and max(csr.nnz, csr.shape[1]) <= LARGEST_INT32:
        # One type of ids, so that the loops are compiled once
        parts = csr.data, csr.indices.astype(np.int32), csr.indptr.astype(np.int32)
        csr = scipy.sparse.csr_array(parts, shape=csr.shape)
    if csr.nnz and (csr.indices.min() < 0 or csr.indices.max() >= csr.shape[1]):
        raise InputError(f"A sparse matrix of {csr.shape[1]} columns has column ids outside of 0..{csr.shape[1] - 1}")
    if not rows_are_canonical(csr.indptr, csr.indices):
        csr = csr.copy()
        csr.has_canonical_format = False
        csr.sum_duplicates()
    return csr


def pack(panel: Panel) -> bytes:
    """Return the payload of a chunk from its parts."""
    n = len(panel.ids)
    header = HEADER.pack(MAGIC, panel.ids.itemsize, panel.bits.itemsize, 0, n)
    before = HEADER.size + panel.lengths.nbytes + panel.ids.nbytes
    padding = bytes(-before % VALUE_ALIGNMENT)
    return b"".join([header, panel.lengths.tobytes(), panel.ids.tobytes(), padding, panel.bits.tobytes()])


def largest_payload(shape: tuple[int, int], dtype: DTypeLike) -> int:
    """Return the bytes of the largest payload of a chunk: that in which every value is kept."""
    rows, columns = shape
    per_value = id_dtype(columns).itemsize + np.dtype(dtype).itemsize
    return HEADER.size + 4 * rows + VALUE_ALIGNMENT + rows * columns * per_value


def unpack(payload: bytes, shape: tuple[int, ...], dtype: DTypeLike) -> Panel:
    """Return the parts of a chunk's payload as views; CorruptError if they do not fit `shape` and `dtype`."""
    rows, columns = shape
    ids_as, bits_as = id_dtype(columns), bits_dtype(dtype)
    n = _read_header(payload, ids_as, bits_as)
    ids_at = HEADER.size + 4 * rows
    bits_at = ids_at + n * ids_as.itemsize
    bits_at += -bits_at % VALUE_ALIGNMENT
    if len(payload) != bits_at + n * bits_as.itemsize:
        raise CorruptError(f"A csr chunk of {rows} rows and {n} entries cannot be {len(payload)} bytes long")
    lengths = np.frombuffer(payload, "<u4", rows, HEADER.size)
    ids = np.frombuffer(payload, ids_as, n, ids_at)
    if int(lengths.sum(dtype=np.uint64)) != n or (n and int(ids.max()) >= columns):
        raise CorruptError(f"A csr chunk's row lengths or column ids do not fit its shape {shape}")
    return Panel(lengths, ids, np.frombuffer(payload, bits_as, n, bits_at))


def _read_header(payload: bytes, ids_as: np.dtype[Any], bits_as: np.dtype[Any]) -> int:
    """Check a payload's header against the types expected; return its number of entries."""
    if len(payload) < HEADER.size:
        raise CorruptError(f"A csr chunk is {len(payload)} bytes long, shorter than its header")
    magic, id_bytes, value_bytes, _, n = HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise CorruptError(f"A csr chunk begins with {magic!r}, not {MAGIC!r}: other data, or a later version")
    if (id_bytes, value_bytes) != (ids_as.itemsize, bits_as.itemsize):
        raise CorruptError(
            f"A csr chunk has ids of {id_bytes} and values of {value_bytes} bytes; "
            f"its array has {ids_as.itemsize} and {bits_as.itemsize}"
        )
    return int(n)


def encode_csr(chunk: Any, dtype: DTypeLike | None = None) -> bytes:
    """Encode one chunk from a sparse matrix, without making it dense.

    Parameters
    ----------
    chunk
        SciPy sparse matrix of shape (rows, columns). Duplicates are summed, explicit zeros and NaN kept.
    dtype
        Float type of the array; that of `chunk` if absent. SciPy has no float16, so ask for it here.

    Returns
    -------
    bytes
        The payload that this module's docstring describes.
    """
    csr = canonical(chunk)
    values = csr.data.astype(np.dtype(dtype or csr.dtype).newbyteorder("<"), copy=False)
    lengths = np.diff(csr.indptr).astype("<u4")
    return pack(Panel(lengths, csr.indices.astype(id_dtype(csr.shape[1])), values.view(bits_dtype(values.dtype))))


def decode_csr(payload: bytes, shape: tuple[int, int], dtype: DTypeLike) -> scipy.sparse.csr_array:
    """Decode one chunk to a sparse array, without making it dense.

    Parameters
    ----------
    payload
        What :func:`encode_csr` returned.
    shape
        Rows and columns of the chunk.
    dtype
        Float type of the array.

    Returns
    -------
    scipy.sparse.csr_array
        Of `dtype`, or float32 for float16, which SciPy does not have.

    Raises
    ------
    CorruptError
        If the payload is not that of a chunk of this shape and type.
    """
    panel = unpack(payload, shape, dtype)
    values = panel.bits.view(np.dtype(dtype).newbyteorder("<")).astype(scipy_dtype(dtype))
    indptr = np.concatenate([[0], np.cumsum(panel.lengths, dtype=np.int64)]).astype(np.int32)
    return scipy.sparse.csr_array((values, panel.ids.astype(np.int32), indptr), shape=shape)


def dense_to_panel(chunk: NDArray[Any]) -> Panel:
    """Return the parts of a dense chunk: every value whose bits are not all zero is kept, -0.0 and NaN too."""
    bits = np.ascontiguousarray(chunk, np.dtype(chunk.dtype).newbyteorder("<")).view(bits_dtype(chunk.dtype))
    rows, columns = np.nonzero(bits)
    lengths = np.bincount(rows, minlength=chunk.shape[0]).astype("<u4")
    return Panel(lengths, columns.astype(id_dtype(chunk.shape[1])), bits[rows, columns])


def panel_to_dense(panel: Panel, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return a chunk as a dense array. The only place in this package where a chunk becomes dense."""
    dense = np.zeros(shape, np.dtype(dtype).newbyteorder("="))
    rows = np.repeat(np.arange(shape[0]), panel.lengths)
    dense[rows, panel.ids] = panel.bits.view(np.dtype(dtype).newbyteorder("<"))
    return dense


@dataclass(frozen=True)
class CsrCodec(ArrayBytesCodec):
    """Zarr's array-to-bytes codec ``csr``, for users who read or write through Zarr or xarray.

    It takes no configuration. The package registers it in the entry point group ``zarr.codecs``, so that any
    program in an environment with this package installed can open the arrays.
    """

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the codec from its metadata, ``{"name": "csr"}``."""
        if data.get("configuration"):
            raise InputError(f"The csr codec takes no configuration; the metadata has {data['configuration']}")
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """Return the codec's metadata."""
        return {"name": CODEC_NAME}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:  # noqa: ARG002
        """Refuse arrays that are not matrices of floats."""
        _check_supported(len(shape), dtype.to_native_dtype())

    def evolve_from_array_spec(self, array_spec: Any) -> Self:
        """Refuse arrays that are not matrices of floats (sharding does not call ``validate`` of inner codecs)."""
        _check_supported(array_spec.ndim, array_spec.dtype.to_native_dtype())
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Raise: the size depends on the data."""
        raise NotImplementedError

    def _encode_sync(self, chunk_array: Any, chunk_spec: Any) -> Any:
        payload = pack(dense_to_panel(chunk_array.as_numpy_array()))
        return chunk_spec.prototype.buffer.from_bytes(payload)

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        dtype = chunk_spec.dtype.to_native_dtype()
        panel = unpack(chunk_bytes.to_bytes(), chunk_spec.shape, dtype)
        dense = panel_to_dense(panel, chunk_spec.shape, dtype)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(dense)

    async def _encode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)


# The entry point does the same wherever the package is installed; this serves a bare checkout
zarr.registry.register_codec(CODEC_NAME, CsrCodec)


def _check_supported(ndim: int, dtype: np.dtype[Any]) -> None:
    if ndim != 2 or dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise InputError(
            f"The csr codec keeps two-dimensional arrays of float16, float32 or float64, not {ndim}-D {dtype}"
        )
