"""Sparse coders in the format of EleutherAI's sparsify: ``cfg.json`` and ``sae.safetensors``, one folder a hookpoint.

The reading is our own. SAELens has a converter for this format, but it transposes the decoder, does not subtract
``b_dec`` from the input, and takes ``layers.3.mlp`` for the residual stream. The formula is that of the format's own
library, ``eai-sparsify``: ``z = topk(ReLU((x − b_dec) Wᵀ + b))``, where W is ``encoder.weight`` (features, d_in).
``W_dec`` has the same shape. ``signed`` coders of early versions choose by magnitude and have no ReLU; ``multi_topk``
changes the loss of training only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pipeline.harvest.dictionary import Asked, dictionary_format, read_config
from pipeline.harvest.topk import TopKDictionary, TopKWeights
from storage.errors import InputError

WEIGHTS = "sae.safetensors"

#: What of a coder's configuration is recorded.
_RECORDED = ("activation", "k", "signed", "multi_topk", "normalize_decoder")


@dictionary_format("sparsify", WEIGHTS)
def load_sparsify(asked: Asked) -> TopKDictionary:
    """Load one hookpoint's coder; the name of its folder is the hookpoint.

    InputError if it is a transcoder, its weights are not those of a sparse coder, or the configuration contradicts
    them.
    """
    folder, config = asked.folder, read_config(asked.folder)
    _refuse_transcoder(config, folder)
    tensors = _read(folder)
    n_features, d_in = (int(n) for n in tensors["encoder.weight"].shape)
    stated = int(config.get("num_latents") or 0) or d_in * int(config.get("expansion_factor") or 0)
    if stated and stated != n_features:
        raise InputError(f"{folder}: cfg.json states {stated} latents, but the weights have {n_features}")
    k = config.get("k")
    if not isinstance(k, int) or not 1 <= k <= n_features:
        raise InputError(f"{folder / 'cfg.json'}: k must be a number from 1 to {n_features}, not {k!r}")
    weights = TopKWeights(
        tensors["encoder.weight"],
        tensors["W_dec"],
        tensors["encoder.bias"],
        tensors["b_dec"],
        k,
        _choice(config, folder),
    )
    recorded = {name: config[name] for name in _RECORDED if name in config}
    dtype = str(tensors["W_dec"].dtype).removeprefix("torch.")
    recorded |= {"format": "sparsify", "hookpoint": folder.name, "dtype": dtype}
    loaded = TopKDictionary(weights, asked.id, asked.kind, recorded, asked.device)
    loaded.site = folder.name
    return loaded


def _refuse_transcoder(config: dict[str, Any], folder: Path) -> None:
    """Refuse what reads one tensor and predicts another: neither its FVU nor its decoder belong to the site."""
    flags = [name for name in ("transcode", "skip_connection") if config.get(name)]
    if flags:
        raise InputError(
            f"{folder} is a transcoder ({', '.join(flags)} in its cfg.json): it predicts another tensor than it reads. "
            "Give a sparse autoencoder"
        )


def _choice(config: dict[str, Any], folder: Path) -> Literal["topk", "signed", "groupmax"]:
    activation = config.get("activation", "topk")
    if activation == "groupmax":
        return "groupmax"
    if activation != "topk":
        raise InputError(f"{folder / 'cfg.json'}: activation is topk or groupmax, not {activation!r}")
    return "signed" if config.get("signed") else "topk"


def _read(folder: Path) -> dict[str, Any]:
    """Return the coder's tensors, checked for their shapes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Any] = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read as safetensors: {error}") from error
    shape = tuple(tensors["encoder.weight"].shape) if "encoder.weight" in tensors else (0, 0)
    expected = {"encoder.weight": shape, "encoder.bias": shape[:1], "W_dec": shape, "b_dec": shape[1:]}
    for name, wanted in expected.items():
        given = tuple(tensors[name].shape) if name in tensors else None
        if given != wanted or 0 in wanted:
            raise InputError(f"{folder / WEIGHTS} is no sparse coder: {name} has shape {given}, expected {wanted}")
    return tensors
