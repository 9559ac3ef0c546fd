"""Activations in other programs' files, opened so that they can be read a few rows at a time.

==============================  ===========================================  ================================
file                            written by                                   rows in memory at a time
==============================  ===========================================  ================================
``.npy``                        ``numpy.save``                               one slab (memory-mapped)
``.npz``                        ``scipy.sparse.save_npz``, ``numpy.savez``   one slab (csr, C order); else all
``.h5ad``, AnnData ``.zarr``    ``AnnData.write_h5ad``, ``.write_zarr``      one slab (csr or dense)
``.safetensors``                ``safetensors``                              one slab
folder with ``state.json``      sae-lens' ``CacheActivationsRunner``         one slab
==============================  ===========================================  ================================

To read another format, register a function from a path to a :class:`Source`; see :class:`Importer`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import zarr
from numpy.typing import NDArray

from storage.codec import is_sparse_matrix
from storage.errors import FormatError, InputError, MissingDependencyError, MissingInputError
from storage.registry import Registry
from storage.rows import TOKEN_COORDINATES

#: Bytes of one slab, were it dense.
SLAB_BYTES = 64 * 2**20
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
    n_tokens, n_features
        Shape.
    dtype
        Type of the values.
    slabs
        From a number of rows to slabs of at most so many rows, NumPy or SciPy CSR, in order; called once.
    sparse
        Whether the slabs are sparse.
    tokens, sink, decoder, attrs
        As a store keeps them, if the file has them.
    """

    n_tokens: int
    n_features: int
    dtype: np.dtype[Any]
    slabs: Slabs
    sparse: bool = False
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
    drops_tokens
        Whether it knows token ids, so that it can leave rows out.
    """

    name: str
    function: Callable[[Path, str | None, Collection[int]], Source]
    suffixes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    drops_tokens: bool = False

    def recognises(self, path: Path) -> bool:
        """Say whether a path is of this format, by its name or the files in it."""
        return path.suffix in self.suffixes or (
            bool(self.files) and all((path / file).is_file() for file in self.files)
        )

    @property
    def folder(self) -> str:
        """What a folder of the format is known by."""
        return f"a folder with {' and '.join(self.files)}"


IMPORTERS: Registry[Importer] = Registry("importer", "subspace.importers", "storage.readers")


def open_source(path: str | Path, *, key: str | None = None, drop_tokens: Collection[int] = ()) -> Source:
    """Open activations in any format that is known.

    Parameters
    ----------
    path
        The file or folder.
    key
        Which array, where there are several: a name in a ``.npz`` or ``.safetensors``, a layer of an AnnData, a hook.
    drop_tokens
        Ids of tokens whose rows are left out (BOS, padding); for sources that know token ids.

    Raises
    ------
    MissingInputError
        If there is nothing at the path.
    InputError
        If the format is not known, or what is in it is no matrix of real numbers.
    MissingDependencyError
        If the library that reads it is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise MissingInputError(f"There is nothing to import at {path}; check the path")
    # importers of other packages are not looked at, and so not imported, where one of our own reads the file
    importer = next((one for one in IMPORTERS.values() if one.recognises(path)), None)
    if importer is None:
        raise InputError(f"{path} is none of the formats that can be imported: {importers_listed()}")
    if drop_tokens and not importer.drops_tokens:
        raise InputError(f"{path} holds no token ids, so no tokens can be dropped; leave --drop-token out")
    return importer.function(path, key, drop_tokens)


def importers_listed() -> str:
    """Return what can be imported, for people.

    >>> importers_listed()
    'sae-lens (a folder with state.json and dataset_info.json), numpy (.npy), npz (.npz), anndata (.h5ad or .zarr), ...
    """
    return ", ".join(f"{name} ({' or '.join(one.suffixes) or one.folder})" for name, one in IMPORTERS.items())


