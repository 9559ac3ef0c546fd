"""Activations in other programs' files, opened so that they can be read a few rows at a time.

==============================  ===========================================  ================================
file                            written by                                   rows in memory at a time
==============================  ===========================================  ================================
``.npy``                        ``numpy.save``                               one slab
``.npz``                        ``scipy.sparse.save_npz``, ``numpy.savez``   one slab (csr, C order); else all
``.h5ad``, AnnData ``.zarr``    ``AnnData.write_h5ad``, ``.write_zarr``      one slab (csr or dense)
other ``.zarr``                 ``zarr.save``                                one slab, in whole chunks
``.safetensors``                ``safetensors``                              one slab
folder with ``state.json``      sae-lens' ``CacheActivationsRunner``         one slab
the same, a column of lists     ``Dataset.save_to_disk``                     one slab
``.pt``, ``.pth``               ``torch.save``, tensors alone                one slab; sparse ones: all
``.csv``, ``.parquet``          a column for each feature, or one of lists   one slab; a row group
folder of ``0_16383…`` files    delphi's ``LatentCache.save_splits``         one slab, and the token ids
==============================  ===========================================  ================================

The last three are modules of :mod:`storage.importers`. An array may be (token, feature) or (sequence, position,
feature); of the latter a mask says which positions are tokens. bfloat16 becomes float32. Where a file has the
dictionary's decoder too (``decoder``, ``W_dec`` or ``decoder.weight``), it goes with the activations.

To read another format, register a function from a path to a :class:`Source`; see :class:`Importer`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import zarr
from numpy.typing import NDArray

from storage.bounds import SMALL, check_chunk, check_expansion, check_file, check_memory, check_tree, n_bytes
from storage.codec import is_sparse_matrix
from storage.damage import reading
from storage.errors import CorruptError, FormatError, InputError, MissingInputError, shorten, shown
from storage.extras import need
from storage.frames import MOST_EXPANSION, check_frames, check_size, unpacked_size
from storage.json_files import read_json_object
from storage.listing import size_on_disk
from storage.registry import IMPORTERS
from storage.rows import TOKEN_COORDINATES
from storage.shards import iter_slices

#: Bytes of one slab, were it dense.
SLAB_BYTES = 16 * 2**20
#: Under these names the exporters keep what is not the matrix itself.
ATTRS_KEY = "subspace_attrs"
TOKEN_PREFIX = "token_coordinate_"  # noqa: S105 - no password
DECODER_KEYS = ("decoder", "W_dec", "decoder.weight")

Slabs = Callable[[int], Iterator[Any]]


@dataclass
class Source:
    """A matrix of activations that is read in slabs, and what its file says beside it.

    Attributes
    ----------
    n_tokens, n_features, dtype
        Shape and type of the matrix.
    slabs
        From a number of rows to slabs of at most so many rows, NumPy or SciPy CSR, in order; called once.
    sparse
        Whether the slabs are sparse.
    sequences
        Of an array of sequences, how many there are and how many positions each has; its rows are all positions.
    tokens, sink, decoder, attrs
        As a store keeps them, if the file has them.
    """

    n_tokens: int
    n_features: int
    dtype: np.dtype[Any]
    slabs: Slabs
    sparse: bool = False
    sequences: tuple[int, int] | None = None
    tokens: dict[str, NDArray[Any]] | None = None
    sink: NDArray[np.bool_] | None = None
    decoder: NDArray[Any] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def slab_rows(self) -> int:
        """Rows of a slab of :data:`SLAB_BYTES`."""
        return max(1, SLAB_BYTES // (self.n_features * max(4, self.dtype.itemsize)))


@dataclass(frozen=True)
class Importer:
    """How one format of files is known, and read.

    Attributes
    ----------
    name
        What lists call it.
    function
        Opens the path as a :class:`Source`, given which array of several, and ids of tokens that are no rows.
    suffixes
        Endings of its files.
    files
        What a folder of the format holds.
    names
        A pattern for the name of a file that a folder of the format holds.
    drops_tokens
        Whether it knows token ids, so that it can leave rows out.
    """

    name: str
    function: Callable[[Path, str | None, Collection[int]], Source]
    suffixes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    names: str = ""
    drops_tokens: bool = False

    def recognises(self, path: Path) -> bool:
        """Return whether a path is of this format, by its name or the files in it."""
        return (
            path.suffix in self.suffixes
            or (bool(self.files) and all((path / file).is_file() for file in self.files))
            or (
                bool(self.names)
                and path.is_dir()
                and any(re.fullmatch(self.names, file.name) for file in path.iterdir())
            )
        )

    @property
    def folder(self) -> str:
        """What a folder of the format is known by."""
        return f"a folder with {' and '.join(self.files) or 'START_END.safetensors'}"


def open_source(
    path: str | Path, *, key: str | None = None, drop_tokens: Collection[int] = (), mask: str | Path | None = None
) -> Source:
    """Open activations in any format that is known.

    Parameters
    ----------
    path
        The file or folder.
    key
        Which array, where there are several: a name in a ``.npz`` or ``.safetensors``, a layer of an AnnData, a hook.
    drop_tokens
        Ids of tokens whose rows are left out (BOS, padding); for sources that know token ids.
    mask
        A ``.npy`` that says which positions of (sequence, position, feature) are rows: an attention mask (sequence,
        position), or the length of each sequence; or ``all``. Of (row, feature), one value for each row.

    Raises
    ------
    InputError
        If there is nothing at the path, the format is not known, or it holds no matrix of real numbers.
    MissingDependencyError
        If the library that reads it is not installed.
    """
    path = Path(path)
    importer = importer_of(path)
    if drop_tokens and not importer.drops_tokens:
        raise InputError(f"{path} holds no token ids, so no tokens can be dropped; leave --drop-token out")
    with reading(path):
        source = importer.function(path, key, drop_tokens)
    # counts of rows and statistics of features are kept in memory, also of a sparse matrix with next to nothing in it
    shape = (source.n_tokens, source.n_features)
    check_expansion(f"{path}, whose shape is {shape},", 8 * sum(shape), size_on_disk(path))
    source.dtype = source.dtype.newbyteorder("=")
    source.slabs = _checked_slabs(path, source.slabs)
    return source if source.sequences is None and mask is None else _masked(path, source, mask)


def _masked(path: Path, source: Source, mask: str | Path | None) -> Source:
    """Return a source of those rows alone that a mask names."""
    if mask is None:
        raise InputError(
            f"{path} holds {source.sequences} sequences × positions, of which some may be padding: say which are "
            "tokens with --mask FILE.npy (an attention mask, or the length of each sequence), or --mask all"
        )
    if str(mask) == "all":
        return source
    is_row = _read_mask(Path(mask), source)
    slabs = source.slabs

    def masked(rows: int) -> Iterator[Any]:
        first = 0
        for slab in slabs(rows):
            yield slab[np.flatnonzero(is_row[first : first + slab.shape[0]])]
            first += slab.shape[0]

    sink = source.sink[is_row] if source.sink is not None and len(source.sink) == len(is_row) else source.sink
    return replace(source, n_tokens=int(is_row.sum()), slabs=masked, sink=sink, sequences=None)


def _read_mask(path: Path, source: Source) -> NDArray[np.bool_]:
    """Return which rows of a source are tokens, (row,)."""
    check_file(path, f"There is no mask at {path}; check the path")
    n_sequences, n_positions = source.sequences or (source.n_tokens, 1)
    with reading(path), path.open("rb") as file:
        shape, fortran, dtype = read_header(file, str(path))
        if dtype.kind not in "iub" or shape not in ((n_sequences,), (n_sequences, n_positions)):
            raise InputError(
                f"{path} holds {dtype} values of shape {shown(shape)}; a mask of {n_sequences} × {n_positions} "
                f"positions holds 0 and 1 in the shape {(n_sequences, n_positions)}, or the length of each sequence"
            )
        check_memory(str(path), n_bytes(shape, dtype.itemsize))
        values = np.fromfile(file, dtype, math.prod(shape)).reshape(shape, order="F" if fortran else "C")
    largest = n_positions if len(shape) == 1 else 1
    if values.min(initial=0) < 0 or values.max(initial=0) > largest:
        raise InputError(f"{path} holds values from {values.min()} to {values.max()}; expected are 0 to {largest}")
    if len(shape) == 1:
        values = np.arange(n_positions) < values[:, None]
    is_row: NDArray[np.bool_] = values.astype(bool).ravel()
    if not is_row.any():
        raise InputError(f"{path} says that no position is a token; 1 stands for a token, 0 for padding")
    return is_row


def importer_of(path: Path) -> Importer:
    """Return the importer that reads a file or folder.

    Raises
    ------
    MissingInputError
        If there is nothing at the path.
    InputError
        If the format is not known, or it is a pipe, a socket or a device.
    """
    missing = f"There is nothing to import at {path}; check the path"
    if not path.exists():
        raise MissingInputError(missing)
    # importers of other packages are not looked at, and so not imported, where one of our own reads the file
    importer = next((candidate for candidate in IMPORTERS.values() if candidate.recognises(path)), None)
    if importer is None:
        raise InputError(f"{path} is none of the formats that can be imported: {importers_listed()}")
    if not path.is_dir():
        check_file(path, missing)
    return importer


def _checked_slabs(path: Path, slabs: Slabs) -> Slabs:
    """Return the slabs in native byte order, with errors that name the file; of sparse ones, all ids are inside."""

    def checked(rows: int) -> Iterator[Any]:
        with reading(path):
            for slab in slabs(rows):
                if is_sparse_matrix(slab):
                    _check_csr(slab)
                yield slab.astype(slab.dtype.newbyteorder("="), copy=False)

    return checked


def _check_csr(slab: Any) -> None:
    """Raise ValueError unless the parts of a csr matrix fit each other: compiled code trusts them."""
    slab.check_format(full_check=True)
    if slab.indptr[0] or not slab.indptr[-1] == len(slab.indices) == len(slab.data) or (np.diff(slab.indptr) < 0).any():
        raise ValueError("its indptr does not fit its ids")


def importers_listed() -> str:
    """Return what can be imported, for people.

    >>> importers_listed()
    'delphi (a folder with START_END.safetensors), csv (.csv), parquet (.parquet), torch (.pt or .pth), sae-lens (a ...
    """
    return ", ".join(
        f"{name} ({' or '.join(importer.suffixes) or importer.folder})" for name, importer in IMPORTERS.items()
    )


#: Bytes of the widest numbers that stores have.
WIDEST = 8


def check_matrix(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless this is the shape and the type of a matrix of activations."""
    if dtype.kind not in "fiub" or dtype.itemsize > WIDEST:
        raise InputError(f"{path} holds {dtype} values; activations are real numbers. Save them as float32")
    if 0 in shape:
        raise InputError(f"{path} holds no values: its shape is {shown(tuple(shape))}; did a filter leave none?")
    if len(shape) not in (2, 3):
        raise InputError(
            f"{path} holds an array of shape {shown(tuple(shape))}; activations are (token, feature), or (sequence, "
            "position, feature): reshape it"
        )


