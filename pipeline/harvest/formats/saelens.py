"""Dictionaries of SAELens: its own folders and releases, and Gemma Scope's ``params.npz``.

The library that owns the format also does the encoding, so that its options (scaling of the input, subtraction of the
bias, rescaling by the decoder's norm) are honoured. What a dictionary says of itself and SAELens leaves to the caller
is done here: rows are centred where it was trained on a model with ``center_writing_weights``, and what cannot be
honoured is refused.
"""

from __future__ import annotations

import contextlib
import copy
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.harvest.dictionary import (
    Asked,
    Dictionary,
    Encoded,
    Rows,
    check_kind,
    dictionary_format,
    in_blocks,
    stack,
    to_csr,
)
from pipeline.settings.harvest import ActivationKind
from storage.damage import first_line
from storage.errors import InputError
from storage.extras import need

WEIGHTS = "sae_weights.safetensors"
GEMMA_SCOPE = "params.npz"

#: Architectures that turn one row into features without looking at other rows or at another tensor.
_ARCHITECTURES = ("standard", "topk", "abstopk", "jumprelu", "gated", "matching_pursuit")

#: What of a dictionary's configuration is recorded.
_RECORDED = (
    "dtype", "apply_b_dec_to_input", "normalize_activations", "k", "rescale_acts_by_decoder_norm",
)  # fmt: skip
_RECORDED_METADATA = ("model_name", "hook_name", "context_size", "prepend_bos", "model_from_pretrained_kwargs")


def sae_lens() -> Any:
    """Import sae-lens; its own import warns of its dependencies' names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return need("sae_lens", "models", "A sparse autoencoder")


class SaeLensDictionary(Dictionary):
    """A ``sae_lens.SAE``; its weights are used in float32, whatever they were stored in.

    InputError if it has no such kind of activation, or states something that cannot be honoured.
    """

    def __init__(self, sae: Any, id: str, kind: ActivationKind, device: str = "cpu") -> None:  # noqa: A002
        import torch

        _check(sae.cfg, id)
        check_kind(kind, id, has_top_k=sae.cfg.architecture() == "topk", architecture=sae.cfg.architecture())
        self.config = _recorded(sae.cfg)
        self._sae = sae.eval().to(device=device, dtype=torch.float32)
        self._encoder = _without_top_k(self._sae) if kind == "pre_topk" else self._sae
        self._device = device
        self._centres = bool((sae.cfg.metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"))
        self.id = id
        self.kind = kind
        self.n_features = int(sae.cfg.d_sae)
        self.d_model = int(sae.cfg.d_in)
        self.site = sae.cfg.metadata.hook_name
        self.context = sae.cfg.metadata.context_size
        self.prepend_bos = sae.cfg.metadata.prepend_bos
        self.decoder = sae.W_dec.detach().cpu().numpy().astype(np.float32)
        self.layout = "dense" if kind == "pre_topk" else "csr"
        # Some scalings keep the scale of the last rows on the object: one thread at a time.
        self._lock = threading.Lock()

    def encode(self, rows: Rows) -> Encoded:
        """Return the activations: csr for ``post``, an array for ``pre_topk``."""
        blocks = [self._encode(rows[part]) for part in in_blocks(rows, self.n_features)]
        return stack(blocks, self.layout, self.n_features)

    def _encode(self, rows: Rows) -> Encoded:
        import torch

        with self._exclusive(), torch.inference_mode():
            values = self._encoder.encode(self._tensor(rows)[0])
        return values.cpu().numpy() if self.layout == "dense" else to_csr(values)

    def _tensor(self, rows: Rows) -> tuple[Any, Any]:
        """Return the rows as the dictionary was trained to see them, and what was taken off: (rows, 1) or 0."""
        import torch

        values = torch.from_numpy(np.ascontiguousarray(rows)).to(self._device)
        offset = values.mean(dim=-1, keepdim=True) if self._centres else 0
        return values - offset, offset

    def _exclusive(self) -> contextlib.AbstractContextManager[Any]:
        """Return a lock for dictionaries that scale each row of their input, and nothing for the others."""
        scaled = self._sae.cfg.normalize_activations in {"constant_norm_rescale", "layer_norm"}
        return self._lock if scaled else contextlib.nullcontext()

    def reconstruct(self, rows: Rows) -> Rows:
        """Return the dictionary's own output, block by block."""
        import torch

        out = np.empty_like(rows)
        for part in in_blocks(rows, self.n_features):
            with self._exclusive(), torch.inference_mode():
                values, offset = self._tensor(rows[part])
                out[part] = (self._sae(values) + offset).cpu().numpy()
        return out


