"""Dictionaries of the library dictionary_learning: ``ae.pt`` and ``config.json``, a folder each.

The class that ``config.json`` names decides the formula. With ``z = W_enc (x − b) + b_enc``:

==========================  =========================================================================
``AutoEncoder``             ``ReLU(z)``; the decoder's directions are made unit vectors and the encoder
                            scaled accordingly, as the library does when it loads one
``AutoEncoderNew``          ``ReLU(z)``, nothing taken off the input
``GatedAutoEncoder``        ``[z + gate_bias > 0] · ReLU(exp(r_mag) z + mag_bias)``
``AutoEncoderTopK``         the k largest of ``ReLU(z)`` in each row
``BatchTopKSAE``            ``z · [z > threshold]``, the threshold learnt in training
``MatryoshkaBatchTopKSAE``  the same
``JumpReluAutoEncoder``     ``z · [z > threshold]``, a threshold for each feature, nothing taken off the input
==========================  =========================================================================

``ae.pt`` is unpickled by ``torch.load(weights_only=True)``: tensors and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.harvest.dictionary import Asked, Dictionary, dictionary_format, read_config, require_tensors
from pipeline.harvest.formats.saelens import SaeLensDictionary, jump_relu, sae_lens
from pipeline.harvest.topk import TopKDictionary, TopKWeights
from storage.damage import first_line
from storage.errors import InputError

WEIGHTS, SETTINGS = "ae.pt", "config.json"

#: What the library's demo calls the places of a block → TransformerLens's names.
_SUBMODULES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attention_out": "hook_attn_out"}

Tensors = dict[str, Any]


@dictionary_format("dictionary_learning", WEIGHTS, SETTINGS)
def load_dictionary_learning(asked: Asked) -> Dictionary:
    """Load a folder; InputError if its class is not known, its tensors do not fit it, or it predicts another tensor."""
    file = asked.folder / SETTINGS
    config = read_config(asked.folder, SETTINGS)
    trainer, buffer = (config.get(part) or {} for part in ("trainer", "buffer"))
    kind = trainer.get("dict_class")
    if kind not in _CLASSES:
        raise InputError(f"{file}: dict_class {kind!r} is not read; {', '.join(_CLASSES)} are")
    if buffer.get("io", "out") not in {"in", "out"}:
        raise InputError(f"{file}: a transcoder (io: {buffer['io']}); give a sparse autoencoder")
    loaded = _CLASSES[kind](_read(asked.folder / WEIGHTS), asked, trainer)
    loaded.config |= {"format": "dictionary_learning", "dict_class": kind}
    loaded.site, loaded.context = _site(trainer), buffer.get("ctx_len")
    loaded.prepend_bos = None  # texts were tokenized as the model's tokenizer does by default
    return loaded


def _read(file: Path) -> Tensors:
    """Return the float32 tensors of a file, numbers as they are."""
    import torch

    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (torch.serialization.pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{file} cannot be read as tensors alone: {first_line(error)}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise InputError(f"{file} holds {type(tensors).__name__}, not a dictionary of tensors")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _site(trainer: dict[str, Any]) -> str | None:
    """Return the hook point that the name of the submodule stands for; None for names of the user's own.

    >>> _site({"layer": 3, "submodule_name": "resid_post_layer_3"})
    'blocks.3.hook_resid_post'
    """
    match = re.fullmatch(rf"({'|'.join(_SUBMODULES)})_layer_(\d+)", str(trainer.get("submodule_name")))
    return f"blocks.{match[2]}.{_SUBMODULES[match[1]]}" if match else None


def _linear(tensors: Tensors, asked: Asked, features: Sequence[str], width: Sequence[str]) -> tuple[int, int]:
    """Check a linear encoder and decoder, and the vectors over features and over the width; return these numbers."""
    file = asked.folder / WEIGHTS
    shape = tuple(tensors["encoder.weight"].shape) if "encoder.weight" in tensors else ()
    if len(shape) != 2:
        raise InputError(f"{file} has no matrix encoder.weight")
    n_features, d_in = shape
    vectors = dict.fromkeys(features, (n_features,)) | dict.fromkeys(width, (d_in,))
    require_tensors(file, tensors, {"encoder.weight": shape, "decoder.weight": (d_in, n_features), **vectors})
    return n_features, d_in


def _standard(tensors: Tensors, asked: Asked, _: dict[str, Any]) -> Dictionary:
    import torch

    _linear(tensors, asked, ["encoder.bias"], ["bias"])
    norms = tensors["decoder.weight"].norm(dim=0)
    if torch.allclose(norms, torch.ones_like(norms)):
        norms = torch.ones_like(norms)
    return _relu(
        {
            "W_enc": (tensors["encoder.weight"] * norms[:, None]).T,
            "b_enc": tensors["encoder.bias"] * norms,
            "W_dec": (tensors["decoder.weight"] / norms).T,
            "b_dec": tensors["bias"],
        },
        asked,
        apply_b_dec_to_input=True,
    )


def _new(tensors: Tensors, asked: Asked, _: dict[str, Any]) -> Dictionary:
    _linear(tensors, asked, ["encoder.bias"], ["decoder.bias"])
    matrices = {"W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T}
    vectors = {"b_enc": tensors["encoder.bias"], "b_dec": tensors["decoder.bias"]}
    return _relu(matrices | vectors, asked, apply_b_dec_to_input=False)


def _relu(weights: Tensors, asked: Asked, *, apply_b_dec_to_input: bool) -> Dictionary:
    library = sae_lens()
    d_in, d_sae = weights["W_enc"].shape
    config = library.StandardSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=apply_b_dec_to_input)
    return _with(library.StandardSAE(config), weights, asked)


def _gated(tensors: Tensors, asked: Asked, _: dict[str, Any]) -> Dictionary:
    library = sae_lens()
    d_sae, d_in = _linear(tensors, asked, ["r_mag", "gate_bias", "mag_bias"], ["decoder_bias"])
    weights = {
        "W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T, "b_dec": tensors["decoder_bias"],
        "b_gate": tensors["gate_bias"], "b_mag": tensors["mag_bias"], "r_mag": tensors["r_mag"],
    }  # fmt: skip
    return _with(library.GatedSAE(library.GatedSAEConfig(d_in=d_in, d_sae=d_sae)), weights, asked)


def _with(sae: Any, weights: Tensors, asked: Asked) -> Dictionary:
    sae.load_state_dict({name: values.contiguous() for name, values in weights.items()})
    return SaeLensDictionary(sae, asked.id, asked.kind, asked.device)


def _top_k(tensors: Tensors, asked: Asked, trainer: dict[str, Any]) -> Dictionary:
    k = _k(tensors, asked, trainer)
    _linear(tensors, asked, ["encoder.bias"], ["b_dec"])
    decoder = tensors["decoder.weight"].T.contiguous()
    weights = TopKWeights(tensors["encoder.weight"], decoder, tensors["encoder.bias"], tensors["b_dec"], k)
    return TopKDictionary(weights, asked.id, asked.kind, {"k": k}, asked.device)


def _k(tensors: Tensors, asked: Asked, trainer: dict[str, Any]) -> int:
    """Take k and the threshold of a dictionary that was trained with a top k; the threshold is not used with it."""
    stated = tensors.pop("k", None)
    tensors.pop("threshold", None)
    k = trainer.get("k") if stated is None else int(stated)
    if not isinstance(k, int) or k < 1 or trainer.get("k", k) != k:
        raise InputError(f"{asked.folder}: k is {trainer.get('k')!r} in {SETTINGS} and {stated} in {WEIGHTS}")
    return k


def _batch_top_k(tensors: Tensors, asked: Asked, trainer: dict[str, Any]) -> Dictionary:
    import torch

    threshold = _threshold(tensors, asked)
    _k(tensors, asked, trainer)
    n_features, _ = _linear(tensors, asked, ["encoder.bias"], ["b_dec"])
    weights = {
        "W_enc": tensors["encoder.weight"].T, "b_enc": tensors["encoder.bias"], "b_dec": tensors["b_dec"],
        "W_dec": tensors["decoder.weight"].T, "threshold": torch.full((n_features,), threshold),
    }  # fmt: skip
    return _jumping(weights, asked, apply_b_dec_to_input=True)


def _threshold(tensors: Tensors, asked: Asked) -> float:
    """Return the threshold that replaces the top k of a batch."""
    if "threshold" not in tensors or tensors["threshold"].ndim:
        raise InputError(
            f"{asked.folder / WEIGHTS} has no number 'threshold', without which a batch decides what is active"
        )
    return float(tensors["threshold"])


def _matryoshka(tensors: Tensors, asked: Asked, trainer: dict[str, Any]) -> Dictionary:
    import torch

    threshold = _threshold(tensors, asked)
    _k(tensors, asked, trainer)
    tensors.pop("group_sizes", None)
    weights = _matrices(tensors, asked)
    weights["threshold"] = torch.full(weights["b_enc"].shape, threshold)
    return _jumping(weights, asked, apply_b_dec_to_input=True)


def _jump_relu(tensors: Tensors, asked: Asked, _: dict[str, Any]) -> Dictionary:
    return _jumping(_matrices(tensors, asked, "threshold"), asked, apply_b_dec_to_input=False)


def _matrices(tensors: Tensors, asked: Asked, *vectors: str) -> Tensors:
    """Return weights that are saved as matrices ``W_enc`` and ``W_dec``, checked for their shapes."""
    shape = tuple(tensors["W_enc"].shape) if "W_enc" in tensors else ()
    if len(shape) != 2:
        raise InputError(f"{asked.folder / WEIGHTS} has no matrix W_enc")
    d_in, n_features = shape
    shapes = {"W_enc": shape, "b_enc": (n_features,), "W_dec": (n_features, d_in), "b_dec": (d_in,)}
    require_tensors(asked.folder / WEIGHTS, tensors, shapes | dict.fromkeys(vectors, (n_features,)))
    return dict(tensors)


def _jumping(weights: Tensors, asked: Asked, *, apply_b_dec_to_input: bool) -> Dictionary:
    sae = jump_relu(weights, apply_b_dec_to_input=apply_b_dec_to_input, site=None, context=None, bos=None)
    return SaeLensDictionary(sae, asked.id, asked.kind, asked.device)


_CLASSES: dict[str, Callable[[Tensors, Asked, dict[str, Any]], Dictionary]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _new,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jump_relu,
}