def check_matrix(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless this is the shape and the type of a matrix of activations."""
    if dtype.kind not in "fiub":
        raise InputError(f"{path} holds {dtype} values; activations are real numbers. Save them as float32")
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"{path} holds an array of shape {tuple(shape)}; activations are (token, feature)")


def _from_array(path: Path, array: Any, dtype: np.dtype[Any]) -> Source:
    """Return the source of anything that has a shape and can be cut by rows."""
    shape = tuple(array.shape)
    check_matrix(path, shape, dtype)

    def slabs(rows: int) -> Iterator[Any]:
        return (array[start : start + rows] for start in range(0, shape[0], rows))

    return Source(shape[0], shape[1], dtype, slabs, sparse=is_sparse_matrix(array))


def _read_npy(path: Path, key: str | None, _: Collection[int]) -> Source:
    if key is not None:
        raise InputError(f"{path} holds one array without a name; leave --key out")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(path, error) from error
    return _from_array(path, array, array.dtype)


def _unreadable(path: Path, error: Exception) -> InputError:
    if any(word in str(error) for word in ("pickle", "Object arrays", "Python objects")):
        return InputError(
            f"{path} holds Python objects, which are never unpickled here (that could run code); save a numeric array"
        )
    return FormatError(f"{path} cannot be read ({error}); is it complete?")


def _read_npz(path: Path, key: str | None, _: Collection[int]) -> Source:
    try:
        # Opened here, since NumPy leaves the file open where it is no archive
        with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
            names = set(members.files)
            extras = _extras(members, names)
            if {"format", "shape", "data"} <= names:
                source = _sparse_npz(path, members)
            else:
                source = _dense_npz(path, names, key)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(path, error) from error
    return _with(source, extras)


def _extras(members: Any, names: set[str]) -> dict[str, Any]:
    """Return what :mod:`storage.exchange` writes beside the matrix."""
    tokens = {name: members[TOKEN_PREFIX + name] for name in TOKEN_COORDINATES if TOKEN_PREFIX + name in names}
    extras: dict[str, Any] = {"tokens": tokens or None}
    extras |= {name: members[name] for name in ("sink", "decoder") if name in names}
    if ATTRS_KEY in names:
        extras["attrs"] = json.loads(str(members[ATTRS_KEY]))
    return extras


def _with(source: Source, extras: Mapping[str, Any]) -> Source:
    for name, value in extras.items():
        setattr(source, name, value)
    return source


def _sparse_npz(path: Path, members: Any) -> Source:
    kind = members["format"].item()
    if (kind.decode() if isinstance(kind, bytes) else kind) != "csr":
        matrix = scipy.sparse.csr_array(scipy.sparse.load_npz(path))
        return _from_array(path, matrix, matrix.dtype)
    n_tokens, n_features = (int(length) for length in members["shape"])
    indptr = members["indptr"].astype(np.int64)
    with zipfile.ZipFile(path) as archive:
        dtype = _Member(archive, "data").dtype
    check_matrix(path, (n_tokens, n_features), dtype)
    return Source(n_tokens, n_features, dtype, lambda rows: _csr_slabs(path, indptr, n_features, rows), sparse=True)


def _csr_slabs(path: Path, indptr: NDArray[np.int64], n_features: int, rows: int) -> Iterator[scipy.sparse.csr_array]:
    """Read column ids and values side by side from the compressed file."""
    with zipfile.ZipFile(path) as archive:
        ids, values = _Member(archive, "indices"), _Member(archive, "data")
        for start in range(0, len(indptr) - 1, rows):
            bounds = indptr[start : start + rows + 1]
            n = int(bounds[-1] - bounds[0])
            parts = values.take(n), ids.take(n), bounds - bounds[0]
            if n and not 0 <= parts[1].min() <= parts[1].max() < n_features:
                raise FormatError(f"{path} has column ids outside of 0..{n_features - 1}; save the matrix again")
            yield scipy.sparse.csr_array(parts, shape=(len(bounds) - 1, n_features))


def _dense_npz(path: Path, names: set[str], key: str | None) -> Source:
    others = {ATTRS_KEY, "sink", "decoder", *(TOKEN_PREFIX + name for name in TOKEN_COORDINATES)}
    name = _choose(path, sorted(names - others), key)
    with zipfile.ZipFile(path) as archive:
        member = _Member(archive, name)
    if member.fortran:
        with np.load(path, allow_pickle=False) as members:
            return _from_array(path, members[name], member.dtype)
    check_matrix(path, member.shape, member.dtype)

    def slabs(rows: int) -> Iterator[Any]:
        with zipfile.ZipFile(path) as archive:
            stream = _Member(archive, name)
            for start in range(0, member.shape[0], rows):
                n = min(rows, member.shape[0] - start)
                yield stream.take(n * member.shape[1]).reshape(n, -1)

    return Source(member.shape[0], member.shape[1], member.dtype, slabs)


def _choose(path: Path, names: list[str], key: str | None) -> str:
    if key is not None and key not in names:
        raise InputError(f"{path} has no {key!r}; it has {', '.join(names) or 'nothing'}")
    if key is None and len(names) != 1:
        raise InputError(f"{path} has {len(names)} arrays ({', '.join(names)}); name one with --key")
    return key or names[0]


class _Member:
    """One array inside a ``.npz``, read from its beginning on."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.stream = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(self.stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, self.fortran, self.dtype = read(self.stream)
        if self.dtype.hasobject:
            raise ValueError("Object arrays are pickled")

    def take(self, n: int) -> NDArray[Any]:
        data = self.stream.read(n * self.dtype.itemsize)
        if len(data) < n * self.dtype.itemsize:
            raise FormatError(f"{self.stream.name} ends too early; is the file complete?")
        return np.frombuffer(data, self.dtype)


def _read_safetensors(path: Path, key: str | None, _: Collection[int]) -> Source:
    safetensors = need("safetensors", "models")
    stack = ExitStack()
    try:
        file = stack.enter_context(safetensors.safe_open(str(path), framework="numpy"))
        part = file.get_slice(_choose(path, sorted(file.keys()), key))
        dtype = np.dtype(_SAFETENSORS_TYPES[part.get_dtype()])
    except KeyError as error:
        raise InputError(f"{path} holds {error} values; save them as float32 or float16") from error
    except safetensors.SafetensorError as error:
        raise FormatError(f"{path} cannot be read ({error}); is it complete?") from error
    shape = tuple(part.get_shape())
    check_matrix(path, shape, dtype)

    def slabs(rows: int) -> Iterator[Any]:
        with stack:
            for start in range(0, shape[0], rows):
                yield part[start : min(start + rows, shape[0])]

    return Source(shape[0], shape[1], dtype, slabs)


_SAFETENSORS_TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I8": "i1", "U8": "u1"}


def _read_anndata(path: Path, key: str | None, _: Collection[int]) -> Source:
    io = need("anndata.io", "exchange")
    group = need("h5py", "exchange").File(path, "r") if path.suffix == ".h5ad" else zarr.open_group(str(path), mode="r")
    if group.attrs.get("encoding-type") != "anndata":
        raise InputError(f"{path} is not an AnnData file (no encoding-type 'anndata'); a store needs no import")
    name = f"layers/{key}" if key else "X"
    if name not in group:
        raise InputError(f"{path} has no {name}; layers: {', '.join(group.get('layers', {})) or 'none'}")
    element = group[name]
    encoding = element.attrs.get("encoding-type")
    if encoding == "csc_matrix":
        raise InputError(f"{name} of {path} is stored by columns (csc); save it again with adata.X = adata.X.tocsr()")
    sparse = encoding == "csr_matrix"
    array = io.sparse_dataset(element) if sparse else element
    source = _from_array(path, array, np.dtype(element["data"].dtype if sparse else element.dtype))
    source.sparse = sparse
    return _with(source, _anndata_extras(group, io))


def _anndata_extras(group: Any, io: Any) -> dict[str, Any]:
    obs = io.read_elem(group["obs"])
    tokens = {name: obs[name].to_numpy() for name in TOKEN_COORDINATES if name in obs}
    extras: dict[str, Any] = {"tokens": tokens if {"document", "char_start", "char_end"} <= set(tokens) else None}
    if "sink" in obs:
        extras["sink"] = obs["sink"].to_numpy().astype(bool)
    if "decoder" in group.get("varm", {}):
        extras["decoder"] = np.asarray(io.read_elem(group["varm"]["decoder"]))
    if ATTRS_KEY in group.get("uns", {}):
        extras["attrs"] = json.loads(str(io.read_elem(group["uns"][ATTRS_KEY])))
    return extras


def _read_saelens(path: Path, key: str | None, drop_tokens: Collection[int]) -> Source:
    """Open what sae-lens' ``CacheActivationsRunner`` wrote: one context a row, (position, d_in), and its token ids."""
    datasets = need("datasets", "models")
    rows = datasets.load_from_disk(str(path)).with_format("numpy")
    hooks = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Array2D)]
    hook = _choose(path, hooks, key)
    context, width = rows.features[hook].shape
    dtype = np.dtype(rows.features[hook].dtype)
    kept = _kept_positions(path, rows, context, drop_tokens)
    check_matrix(path, (int(kept.sum()), width), dtype)

    def slabs(n_rows: int) -> Iterator[Any]:
        step = max(1, n_rows // context)
        for start in range(0, len(rows), step):
            part = np.asarray(rows[start : start + step][hook]).reshape(-1, width)
            yield part[kept[start : start + step].ravel()]

    attrs = {"site": hook, "kind": "raw", "context_size": context, "dropped_tokens": sorted(drop_tokens)}
    return Source(int(kept.sum()), width, dtype, slabs, attrs=attrs)


def _kept_positions(path: Path, rows: Any, context: int, drop_tokens: Collection[int]) -> NDArray[np.bool_]:
    """Return (context, position) bool, read from the token ids, one column of small integers."""
    kept = np.ones((len(rows), context), bool)
    if not drop_tokens:
        return kept
    if "token_ids" not in rows.column_names:
        raise InputError(f"{path} holds no token_ids, so no tokens can be dropped; leave --drop-token out")
    step = max(1, SLAB_BYTES // (4 * context))
    ids = rows.select_columns(["token_ids"])
    for start in range(0, len(rows), step):
        part = np.asarray(ids[start : start + step]["token_ids"])
        kept[start : start + step] = ~np.isin(part, list(drop_tokens))
    return kept


def need(module: str, extra: str) -> Any:
    """Import a library that only some installations have."""
    import importlib  # noqa: PLC0415

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"This needs {module.split('.', maxsplit=1)[0]}, which is not installed: "
            f"pip install 'semantic-subspace-matching[{extra}]'"
        ) from error


for _importer in (
    Importer("sae-lens", _read_saelens, files=("state.json", "dataset_info.json"), drops_tokens=True),
    Importer("numpy", _read_npy, (".npy",)),
    Importer("npz", _read_npz, (".npz",)),
    Importer("anndata", _read_anndata, (".h5ad", ".zarr")),
    Importer("safetensors", _read_safetensors, (".safetensors",)),
):
    IMPORTERS.register(_importer)


def read_decoder(path: str | Path) -> NDArray[Any]:
    """Return decoder rows, (feature, d_model), from a ``.npy``, ``.npz`` or ``.safetensors`` file.

    Where there are several arrays, it is the one named ``decoder``, ``W_dec`` or ``decoder.weight``.
    """
    path = Path(path)
    names: list[str] = []
    if path.suffix == ".safetensors" and path.exists():
        with need("safetensors", "models").safe_open(str(path), framework="numpy") as file:
            names = list(file.keys())
    elif path.suffix == ".npz" and path.exists():
        with np.load(path, allow_pickle=False) as members:
            names = list(members.files)
    elif path.suffix not in (".npy", ".npz", ".safetensors"):
        raise InputError(f"A decoder is read from .npy, .npz or .safetensors, not {path}")
    key = next((name for name in DECODER_KEYS if name in names), None)
    source = open_source(path, key=key)
    return np.concatenate(list(source.slabs(source.slab_rows)))


def read_tokens(path: str | Path) -> dict[str, NDArray[Any]]:
    """Return token coordinates from a ``.npz``, ``.csv`` or ``.parquet`` file with one array or column each."""
    import pandas as pd  # noqa: PLC0415 - half a second, for one option

    path = Path(path)
    if not path.exists():
        raise MissingInputError(f"There are no token coordinates at {path}; check the path")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as members:
            return {name: members[name] for name in members.files}
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"Token coordinates are read from .npz, .csv or .parquet, not {path}")
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except ImportError as error:
        raise MissingDependencyError(
            "Parquet needs pyarrow, which is not installed: pip install 'semantic-subspace-matching[models]'"
        ) from error
    return {str(name): table[name].to_numpy() for name in table}