def _check(config: Any, name: str) -> None:
    """Refuse what the rest of the harvest cannot honour."""
    architecture = config.architecture()
    if architecture not in _ARCHITECTURES:
        raise InputError(
            f"{name} is a SAELens dictionary of architecture {architecture!r}; {', '.join(_ARCHITECTURES)} are "
            "read: each row by itself, explained where it was read"
        )
    if config.reshape_activations != "none":
        raise InputError(f"{name} reads the heads of the attention apart (reshape_activations: hook_z): not supported")
    if config.normalize_activations in {"expected_average_only_in", "covariance_whitening"}:
        raise InputError(
            f"{name} was trained on scaled activations (normalize_activations: {config.normalize_activations}), but "
            "the scale is not in its files: fold it into the weights (SAE.fold_activation_norm_scaling_factor) and "
            "save again"
        )


def _recorded(config: Any) -> dict[str, Any]:
    """Return what a dictionary says of itself, before its weights are made float32."""
    settings = {name: getattr(config, name) for name in _RECORDED if hasattr(config, name)}
    metadata = {name: config.metadata[name] for name in _RECORDED_METADATA if config.metadata[name] is not None}
    return {"format": "sae-lens", "architecture": config.architecture(), **settings, **metadata}


def _without_top_k(sae: Any) -> Any:
    """Return a dictionary with the same weights and a ReLU in place of the top-k."""
    import torch

    other = copy.copy(sae)
    other._modules = dict(sae._modules)
    other.activation_fn = torch.nn.ReLU()
    return other


@dictionary_format("sae-lens", WEIGHTS)
def load_folder(asked: Asked) -> SaeLensDictionary:
    """Load a SAELens folder."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae = sae_lens().SAE.load_from_disk(asked.folder)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{asked.folder} cannot be read as a SAELens dictionary: {error}") from error
    return SaeLensDictionary(sae, asked.id, asked.kind, asked.device)


def load_release(release: str, sae_id: str, kind: ActivationKind, device: str = "cpu") -> SaeLensDictionary:
    """Load a dictionary of SAELens's list of releases, downloaded to the hub's cache; OSError if it cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae = sae_lens().SAE.from_pretrained(release, sae_id, device="cpu")
    except (ValueError, KeyError) as error:
        raise InputError(f"SAELens cannot load id {sae_id!r} of release {release!r}: {first_line(error)}") from error
    return SaeLensDictionary(sae, f"{release}/{sae_id}", kind, device)


@dictionary_format("gemma-scope", GEMMA_SCOPE)
def load_gemma_scope(asked: Asked) -> SaeLensDictionary:
    """Load a folder of Gemma Scope (arXiv 2408.05147): a JumpReLU dictionary in ``params.npz``, no configuration.

    Trained with BOS on windows of 1,024 tokens; the bias is not subtracted from the input. Which block and tensor it
    reads stands in the path only (``gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82``), and is taken from
    there.
    """
    import torch

    folder, library = asked.folder, sae_lens()
    try:
        with np.load(folder / GEMMA_SCOPE, allow_pickle=False) as file:
            arrays = {re.sub("^w_", "W_", name): torch.from_numpy(file[name]).float() for name in file.files}
    except (ValueError, OSError) as error:
        raise InputError(f"{folder / GEMMA_SCOPE} cannot be read: {error}") from error
    lacking = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"} - set(arrays)
    if lacking:
        raise InputError(f"{folder / GEMMA_SCOPE} is no Gemma Scope dictionary: it lacks {', '.join(sorted(lacking))}")
    d_in, d_sae = arrays["W_enc"].shape
    config = library.JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False)
    config.metadata.prepend_bos, config.metadata.context_size = True, 1024
    config.metadata.hook_name = _hook_in_path(folder)
    sae = library.JumpReLUSAE(config)
    sae.load_state_dict({name: arrays[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")})
    return SaeLensDictionary(sae, asked.id, asked.kind, asked.device)


def _hook_in_path(folder: Path) -> str | None:
    """Return the hook point that a path of Gemma Scope names; None if it names none.

    >>> _hook_in_path(Path("/x/gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_82"))
    'blocks.3.hook_mlp_out'
    """
    match = re.search(r"gemma-scope-[^/]*-(res|mlp)/(?:.*/)?layer_(\d+)/", f"{folder.absolute().as_posix()}/")
    if not match:
        return None
    return f"blocks.{match[2]}.{'hook_resid_post' if match[1] == 'res' else 'hook_mlp_out'}"
