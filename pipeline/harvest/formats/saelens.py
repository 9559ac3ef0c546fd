"""Dictionaries of SAELens: its own folders and releases, and Gemma Scope's ``params.npz``.

The library that owns the format also does the encoding, so that its options (scaling of the input, subtraction of the
bias, rescaling by the decoder's norm) are honoured. What a dictionary says of itself and SAELens leaves to the caller
is done here: rows are centred where it was trained on a model with ``center_writing_weights``, and what cannot be
honoured is refused.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.harvest.dictionary import (
    CONFIG,
    Asked,
    Dictionary,
    Encoded,
    Rows,
    check_kind,
    dictionary_format,
    in_blocks,
    read_config,
    stack,
    to_csr,
)
from pipeline.settings.harvest import ActivationKind
from storage.damage import first_line
from storage.errors import InputError
from storage.extras import need

WEIGHTS = "sae_weights.safetensors"
GEMMA_SCOPE = "params.npz"

#: Architectures that predict another tensor than they read.
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")

#: Architectures that turn one row into features without looking at other rows.
_ARCHITECTURES = ("standard", "topk", "abstopk", "jumprelu", "gated", "matching_pursuit", *_TRANSCODERS)

#: Architectures that SAELens saves under another name once they are trained.
_TRAINED_ONLY = ("batchtopk", "matryoshka_batchtopk")

#: Keys of a configuration that name another tensor than the input.
_OUTPUTS = ("hook_name_out", "hook_point_out", "out_hook_point", "is_transcoder")

#: What of a dictionary's configuration is recorded.
_RECORDED = (
    "dtype", "apply_b_dec_to_input", "normalize_activations", "k", "rescale_acts_by_decoder_norm",
)  # fmt: skip
_RECORDED_METADATA = (
    "model_name", "hook_name", "hook_name_out", "context_size", "prepend_bos", "model_from_pretrained_kwargs",
)  # fmt: skip


def sae_lens() -> Any:
    """Import sae-lens; its own import warns of its dependencies' names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return need("sae_lens", "models", "A sparse autoencoder")


def jump_relu(
    weights: dict[str, Any],
    *,
    apply_b_dec_to_input: bool,
    site: str | None,
    context: int | None,
    bos: bool | None,
    output_site: str | None = None,
) -> Any:
    """Return SAELens's JumpReLU dictionary of weights ``W_enc``, ``b_enc``, ``W_dec``, ``b_dec``, ``threshold``.

    With `output_site` it is a transcoder, which may have ``W_skip``.
    """
    from sae_lens.registry import get_sae_class

    transcoder = "jumprelu_skip_transcoder" if "W_skip" in weights else "jumprelu_transcoder"
    made, configuration = get_sae_class("jumprelu" if output_site is None else transcoder)
    d_in, d_sae = weights["W_enc"].shape
    sizes = {"d_in": d_in, "d_sae": d_sae} | ({} if output_site is None else {"d_out": weights["W_dec"].shape[1]})
    config = configuration(**sizes, apply_b_dec_to_input=apply_b_dec_to_input)
    config.metadata.prepend_bos, config.metadata.context_size, config.metadata.hook_name = bos, context, site
    config.metadata.hook_name_out = output_site
    sae = made(config)
    sae.load_state_dict({name: values.float().contiguous() for name, values in weights.items()})
    return sae


class SaeLensDictionary(Dictionary):
    """A ``sae_lens.SAE``; its weights are used in float32, whatever they were stored in.

    InputError if it has no such kind of activation, or states something that cannot be honoured.
    """

    def __init__(self, sae: Any, id: str, kind: ActivationKind, device: str = "cpu") -> None:  # noqa: A002
        import torch

        _check(sae.cfg, id)
        check_kind(kind, id, has_top_k=sae.cfg.architecture() == "topk", architecture=sae.cfg.architecture())
        self.config = _recorded(sae.cfg)
        sae.turn_off_forward_pass_hook_z_reshaping()  # rows are the heads side by side already
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
        self.output_site = sae.cfg.metadata.hook_name_out if sae.cfg.architecture() in _TRANSCODERS else None
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

        out = np.empty((len(rows), int(self._sae.W_dec.shape[1])), np.float32)
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
            "read: each row by itself"
        )
    if architecture in _TRANSCODERS:
        _check_transcoder(config, name)
    if config.normalize_activations in {"expected_average_only_in", "covariance_whitening"}:
        raise InputError(
            f"{name} was trained on scaled activations (normalize_activations: {config.normalize_activations}), but "
            "the scale is not in its files: fold it into the weights (SAE.fold_activation_norm_scaling_factor) and "
            "save again"
        )