def rows_of(shape: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Return rows and columns of an array of activations, and the sequences and positions of a 3-D one.

    >>> rows_of((9, 4)), rows_of((3, 5, 4))
    (((9, 4), None), ((15, 4), (3, 5)))
    """
    *rows, n_features = shape
    return (math.prod(rows), n_features), (rows[0], rows[1]) if len(rows) == 2 else None


def from_array(path: Path, array: Any, dtype: np.dtype[Any]) -> Source:
    """Return the source of anything that has a shape and can be cut along its first dimension."""
    check_matrix(path, tuple(array.shape), dtype)
    (n_rows, n_features), sequences = rows_of(array.shape)
    positions = 1 if sequences is None else sequences[1]

    def slabs(rows: int) -> Iterator[Any]:
        parts = (array[part] for part in iter_slices(n_rows // positions, max(1, rows // positions)))
        return parts if sequences is None else (part.reshape(-1, n_features) for part in parts)

    return Source(n_rows, n_features, dtype, slabs, sparse=is_sparse_matrix(array), sequences=sequences)


def _read_npy(path: Path, key: str | None, _: Collection[int]) -> Source:
    if key is not None:
        raise InputError(f"{path} holds one array without a name; leave --key out")
    with path.open("rb") as file:
        shape, fortran, dtype = read_header(file, str(path))
        start = file.tell()
    return source_in_file(path, start, shape, dtype, fortran=fortran)


def source_in_file(
    path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, fortran: bool = False, bfloat: bool = False
) -> Source:
    """Return the source of an array whose values lie in a file from byte `start` on.

    `bfloat` says that values, whose type is given as uint16, are bfloat16.
    """
    check_matrix(path, shape, dtype)
    rows, sequences = rows_of(shape)
    if fortran and sequences is not None:
        raise InputError(f"{path} holds {shape} values in Fortran order: save it in C order (np.ascontiguousarray)")
    array = ArrayInFile(path, start, rows, dtype, fortran, bfloat)
    array.check_size()
    return Source(*rows, np.dtype("float32") if bfloat else dtype, array.slabs, sequences=sequences)


def read_header(stream: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether it is in Fortran order, and type of an array in NumPy's format."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise InputError(
            f"{where} is an array of Python objects, which are never unpickled here (that could run code); save a "
            "numeric array"
        )
    return shape, fortran, dtype


@dataclass(frozen=True)
class ArrayInFile:
    """A matrix whose values lie in a file from byte `start` on.

    It is read, not mapped: a file that gets shorter meanwhile is an error then, and not the end of the process.
    """

    path: Path
    start: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    fortran: bool = False
    bfloat: bool = False

    def check_size(self) -> None:
        """Raise unless the file has N bytes."""
        declared, there = n_bytes(self.shape, self.dtype.itemsize), self.path.stat().st_size - self.start
        if there < declared:
            raise CorruptError(
                f"{self.path} declares {self.dtype} values of shape {shown(self.shape)}, which are {declared:,} bytes, "
                f"but has {there:,}; is it complete?"
            )

    def slabs(self, rows: int) -> Iterator[NDArray[Any]]:
        """Yield slabs of at most `rows` rows."""
        n_rows, n_columns = self.shape
        with self.path.open("rb", buffering=0) as file:
            for part in iter_slices(n_rows, rows):
                first, n = part.start, part.stop - part.start
                if self.fortran:
                    yield np.stack([self._take(file, j * n_rows + first, n) for j in range(n_columns)], axis=1)
                else:
                    yield self._take(file, first * n_columns, n * n_columns).reshape(n, -1)

    def _take(self, file: Any, first: int, n: int) -> NDArray[Any]:
        file.seek(self.start + first * self.dtype.itemsize)
        values = np.fromfile(file, self.dtype, n)
        if len(values) < n:
            raise CorruptError(f"{self.path} ended while it was read; is somebody writing it?")
        return (values.astype("u4") << 16).view("f4") if self.bfloat else values


def _read_npz(path: Path, key: str | None, _: Collection[int]) -> Source:
    with open_archive(path) as archive:
        names = names_in(archive)
        extras = _extras(path, archive, names)
        if {"format", "shape", "data"} <= names:
            source = _sparse_npz(path, archive, names)
        else:
            source = _dense_npz(path, names, key)
    return replace(source, **extras)


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a ``.npz``, unless its members are larger than the file."""
    with path.open("rb") as file, reading(path), zipfile.ZipFile(file) as archive:
        packed = sum(member.compress_size for member in archive.infolist())
        if packed > path.stat().st_size:
            raise CorruptError(f"{path} names members that share their bytes; it is damaged, or made to do harm")
        yield archive


def names_in(archive: zipfile.ZipFile) -> set[str]:
    """Return the names of the arrays in a ``.npz``."""
    return {name.removesuffix(".npy") for name in archive.namelist()}


def _extras(path: Path, archive: zipfile.ZipFile, names: set[str]) -> dict[str, Any]:
    """Return what :mod:`storage.exchange` writes beside the matrix."""
    tokens = {name: whole(archive, TOKEN_PREFIX + name) for name in TOKEN_COORDINATES if TOKEN_PREFIX + name in names}
    extras: dict[str, Any] = {"tokens": tokens or None}
    if "sink" in names:
        extras["sink"] = whole(archive, "sink")
    if name := decoder_name(names):
        extras["decoder"] = whole(archive, name)
    if ATTRS_KEY in names:
        extras["attrs"] = _attributes(path, whole(archive, ATTRS_KEY))
    return extras


def whole(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Return an array of an archive, if it fits in memory."""
    member = Member(archive, name)
    check_memory(f"{name} in {archive.filename or 'the archive'}", n_bytes(member.shape, member.dtype.itemsize))
    flat = member.take(math.prod(member.shape))
    return flat.reshape(member.shape, order="F" if member.fortran else "C")


def _attributes(path: Path, text: Any) -> dict[str, Any]:
    """Return the attributes that a file carries as JSON."""
    attrs: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        attrs = json.loads(str(text))
    if not isinstance(attrs, dict):
        raise CorruptError(f"{path} holds attributes ({ATTRS_KEY}) that are not a JSON object: {shown(str(text))}")
    return attrs


def _sparse_npz(path: Path, archive: zipfile.ZipFile, names: set[str]) -> Source:
    kind = whole(archive, "format").item()
    declared = whole(archive, "shape")
    shape = [int(length) for length in declared]
    if shape != [*declared]:
        raise FormatError(f"{path} declares the shape {shown([*map(float, declared)])}; lengths are whole numbers")
    if len(shape) != 2 or min(shape) < 0:
        raise FormatError(
            f"{path} holds a matrix of shape {shown(shape)}; activations are (token, feature): reshape it"
        )
    if (kind.decode() if isinstance(kind, bytes) else kind) != "csr":
        return _other_sparse_npz(path, archive, names, shape)
    indptr = whole(archive, "indptr").astype(np.int64)
    ids, values = Member(archive, "indices"), Member(archive, "data")
    check_matrix(path, (shape[0], shape[1]), values.dtype)
    steps = np.diff(indptr)
    if indptr.shape != (shape[0] + 1,) or indptr[0] or (steps < 0).any():
        raise FormatError(f"{path} is not a csr matrix of shape {tuple(shape)}: its indptr does not fit; save it again")
    if not ids.shape == values.shape == (indptr[-1],) or ids.dtype.kind not in "iu":
        raise FormatError(
            f"{path} is not a csr matrix: it has {ids.shape} ids and {values.shape} values of {indptr[-1]}: save again"
        )
    return Source(shape[0], shape[1], values.dtype, lambda rows: _csr_slabs(path, indptr, shape[1], rows), sparse=True)


def _other_sparse_npz(path: Path, archive: zipfile.ZipFile, names: set[str], shape: list[int]) -> Source:
    """Read a matrix of another kind than csr whole, and turn it round."""
    parts = [Member(archive, name) for name in sorted(names) if name not in ("format", "shape")]
    check_memory(str(path), sum(n_bytes(part.shape, part.dtype.itemsize) for part in parts))
    check_expansion(f"{path}, whose shape is {tuple(shape)},", 8 * sum(shape), path.stat().st_size)
    if any(part.dtype.kind not in "fiub" for part in parts):
        raise FormatError(f"{path} holds parts of a sparse matrix that are not numbers; save it again")
    matrix = scipy.sparse.csr_array(scipy.sparse.load_npz(path))
    _check_csr(matrix)
    return from_array(path, matrix, matrix.dtype)


def _csr_slabs(path: Path, indptr: NDArray[np.int64], n_features: int, rows: int) -> Iterator[scipy.sparse.csr_array]:
    """Read column ids and values side by side from the compressed file."""
    with zipfile.ZipFile(path) as archive:
        ids, values = Member(archive, "indices"), Member(archive, "data")
        for start in range(0, len(indptr) - 1, rows):
            bounds = indptr[start : start + rows + 1]
            n = int(bounds[-1] - bounds[0])
            parts = values.take(n), ids.take(n), bounds - bounds[0]
            if n and not 0 <= parts[1].min() <= parts[1].max() < n_features:
                raise FormatError(f"{path} has column ids outside of 0..{n_features - 1}; save the matrix again")
            yield scipy.sparse.csr_array(parts, shape=(len(bounds) - 1, n_features))


def _dense_npz(path: Path, names: set[str], key: str | None) -> Source:
    others = {ATTRS_KEY, "sink", *(TOKEN_PREFIX + name for name in TOKEN_COORDINATES)}
    name = choose(path, sorted(names - others), key)
    with zipfile.ZipFile(path) as archive:
        member = Member(archive, name)
        check_matrix(path, member.shape, member.dtype)
        if member.fortran:
            return from_array(path, whole(archive, name), member.dtype)
    (n_rows, n_features), sequences = rows_of(member.shape)

    def slabs(rows: int) -> Iterator[Any]:
        with zipfile.ZipFile(path) as archive:
            stream = Member(archive, name)
            for part in iter_slices(n_rows, rows):
                n = part.stop - part.start
                yield stream.take(n * n_features).reshape(n, -1)

    return Source(n_rows, n_features, member.dtype, slabs, sequences=sequences)


def decoder_name(names: Collection[str]) -> str | None:
    """Return which of the arrays in a file is the dictionary's decoder; None if none has such a name."""
    return next((name for name in DECODER_KEYS if name in names), None)


def choose(path: Path, names: Sequence[str], key: str | None) -> str:
    """Return which array of a file is meant: the one that is named, or the only one that is no decoder."""
    if key is None:
        names = [name for name in names if name not in DECODER_KEYS] or names
    if key is not None and key not in names:
        raise InputError(f"{path} has no {shown(key)}; it has {listed(names)}")
    if key is None and len(names) != 1:
        raise InputError(f"{path} has {len(names)} arrays ({listed(names)}); name one with --key")
    return key or names[0]


def listed(names: Sequence[str]) -> str:
    """Return names for a message; not all, where there are many."""
    return shorten(", ".join(names), 300) or "nothing"


class Member:
    """One array inside a ``.npz``, read from its beginning on."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        where = f"{name} in {archive.filename or 'the archive'}"
        entry = archive.getinfo(f"{name}.npy")
        check_expansion(where, entry.file_size, entry.compress_size)
        self.stream = archive.open(entry)
        self.shape, self.fortran, self.dtype = read_header(self.stream, where)
        there = entry.file_size - self.stream.tell()
        if not self.dtype.itemsize or min(self.shape, default=0) < 0 or self._size() != there:
            raise CorruptError(
                f"{where} declares {self.dtype} values of shape {shown(self.shape)}, but has {there} bytes"
            )

    def _size(self) -> int:
        return n_bytes(self.shape, self.dtype.itemsize)

    def take(self, n: int) -> NDArray[Any]:
        """Return the next `n` values."""
        data = self.stream.read(n * self.dtype.itemsize)
        if len(data) < n * self.dtype.itemsize:
            raise CorruptError(f"{self.stream.name} ends too early; is the file complete?")
        return np.frombuffer(data, self.dtype).astype(self.dtype.newbyteorder("="), copy=False)


def _read_safetensors(path: Path, key: str | None, _: Collection[int]) -> Source:
    safetensors = need("safetensors", "models")
    with safetensors.safe_open(str(path), framework="numpy") as file:
        names = sorted(file.keys())
    name = choose(path, names, key)
    source = tensor_in_file(path, name)
    if (decoder := decoder_name(names)) is not None and decoder != name:
        source.decoder = whole_source(path, tensor_in_file(path, decoder))
    return source


def tensor_in_file(path: Path, name: str, *, as_column: bool = False) -> Source:
    """Return the source of one array of a ``.safetensors`` that its library, which maps the file, has found right.

    `as_column` takes an array of one dimension for a column.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    kind = entry["dtype"]
    if kind not in _SAFETENSORS_TYPES:
        raise InputError(f"{path} holds {kind!r} values; save them as float32, bfloat16 or float16")
    start = 8 + length + entry["data_offsets"][0]
    shape = (*entry["shape"], 1) if as_column else tuple(entry["shape"])
    return source_in_file(path, start, shape, np.dtype(_SAFETENSORS_TYPES[kind]), bfloat=kind == "BF16")


def whole_source(path: Path, source: Source) -> NDArray[Any]:
    """Return all rows of a source, if they fit in memory."""
    check_memory(f"An array of {path}", n_bytes((source.n_tokens, source.n_features), source.dtype.itemsize))
    return np.concatenate(list(source.slabs(source.slab_rows)))


_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def _read_anndata(path: Path, key: str | None, _: Collection[int]) -> Source:
    group = _open_h5ad(path) if path.suffix == ".h5ad" else _open_zarr(path)
    if group.attrs.get("encoding-type") != "anndata":
        if path.suffix == ".h5ad":
            raise InputError(f"{path} is not an AnnData file (no encoding-type 'anndata')")
        return _plain_zarr(path, group, key)
    io = need("anndata.io", "exchange")
    name = f"layers/{key}" if key else "X"
    if name not in group:
        raise InputError(f"{path} has no {shown(name)}; layers: {listed(list(group.get('layers', {})))}")
    element = group[name]
    encoding = element.attrs.get("encoding-type")
    if encoding == "csc_matrix":
        raise InputError(f"{name} of {path} is stored by columns (csc); save it again with adata.X = adata.X.tocsr()")
    sparse = encoding == "csr_matrix"
    array = io.sparse_dataset(element) if sparse else element
    source = from_array(path, array, np.dtype(element["data"].dtype if sparse else element.dtype))
    return replace(source, sparse=sparse, **_anndata_extras(path, group, io))


def _plain_zarr(path: Path, group: Any, key: str | None) -> Source:
    """Open an array of Zarr, or one of a group."""
    if "layout" in group.attrs and "schema_version" in group.attrs:
        raise InputError(f"{path} is an activation store, which needs no import")
    if isinstance(group, zarr.Array):
        if key is not None:
            raise InputError(f"{path} holds one array without a name; leave --key out")
        return from_array(path, group, np.dtype(group.dtype))
    names = sorted(name for name, member in group.members() if isinstance(member, zarr.Array))
    array = group[choose(path, names, key)]
    source = from_array(path, array, np.dtype(array.dtype))
    if (decoder := decoder_name(names)) is not None and decoder != array.basename:
        source.decoder = whole_source(path, from_array(path, group[decoder], np.dtype(group[decoder].dtype)))
    return source


def _open_h5ad(path: Path) -> Any:
    """Open an HDF5 file, unless anything in it is elsewhere or larger than what is stored of it."""
    h5py = need("h5py", "exchange")
    file = h5py.File(path, "r")
    groups = [file]
    while groups:
        group = groups.pop()
        for name in group:
            where = f"{path}, {group.name.rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{where} is a link; copy what it stands for into the file")
            member = group[name]
            if isinstance(member, h5py.Group):
                if len(groups) + member.name.count("/") > _MOST_GROUPS:
                    raise FormatError(f"{where}: groups inside of groups without end; it is damaged")
                groups.append(member)
            elif isinstance(member, h5py.Dataset):
                _check_dataset(where, member)
    return file


#: Groups of an HDF5 file that wait to be looked at: a group can be linked into itself.
_MOST_GROUPS = 1000


#: HDF5 holds some kilobytes of memory for each chunk, however small it is: so many of fewer bytes are refused.
_MOST_TINY_CHUNKS, _TINY_CHUNK = 20_000, 1024
#: The number of the filter in HDF5 that compresses with zlib.
_DEFLATE = 1


def _check_dataset(where: str, dataset: Any) -> None:
    if dataset.external or dataset.is_virtual:
        raise InputError(f"{where} is stored in another file; copy it into this one (h5repack does)")
    _check_array(where, dataset, dataset.id.get_storage_size())
    if dataset.chunks is not None:
        n_chunks = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        size = n_bytes(dataset.chunks, dataset.dtype.itemsize)
        if n_chunks > _MOST_TINY_CHUNKS and size < _TINY_CHUNK:
            raise InputError(
                f"{where} is cut into {n_chunks:,} chunks of {size} bytes: save it in larger ones (h5repack)"
            )
    _check_deflated(where, dataset)


def _check_deflated(where: str, dataset: Any) -> None:
    """Refuse chunks that gzip unpacks to more than they hold: HDF5 would give them all the memory that they ask for."""
    filters = dataset.id.get_create_plist()
    n_deflated = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())].count(_DEFLATE)
    if n_deflated > 1:
        raise CorruptError(f"{where} is compressed twice: save it with one compressor (h5repack does)")
    if not n_deflated or dataset.chunks is None:
        return
    largest, places = n_bytes(dataset.chunks, dataset.dtype.itemsize), []

    def note(chunk: Any) -> None:
        if chunk.size * MOST_EXPANSION["zlib"] > max(SMALL, largest):
            places.append(chunk.chunk_offset)

    dataset.id.chunk_iter(note)
    for place in places:
        mask, data = dataset.id.read_direct_chunk(place)
        if not mask:  # else a filter was left out
            check_size(where, unpacked_size("zlib", data, max(SMALL, largest)), largest)


