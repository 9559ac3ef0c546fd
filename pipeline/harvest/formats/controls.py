"""The dictionaries that hold no weights of their own: the raw units, and random directions."""

from __future__ import annotations

import re

import numpy as np

from pipeline.harvest.dictionary import IDENTITY, Asked, Dictionary, Rows, dictionary_format
from pipeline.harvest.topk import TopKDictionary, TopKWeights
from storage.errors import InputError

RANDOM = "random"

_RANDOM = re.compile(r"random:(\d+):(\d+)(?::(\d+))?")


class Identity(Dictionary):
    """The raw units themselves; of hidden `neurons` of an MLP, the decoder is the model's own down projection.

    >>> Identity(3).encode(np.ones((2, 3), np.float32)).shape
    (2, 3)
    """

    reconstructs = False

    def __init__(self, d_model: int, *, neurons: bool = False) -> None:
        self.id = IDENTITY
        self.kind = "raw"
        self.n_features = self.d_model = d_model
        self.layout = "dense"
        self.decoder = None if neurons else np.eye(d_model, dtype=np.float32)
        self.config = {"format": IDENTITY}

    def encode(self, rows: Rows) -> Rows:
        """Return the rows."""
        return rows

    def reconstruct(self, rows: Rows) -> Rows:
        """Return the rows."""
        return rows


@dictionary_format(IDENTITY)
def identity(asked: Asked) -> Identity:
    """Return the raw units of the site."""
    return Identity(asked.d_model, neurons=asked.neurons)


class RandomDictionary(TopKDictionary):
    """Directions drawn uniformly from the sphere, as encoder and as decoder: a dictionary without training."""

    reconstructs = False


@dictionary_format(RANDOM)
def random_dictionary(asked: Asked) -> RandomDictionary:
    """Draw the control dictionary: ``random:FEATURES:K`` or ``random:FEATURES:K:SEED``.

    Give K, from 1 to FEATURES, the L0 of the dictionary that it is a control for.
    """
    import torch

    match = _RANDOM.fullmatch(asked.spec)
    if not match:
        raise InputError(f"A random dictionary is 'random:FEATURES:K' or 'random:FEATURES:K:SEED', not {asked.spec!r}")
    n_features, k, seed = int(match[1]), int(match[2]), int(match[3] or 0)
    if not 1 <= k <= n_features:
        raise InputError(f"{asked.spec!r}: K must be from 1 to {n_features}, the number of features")
    drawn = np.random.default_rng(seed).standard_normal((n_features, asked.d_model), dtype=np.float32)
    directions = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    weights = TopKWeights(directions, directions, torch.zeros(n_features), torch.zeros(asked.d_model), k)
    config = {"format": RANDOM, "k": k, "seed": seed}
    return RandomDictionary(weights, f"{RANDOM}:{n_features}:{k}:{seed}", asked.kind, config, asked.device)
