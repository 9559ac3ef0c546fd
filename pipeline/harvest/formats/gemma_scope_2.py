"""Gemma Scope 2: ``params.safetensors`` and ``config.json``, a JumpReLU dictionary of one site of Gemma 3.

``f = z · [z > threshold]`` with ``z = x w_enc + b_enc``; the bias of the decoder is not taken off first. Trained with
BOS on windows of 1,024 tokens, which the files do not say. The formula is that of SAELens's loader of the releases.
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
    """Load a folder; InputError if it is a transcoder, a crosscoder, or of another architecture."""
    config = read_config(asked.folder, SETTINGS)
    site = _site(config, asked)
    tensors = read_tensors(asked.folder / WEIGHTS)
    encoder = tensors.get("w_enc")
    if encoder is None or encoder.ndim != 2:
        raise InputError(f"{asked.folder / WEIGHTS} has no matrix w_enc: one site's dictionary is read")
    d_in, n_features = encoder.shape
    shapes = {"b_enc": (n_features,), "w_dec": (n_features, d_in), "b_dec": (d_in,), "threshold": (n_features,)}
    require_tensors(asked.folder / WEIGHTS, tensors, {"w_enc": (d_in, n_features), **shapes})
    weights = {ours: tensors[theirs] for theirs, ours in _TENSORS.items()}
    sae = jump_relu(weights, apply_b_dec_to_input=False, site=site, context=1024, bos=True)
    return SaeLensDictionary(sae, asked.id, asked.kind, asked.device)


def _site(config: dict[str, Any], asked: Asked) -> str | None:
    """Return the module whose output or input is read, as sites are named here."""
    file = asked.folder / SETTINGS
    if config.get("architecture") != "jump_relu":
        raise InputError(f"{file}: architecture {config.get('architecture')!r} is not read; jump_relu is")
    hook, behind = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if (behind is not None and behind != hook) or config.get("affine_connection"):
        raise InputError(f"{file}: a transcoder, from {hook} to {behind}; give a sparse autoencoder")
    return None if hook is None else str(hook).removesuffix(".output")
