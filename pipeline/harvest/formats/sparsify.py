"""Sparse coders in the format of EleutherAI's sparsify: ``cfg.json`` and ``sae.safetensors``, one folder a hookpoint.

The reading is our own. SAELens has a converter for this format, but it transposes the decoder, does not subtract
``b_dec`` from the input, and takes ``layers.3.mlp`` for the residual stream. The formula is that of the format's own
library, ``eai-sparsify``: ``z = topk(ReLU((x − b_dec) Wᵀ + b))``, where W is ``encoder.weight`` (features, d_in).
``W_dec`` has the same shape. ``signed`` coders of early versions choose by magnitude and have no ReLU; ``multi_topk``
changes the loss of training only. A transcoder (``transcode: true``) reads the input of the module that its folder is
named after, and predicts its output: ``z = topk(ReLU(x Wᵀ + b))``, and ``x W_skipᵀ`` may be added to what is decoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pipeline.harvest.dictionary import CONFIG, Asked, dictionary_format, read_config, read_tensors, require_tensors
from pipeline.harvest.topk import TopKDictionary, TopKWeights
from storage.errors import InputError

WEIGHTS = "sae.safetensors"

#: Settings of the run that trained the coders.
_RUN = "config.json"

#: What a coder's configuration may state: the formula here honours or refuses all of it.
_KNOWN = {
    "activation", "d_in", "expansion_factor", "k", "multi_topk", "normalize_decoder", "num_latents", "signed",
    "skip_connection", "transcode",
}  # fmt: skip

#: What of a coder's configuration is recorded.
_RECORDED = ("activation", "k", "signed", "multi_topk", "normalize_decoder", "transcode", "skip_connection")


@dictionary_format("sparsify", WEIGHTS)
def load_sparsify(asked: Asked) -> TopKDictionary:
    """Load one hookpoint's coder; the name of its folder is the hookpoint.

    InputError if its weights are not those of a sparse coder, or the configuration contradicts them.
    """
    folder, config = asked.folder, read_config(asked.folder)
    _check_config(config, folder)
    tensors = _read(folder, skip=bool(config.get("skip_connection")))
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
        transcode=bool(config.get("transcode")),
        skip=tensors.get("W_skip"),
    )
    recorded = {name: config[name] for name in _RECORDED if name in config}
    dtype = str(tensors["W_dec"].dtype).removeprefix("torch.")
    recorded |= {"format": "sparsify", "hookpoint": folder.name, "dtype": dtype}
    loaded = TopKDictionary(weights, asked.id, asked.kind, recorded, asked.device)
    loaded.site, loaded.output_site = folder.name, None
    if weights.transcode:
        loaded.site, loaded.output_site = f"{folder.name}.input", folder.name
    return loaded


def _check_config(config: dict[str, Any], folder: Path) -> None:
    """Refuse settings that are not known here, and transcoders of early versions.

    These state what they are in the settings of the training run alone, beside the folders of the hookpoints.
    """
    runs = [path / _RUN for path in (folder, folder.parent) if (path / _RUN).is_file()]
    for file, settings in {path: read_config(path.parent, _RUN) for path in runs}.items():
        nested = settings["sae"] if isinstance(settings.get("sae"), dict) else {}
        flags = [name for name in ("transcode", "skip_connection") if settings.get(name) or nested.get(name)]
        if set(flags) - {name for name in flags if config.get(name)}:
            raise InputError(
                f"{folder} is a transcoder of an early version ({', '.join(flags)} in {file}, but not in {CONFIG}), "
                "whose formula is not known here: load and save it with eai-sparsify"
            )
    if config.get("skip_connection") and not config.get("transcode"):
        raise InputError(f"{folder / CONFIG}: skip_connection without transcode is not read")
    unknown = sorted(set(config) - _KNOWN)
    if unknown:
        raise InputError(f"{folder / CONFIG} has settings that are not known here: {', '.join(unknown)}")


def _choice(config: dict[str, Any], folder: Path) -> Literal["topk", "signed", "groupmax"]:
    activation = config.get("activation", "topk")
    if activation == "groupmax":
        return "groupmax"
    if activation != "topk":
        raise InputError(f"{folder / 'cfg.json'}: activation is topk or groupmax, not {activation!r}")
    return "signed" if config.get("signed") else "topk"


def _read(folder: Path, *, skip: bool) -> dict[str, Any]:
    """Return the coder's tensors, checked for their shapes."""
    tensors = read_tensors(folder / WEIGHTS)
    if "encoder.weight" not in tensors or tensors["encoder.weight"].ndim != 2:
        raise InputError(f"{folder / WEIGHTS} is no sparse coder: it has no matrix encoder.weight")
    shape = tuple(tensors["encoder.weight"].shape)
    expected = {"encoder.weight": shape, "encoder.bias": shape[:1], "W_dec": shape, "b_dec": shape[1:]}
    expected |= {"W_skip": (shape[1], shape[1])} if skip else {}
    require_tensors(folder / WEIGHTS, tensors, expected)
    return tensors
