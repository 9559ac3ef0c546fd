"""Matchings that take edges from the highest r to the lowest: one sort, then one sweep.

All methods here are one sweep or two with different limits on how often a feature may be used. Ties in r go to the
lower A feature, then to the lower B feature.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.match.edges import Edges
from pipeline.settings.registries import METHODS
from storage.jit import cached_njit


@METHODS.register
def greedy(edges: Edges) -> NDArray[np.int64]:
    """Match globally best-first, one to one: take the highest r, remove both features, repeat.

    Equal to sorting all pairs of the full matrix, as long as every pair that may be matched is among the edges. It is
    also the stable matching: where both sides rank each other by the same r, best-first leaves no two features that
    would both rather have each other, and with ties broken by ids there is no other such matching.

    Examples
    --------
    >>> from pipeline.match.edges import make_edges
    >>> edges = make_edges([0, 0, 1, 1], [0, 1, 0, 1], [0.9, 0.8, 0.7, 0.1], n_a=2, n_b=2)
    >>> greedy(edges).tolist()
    [0, 3]
    """
    return _sweep(edges, edges.order, 1, 1)


@METHODS.register
def best(edges: Edges) -> NDArray[np.int64]:
    """Match every A feature with its best B feature; a B feature may be used many times.

    Examples
    --------
    >>> from pipeline.match.edges import make_edges
    >>> edges = make_edges([0, 0, 1, 1], [0, 1, 0, 1], [0.9, 0.8, 0.7, 0.1], n_a=2, n_b=2)
    >>> best(edges).tolist(), best_of_b(edges).tolist()
    ([0, 2], [0, 1])
    """
    return _sweep(edges, edges.order, 1, len(edges))


@METHODS.register
def best_of_b(edges: Edges) -> NDArray[np.int64]:
    """Match every B feature with its best A feature; an A feature may be used many times."""
    return _sweep(edges, edges.order, len(edges), 1)


@METHODS.register
def mutual(edges: Edges) -> NDArray[np.int64]:
    """Match the features that are each other's best.

    Examples
    --------
    >>> from pipeline.match.edges import make_edges
    >>> edges = make_edges([0, 0, 1, 1], [0, 1, 0, 1], [0.9, 0.8, 0.7, 0.1], n_a=2, n_b=2)
    >>> mutual(edges).tolist()
    [0]
    """
    of_a = best(edges)
    return of_a[np.isin(of_a, best_of_b(edges), assume_unique=True)]


@METHODS.register
def unique(edges: Edges, max_uses: int = 1) -> NDArray[np.int64]:
    """Match every A feature with its best B feature, and keep a B feature's `max_uses` best pairs only.

    An A feature that loses its best B feature gets no other: use :func:`greedy` for that.

    Examples
    --------
    >>> from pipeline.match.edges import make_edges
    >>> edges = make_edges([0, 0, 1, 1], [0, 1, 0, 1], [0.7, 0.2, 0.9, 0.1], n_a=2, n_b=2)
    >>> unique(edges).tolist()
    [2]
    """
    return _sweep(edges, best(edges), 1, max_uses)


@METHODS.register
def unique_greedy(edges: Edges) -> NDArray[np.int64]:
    """Keep the pairs that are one to one by nature, and match the rest best-first among the features left free.

    By nature one to one is a pair of :func:`best` whose B feature is the best of that A feature only. Hubs, which are
    the best of many, go to the one that wants them most; the others get their best among what is left. Not the same as
    :func:`greedy`: a natural pair is kept even if its B feature would go to another A feature, with a higher r, that
    lost its own best.

    Examples
    --------
    >>> from pipeline.match.edges import make_edges
    >>> edges = make_edges([0, 1, 1, 2], [0, 0, 1, 1], [0.9, 0.8, 0.7, 0.6], n_a=3, n_b=2)
    >>> unique_greedy(edges).tolist(), greedy(edges).tolist()
    ([0, 3], [0, 2])
    """
    of_a = best(edges)
    uses = np.bincount(edges.ids_b[of_a], minlength=edges.n_b)
    natural = of_a[uses[edges.ids_b[of_a]] == 1]
    free_a, free_b = np.ones(edges.n_a, np.int64), np.ones(edges.n_b, np.int64)
    free_a[edges.ids_a[natural]], free_b[edges.ids_b[natural]] = 0, 0
    rest = edges.order[_take(edges.order, edges.ids_a, edges.ids_b, free_a, free_b)]
    chosen = np.sort(np.concatenate([natural, rest]))
    return chosen[np.argsort(-edges.r[chosen], kind="stable")]


def _sweep(edges: Edges, order: NDArray[np.int64], uses_a: int, uses_b: int) -> NDArray[np.int64]:
    free_a = np.full(edges.n_a, uses_a, np.int64)
    free_b = np.full(edges.n_b, uses_b, np.int64)
    return order[_take(order, edges.ids_a, edges.ids_b, free_a, free_b)]


@cached_njit
def _take(
    order: NDArray[np.int64],
    ids_a: NDArray[np.int32],
    ids_b: NDArray[np.int32],
    free_a: NDArray[np.int64],
    free_b: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Mark the edges, in `order`, whose two features both have uses left; `free_a` and `free_b` are used up."""
    taken = np.zeros(len(order), np.bool_)
    for i in range(len(order)):
        a, b = ids_a[order[i]], ids_b[order[i]]
        if free_a[a] > 0 and free_b[b] > 0:
            free_a[a] -= 1
            free_b[b] -= 1
            taken[i] = True
    return taken