def _check_array(where: str, array: Any, stored: int) -> None:
    """Refuse an array of HDF5 or Zarr that is far larger than what is stored of it, or whose chunks are."""
    check_expansion(where, n_bytes(array.shape or (), array.dtype.itemsize), stored)
    check_chunk(where, n_bytes(array.chunks or (), array.dtype.itemsize), stored)


def _open_zarr(path: Path) -> Any:
    """Open a Zarr group, unless there are pipes in it, or an array is larger than what is stored of it."""
    check_tree(path)
    group = zarr.open(str(path), mode="r")
    for name, member in [("", group)] if isinstance(group, zarr.Array) else group.members(max_depth=None):
        if isinstance(member, zarr.Array):
            folder = path.joinpath(*name.split("/"))
            _check_array(str(folder), member, size_on_disk(folder))
            check_frames(folder, member.metadata.to_dict(), _largest_chunk(member))
    return group


def _largest_chunk(array: zarr.Array) -> int:
    """Return the bytes that a chunk of an array is unpacked to; 0 if its values have no fixed size."""
    return 0 if array.dtype.kind in "OT" else n_bytes(array.chunks, array.dtype.itemsize)


def _anndata_extras(path: Path, group: Any, io: Any) -> dict[str, Any]:
    obs = group["obs"]
    tokens = {name: _column(io, obs, name) for name in TOKEN_COORDINATES if name in obs}
    # of another program's cells, `document` may be anything
    ours = "document" in tokens and (ATTRS_KEY in group.get("uns", {}) or {"char_start", "char_end"} <= set(tokens))
    extras: dict[str, Any] = {"tokens": tokens if ours else None}
    if "sink" in obs:
        extras["sink"] = _column(io, obs, "sink").astype(bool)
    if "decoder" in group.get("varm", {}):
        extras["decoder"] = np.asarray(io.read_elem(group["varm"]["decoder"]))
    if ATTRS_KEY in group.get("uns", {}):
        extras["attrs"] = _attributes(path, io.read_elem(group["uns"][ATTRS_KEY]))
    return extras


