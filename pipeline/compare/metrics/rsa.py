"""Representational similarity analysis: whether the two sides agree on which pairs of rows are alike.

Kriegeskorte, Mur, Bandettini: Representational similarity analysis (Frontiers in Systems Neuroscience 2:4, 2008).
Inside a side, rows are compared by cosine, Pearson's correlation or Euclidean distance; the upper triangles of the two
similarity matrices are compared by Spearman's, Pearson's or Kendall's (tau-b) correlation, with average ranks for ties.

A shuffled pairing permutes rows and columns of one similarity matrix. The multiset of its values does not change, and
neither do the ranks: a shuffled run is one dot product of two rank matrices, one of them read through the permutation.

Where the similarities do not fit in memory, :class:`SampledRsa` takes their place: the rows are cut at random into
groups, and only similarities within groups are looked at.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from pipeline.compare.base import Metric, Pairing, Rows
from pipeline.compare.rows import MIN_PAIRS
from pipeline.compare.rsa_kernels import (
    centred_ranks,
    discordances,
    paired_product,
    paired_upper,
    square_matrix,
    square_sum,
    tied_pairs,
)
from pipeline.compare.similarities import (
    BLOCK_ROWS,
    Inside,
    block_similarities,
    duplicates,
    scaled,
    upper_triangle,
)
from pipeline.settings.registries import METRICS

Outside = Literal["spearman", "pearson", "kendall"]

#: More rows have more than 2³¹ pairs of rows, whose ranks an int32 does not hold.
MAX_ROWS = 65_536
#: Pairs of rows that a sample is to have, and rows of a group of it.
SAMPLED_PAIRS, GROUP_ROWS = 2_000_000, 64
#: Parts of the sample whose spread gives its standard error.
PARTS = 20


class Similarities(NamedTuple):
    """The similarities of both sides, ready for any pairing.

    Attributes
    ----------
    upper_a
        Side A's upper triangle, row after row: centred ranks (int32), or centred values (float32) for Pearson's
        correlation, shape (n(n-1)/2,).
    square_b
        Side B's whole matrix, of the same type, shape (n, n), zeros on the diagonal.
    norm
        Product of the Euclidean norms of the two triangles; 0 where a side has no two different similarities.
    duplicates
        Rows of A and of B that are equal to an earlier one.
    """

    upper_a: NDArray[np.number]
    square_b: NDArray[np.number]
    norm: float
    duplicates: tuple[int, int]


class Ordered(NamedTuple):
    """For Kendall: A's ranks in order, and the places that they come from.

    Attributes
    ----------
    ranks_a, order_a
        A's ranks in ascending order, and where in the upper triangle each stands; int32.
    square_b
        B's ranks, int32, shape (n, n).
    ties
        How many pairs of similarities tie in A, and in B.
    norm
        Square root of the product of the pairs that do not tie in A and in B; 0 where all tie.
    duplicates
        As in :class:`Similarities`.
    """

    ranks_a: NDArray[np.int32]
    order_a: NDArray[np.int32]
    square_b: NDArray[np.int32]
    ties: tuple[int, int]
    norm: float
    duplicates: tuple[int, int]


@METRICS.register
@dataclass(frozen=True)
class Rsa(Metric):
    """Correlation of the two sides' similarities between rows.

    Attributes
    ----------
    inside
        What similarity is: ``cosine``, ``pearson`` or ``euclidean``.
    outside
        How the similarities are compared: ``spearman``, ``pearson`` or ``kendall``.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(20, 4))
    >>> Rsa()(x, 3 * x[:, ::-1]), round(Rsa("euclidean", "kendall")(x, x + 5), 6)
    (1.0, 1.0)
    """

    name: ClassVar[str] = "rsa"
    inside: Inside = "cosine"
    outside: Outside = "spearman"

    @property
    def family(self) -> Hashable:
        """Each choice of similarity and correlation is a family of its own."""
        return self

    @staticmethod
    def prepare(metrics: Sequence[Rsa], x: Rows, y: Rows) -> Similarities | Ordered:
        """Compute, and rank, the similarities of both sides."""
        (metric,) = metrics
        make = _ordered if metric.outside == "kendall" else _similarities
        return make(metric, x, y)

    def arrange(self, state: Similarities | Ordered, pairing: Pairing) -> float:
        """Return the correlation itself: there is nothing to share."""
        if not state.norm:
            return float("nan")
        if isinstance(state, Ordered):
            return _kendall(state, pairing.astype(np.int32))
        product = paired_product(state.upper_a, state.square_b, pairing.astype(np.int32)) / state.norm
        return float(np.clip(product, -1.0, 1.0))

    def score(self, arranged: float) -> float:
        """Return the correlation."""
        return arranged

    def warning(self, state: Similarities | Ordered) -> str:
        """Say where rows occur several times: a similarity of 1 with a copy is no finding."""
        return duplicates_note(*state.duplicates)

    def memory(self, n: int, d_a: int, d_b: int) -> int:
        """See :func:`memory_needed`."""
        return memory_needed(n, d_a, d_b)

    def within(self, budget: int, n: int, d_a: int, d_b: int) -> Metric:
        """Return the metric, or its sampled form where the budget does not hold all similarities."""
        if n <= MAX_ROWS and self.memory(n, d_a, d_b) <= budget:
            return self
        return SampledRsa(self.inside, self.outside)


@dataclass(frozen=True)
class SampledRsa(Rsa):
    """RSA over similarities within random groups of rows: for more rows than memory holds the similarities of."""

    @staticmethod
    def prepare(metrics: Sequence[Rsa], x: Rows, y: Rows) -> SampledState:  # type: ignore[override]
        """Cut the rows into groups, and compute A's similarities within them."""
        (metric,) = metrics
        groups = _groups(len(x))
        a, b = (scaled(side, metric.inside) for side in (x, y))
        copies = duplicates(x), duplicates(y)
        return SampledState(groups, _within_groups(a[groups], metric.inside), b, copies)

    def arrange(self, state: SampledState, pairing: Pairing) -> list[float]:  # type: ignore[override]
        """Return the correlation over the whole sample, and over each of its parts."""
        b = _within_groups(state.rows_b[pairing[state.groups]], self.inside)
        whole = correlate_lists(self.outside, state.similarities_a.ravel(), b.ravel())
        return [whole, standard_error(self.outside, state.similarities_a, b)]

    def score(self, arranged: list[float]) -> float:  # type: ignore[override]
        """Return the correlation over the whole sample."""
        return arranged[0]

    def warning(self, state: SampledState) -> str:  # type: ignore[override]
        """Say that this is a sample, how large, and its standard error."""
        n = len(state.rows_b)
        error = self.arrange(state, np.arange(n))[1]
        sampled = (
            f"sampled: {state.similarities_a.size:,} of {n * (n - 1) // 2:,} pairs of rows, those within random groups "
            f"of {state.groups.shape[1]}; standard error {error:.1g}"
        )
        return "; ".join(filter(None, [sampled, duplicates_note(*state.duplicates)]))

    def memory(self, n: int, d_a: int, d_b: int) -> int:
        """Return the bytes of both sides' rows as given and scaled, a paired copy, and the sample with its ranks."""
        return 8 * n * (2 * d_a + 3 * d_b) + 6 * 8 * min(SAMPLED_PAIRS, n * GROUP_ROWS) + n * GROUP_ROWS * 16


