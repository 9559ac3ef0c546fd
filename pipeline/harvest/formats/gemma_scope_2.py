"""Gemma Scope 2: ``params.safetensors`` and ``config.json``, a JumpReLU dictionary of one site of Gemma 3.

``f = z · [z > threshold]`` with ``z = x w_enc + b_enc``; the bias of the decoder is not taken off first. A transcoder
predicts another site, and may add ``x affine_skip_connection``. Trained with BOS on windows of 1,024 tokens, which the
files do not say. The formula is that of SAELens's loader of the releases.
"""

from __future__ import annotations

from typing import Any

from pipeline.harvest.dictionary import Asked, dictionary_format, read_config, read_tensors, require_tensors
from pipeline.harvest.formats.saelens import SaeLensDictionary, jump_relu
from storage.errors import InputError

WEIGHTS, SETTINGS = "params.safetensors", "config.json"

#: The files' names of tensors → SAELens's.
_TENSORS = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}


@dictionary_format("gemma-scope-2", WEIGHTS, SETTINGS)
def load_gemma_scope_2(asked: Asked) -> SaeLensDictionary:
    """Load a folder; InputError if it is a crosscoder, or of another architecture."""
    config = read_config(asked.folder, SETTINGS)
    site, output_site = _sites(config, asked)
    tensors = read_tensors(asked.folder / WEIGHTS)
    encoder = tensors.get("w_enc")
    if encoder is None or encoder.ndim != 2:
        raise InputError(f"{asked.folder / WEIGHTS} has no matrix w_enc: one site's dictionary is read")
    d_in, n_features = encoder.shape
    shapes = {"b_enc": (n_features,), "w_dec": (n_features, d_in), "b_dec": (d_in,), "threshold": (n_features,)}
    if output_site is not None and config.get("affine_connection"):
        shapes["affine_skip_connection"] = (d_in, d_in)
    require_tensors(asked.folder / WEIGHTS, tensors, {"w_enc": (d_in, n_features), **shapes})
    weights = {ours: tensors[theirs] for theirs, ours in _TENSORS.items()}
    if "affine_skip_connection" in shapes:
        weights["W_skip"] = tensors["affine_skip_connection"].T
    sae = jump_relu(weights, apply_b_dec_to_input=False, site=site, context=1024, bos=True, output_site=output_site)
    return SaeLensDictionary(sae, asked.id, asked.kind, asked.device)


def _sites(config: dict[str, Any], asked: Asked) -> tuple[str | None, str | None]:
    """Return the module whose output or input is read, as sites are named here, and what a transcoder predicts."""
    file = asked.folder / SETTINGS
    if config.get("architecture") != "jump_relu":
        raise InputError(f"{file}: architecture {config.get('architecture')!r} is not read; jump_relu is")
    hooks = (config.get("hf_hook_point_in"), config.get("hf_hook_point_out"))
    site, output_site = (None if hook is None else str(hook).removesuffix(".output") for hook in hooks)
    return site, None if output_site == site else output_site
