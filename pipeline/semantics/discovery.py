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

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError, MissingDependencyError

Geometry = Literal["joint", "a", "b"]
GEOMETRIES: tuple[Geometry, ...] = ("joint", "a", "b")
#: Starts of k-means, of which the best is kept.
STARTS = 10
#: Words that name a cluster.
NAME_WORDS = 4


@dataclass(frozen=True)
class Clusters:
    """A cluster of every pair, and which pairs may test it.

    Attributes
    ----------
    label
        int64, shape (pair,), clusters counted by size from 0, the largest.
    testable
        bool, shape (pair,): pairs that took no part in finding the clusters by both rows.
    """

    label: NDArray[np.int64]
    testable: NDArray[np.bool_]


def cluster_pairs(
    rows_a: NDArray[np.floating],
    rows_b: NDArray[np.floating],
    n_clusters: int,
    geometry: Geometry = "joint",
    seed: int = 0,
) -> Clusters:
    """Cluster matched pairs by the decoder rows of their features.

    Parameters
    ----------
    rows_a, rows_b
        Decoder rows of the pairs, shapes (pair, d_a) and (pair, d_b).
    n_clusters
        Number of clusters, at least 2; each needs two pairs or more.
    geometry
        ``joint``, ``a`` or ``b``; see the module.
    seed
        Of the split and of k-means.

    Returns
    -------
    Clusters

    Raises
    ------
    InputError
        If there are too few pairs for the clusters, or `geometry` is unknown.
    MissingDependencyError
        If scikit-learn is not installed.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> centre = np.repeat(np.eye(5)[:2], 20, axis=0)
    >>> found = cluster_pairs(centre + rng.normal(0, 0.1, (40, 5)), centre + rng.normal(0, 0.1, (40, 5)), 2)
    >>> [len(set(found.label[part])) for part in (slice(0, 20), slice(20, 40))], int(found.testable.sum())
    ([1, 1], 20)
    """
    _check(len(rows_a), n_clusters, geometry)
    units = {"a": centred_unit_rows(rows_a), "b": centred_unit_rows(rows_b)}
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


def _check(n_pairs: int, n_clusters: int, geometry: str) -> None:
    if geometry not in GEOMETRIES:
        raise InputError(f"No geometry {geometry!r}; give one of {', '.join(GEOMETRIES)}")
    most = n_pairs // 4
    if not 2 <= n_clusters <= most:
        raise InputError(
            f"{n_clusters} clusters of {n_pairs} pairs: give from 2 to {most} clusters, or match more pairs"
            if most >= 2
            else f"{n_pairs} pairs are too few to cluster; at least 8 are needed"
        )


def centred_unit_rows(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return rows of length 1 around their mean; a row that equals the mean stays zero.

    Examples
    --------
    >>> centred_unit_rows(np.array([[1.0, 3.0], [1.0, 1.0]]))
    array([[ 0.,  1.],
           [ 0., -1.]])
    """
    centred = np.asarray(rows, np.float64) - rows.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)


def _half(n: int, seed: int) -> NDArray[np.bool_]:
    """Return which half of n pairs is kept for tests, drawn at random."""
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,))).permutation(n)[: n // 2]] = True
    return chosen


def _k_means(rows: NDArray[np.float64], n_clusters: int, seed: int) -> NDArray[np.int64]:
    try:
        cluster: Any = importlib.import_module("sklearn.cluster")
    except ImportError as error:
        raise MissingDependencyError(
            "Clusters of features need scikit-learn: pip install 'semantic-subspace-matching[semantic]'"
        ) from error
    # one thread: its sums are then in one order, and the labels the same on every machine of the cluster
    limits = importlib.import_module("threadpoolctl").threadpool_limits
    with limits(1):
        found = cluster.KMeans(n_clusters, n_init=STARTS, random_state=seed).fit_predict(rows)
    return np.asarray(found, np.int64)


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
    """Return the words that set each group of features apart from all others, with their z.

    Log-odds ratio with an informative Dirichlet prior, the counts of all groups together (Monroe, Colaresi and Quinn,
    Political Analysis 16, 2008, equations 16 and 22): unlike tf–idf, it does not favour words that occur once.

    Parameters
    ----------
    counts
        How often each word is a top word of each group, int64, shape (group, word).
    vocabulary
        The words.
    n
        Words of each group.

    Returns
    -------
    list of list of (str, float)
        For each group its words, the most distinctive first; fewer where fewer have a z above 0.

    Examples
    --------
    >>> counts = np.array([[9, 0, 5], [0, 9, 5]])
    >>> [[word for word, _ in group] for group in distinctive_words(counts, ["rain", "judge", "the"])]
    [['rain'], ['judge']]
    """
    prior = counts.sum(axis=0) + 0.01  # a word that occurs nowhere else still has odds
    total = prior.sum()
    found = []
    for own in counts:
        rest = counts.sum(axis=0) - own
        mine = np.log((own + prior) / (own.sum() + total - own - prior))
        theirs = np.log((rest + prior) / (rest.sum() + total - rest - prior))
        z = (mine - theirs) / np.sqrt(1 / (own + prior) + 1 / (rest + prior))
        best = [word for word in np.argsort(-z, kind="stable")[:n].tolist() if z[word] > 0 and own[word] > 0]
        found.append([(vocabulary[word], float(z[word])) for word in best])
    return found
