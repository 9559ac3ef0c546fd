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
    vectors: Sequence[NDArray[np.float64]],
    members: Sequence[ArrayLike],
    runs: int = 1000,
    seed: int = 0,
    pool: Sequence[ArrayLike] | None = None,
) -> Coherence:
    """Score a set of features of one side, or of both: the mean over sides of the mean cosine within the side.

    Features of different sides are not compared with each other: matched features fire on the same words, so that any
    set of pairs would look coherent. For the same reason random sets are drawn as pairs, from `pool`: if features were
    drawn on each side alone, the mean of both sides would vary less than that of pairs does, and p would be too small.

    Parameters
    ----------
    vectors
        Of each side, those of all its features (:func:`feature_vectors`).
    members
        The ids of the set's features, of each side; of two sides, those of its pairs.
    runs
        Random sets.
    seed
        Of the random numbers.
    pool
        All pairs, as `members`. All features of a single side if absent.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> vectors = centred_unit(rng.normal(size=(60, 8)))
    >>> vectors[:10] = centred_unit(vectors[:10] * 0.3 + np.eye(8)[0], centre=False)
    >>> found = coherence([vectors], [range(10)], runs=199)
    >>> found.score > 0.8, abs(found.random_mean) < 0.1, found.p
    (True, True, 0.005)
    """
    if runs < 1:
        raise InputError(f"runs is {runs}: a coherence means nothing without at least one random set")
    if pool is None and len(vectors) > 1:
        raise InputError("the coherence of two sides needs pool=(features of A, features of B), the pairs of all")
    own = _with_words(vectors, members)
    of_all = _with_words(vectors, [np.arange(len(vectors[0]))] if pool is None else pool)
    n = len(own[0])
    if n < MIN_FEATURES or n > len(of_all[0]):
        return Coherence(float("nan"), np.full(runs, np.nan))
    random = np.empty(runs)
    for run in range(runs):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(run,)))
        drawn = rng.choice(len(of_all[0]), n, replace=False)
        random[run] = _mean_coherence(vectors, [ids[drawn] for ids in of_all])
    return Coherence(_mean_coherence(vectors, own), random)


def _with_words(vectors: Sequence[NDArray[np.float64]], ids: Sequence[ArrayLike]) -> list[NDArray[np.int64]]:
    """Return the ids of each side, without the pairs of which a feature has no words."""
    chosen = [np.asarray(of_side, np.int64) for of_side in ids]
    known = np.ones(len(chosen[0]), bool)
    for side, features in zip(vectors, chosen, strict=True):
        if len(features) and not 0 <= features.min() <= features.max() < len(side):
            raise InputError(
                f"members run from {features.min()} to {features.max()}, but there are {len(side)} features"
            )
        known &= np.isfinite(side[features]).all(axis=1)
    return [features[known] for features in chosen]


def _mean_coherence(vectors: Sequence[NDArray[np.float64]], ids: Sequence[NDArray[np.int64]]) -> float:
    """Return the mean over sides; a side all of whose pairs have the same feature has no part in it."""
    sides = [np.unique(features) for features in ids]
    scores = [mean_cosine(side[u]) for side, u in zip(vectors, sides, strict=True) if len(u) >= MIN_FEATURES]
    return float(np.mean(scores)) if scores else float("nan")


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