def _check_transcoder(config: Any, name: str) -> None:
    """Refuse a transcoder whose output cannot be compared with any site."""
    if not config.metadata.hook_name_out:
        raise InputError(
            f"{name} is a transcoder that does not say what it predicts: give the name of that site as hook_name_out "
            f"in the metadata of its {CONFIG}"
        )
    if (config.metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        raise InputError(f"{name}: a transcoder of a model with center_writing_weights is not read")


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
    _refuse_other_formulas(asked.folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae = _load(asked.folder)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{asked.folder} cannot be read as a SAELens dictionary: {error}") from error
    return SaeLensDictionary(sae, asked.id, asked.kind, asked.device)


def _load(folder: Path) -> Any:
    """Return the dictionary of a folder, as it is used after training if it was saved for going on with training."""
    library = sae_lens()
    if read_config(folder).get("architecture") not in _TRAINED_ONLY:
        return library.SAE.load_from_disk(folder)
    from sae_lens.registry import get_sae_class

    trained = library.TrainingSAE.load_from_disk(folder)
    settings, weights = trained.cfg.get_inference_sae_cfg_dict(), trained.state_dict()
    trained.process_state_dict_for_saving_inference(weights)
    made, config = get_sae_class(settings["architecture"])
    sae = made(config.from_dict(settings))
    sae.process_state_dict_for_loading(weights)
    sae.load_state_dict(weights)
    return sae


def _refuse_other_formulas(folder: Path) -> None:
    """Refuse settings that change what a dictionary computes, and that SAELens drops without a word."""
    config = read_config(folder)
    file = folder / CONFIG
    metadata = config.get("metadata") or {}
    everything = {**metadata, **config} if isinstance(metadata, dict) else config
    activation = everything.get("activation_fn_str", everything.get("activation_fn", "relu"))
    kwargs = everything.get("activation_fn_kwargs") or {}
    if activation not in {"relu", "topk"} or (activation == "topk" and not (kwargs.get("k") or config.get("k"))):
        raise InputError(f"{file}: activation {activation!r} with {kwargs} is not read; relu, and topk with k, are")
    heads = [name for name in ("hook_head_index", "hook_point_head_index") if everything.get(name) is not None]
    if heads:
        raise InputError(f"{file}: {heads[0]} {everything[heads[0]]}: dictionaries of one head are not read")
    elsewhere = [name for name in _OUTPUTS if everything.get(name)]
    site = everything.get("hook_name", everything.get("hook_point"))
    if elsewhere and everything[elsewhere[0]] != site and config.get("architecture") not in _TRANSCODERS:
        raise InputError(
            f"{file}: a transcoder ({elsewhere[0]}: {everything[elsewhere[0]]}) of architecture "
            f"{config.get('architecture')!r}; {', '.join(_TRANSCODERS)} are read"
        )
    if "metadata" in config:
        _refuse_unknown(config, file)


def _refuse_unknown(config: dict[str, Any], file: Path) -> None:
    """Refuse settings that SAELens's configuration of that architecture does not have: it drops them."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    registries = (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY)
    kinds = [registry[config["architecture"]][1] for registry in registries if config.get("architecture") in registry]
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)} | {"architecture", "sae_lens_version"}
    unknown = sorted(set(config) - known)
    if kinds and unknown:
        raise InputError(
            f"{file} has settings that the installed sae-lens does not know: {', '.join(unknown)}; they may change "
            "what the dictionary computes: upgrade sae-lens"
        )


def load_release(release: str, sae_id: str, kind: ActivationKind, device: str = "cpu") -> SaeLensDictionary:
    """Load a dictionary of SAELens's list of releases, downloaded to the hub's cache; OSError if it cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae = sae_lens().SAE.from_pretrained(release, sae_id, device="cpu")
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"SAELens cannot load id {sae_id!r} of release {release!r}: {first_line(error)}") from error
    loaded = SaeLensDictionary(sae, f"{release}/{sae_id}", kind, device)
    if sae.cfg.architecture() in _TRANSCODERS and "clt" in f"{release}/{sae_id}":
        loaded.reconstructs = False
        loaded.config["decoder"] = "sum over the blocks that a cross-layer transcoder writes to"
    return loaded


@dictionary_format("gemma-scope", GEMMA_SCOPE)
def load_gemma_scope(asked: Asked) -> SaeLensDictionary:
    """Load a folder of Gemma Scope (arXiv 2408.05147): a JumpReLU dictionary in ``params.npz``, no configuration.

    Trained with BOS on windows of 1,024 tokens; the bias is not subtracted from the input. Which block and tensor it
    reads stands in the path only (``gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82``), and is taken from
    there.
    """
    import torch

    folder = asked.folder
    try:
        with np.load(folder / GEMMA_SCOPE, allow_pickle=False) as file:
            arrays = {re.sub("^w_", "W_", name): torch.from_numpy(file[name]).float() for name in file.files}
    except (ValueError, OSError) as error:
        raise InputError(f"{folder / GEMMA_SCOPE} cannot be read: {error}") from error
    lacking = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"} - set(arrays)
    if lacking:
        raise InputError(f"{folder / GEMMA_SCOPE} is no Gemma Scope dictionary: it lacks {', '.join(sorted(lacking))}")
    weights = {name: arrays[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    site, output_site = _hooks_in_path(folder)
    sae = jump_relu(weights, apply_b_dec_to_input=False, site=site, context=1024, bos=True, output_site=output_site)
    return SaeLensDictionary(sae, asked.id, asked.kind, asked.device)


def _hooks_in_path(folder: Path) -> tuple[str | None, str | None]:
    """Return the hook point that a path of Gemma Scope names, and what a transcoder predicts; None if it names none.

    >>> _hooks_in_path(Path("/x/gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_82"))
    ('blocks.3.hook_mlp_out', None)
    >>> _hooks_in_path(Path("/x/gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_82"))
    ('blocks.3.ln2.hook_normalized', 'blocks.3.hook_mlp_out')
    """
    match = re.search(
        r"gemma-scope-[^/]*-(res|mlp|transcoders)/(?:.*/)?layer_(\d+)/", f"{folder.absolute().as_posix()}/"
    )
    if not match:
        return None, None
    hook, output = {
        "res": ("hook_resid_post", None),
        "mlp": ("hook_mlp_out", None),
        "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
    }[match[1]]
    return f"blocks.{match[2]}.{hook}", output and f"blocks.{match[2]}.{output}"