def _column(io: Any, obs: Any, name: str) -> NDArray[Any]:
    return np.asarray(io.read_elem(obs[name]))


def _read_saelens(path: Path, key: str | None, drop_tokens: Collection[int]) -> Source:
    """Open what sae-lens' ``CacheActivationsRunner`` wrote: one context a row, (position, d_in), and its token ids."""
    datasets = need("datasets", "models")
    _check_saelens(path)
    rows = datasets.load_from_disk(str(path)).with_format("numpy")
    hooks = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Array2D)]
    if not hooks:
        return _list_column(path, rows, key, drop_tokens)
    hook = choose(path, hooks, key)
    context, width = rows.features[hook].shape
    dtype = np.dtype(rows.features[hook].dtype)
    is_row = _kept_positions(path, rows, context, drop_tokens)
    check_matrix(path, (int(is_row.sum()), width), dtype)

    def slabs(n_rows: int) -> Iterator[Any]:
        for part in iter_slices(len(rows), max(1, n_rows // context)):
            yield np.asarray(rows[part][hook]).reshape(-1, width)[is_row[part].ravel()]

    attrs = {"site": hook, "kind": "raw", "context_size": context, "dropped_tokens": sorted(drop_tokens)}
    return Source(int(is_row.sum()), width, dtype, slabs, attrs=attrs)


def _list_column(path: Path, rows: Any, key: str | None, drop_tokens: Collection[int]) -> Source:
    """Open a dataset with one token a row, whose activations are a list."""
    if drop_tokens:
        raise InputError(f"{path} holds no token_ids, so no tokens can be dropped; leave --drop-token out")
    lists = [name for name, kind in rows.features.items() if _is_list(kind)]
    if not lists:
        raise InputError(f"{path} has {listed(list(rows.features))}; activations are a column of lists, one a token")
    name = choose(path, lists, key)
    width, dtype = len(rows[0][name]), np.dtype(rows.features[name].feature.dtype)
    check_matrix(path, (len(rows), width), dtype)

    def slabs(n_rows: int) -> Iterator[Any]:
        for part in iter_slices(len(rows), n_rows):
            values = [np.asarray(row, dtype) for row in rows[part][name]]
            if wrong := [row for row, value in enumerate(values) if value.shape != (width,)]:
                raise InputError(
                    f"{path}: row {part.start + wrong[0]} of {name} has the shape {values[wrong[0]].shape}, and row 0 "
                    f"({width},); every token has as many features"
                )
            yield np.stack(values)

    return Source(len(rows), width, dtype, slabs, attrs={"site": name})


def _is_list(kind: Any) -> bool:
    """Return whether a column is of lists of numbers."""
    return hasattr(kind, "feature") and hasattr(kind.feature, "dtype") and np.dtype(kind.feature.dtype).kind in "fiu"


def _check_saelens(path: Path) -> None:
    """Refuse a folder whose data are elsewhere, or are no regular files."""
    missing = f"{path} is not complete: a file of its data is missing; cache the activations again"
    state = read_json_object(path / "state.json", missing, "cache the activations again")
    for file in state.get("_data_files") or ():
        name = str(file.get("filename"))
        if Path(name).name != name:
            raise InputError(f"{path} names the data file {shown(name)}, which is not in the folder; copy it there")
        check_file(path / name, missing)
    check_file(path / "dataset_info.json", missing)


def _kept_positions(path: Path, rows: Any, context: int, drop_tokens: Collection[int]) -> NDArray[np.bool_]:
    """Return (context, position) bool, read from the token ids, one column of small integers."""
    is_row = np.ones((len(rows), context), bool)
    if not drop_tokens:
        return is_row
    if "token_ids" not in rows.column_names:
        raise InputError(f"{path} holds no token_ids, so no tokens can be dropped; leave --drop-token out")
    ids = rows.select_columns(["token_ids"])
    for part in iter_slices(len(rows), max(1, SLAB_BYTES // (4 * context))):
        is_row[part] = ~np.isin(np.asarray(ids[part]["token_ids"]), list(drop_tokens))
    return is_row


for _importer in (
    Importer("sae-lens", _read_saelens, files=("state.json", "dataset_info.json"), drops_tokens=True),
    Importer("numpy", _read_npy, (".npy",)),
    Importer("npz", _read_npz, (".npz",)),
    Importer("anndata", _read_anndata, (".h5ad", ".zarr")),
    Importer("safetensors", _read_safetensors, (".safetensors",)),
):
    IMPORTERS.register(_importer)


def read_decoder(path: str | Path, n_features: int) -> NDArray[Any]:
    """Return decoder rows, (n_features, d_model), from a ``.npy``, ``.npz`` or ``.safetensors`` file.

    Where there are several arrays, it is the one named ``decoder``, ``W_dec`` or ``decoder.weight``.

    Raises
    ------
    InputError
        If there is no file, or it is no decoder of so many features.
    BudgetError
        If it does not fit in memory.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise InputError(f"A decoder is read from .npy, .npz or .safetensors, not {path}")
    check_file(path, f"There is no decoder at {path}; check the path")
    names: list[str] = []
    with reading(path):
        if path.suffix == ".safetensors":
            with need("safetensors", "models").safe_open(str(path), framework="numpy") as file:
                names = list(file.keys())
        elif path.suffix == ".npz":
            with open_archive(path) as archive:
                names = sorted(names_in(archive))
    source = open_source(path, key=decoder_name(names))
    if source.n_tokens != n_features:
        raise InputError(
            f"The decoder in {path} has the shape {(source.n_tokens, source.n_features)}; it must have a row for each "
            f"of {n_features} features. If they are its columns, transpose it"
        )
    return whole_source(path, source)
