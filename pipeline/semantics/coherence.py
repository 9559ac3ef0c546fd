"""How related the words of a set of features are: mean similarity of word embeddings, against random sets of features.

A feature stands for the words on which it fires most: its vector is the mean of their embeddings. The coherence of a
set is the mean cosine between the vectors of its features, and chance is the coherence of as many features drawn at
random, without replacement, from all that have words.

Embeddings are centred first. The rows of an embedding matrix share a large common part (anisotropy: Ethayarajh,
EMNLP 2019; Mu and Viswanath, ICLR 2018): two unrelated words of BERT have a cosine of about 0.6, which would hide what
sets words apart. Without the mean of the vocabulary, unrelated words have a cosine near 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.compare.statistics import effect_size, p_value
from storage.errors import InputError

#: Fewer features than this have no pair to compare.
MIN_FEATURES = 2


@dataclass(frozen=True)
class Coherence:
    """A coherence score, NaN with fewer than two features that have words, and those of random sets (run,)."""

    score: float
    random: NDArray[np.float64]

    @property
    def random_mean(self) -> float:
        """Mean over the random sets."""
        return float(self.random.mean())

    @property
    def z(self) -> float:
        """Distance from the random mean in standard deviations of the random sets."""
        return effect_size(self.score, self.random)

    @property
    def p(self) -> float:
        """One-sided p, (b + 1) / (N + 1)."""
        return p_value(self.score, self.random)


def centred_unit(vectors: ArrayLike, *, centre: bool = True) -> NDArray[np.float64]:
    """Return embeddings (word, dimension) as float64 rows of length 1, after taking their mean away.

    A word without an embedding is a row of NaN, and has no part in the mean; so is what is zero after centring.

    >>> centred_unit([[3.0, 1.0], [3.0, -1.0], [np.nan, np.nan]])
    array([[ 0.,  1.],
           [ 0., -1.],
           [nan, nan]])
    """
    rows = np.array(vectors, np.float64)  # changed in place below: there may be hundreds of thousands of words
    known = np.isfinite(rows).all(axis=1)
    if centre and known.any():
        rows -= rows[known].mean(axis=0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    np.divide(rows, lengths, out=rows, where=lengths > 0)
    rows[~(lengths[:, 0] > 0)] = np.nan
    return rows


def coherence_bytes(n_words: int, dimension: int, n_features: int) -> int:
    """Return how much is held at most while words become vectors of features.

    The embeddings in float32, twice in float64 while they are centred, and the features of all sides twice.

    >>> coherence_bytes(7227, 384, 4096)
    80669184
    """
    return dimension * (n_words * (4 + 8 + 8) + n_features * (8 + 8))


def feature_vectors(words: Sequence[Sequence[int]], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one vector of length 1 for each feature: the mean over the words of its top contexts, float64.

    `words` are numbers into the rows of `vectors` (:func:`centred_unit`); a word counts as often as it occurs. NaN for
    a feature none of whose words has an embedding.

    >>> feature_vectors([[0, 0, 1], []], np.eye(2)).round(2)
    array([[0.89, 0.45],
           [ nan,  nan]])
    """
    sums = np.full((len(words), vectors.shape[1]), np.nan)
    known = np.asarray(np.isfinite(vectors).all(axis=1))
    for feature, top_words in enumerate(words):
        known_words = [word for word in top_words if known[word]]
        if known_words:
            sums[feature] = vectors[known_words].sum(axis=0)
    return centred_unit(sums, centre=False)


def coherence(
    vectors: Sequence[NDArray[np.float64]], members: Sequence[ArrayLike], runs: int = 1000, seed: int = 0
) -> Coherence:
    """Score a set of features of one side, or of both: the mean over sides of the mean cosine within the side.

    Features of different sides are not compared with each other: matched features fire on the same words, so that any
    set of pairs would look coherent. `vectors` are, of each side, those of all its features (:func:`feature_vectors`),
    from which `runs` random sets are drawn, and `members` the ids of the set's features.

    >>> rng = np.random.default_rng(0)
    >>> vectors = centred_unit(rng.normal(size=(60, 8)))
    >>> vectors[:10] = centred_unit(vectors[:10] * 0.3 + np.eye(8)[0], centre=False)
    >>> found = coherence([vectors], [range(10)], runs=199)
    >>> found.score > 0.8, abs(found.random_mean) < 0.1, found.p
    (True, True, 0.005)
    """
    if runs < 1:
        raise InputError(f"runs is {runs}: a coherence means nothing without at least one random set")
    parts = [
        _of_side(side, features, runs, (seed, i))
        for i, (side, features) in enumerate(zip(vectors, members, strict=True))
    ]
    return Coherence(float(np.mean([score for score, _ in parts])), np.mean([random for _, random in parts], axis=0))


def _of_side(
    vectors: NDArray[np.float64], members: ArrayLike, runs: int, seed: tuple[int, int]
) -> tuple[float, NDArray[np.float64]]:
    """Return the score of one side's members, and those of the random sets."""
    ids = np.unique(np.asarray(members, np.int64))
    if len(ids) and not 0 <= ids[0] <= ids[-1] < len(vectors):
        raise InputError(f"members run from {ids[0]} to {ids[-1]}, but there are {len(vectors)} features")
    known = np.asarray(np.isfinite(vectors).all(axis=1))
    ids, pool = ids[known[ids]], np.flatnonzero(known)
    if len(ids) < MIN_FEATURES:
        return float("nan"), np.full(runs, np.nan)
    random = np.empty(runs)
    for run in range(runs):
        rng = np.random.default_rng(np.random.SeedSequence(seed[0], spawn_key=(seed[1], run)))
        random[run] = mean_cosine(vectors[rng.choice(pool, len(ids), replace=False)])
    return mean_cosine(vectors[ids]), random


def mean_cosine(unit: NDArray[np.float64]) -> float:
    """Return the mean cosine over all pairs of rows of length 1, from their sum alone.

    ``|Σ v|² = n + Σ_{i≠j} v_i · v_j``, so that no matrix of similarities is made.

    Examples
    --------
    >>> mean_cosine(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])).__round__(4)
    -0.3333
    """
    total = unit.sum(axis=0)
    n = len(unit)
    return float((total @ total - n) / (n * (n - 1)))
