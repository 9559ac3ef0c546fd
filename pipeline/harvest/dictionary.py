"""What every dictionary is to the rest of the harvest, and how its format is registered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pipeline.settings.harvest import ActivationKind
from pipeline.settings.registries import DICTIONARIES
from storage.errors import InputError
from storage.json_files import read_json_object
from storage.shards import iter_slices

IDENTITY = "identity"
CONFIG = "cfg.json"

#: Bytes that the dense activations of one block of rows may take while they are encoded.
_BLOCK_BYTES = 64 << 20

Rows = NDArray[np.float32]
#: float32 array or csr_array (rows, features)
Encoded = Any


class Dictionary(ABC):
    """Turns rows of activations into feature activations.

    Attributes
    ----------
    id
        What was loaded, with a hash of its content where it has one.
    kind
        ``post``, ``pre_topk`` or ``raw``.
    n_features, d_model
        Number of features; width of the rows it reads.
    layout
        How its activations are stored: ``csr`` or ``dense``.
    decoder
        float32 array (n_features, width of what is reconstructed); None where the model's own weights are the decoder.
    site, context, prepend_bos
        Where it was trained, on windows of how many tokens, and whether these start with BOS; None if it does not say.
    output_site
        Of a transcoder: the site that it predicts, where its decoder's directions are. None if that is where it reads.
    config
        Its own configuration, as far as it bears on what it computes; plain JSON values.
    reconstructs
        Whether it is meant to explain a site; controls are not, and no site is refused for them.
    """

    id: str
    kind: ActivationKind
    n_features: int
    d_model: int
    layout: Literal["csr", "dense"]
    decoder: Rows | None
    site: str | None = None
    context: int | None = None
    prepend_bos: bool | None = None
    output_site: str | None = None
    config: dict[str, Any]
    reconstructs: bool = True

    @abstractmethod
    def encode(self, rows: Rows) -> Encoded:
        """Return the activations (rows, n_features) of float32 rows (rows, d_model)."""

    @abstractmethod
    def reconstruct(self, rows: Rows) -> Rows:
        """Return what the dictionary makes of float32 rows (rows, d_model), whatever `kind` is given out.

        As wide as the decoder: a transcoder's are the rows of `output_site`.
        """


@dataclass(frozen=True)
class Asked:
    """Which dictionary is asked for.

    Attributes
    ----------
    spec
        What the experiment names; of a format that is known by its files, the local folder.
    d_model
        Width of the rows at the site.
    kind
        Which activation to give.
    id
        What to record as its origin.
    neurons
        Whether the site is the hidden neurons of an MLP.
    device
        The torch device that it computes on.
    """

    spec: str
    d_model: int
    kind: ActivationKind
    id: str = ""
    neurons: bool = False
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return Path(self.spec)


@dataclass(frozen=True)
class Format:
    """One form in which dictionaries come.

    Attributes
    ----------
    name
        What it is called; without `weights`, what users write: ``NAME`` or ``NAME:OPTIONS``.
    function
        Loads the dictionary that is asked for.
    weights
        The file by which a folder of this format is known.
    settings
        The file of its configuration.
    """

    name: str
    function: Callable[[Asked], Dictionary]
    weights: str | None = None
    settings: str = CONFIG


def dictionary_format(
    name: str, weights: str | None = None, settings: str = CONFIG
) -> Callable[[Callable[[Asked], Dictionary]], Callable[[Asked], Dictionary]]:
    """Register a function that loads a dictionary; see :class:`Format`."""

    def register(function: Callable[[Asked], Dictionary]) -> Callable[[Asked], Dictionary]:
        DICTIONARIES.register(Format(name, function, weights, settings))
        return function

    return register


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Return what is in a folder's ``cfg.json``, or the file `name`, which has to be a JSON mapping."""
    return read_json_object(folder / name, f"There is no {folder / name}", "download the dictionary again")


def read_tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file; InputError if it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Any] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors: {error}") from error
    return tensors


def require_tensors(file: Path, tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that lack a tensor, have one of another shape, or have one that the formula does not know."""
    for name, shape in expected.items():
        given = tuple(tensors[name].shape) if name in tensors else None
        if given != shape:
            raise InputError(f"{file}: {name} has shape {given}, expected {shape}")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise InputError(
            f"{file} has {', '.join(unknown)}, which may change what the dictionary computes: it is of another "
            "architecture than those that are read"
        )


def in_blocks(rows: Rows, n_features: int) -> Iterator[slice]:
    """Yield slices of rows whose dense activations take at most 64 MiB.

    >>> list(in_blocks(np.zeros((3, 1), np.float32), 16_777_216))
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    return iter_slices(len(rows), max(1, _BLOCK_BYTES // (4 * n_features)))


def to_csr(values: Any) -> sp.csr_array:
    """Return a 2-D tensor's non-zero entries as csr, ids ascending in each row."""
    import torch

    where = torch.nonzero(values, as_tuple=True)
    return csr_of(where[0], where[1], values[where], (values.shape[0], values.shape[1]))


def csr_of(rows: Any, columns: Any, values: Any, shape: tuple[int, int]) -> sp.csr_array:
    """Return csr from tensors of entries that are sorted by row, then by column."""
    import torch

    counts = torch.bincount(rows, minlength=shape[0]).cpu().numpy()
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return sp.csr_array((values.cpu().numpy(), columns.cpu().numpy().astype(np.int32), indptr), shape=shape)


def stack(blocks: list[Encoded], layout: Literal["csr", "dense"], n_features: int) -> Encoded:
    """Put encoded blocks of rows one below the other; also none at all."""
    if layout == "dense":
        return np.concatenate([np.zeros((0, n_features), np.float32), *blocks])
    return sp.vstack(blocks, format="csr") if blocks else sp.csr_array((0, n_features), dtype=np.float32)


def check_kind(kind: ActivationKind, name: str, *, has_top_k: bool, architecture: str) -> None:
    """Refuse a kind of activation that a dictionary does not have."""
    if kind == "raw":
        raise InputError(f"kind: raw is for 'dictionary: identity', not for {name}; use post or pre_topk")
    if kind == "pre_topk" and not has_top_k:
        raise InputError(f"kind: pre_topk needs a TopK dictionary, but {name} is {architecture!r}; use kind: post")
