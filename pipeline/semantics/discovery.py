"""Subspaces without keywords: clusters of matched features by their decoder geometry, named by their words.

Which pairs are alike is read from the decoder rows of both models at once, but a cluster that was chosen for being
tight in both spaces would look like a shared subspace even if its pairs were made at random: choosing on the two rows
of a pair together makes them dependent. So a cluster is found on some pairs and tested on others:

1. half of the pairs are clustered by k-means on both sides' centred unit rows, side by side (``geometry="joint"``);
2. the other half join the cluster whose centre is nearest *in A's space alone*; their B rows are not looked at;
3. only those are tested. Under the null (pairing says nothing), what was chosen by A rows leaves B rows exchangeable,
   so that the p of shuffled pairings is exact.

With ``geometry="a"`` or ``"b"``, all pairs are clustered by one side's rows alone; the same argument holds without a
split. k-means, because a pair that took no part has a nearest centre; its number of clusters is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.semantics.coherence import centred_unit
from pipeline.settings.semantics import Geometry
from storage.errors import InputError
from storage.extras import need

#: Starts of k-means, of which the best is kept.
STARTS = 10
#: Words that name a cluster.
NAME_WORDS = 4


@dataclass(frozen=True)
class Clusters:
    """A cluster of every pair, counted by size from 0, and whether the pair may test it, having had no part in it."""

    label: NDArray[np.int64]
    testable: NDArray[np.bool_]


def cluster_pairs(
    rows_a: NDArray[np.floating],
    rows_b: NDArray[np.floating],
    n_clusters: int,
    geometry: Geometry = "joint",
    seed: int = 0,
) -> Clusters:
    """Cluster matched pairs by the decoder rows of their features, shapes (pair, d_a) and (pair, d_b).

    There are at least 2 clusters, and four pairs for each; else it is an InputError. Needs scikit-learn.

    >>> rng = np.random.default_rng(0)
    >>> centre = np.repeat(np.eye(5)[:2], 20, axis=0)
    >>> found = cluster_pairs(centre + rng.normal(0, 0.1, (40, 5)), centre + rng.normal(0, 0.1, (40, 5)), 2)
    >>> [len(set(found.label[part])) for part in (slice(0, 20), slice(20, 40))], int(found.testable.sum())
    ([1, 1], 20)
    """
    _check(len(rows_a), n_clusters)
    # a row that equals the mean stays zero
    units = {"a": np.nan_to_num(centred_unit(rows_a)), "b": np.nan_to_num(centred_unit(rows_b))}
    if geometry != "joint":
        labels = _k_means(units[geometry], n_clusters, seed)
        return Clusters(_by_size(labels, n_clusters), np.ones(len(labels), bool))
    testable = _half(len(rows_a), seed)
    joint = np.concatenate([units["a"], units["b"]], axis=1)
    labels = np.empty(len(rows_a), np.int64)
    labels[~testable] = _k_means(joint[~testable], n_clusters, seed)
    centres = np.stack([units["a"][~testable][labels[~testable] == k].mean(axis=0) for k in range(n_clusters)])
    labels[testable] = _nearest(units["a"][testable], centres)
    return Clusters(_by_size(labels, n_clusters), testable)


def _check(n_pairs: int, n_clusters: int) -> None:
    most = n_pairs // 4
    if not 2 <= n_clusters <= most:
        raise InputError(
            f"{n_clusters} clusters of {n_pairs} pairs: give from 2 to {most} clusters, or match more pairs"
            if most >= 2
            else f"{n_pairs} pairs are too few to cluster; at least 8 are needed"
        )


def _half(n: int, seed: int) -> NDArray[np.bool_]:
    """Return which half of n pairs is kept for tests, drawn at random."""
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,))).permutation(n)[: n // 2]] = True
    return chosen


def _k_means(rows: NDArray[np.float64], n_clusters: int, seed: int) -> NDArray[np.int64]:
    cluster = need("sklearn.cluster", "semantic", "Clustering features")
    # one thread: its sums are then in one order, and the labels the same on every machine of the cluster
    with need("threadpoolctl", "semantic").threadpool_limits(1):
        labels = cluster.KMeans(n_clusters, n_init=STARTS, random_state=seed).fit_predict(rows)
    return np.asarray(labels, np.int64)


def _nearest(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the centre with the highest cosine to each row; rows have length 1."""
    lengths = np.linalg.norm(centres, axis=1, keepdims=True)
    return np.argmax(rows @ np.divide(centres, lengths, where=lengths > 0, out=np.zeros_like(centres)).T, axis=1)


def _by_size(labels: NDArray[np.int64], n_clusters: int) -> NDArray[np.int64]:
    """Renumber clusters from the largest; ties keep their order."""
    order = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    new = np.empty(n_clusters, np.int64)
    new[order] = np.arange(n_clusters)
    return new[labels]


def distinctive_words(
    counts: NDArray[np.int64], vocabulary: Sequence[str], n: int = NAME_WORDS
) -> list[list[tuple[str, float]]]:
    """Return, for each group of features, the words that set it apart from all others with their z, the highest first.

    Log-odds ratio with an informative Dirichlet prior, the counts of all groups together (Monroe, Colaresi and Quinn,
    Political Analysis 16, 2008, equations 16 and 22): unlike tf–idf, it does not favour words that occur once. `counts`
    says how often each word is a top word of each group, int64, shape (group, word).

    >>> counts = np.array([[9, 0, 5], [0, 9, 5]])
    >>> [[word for word, _ in group] for group in distinctive_words(counts, ["rain", "judge", "the"])]
    [['rain'], ['judge']]
    """
    prior = counts.sum(axis=0) + 0.01  # a word that occurs nowhere else still has odds
    total = prior.sum()
    words_of_clusters = []
    for in_cluster in counts:
        rest = counts.sum(axis=0) - in_cluster
        mine = np.log((in_cluster + prior) / (in_cluster.sum() + total - in_cluster - prior))
        theirs = np.log((rest + prior) / (rest.sum() + total - rest - prior))
        z = (mine - theirs) / np.sqrt(1 / (in_cluster + prior) + 1 / (rest + prior))
        best = [word for word in np.argsort(-z, kind="stable")[:n].tolist() if z[word] > 0 and in_cluster[word] > 0]
        words_of_clusters.append([(vocabulary[word], float(z[word])) for word in best])
    return words_of_clusters
