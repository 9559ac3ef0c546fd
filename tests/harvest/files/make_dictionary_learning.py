"""Writes small dictionaries with the library dictionary_learning 0.1.0, and what that library encodes with them.

    pip install --no-deps --target /tmp/library dictionary-learning==0.1.0 zstandard
    PYTHONPATH=/tmp/library python tests/harvest/files/make_dictionary_learning.py

Each folder holds ``ae.pt`` and ``config.json`` as the library's trainers save them, and ``encoded.npz``: rows, what
``load_dictionary(folder).encode(rows)`` gives for them, and its reconstruction.
"""

from __future__ import annotations

import functools
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent / "dictionary_learning"
D, F, K = 12, 24, 4

# The library's package imports nnsight, which only reads models; dictionaries do without it.
sys.modules["nnsight"] = types.SimpleNamespace(LanguageModel=object)


def trainers():
    """Return each kind of trainer of the library with what it needs."""
    from dictionary_learning.dictionary import AutoEncoderNew
    from dictionary_learning.trainers import batch_top_k, gdm, jumprelu, matryoshka_batch_top_k, standard, top_k

    common = {"activation_dim": D, "dict_size": F, "layer": 3, "lm_name": "EleutherAI/pythia-70m", "steps": 10}
    named = common | {"submodule_name": "resid_post_layer_3", "device": "cpu"}
    warm = {"warmup_steps": 2, "sparsity_warmup_steps": 2, "lr": 1e-3}
    return {
        "standard": lambda: standard.StandardTrainer(**named, **warm),
        "standard_april": lambda: standard.StandardTrainerAprilUpdate(**named, **warm),
        "standard_new": lambda: standard.StandardTrainerAprilUpdate(**named, **warm, dict_class=AutoEncoderNew),
        "gated": lambda: gdm.GatedSAETrainer(**named, **warm),
        "top_k": lambda: top_k.TopKTrainer(**named, k=K, warmup_steps=2),
        "batch_top_k": lambda: batch_top_k.BatchTopKTrainer(**named, k=K, warmup_steps=2),
        "matryoshka": lambda: matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer(
            **named, k=K, warmup_steps=2, group_fractions=[0.25, 0.75]
        ),
        "jump_relu": lambda: jumprelu.JumpReluTrainer(**named, **warm),
    }


def main() -> None:
    """Write every folder."""
    from dictionary_learning.utils import load_dictionary

    rows = torch.from_numpy(np.random.default_rng(0).normal(1, 2, (23, D)).astype(np.float32))
    torch.load = functools.partial(torch.load, weights_only=True)
    for name, make in trainers().items():
        torch.manual_seed(5)
        trainer = make()
        for key, values in trainer.ae.named_parameters():
            if key != "threshold":
                torch.nn.init.normal_(values, 0.1, 0.3)
        if hasattr(trainer.ae, "threshold"):
            trainer.ae.threshold.data.fill_(0.7)
        folder = HERE / name
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(trainer.ae.state_dict(), folder / "ae.pt")
        config = trainer.config | {"dict_class": type(trainer.ae).__name__}  # trainers write their default class
        buffer = {"d_submodule": D, "io": "out", "n_ctxs": 10, "ctx_len": 128, "refresh_batch_size": 8}
        (folder / "config.json").write_text(json.dumps({"trainer": config, "buffer": buffer}, indent=4))
        with torch.no_grad():
            dictionary, _ = load_dictionary(str(folder), "cpu")
            encoded = dictionary.encode(rows)
            np.savez(folder / "encoded.npz", rows=rows, encoded=encoded, decoded=dictionary.decode(encoded))


if __name__ == "__main__":
    main()
