"""Whether the partners of a row's nearest neighbours are the nearest neighbours of its partner.

* ``mutual_knn``: mean share of a row's k nearest neighbours that both sides have in common (Huh, Cheung, Wang, Isola:
  The Platonic Representation Hypothesis, arXiv 2405.07987, 2024, appendix A). Chance is k / (n - 1).
* ``jaccard_knn``: mean of common over all neighbours (Klabunde, Schumacher, Strohmaier, Lemmerich: Similarity of
  neural network models, arXiv 2305.06329, 2023, "Jaccard similarity").

Neighbours are by cosine, each row without itself. Which of equally near rows are neighbours is decided by a random
order of the rows, drawn for each side apart: one order for both, as that of the rows, would make neighbours of the same
rows on both sides, and sides with repeated rows would seem alike. A shuffled pairing renames the neighbours of one
side: no new search.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.compare.base import Metric, Pairing, Rows
from pipeline.compare.similarities import BLOCK_ROWS, block_similarities, scaled
from pipeline.settings.registries import METRICS
from storage.jit import cached_njit

#: Seeds of the orders in which ties of A and of B are broken.
TIE_SEEDS = 0, 1
#: A row that is among the neighbours of so many times as many rows as the mean is a hub.
HUB = 20


class Neighbours(NamedTuple):
    """The k nearest neighbours of every row, ready for any pairing.

    Attributes
    ----------
    a, b
        Row numbers, int32, shape (n, k), ascending; empty where a row has no direction.
    ties
        Rows of A and of B whose k-th neighbour ties with one that was left out.
    most
        How many rows the most frequent neighbour of A, and of B, belongs to.
    """

    a: NDArray[np.int32]
    b: NDArray[np.int32]
    ties: tuple[int, int]
    most: tuple[int, int]


@METRICS.register
@dataclass(frozen=True)
class MutualKnn(Metric):
    """Mean share of k nearest neighbours that both sides have in common.

    Attributes
    ----------
    k
        Number of neighbours.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> MutualKnn(k=3)(x, 2 * x), JaccardKnn(k=3)(x, 2 * x)
    (1.0, 1.0)
    """

    name: ClassVar[str] = "mutual_knn"
    k: Annotated[int, Field(ge=1)] = 10

    @property
    def family(self) -> Hashable:
        """Metrics of the same neighbours share them."""
        return "neighbours", self.k

    @staticmethod
    def prepare(metrics: Sequence[MutualKnn], x: Rows, y: Rows) -> Neighbours:
        """Find the neighbours of all rows of both sides."""
        k = min(metrics[0].k, len(x) - 1)
        a, b = (nearest(rows, k, seed) for rows, seed in zip((x, y), TIE_SEEDS, strict=True))
        most = [int(np.bincount(side.ravel(), minlength=1).max()) for side in (a[0], b[0])]
        return Neighbours(a[0], b[0], (a[1], b[1]), (most[0], most[1]))

    def arrange(self, state: Neighbours, pairing: Pairing) -> NDArray[np.float64]:
        """Return how many neighbours each row's sides have in common, shape (n,), and k, over which it is a share."""
        if not len(state.a) or not len(state.b):
            return np.full(2, np.nan)
        k = state.a.shape[1]
        return np.append(_common(state.a, np.sort(state.b, axis=1), pairing), k).astype(np.float64)

    def score(self, arranged: NDArray[np.float64]) -> float:
        """Return the mean share."""
        return float(np.mean(arranged[:-1] / arranged[-1]))

    def warning(self, state: Neighbours) -> str:
        """Say where neighbours are not well defined, or are the same few rows for all."""
        n, k = state.a.shape if len(state.a) else (0, 0)
        if not n:
            return ""
        notes = []
        if 2 * k > n - 1:
            notes.append(f"saturated: {k} of {n - 1} other rows are neighbours, so that any pairing shares most")
        if max(state.ties):
            notes.append(f"undecided at {state.ties[0]} rows of A and {state.ties[1]} of B, whose last neighbour ties")
        if max(state.most) > HUB * k:
            notes.append(
                f"shaped by hubs: one row is a neighbour of {state.most[0]} rows of A, one of {state.most[1]} of B; "
                f"the mean is {k}"
            )
        return "; ".join(notes)

    def memory(self, n: int, d_a: int, d_b: int) -> int:
        """Return the bytes of both sides' rows, the same scaled and reordered, similarities, and the neighbours."""
        return 3 * 8 * n * (d_a + d_b) + 3 * 8 * n * min(n, BLOCK_ROWS) + 4 * 8 * n * self.k


@METRICS.register
@dataclass(frozen=True)
class JaccardKnn(MutualKnn):
    """Mean of common over all neighbours of both sides."""

    name: ClassVar[str] = "jaccard_knn"

    def score(self, arranged: NDArray[np.float64]) -> float:
        """Return the mean of common over all: of two lists of k with c in common, c / (2k - c)."""
        common, k = arranged[:-1], arranged[-1]
        return float(np.mean(common / (2 * k - common)))


def nearest(rows: Rows, k: int, seed: int) -> tuple[NDArray[np.int32], int]:
    """Return the k < n nearest neighbours of every row (n, d) by cosine, and how many rows' last neighbour ties.

    Row numbers, int32, shape (n, k), ascending; without rows if one has no direction. Of equally near rows, the first
    ones in a random order of all rows are neighbours.

    Examples
    --------
    >>> nearest(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 1, seed=0)[0].tolist()
    [[1], [0], [1]]
    """
    unit, n = scaled(rows, "cosine"), len(rows)
    if np.isnan(unit).any():
        return np.empty((0, k), np.int32), 0
    order = np.random.default_rng(seed).permutation(n)
    place, ordered = np.argsort(order), unit[order]
    found, ties = np.empty((n, k), np.int32), 0
    for start in range(0, n, BLOCK_ROWS):
        block = block_similarities(unit[start : start + BLOCK_ROWS], ordered, "cosine")
        block[np.arange(len(block)), place[start : start + len(block)]] = -np.inf
        columns, tied = _k_largest(block, k)
        found[start : start + len(block)] = np.sort(order[columns], axis=1)
        ties += tied
    return found, ties


def _k_largest(block: NDArray[np.float64], k: int) -> tuple[NDArray[np.int64], int]:
    """Return the columns of the k largest values of every row, the first of equal ones; and ties."""
    last = -np.partition(-block, k - 1, axis=1)[:, k - 1 : k]
    above = block > last
    equal = block == last
    # of the values that equal the last one, only the first few are taken
    taken = above | (equal & (np.cumsum(equal, axis=1) <= k - above.sum(axis=1, keepdims=True)))
    tied = int(np.count_nonzero(above.sum(axis=1) + equal.sum(axis=1) > k))
    return np.nonzero(taken)[1].reshape(len(block), k), tied


@cached_njit
def _common(a: NDArray[np.int32], b: NDArray[np.int32], pairing: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count, for every row, the neighbours in A whose partners are neighbours, in B, of the row's partner."""
    n, k = a.shape
    common = np.zeros(n, np.int64)
    for i in range(n):
        theirs = b[pairing[i]]
        for j in range(k):
            partner = pairing[a[i, j]]
            at = np.searchsorted(theirs, partner)
            if at < k and theirs[at] == partner:
                common[i] += 1
    return common
