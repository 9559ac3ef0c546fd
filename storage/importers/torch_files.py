"""Tensors that ``torch.save`` wrote, alone or in a dict; whatever else is pickled in the file is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from storage.bounds import check_memory, n_bytes
from storage.errors import FormatError, InputError
from storage.extras import need
from storage.readers import (
    Importer,
    Source,
    choose,
    decoder_name,
    from_array,
    open_archive,
    source_in_file,
    whole_source,
)
from storage.registry import IMPORTERS

#: NumPy's types of those of torch; bfloat16 is read as uint16.
TYPES = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "bool": "?",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "i1",
    "uint8": "u1",
}


def read_torch(path: Path, key: str | None, _: Collection[int]) -> Source:
    """Open one tensor of a file; a dense one that lies in it row by row is read a slab at a time."""
    torch = need("torch", "models", "Reading .pt files")
    if _is_sparse(path):
        if key is not None:
            raise InputError(f"{path} holds a sparse tensor, which is read alone; leave --key out")
        return _sparse(torch, path)
    tensors = dict(_tensors(torch, _load(torch, path)))
    if not tensors:
        raise InputError(f"{path} holds no tensor; save it with torch.save(activations, …)")
    name = choose(path, sorted(tensors), key)
    source = _source(path, tensors[name])
    if (decoder := decoder_name(tensors)) is not None and decoder != name:
        source.decoder = whole_source(path, _source(path, tensors[decoder]))
    return source


def _is_sparse(path: Path) -> bool:
    """Return whether a sparse tensor is in a file of ``torch.save``; raise if it is no such file."""
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if not is_archive:
        raise InputError(f"{path} is not a file of torch.save since 1.6: load it and save it again")
    with open_archive(path) as archive:
        if any(member.compress_type for member in archive.infolist()):
            raise FormatError(f"{path} is compressed, which torch.save does not do: save it again")
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return b"_rebuild_sparse_tensor" in archive.read(name)


def _load(torch: Any, path: Path) -> Any:
    """Return what a file holds, its dense tensors without values: these stay in the file."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: PLC0415 - an extra

    with _only_tensors(torch, path), FakeTensorMode():
        return torch.load(path, weights_only=True, map_location="cpu")


@contextlib.contextmanager
def _only_tensors(torch: Any, path: Path) -> Iterator[None]:
    """Say in our words that a file holds more than tensors."""
    try:
        yield
    except torch.serialization.pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds Python objects besides tensors, which are never unpickled here (that could run code); save "
            "the tensors alone: torch.save({'acts': activations}, …)"
        ) from error


def _tensors(torch: Any, loaded: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors of what was loaded by their names; of a list, by their numbers."""
    if isinstance(loaded, torch.Tensor):
        yield prefix or "tensor", loaded
    members: Any = enumerate(loaded) if isinstance(loaded, list | tuple) else ()
    if isinstance(loaded, dict):
        members = loaded.items()
    for name, member in members:
        yield from _tensors(torch, member, f"{prefix}.{name}" if prefix else str(name))


def _source(path: Path, tensor: Any) -> Source:
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in TYPES:
        raise InputError(f"{path} holds {kind} values; save them as float32, bfloat16 or float16")
    storage = tensor.untyped_storage()
    dtype, shape = np.dtype(TYPES[kind]), tuple(tensor.shape)
    if not tensor.is_contiguous() or n_bytes(shape, dtype.itemsize) > storage.nbytes():
        raise InputError(
            f"{path} holds a view of shape {shape}, whose rows do not lie one after the other: save "
            "activations.contiguous()"
        )
    start = storage._checkpoint_offset + tensor.storage_offset() * dtype.itemsize
    return source_in_file(path, start, shape, dtype, bfloat=kind == "bfloat16")


def _sparse(torch: Any, path: Path) -> Source:
    """Read a sparse tensor, which has to be the only thing in its file, whole."""
    check_memory(str(path), 4 * path.stat().st_size, "Save it as SciPy's csr (scipy.sparse.save_npz), read in slabs")
    with _only_tensors(torch, path):
        tensor = torch.load(path, weights_only=True, map_location="cpu")
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2:
        raise InputError(f"{path} holds a sparse tensor among others, or of other than two dimensions: save it alone")
    if tensor.layout is not torch.sparse_csr:
        tensor = tensor.to_sparse_coo().coalesce()
        row, column = tensor.indices().numpy()
        matrix = scipy.sparse.coo_array((_values(torch, tensor), (row, column)), shape=tuple(tensor.shape)).tocsr()
    else:
        parts = _values(torch, tensor), tensor.col_indices().numpy(), tensor.crow_indices().numpy()
        matrix = scipy.sparse.csr_array(parts, shape=tuple(tensor.shape))
    return from_array(path, matrix, matrix.dtype)


def _values(torch: Any, tensor: Any) -> Any:
    values = tensor.values()
    return (values.float() if values.dtype is torch.bfloat16 else values).numpy()


IMPORTERS.register(Importer("torch", read_torch, (".pt", ".pth")))
