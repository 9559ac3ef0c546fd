"""Which rows of B stand beside which rows of A in a run of the null for activations: blocks that change places whole.

Both sides are cut into a few blocks of equally many rows. A run puts B's blocks beside A's in random order, so that all
products of blocks need to be summed only once.

*Documents are known.* Documents are sorted by length and dealt to the blocks, so that every block has the same number
of documents, and those in the same place of all blocks are of like length. Each is cut to the length of the shortest of
them. Documents of one group, as sections of an article, are dealt together. The real pairing is then one of the orders,
all orders are equally likely if A's and B's texts have nothing to do with each other, and p is exact. A row keeps its
position in its document: features that fire at the start of every document are alike in every order, and so no
evidence.

*Documents are unknown.* Blocks are of consecutive rows, and B's begin half a block later than A's, around the end. What
is alike across the end of a block is lost, so that blocks must be much longer than rows remain alike. How long that is
follows from the data: the sum of the products of both sides' autocorrelations, cut off where they are noise, with the
flat-top window of Politis & White (Econometric Reviews 23, 2004).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

#: Blocks at least: fewer have too few orders.
FEWEST_BLOCKS = 8
#: Correlation lengths in a block at least; at 20, p <= .05 is found in 7 % of unrelated series, at 40 in 4 %.
LENGTHS_PER_BLOCK = 40
#: Documents of a block that are dealt together at least, so that they are of like length.
DOCUMENTS_PER_REGION = 64
#: More blocks are worth so many of the rows.
ENOUGH_ROWS = 0.95
#: Components of either side, by variance and at random, whose autocorrelation is looked at.
COMPONENTS = 16


@dataclass(frozen=True)
class Blocks:
    """Blocks of both sides, each a sequence of parts; rows are numbered among those that count.

    Attributes
    ----------
    null
        The null's name.
    starts_a, starts_b
        (part, block) int64 the first row of each part.
    lengths
        (part,) int64 rows of a part, the same in all blocks.
    """

    null: str
    starts_a: Ids
    starts_b: Ids
    lengths: Ids

    @property
    def number(self) -> int:
        """The number of blocks."""
        return self.starts_a.shape[1]

    @property
    def length(self) -> int:
        """Rows of a block."""
        return int(self.lengths.sum())

    def rows(self, first: int, stop: int) -> tuple[Ids, Ids]:
        """Return the rows at places `first` to `stop` of every block of A and of B, (block, place) each.

        Examples
        --------
        >>> blocks = shifted_blocks(8, 2)
        >>> [rows.tolist() for rows in blocks.rows(1, 4)]
        [[[1, 2, 3], [5, 6, 7]], [[3, 4, 5], [7, 0, 1]]]
        """
        ends = np.cumsum(self.lengths)
        place = np.arange(first, stop)
        part = np.searchsorted(ends, place, side="right")
        within = place - (ends - self.lengths)[part]
        return (self.starts_a[part] + within[:, None]).T, (self.starts_b[part] + within[:, None]).T


def shifted_blocks(n: int, blocks: int) -> Blocks:
    """Return blocks of consecutive rows, B's half a block later, around the end; ``n % blocks`` rows are in none."""
    length = n // blocks
    offset = length // 2
    a = np.arange(blocks, dtype=np.int64) * length
    starts_a = np.stack([a, a + length - offset])
    starts_b = np.stack([a + offset, np.roll(a, -1)])
    return Blocks("shifted_blocks", starts_a, starts_b, np.array([length - offset, offset], np.int64))


def first_of_each(values: NDArray[np.integer]) -> Ids:
    """Return where each run of equal values begins, and the number of values, int64.

    >>> first_of_each(np.array([7, 7, 3])).tolist()
    [0, 2, 3]
    """
    return np.append(np.flatnonzero(np.diff(values, prepend=values[:1] - 1)), len(values))


def dealt_documents(lengths: Ids, blocks: int, region_rows: int, groups: Ids | None = None) -> Blocks | None:
    """Deal documents to as many blocks as keep nearly the most rows; None if there are too few.

    Parameters
    ----------
    lengths
        (document,) rows of each document, in the order of the text.
    blocks
        Blocks at most.
    region_rows
        Documents of about so many rows, or more, are sorted and dealt together: what is read together lies together.
    groups
        (document,) number of each document's group, as of sections of one article, which stay together: a group stands
        beside groups of as many documents, of which the first stand beside each other, then the second, and so on. Each
        document on its own if absent.

    Examples
    --------
    >>> dealt = dealt_documents(np.array([3, 1, 3, 2, 3, 3, 2, 3, 3, 3]), 8, 100)
    >>> dealt.starts_a.tolist(), dealt.lengths.tolist()
    ([[0, 4, 9, 12, 17, 20, 23, 7]], [2])
    """
    units = first_of_each(np.arange(len(lengths)) if groups is None else groups)
    if len(units) - 1 < FEWEST_BLOCKS:
        return None
    numbers = range(FEWEST_BLOCKS, min(blocks, len(units) - 1) + 1)
    dealt = [_deal(lengths, units, number, region_rows) for number in numbers]
    fewest_rows = ENOUGH_ROWS * max(cut.length * cut.number for cut in dealt)
    return next(cut for cut in reversed(dealt) if cut.length * cut.number >= fewest_rows)


