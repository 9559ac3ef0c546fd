"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors``, a JumpReLU dictionary of Llama 3.1.

Its own library, ``lm_saes``, is on no package index. The formula is that of SAELens's loader of the same files, which
an author of Llama Scope corrected (SAELens pull request 483): rows are scaled by ``s = √d / average norm``, that scale
is folded into the weights, and the threshold is multiplied by it. Weights are used in float32, where SAELens rounds
them to bfloat16.
"""

from __future__ import annotations

import math
from typing import Any

from pipeline.harvest.dictionary import Asked, dictionary_format, read_config, read_tensors, require_tensors
from pipeline.harvest.formats.saelens import SaeLensDictionary, jump_relu
from storage.errors import InputError

WEIGHTS, SETTINGS = "checkpoints/final.safetensors", "hyperparams.json"

#: Settings that change the formula, and what they are where it is the one above.
_FORMULA = {
    "act_fn": "jumprelu", "use_glu_encoder": False, "apply_decoder_bias_to_pre_encoder": False,
    "use_decoder_bias": True, "norm_activation": "dataset-wise",
}  # fmt: skip


@dictionary_format("llama-scope", WEIGHTS, SETTINGS)
def load_llama_scope(asked: Asked) -> SaeLensDictionary:
    """Load a folder; InputError if it is a transcoder, or its settings ask for another formula."""
    import torch

    config = read_config(asked.folder, SETTINGS)
    scale, threshold = _checked(config, asked)
    tensors = read_tensors(asked.folder / WEIGHTS)
    shape = tuple(tensors["encoder.weight"].shape) if "encoder.weight" in tensors else (0, 0)
    n_features, d_in = shape if len(shape) == 2 else (0, 0)
    shapes = {"encoder.bias": (n_features,), "decoder.weight": (d_in, n_features), "decoder.bias": (d_in,)}
    require_tensors(asked.folder / WEIGHTS, tensors, {"encoder.weight": (n_features, d_in), **shapes})
    tensors = {name: values.float() for name, values in tensors.items()}
    weights = {
        "W_enc": tensors["encoder.weight"].T * scale,
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["decoder.weight"].T / scale,
        "b_dec": tensors["decoder.bias"] / scale,
        "threshold": torch.full((n_features,), threshold * scale),
    }
    sae = jump_relu(weights, apply_b_dec_to_input=False, site=config.get("hook_point_in"), context=1024, bos=True)
    return SaeLensDictionary(sae, asked.id, asked.kind, asked.device)


def _checked(config: dict[str, Any], asked: Asked) -> tuple[float, float]:
    """Return the scale of the rows and the threshold; refuse settings that change the formula."""
    file = asked.folder / SETTINGS
    others = [f"{name}: {config[name]}" for name, value in _FORMULA.items() if config.get(name, value) != value]
    if others:
        raise InputError(f"{file}: {', '.join(others)} is not read: it is another formula")
    hook, behind = config.get("hook_point_in"), config.get("hook_point_out")
    if behind is not None and behind != hook:
        raise InputError(f"{file}: a transcoder, from {hook} to {behind}; give a sparse autoencoder")
    try:
        norm = float(config["dataset_average_activation_norm"]["in"])
        return math.sqrt(int(config["d_model"])) / norm, float(config["jump_relu_threshold"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{file} lacks d_model, jump_relu_threshold or dataset_average_activation_norm: in, numbers"
        ) from error