class SampledState(NamedTuple):
    """A sample of similarities: groups of rows (group, row), A's similarities within them (group, pair), B's rows."""

    groups: NDArray[np.int64]
    similarities_a: NDArray[np.float64]
    rows_b: Rows
    duplicates: tuple[int, int]


def memory_needed(n: int, d_a: int, d_b: int) -> int:
    """Return how many bytes exact RSA of `n` pairs needs at most, with its shuffled runs.

    The peak comes while B is ranked: its similarities (float64) and their order (int64), and the ranks of both sides
    (int32), each for n²/2 pairs of rows. A's triangle and B's square of ranks stay, in half of that.

    Examples
    --------
    >>> memory_needed(2000, 576, 384) / 1e6
    86.912
    """
    triangle, blocks, rows = n * n // 2, 2 * 8 * n * min(n, BLOCK_ROWS), 2 * 8 * n * (d_a + d_b)
    return triangle * (8 + 8 + 4 + 4) + blocks + rows


def correlate_lists(outside: Outside, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the correlation of two lists of similarities; NaN where one is undefined or does not vary.

    Examples
    --------
    >>> round(correlate_lists("spearman", np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 9.0])), 6)
    1.0
    """
    if outside == "pearson":
        centred = [values - values.mean() for values in (a, b)]
    else:
        ranks = [centred_ranks(values) for values in (a, b)]
        if outside == "kendall":
            return _kendall_lists(*ranks)
        centred = [values.astype(np.float64) for values in ranks]
    norm = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(np.clip(centred[0] @ centred[1] / norm, -1.0, 1.0)) if norm > 0 else float("nan")


def standard_error(outside: Outside, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the standard error of a sample's correlation, from the spread over its parts; shapes (group, pair)."""
    parts = [
        correlate_lists(outside, one.ravel(), other.ravel())
        for one, other in zip(np.array_split(a, PARTS), np.array_split(b, PARTS), strict=True)
        if one.size > 1
    ]
    return float(np.std(parts, ddof=1) / np.sqrt(len(parts))) if len(parts) > 1 else float("nan")


