"""Random keywords: the null that asks whether a *meaning* is shared, or whether any few words would do.

Pairs that fire on one word are alike in their geometry, and a short list of arbitrary words cuts out such clumps as
well as a list of related ones does. So a concept competes with random lists of words (a competitive test: Goeman &
Bühlmann, Bioinformatics 23, 2007). Each pair of the whole space belongs to the word on which its two features fire
most, its *dominant word*. A random list takes, for every word that dominates pairs of the concept, another word that
dominates at least as many pairs outside of it and not many more, and as many of its pairs. So a list has as many pairs
as the concept, from as many words, in clumps of the same sizes, from words of like frequency; and those lists are kept
whose mean r and share of pairs that fire on a single word are those of the concept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.text.top_tokens import NONE, Dominant

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

#: How far the mean r, and the share of pairs that fire on a single word, of a list may be from those of the concept.
R_APART, SINGLE_APART = 0.03, 0.15
#: A word that replaces another dominates at most so many times as many pairs, if there are enough such words.
LARGER, ENOUGH_WORDS = 2, 10
#: Lists that are looked at for each that is wanted, how often a word that is in a list already is drawn again, and
#: different lists among those kept at least.
TRIES, REDRAWS, DISTINCT = 20, 50, 100


@dataclass(frozen=True)
class Clumps:
    """The pairs of the whole space outside of a concept, by dominant word.

    Attributes
    ----------
    order
        Places of the pairs, word after word.
    word, start, size
        (word,) the words, where each word's pairs begin in `order`, and how many there are.
    r, single
        (word,) mean r of its pairs, and the share of them that fire on a single word.
    """

    order: Ids
    word: Ids
    start: Ids
    size: Ids
    r: Floats
    single: Floats


def _clumps(places: Ids, dominant: Dominant, r: Floats) -> Clumps:
    order = places[np.argsort(dominant.word[places], kind="stable")]
    word, start, size = np.unique(dominant.word[order], return_index=True, return_counts=True)
    means = [np.add.reduceat(values[order].astype(np.float64), start) / size for values in (r, dominant.single)]
    return Clumps(order, word, start, size, means[0], means[1])


def random_lists(
    rng: np.random.Generator, runs: int, *, dominant: Dominant, r: Floats, concept: NDArray[np.bool_]
) -> tuple[Ids | None, str]:
    """Draw the pairs of random lists of words that are like a concept's.

    Parameters
    ----------
    rng
        Source of the random numbers.
    runs
        Lists.
    dominant
        Of all pairs.
    r
        (pair,) r of all pairs.
    concept
        (pair,) which of them are the concept's.

    Returns
    -------
    (run, pair of the concept) int64 places among all pairs, or None; and why there are none.
    """
    own = _clumps(np.flatnonzero(concept), dominant, r)
    outside = ~concept & ~np.isin(dominant.word, own.word[own.word != NONE])
    others = _clumps(np.flatnonzero(outside), dominant, r)
    chosen = _choose_words(own, others, TRIES * runs, rng)
    if chosen is None:
        return None, "there are too few other words that dominate as many pairs as the concept's do"
    counted = own.size / own.size.sum()
    apart = [np.abs((of_words[chosen] - of_own) @ counted) for of_words, of_own in
             ((others.r, own.r), (others.single, own.single))]  # fmt: skip
    ordered = np.sort(chosen, axis=1)
    fits = (apart[0] <= R_APART) & (apart[1] <= SINGLE_APART) & ~_repeated(chosen).any(axis=1)
    kept = np.flatnonzero(fits)[:runs]
    distinct = len(np.unique(ordered[kept], axis=0))
    if len(kept) < runs or distinct < min(DISTINCT, runs):
        return None, (
            f"of {TRIES * runs} random lists of words {int(fits.sum())} are like the concept in r and in pairs that "
            f"fire on a single word, {distinct} of them different"
        )
    return _pairs_of(chosen[kept], own.size, others, rng), ""


def _choose_words(own: Clumps, others: Clumps, tries: int, rng: np.random.Generator) -> Ids | None:
    """Return lists of words, (try, word of the concept) places among the others; None if there is no choice.

    Words whose pairs have a like r are preferred, so that more lists are like the concept.
    """
    columns: list[tuple[Ids, Floats]] = []
    for size, r in zip(own.size.tolist(), own.r.tolist(), strict=True):
        large = np.flatnonzero(others.size >= size)
        alike = large[others.size[large] <= LARGER * size]
        candidates = alike if len(alike) >= ENOUGH_WORDS else large
        if len(candidates) < ENOUGH_WORDS:
            return None
        weight = np.exp(-0.5 * ((others.r[candidates] - r) / (2 * R_APART)) ** 2) + 1e-3
        columns.append((candidates, weight / weight.sum()))
    chosen = np.stack([rng.choice(words, size=tries, p=p) for words, p in columns], axis=1)
    for _ in range(REDRAWS):
        again = _repeated(chosen)
        if not again.any():
            break
        for column, (words, p) in enumerate(columns):
            tries_again = np.flatnonzero(again[:, column])
            chosen[tries_again, column] = rng.choice(words, size=len(tries_again), p=p)
    return chosen


def _repeated(chosen: Ids) -> NDArray[np.bool_]:
    """Say which words of each list are in it a second time."""
    order = np.argsort(chosen, axis=1, kind="stable")
    ordered = np.take_along_axis(chosen, order, axis=1)
    second = np.zeros(chosen.shape, bool)
    np.put_along_axis(second, order[:, 1:], np.diff(ordered, axis=1) == 0, axis=1)
    return second


def _pairs_of(chosen: Ids, sizes: Ids, others: Clumps, rng: np.random.Generator) -> Ids:
    """Return as many pairs of each chosen word as the concept has of the word that it replaces, at random."""
    parts = []
    for column, size in zip(chosen.T, sizes.tolist(), strict=True):
        part = np.empty((len(column), size), np.int64)
        for word in np.unique(column).tolist():
            runs = np.flatnonzero(column == word)
            within = np.argsort(rng.random((len(runs), int(others.size[word]))), axis=1)[:, :size]
            part[runs] = others.order[others.start[word] + within]
        parts.append(part)
    return np.concatenate(parts, axis=1)
