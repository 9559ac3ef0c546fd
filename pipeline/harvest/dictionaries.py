"""Dictionaries: what turns a residual stream into features.

A dictionary is named by one string:

==============================  ====================================================================
``identity``                    the raw units of the residual stream; the decoder is the identity
a folder                        a SAELens dictionary (``cfg.json`` + ``sae_weights.safetensors``)
a folder of folders             one SAELens dictionary for each site, in subfolders named like the sites
``release/sae_id``              a dictionary of SAELens's own list of releases
==============================  ====================================================================

The library that owns the format also does the encoding, so that its options (scaling of the input, subtraction of
the bias, rescaling by the decoder's norm) are honoured. The *kind* of activation is explicit: ``post`` is what the
dictionary's own nonlinearity gives, ``pre_topk`` the ReLU of the encoder before the top k are chosen, ``raw`` the
units themselves.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import threading
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from pipeline.config import ActivationKind
from storage.errors import InputError, MissingDependencyError, MissingInputError

IDENTITY = "identity"

#: Bytes that the dense activations of one block of rows may take while they are encoded.
_BLOCK_BYTES = 64 << 20

Rows = NDArray[np.float32]
#: float32 array or csr_array (rows, features)
Encoded = Any


class Dictionary(ABC):
    """Turns rows of the residual stream into feature activations.

    Attributes
    ----------
    id
        What was loaded, with a hash of its content where it has one.
    kind
        ``post``, ``pre_topk`` or ``raw``.
    n_features, d_model
        Number of features; width of the residual stream it reads.
    layout
        How its activations are stored: ``csr`` or ``dense``.
    decoder
        float32 array (n_features, d_model).
    prepend_bos
        Whether it was trained on text that starts with BOS; None if it does not say.
    """

    id: str
    kind: ActivationKind
    n_features: int
    d_model: int
    layout: Literal["csr", "dense"]
    decoder: Rows
    prepend_bos: bool | None = None

    @abstractmethod
    def encode(self, rows: Rows) -> Encoded:
        """Return the activations (rows, n_features) of float32 rows (rows, d_model)."""

    @abstractmethod
    def reconstruct(self, rows: Rows) -> Rows:
        """Return what the dictionary makes of float32 rows (rows, d_model): encoded and decoded."""


class Identity(Dictionary):
    """The raw units themselves.

    >>> import numpy as np
    >>> Identity(3).encode(np.ones((2, 3), np.float32)).shape
    (2, 3)
    """

    def __init__(self, d_model: int) -> None:
        self.id = IDENTITY
        self.kind = "raw"
        self.n_features = self.d_model = d_model
        self.layout = "dense"
        self.decoder = np.eye(d_model, dtype=np.float32)

    def encode(self, rows: Rows) -> Rows:
        """Return the rows."""
        return rows

    def reconstruct(self, rows: Rows) -> Rows:
        """Return the rows."""
        return rows


class SaeLensDictionary(Dictionary):
    """A dictionary that SAELens has loaded.

    Parameters
    ----------
    sae
        A ``sae_lens.SAE``; its weights are used in float32 whatever they were stored in.
    id
        What to record as its origin.
    kind
        ``post`` or, for TopK dictionaries, ``pre_topk``.
    """

    def __init__(self, sae: Any, id: str, kind: ActivationKind) -> None:  # noqa: A002
        import torch

        self._sae = sae.eval().float()
        self.id = id
        self.kind = kind
        self.n_features = int(sae.cfg.d_sae)
        self.d_model = int(sae.cfg.d_in)
        self.prepend_bos = sae.cfg.metadata.prepend_bos
        self.decoder = sae.W_dec.detach().cpu().numpy().astype(np.float32)
        self.layout = "csr"
        if kind == "pre_topk":
            self._sae.activation_fn = torch.nn.ReLU()
            self.layout = "dense"
        # Some scalings keep the scale of the last rows on the object: one thread at a time.
        self._lock = threading.Lock()

    def encode(self, rows: Rows) -> Encoded:
        """Return the activations: csr for ``post``, an array for ``pre_topk``."""
        step = max(1, _BLOCK_BYTES // (4 * self.n_features))
        blocks = [self._encode_block(rows[i : i + step]) for i in range(0, len(rows), step)]
        if self.layout == "dense":
            return np.concatenate(blocks) if blocks else np.zeros((0, self.n_features), np.float32)
        return sp.vstack(blocks, format="csr") if blocks else sp.csr_array((0, self.n_features), dtype=np.float32)

    def _encode_block(self, rows: Rows) -> Encoded:
        import torch

        with self._exclusive(), torch.inference_mode():
            values = self._sae.encode(torch.from_numpy(np.ascontiguousarray(rows)))
        return values.numpy() if self.layout == "dense" else _to_csr(values)

    def _exclusive(self) -> contextlib.AbstractContextManager[Any]:
        """Return a lock for dictionaries that scale each row of their input, and nothing for the others."""
        scaled = self._sae.cfg.normalize_activations in {"constant_norm_rescale", "layer_norm"}
        return self._lock if scaled else contextlib.nullcontext()

    def reconstruct(self, rows: Rows) -> Rows:
        """Return the dictionary's own output, block by block."""
        import torch

        step = max(1, _BLOCK_BYTES // (4 * self.n_features))
        out = np.empty_like(rows)
        for i in range(0, len(rows), step):
            with self._exclusive(), torch.inference_mode():
                out[i : i + step] = self._sae(torch.from_numpy(np.ascontiguousarray(rows[i : i + step]))).numpy()
        return out


def _to_csr(values: Any) -> sp.csr_array:
    """Return a 2-D tensor's non-zero entries as csr, ids ascending in each row."""
    import torch

    where = torch.nonzero(values, as_tuple=True)
    counts = torch.bincount(where[0], minlength=values.shape[0])
    indptr = np.concatenate([[0], np.cumsum(counts.numpy())])
    return sp.csr_array(
        (values[where].numpy(), where[1].numpy().astype(np.int32), indptr.astype(np.int32)), shape=tuple(values.shape)
    )


def load_dictionary(spec: str, d_model: int, site: str = "", kind: ActivationKind = "post") -> Dictionary:
    """Load a dictionary and check that it fits the model.

    Parameters
    ----------
    spec
        ``identity``, a folder, a folder with one subfolder for each site, or ``release/sae_id``.
    d_model
        Width of the residual stream at the site.
    site
        The site, to choose the subfolder.
    kind
        Which activation to give; ``identity`` is always ``raw``.

    Returns
    -------
    Dictionary

    Raises
    ------
    MissingInputError
        If there is no such folder or release.
    InputError
        If the dictionary reads another width than `d_model`, or `kind` makes no sense for it.
    MissingDependencyError
        If sae-lens is needed and not installed.

    Examples
    --------
    >>> load_dictionary("identity", 4).kind
    'raw'
    """
    if spec == IDENTITY:
        return Identity(d_model)
    folder = dictionary_folder(spec, site)
    if folder is not None:
        _check_width(_read_config(folder).get("d_in"), d_model, str(folder))
        loaded = _load_folder(str(folder), kind)
    else:
        loaded = _load_release(spec, kind)
    _check_width(loaded.d_model, d_model, loaded.id)
    return loaded


def dictionary_folder(spec: str, site: str) -> Path | None:
    """Return the local folder of a dictionary (its subfolder for `site`, if it has one); None for a release."""
    root = Path(spec)
    for folder in (root, root / site):
        if (folder / "cfg.json").is_file():
            return folder
    if root.is_dir():
        inside = sorted(child.name for child in root.iterdir() if (child / "cfg.json").is_file())
        raise MissingInputError(
            f"The dictionary folder {root} has neither a cfg.json nor a subfolder {site!r} with one"
            + (f"; it has dictionaries for {', '.join(inside)}" if inside else "")
        )
    if root.is_absolute() or spec.startswith("."):
        raise MissingInputError(f"No dictionary folder at {spec}: check 'dictionary' in the experiment file")
    return None


def _check_width(width: int | None, d_model: int, name: str) -> None:
    if width != d_model:
        raise InputError(
            f"The dictionary {name} reads activations of width {width}, but the model's residual stream has width "
            f"{d_model}: it belongs to another model"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{folder / 'cfg.json'} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{folder / 'cfg.json'} must hold a mapping")
    return content


def _check_kind(config: Any, kind: ActivationKind, name: str) -> None:
    """Refuse a kind that the dictionary does not have."""
    architecture = config.architecture()
    if kind == "raw":
        raise InputError(f"kind: raw is for 'dictionary: identity', not for {name}; use post or pre_topk")
    if kind == "pre_topk" and architecture != "topk":
        raise InputError(f"kind: pre_topk needs a TopK dictionary, but {name} is {architecture!r}; use kind: post")


def _sae_lens() -> Any:
    """Import sae-lens; its own import warns of its dependencies' names."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import sae_lens
    except ImportError as error:
        raise MissingDependencyError(
            f"Sparse autoencoders need sae-lens ({error.name} is missing): "
            "pip install 'semantic-subspace-matching[models]'"
        ) from error
    return sae_lens


@functools.lru_cache(maxsize=16)
def _load_folder(folder: str, kind: ActivationKind) -> Dictionary:
    """Load a SAELens folder, once a process."""
    weights = Path(folder) / "sae_weights.safetensors"
    if not weights.is_file():
        raise MissingInputError(f"The dictionary folder {folder} lacks sae_weights.safetensors")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae = _sae_lens().SAE.load_from_disk(folder, dtype="float32")
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{folder} cannot be read as a SAELens dictionary: {error}") from error
    _check_kind(sae.cfg, kind, folder)
    return SaeLensDictionary(sae, f"{Path(folder).name}@{_folder_hash(Path(folder))[:16]}", kind)


def _folder_hash(folder: Path) -> str:
    """Return a SHA-256 over a dictionary's configuration and weights."""
    digest = hashlib.sha256((folder / "cfg.json").read_bytes())
    digest.update((folder / "sae_weights.safetensors").read_bytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=16)
def _load_release(spec: str, kind: ActivationKind) -> Dictionary:
    """Load ``release/sae_id`` through SAELens's list of releases, once a process."""
    release, _, sae_id = spec.partition("/")
    if not sae_id:
        raise MissingInputError(
            f"No dictionary {spec!r}: give 'identity', a folder, or 'release/sae_id' of SAELens's list"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae = _sae_lens().SAE.from_pretrained(release, sae_id, device="cpu")
    except (ValueError, KeyError, OSError) as error:
        raise MissingInputError(
            f"No dictionary {spec!r}: there is no such folder, and SAELens cannot load release {release!r}, "
            f"id {sae_id!r}: {str(error).splitlines()[0]}"
        ) from error
    _check_kind(sae.cfg, kind, spec)
    return SaeLensDictionary(sae, spec, kind)