def duplicates_note(a: int, b: int) -> str:
    """Return a note on rows that occur several times, as many-to-one pairs have them.

    Examples
    --------
    >>> duplicates_note(0, 12)
    'inflated by copies: 0 rows of A and 12 of B repeat an earlier one, and copies tie or agree by construction'
    >>> duplicates_note(0, 0)
    ''
    """
    if not a + b:
        return ""
    return (
        f"inflated by copies: {a} rows of A and {b} of B repeat an earlier one, and copies tie or agree by construction"
    )


def _similarities(metric: Rsa, x: Rows, y: Rows) -> Similarities:
    upper_a, upper_b = (_centred(upper_triangle(side, metric.inside), metric.outside) for side in (x, y))
    norm = float(np.sqrt(square_sum(upper_a)) * np.sqrt(square_sum(upper_b)))
    return Similarities(upper_a, square_matrix(upper_b, len(y)), norm, (duplicates(x), duplicates(y)))


def _centred(values: NDArray[np.float64], outside: Outside) -> NDArray[np.number]:
    """Return centred ranks, or for Pearson's correlation centred values; zeros where there is nothing to compare."""
    if outside != "pearson":
        return centred_ranks(values)
    values -= values.mean()
    scale = float(np.abs(values).max())
    # similarities that differ by rounding alone have no correlation
    if not scale > 1e-12:
        return np.zeros(len(values), np.float32)
    values /= scale
    return values.astype(np.float32)


def _ordered(metric: Rsa, x: Rows, y: Rows) -> Ordered:
    ranks_a, ranks_b = (centred_ranks(upper_triangle(side, metric.inside)) for side in (x, y))
    order_a = np.argsort(ranks_a, kind="stable").astype(np.int32)
    ties, norm = _ties(ranks_a, ranks_b)
    copies = duplicates(x), duplicates(y)
    return Ordered(ranks_a[order_a], order_a, square_matrix(ranks_b, len(y)), ties, norm, copies)


def _ties(ranks_a: NDArray[np.int32], ranks_b: NDArray[np.int32]) -> tuple[tuple[int, int], float]:
    """Return the pairs that tie in a and in b, and the geometric mean of those that do not."""
    pairs = len(ranks_a) * (len(ranks_a) - 1) // 2
    a, b = (int(tied_pairs(np.sort(ranks))) for ranks in (ranks_a, ranks_b))
    return (a, b), float(np.sqrt(float(pairs - a)) * np.sqrt(float(pairs - b)))


def _kendall(state: Ordered, pairing: NDArray[np.int32]) -> float:
    b = paired_upper(state.square_b, pairing)[state.order_a]
    return _tau(state.ranks_a, b, state.ties, state.norm)


def _kendall_lists(ranks_a: NDArray[np.int32], ranks_b: NDArray[np.int32]) -> float:
    order = np.argsort(ranks_a, kind="stable")
    ties, norm = _ties(ranks_a, ranks_b)
    return _tau(ranks_a[order], ranks_b[order], ties, norm) if norm else float("nan")


def _tau(ordered_a: NDArray[np.int32], b: NDArray[np.int32], ties: tuple[int, int], norm: float) -> float:
    """Return tau-b: concordant less discordant pairs, over the geometric mean of those that do not tie."""
    m = len(ordered_a)
    discordant, joint = discordances(ordered_a, b)
    return float(np.clip((m * (m - 1) // 2 - sum(ties) + joint - 2 * discordant) / norm, -1.0, 1.0))


def _groups(n: int) -> NDArray[np.int64]:
    """Return rows cut at random into groups, the same for every run; shape (group, row)."""
    rows = min(GROUP_ROWS, max(MIN_PAIRS, n // PARTS))
    wanted = -(-SAMPLED_PAIRS // (rows * (rows - 1) // 2))
    count = min(max(wanted, PARTS), n // rows)
    return np.random.default_rng(np.random.SeedSequence(0)).permutation(n)[: count * rows].reshape(count, rows)


def _within_groups(rows: NDArray[np.float64], inside: Inside) -> NDArray[np.float64]:
    """Return the similarities of every two rows of a group, shape (group, pair), from rows (group, row, d)."""
    upper = np.triu_indices(rows.shape[1], 1)
    return np.stack([block_similarities(group, group, inside)[upper] for group in rows])