def _deal(lengths: Ids, units: Ids, blocks: int, region_rows: int) -> Blocks:
    """Deal units of documents, those from one of `units` to the next, to so many blocks; the least are left over."""
    first, kept = zip(*strata(lengths, units, blocks, region_rows), strict=True)
    begins = np.concatenate(first)
    return Blocks("permuted_documents", begins, begins, np.concatenate(kept))


def strata(lengths: Ids, units: Ids, size: int, region_rows: int) -> Iterator[tuple[Ids, Ids]]:
    """Yield `size` units of documents that may change places, the longest first; the shortest are left over.

    Units have as many documents as the least of the stratum, and documents in the same place as many rows.

    Parameters
    ----------
    lengths
        (document,) rows of each document, in the order of the text.
    units
        (unit + 1,) the first document of each unit, and the number of documents.
    size
        Units of a stratum.
    region_rows
        As in :func:`dealt_documents`.

    Yields
    ------
    tuple
        (document, unit) int64, the first row of each document that is used; (document,) int64, how many rows of it are.

    Examples
    --------
    >>> [(starts.tolist(), rows.tolist()) for starts, rows in strata(np.array([2, 3, 4]), np.array([0, 2, 3]), 2, 100)]
    [([[0, 5]], [2])]
    """
    starts = np.cumsum(lengths) - lengths
    rows, documents = np.add.reduceat(lengths, units[:-1]), np.diff(units)
    for region in _regions(rows, size, region_rows):
        most_first = region[np.lexsort((-rows[region], -documents[region]))]
        for stratum in most_first[: len(region) // size * size].reshape(-1, size):
            of_stratum = units[stratum] + np.arange(documents[stratum].min())[:, None]
            yield starts[of_stratum], lengths[of_stratum].min(axis=1)


def _regions(lengths: Ids, blocks: int, region_rows: int) -> Iterator[Ids]:
    """Yield consecutive documents that are dealt together; what is left at the end belongs to the last region."""
    number = np.maximum(np.cumsum(lengths) // max(region_rows, 1), 0)
    by_rows = np.flatnonzero(np.diff(number)) + 1
    fewest = DOCUMENTS_PER_REGION * blocks
    cuts = [0]
    for cut in by_rows.tolist():
        if cut - cuts[-1] >= fewest:
            cuts.append(cut)
    if len(lengths) - cuts[-1] < fewest and len(cuts) > 1:
        cuts.pop()
    yield from (np.arange(*bounds) for bounds in itertools.pairwise([*cuts, len(lengths)]))


def correlation_length(x: Floats, y: Floats) -> float:
    """Return for how many rows the products of two sides' columns remain alike, at least 1.

    It is ``1 + 2 Σ ρ_x(k) ρ_y(k)`` over lags k, with the mean autocorrelation of each side's components: of the largest
    ones, and of random mixtures of all, each scaled to variance 1; the larger of the two.

    Parameters
    ----------
    x, y
        (row, column) consecutive rows of either side.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> round(correlation_length(rng.normal(size=(5000, 3)), rng.normal(size=(5000, 3))), 1)
    1.0
    """
    sides = [_components(side) for side in (x, y)]
    return max(_summed(*(autocorrelation(part) for part in parts)) for parts in zip(*sides, strict=True))


def _components(values: Floats) -> tuple[Floats, Floats]:
    """Return the largest components, and random mixtures of all of them, as columns."""
    centred = values - values.mean(axis=0)
    variances, vectors = np.linalg.eigh(centred.T @ centred)
    used = variances > len(variances) * np.finfo(np.float64).eps * max(float(variances[-1]), np.finfo(np.float64).tiny)
    white = vectors[:, used] / np.sqrt(variances[used])
    mixing = np.random.default_rng(0).normal(size=(white.shape[1], min(COMPONENTS, white.shape[1])))
    return centred @ white[:, -COMPONENTS:], centred @ (white @ mixing)


def autocorrelation(series: Floats) -> Floats:
    """Return the mean autocorrelation of some centred columns at lags 0 to a quarter of the rows; of none, 1 and 0s.

    Examples
    --------
    >>> autocorrelation(np.tile([[1.0], [-1.0]], (8, 1))).round(2).tolist()
    [1.0, -0.94, 0.87, -0.81]
    """
    n, width = series.shape
    lags = max(2, n // 4)
    if not width:
        return np.eye(1, lags)[0]
    spectrum = np.abs(np.fft.rfft(series, 2 * n, axis=0)) ** 2
    total = np.fft.irfft(spectrum.sum(axis=1))[:lags]
    return np.asarray(total / total[0])


def _summed(a: Floats, b: Floats) -> float:
    """Return ``1 + 2 Σ ρ_a ρ_b``, up to twice the lag beyond which either side's autocorrelations are noise."""
    lags = len(a)
    last = min(_last_lag(a), _last_lag(b))
    lag = np.arange(1, min(2 * last, lags - 1) + 1)
    window = np.clip(2 * (1 - lag / max(2 * last, 1)), 0, 1)
    return max(1.0, float(1 + 2 * np.sum(window * a[lag] * b[lag])))


def _last_lag(rho: Floats) -> int:
    """Return the lag after which several autocorrelations in a row are within what noise makes."""
    n = 4 * len(rho)
    noise = 2 * np.sqrt(np.log10(n) / n)
    in_a_row = max(5, int(np.sqrt(np.log10(n))))
    quiet = np.abs(rho[1:]) < noise
    windows = np.convolve(quiet, np.ones(in_a_row), mode="valid") == in_a_row
    ends = np.flatnonzero(windows)
    return int(ends[0]) if len(ends) else len(rho) - 1
