"""What is left of a matching under its nulls, and what share of it is beyond them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.statistics import Range, benjamini_hochberg

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def share_beyond(real: float, null: Range, chance: Range) -> Range:
    """Return the share of what is above chance that a null does not reproduce: (real − null) / (real − chance).

    0: the null gives as much as the real data. 1: the null gives no more than chance. It is not defined (NaN) unless
    the real value lies above the whole range of chance: of next to nothing there are no shares.

    Parameters
    ----------
    real
        Of the real data.
    null
        Of the null, such as same-token permutations.
    chance
        Of chance; all three ends equal where it is known.

    Returns
    -------
    Range
        The share, with the interval that follows from that of the null.

    Examples
    --------
    >>> share_beyond(0.4, Range(0.3, 0.25, 0.35), Range(0.0, -0.1, 0.1))
    Range(mean=0.25, low=0.125, high=0.375)
    >>> share_beyond(0.05, Range(0.0, 0.0, 0.0), Range(0.0, -0.1, 0.1)).mean
    nan
    """
    if not real > chance.high:
        return Range(np.nan, np.nan, np.nan)
    above = real - chance.mean
    # rounded, so that 0 is 0 where the null gives just the same
    return Range(*(round((real - value) / above, 12) for value in (null.mean, null.high, null.low)))


def pooled_p(real: Floats, draws: Floats, strata: Ints) -> Floats:
    """Return the p of each feature's best r against those of all features of its stratum, in all draws.

    The best of thousands of partners is high by luck where a feature fires rarely, so that features are held against
    others that fire as often, in as many documents. p = (b + 1) / (N + 1), with the b of N null values of the stratum
    that are at least as high.

    Parameters
    ----------
    real
        The best r of each feature, (feature,); NaN where it has none.
    draws
        The same in each draw, (draw, feature).
    strata
        Which features fire alike, (feature,).

    Returns
    -------
    ndarray of float64
        (feature,); NaN where the best r or its null is not defined.

    Examples
    --------
    >>> pooled_p(np.array([0.9, 0.2, np.nan]), np.array([[0.1, 0.3, 0.8]]), np.array([0, 0, 0])).round(2).tolist()
    [0.25, 0.75, nan]
    """
    p = np.full(len(real), np.nan)
    for stratum in np.unique(strata):
        members = np.flatnonzero((strata == stratum) & ~np.isnan(real))
        null = np.sort(draws[:, strata == stratum].ravel())
        null = null[: np.searchsorted(null, np.nan)]
        if len(null):
            at_least = len(null) - np.searchsorted(null, real[members])
            p[members] = (at_least + 1) / (len(null) + 1)
    return p


def strata_of(n_active: Ints, n_documents: Ints) -> Ints:
    """Return the stratum of each feature: rows and documents in which it fires, each up to a factor of two.

    >>> strata_of(np.array([1, 3, 2, 900]), np.array([1, 1, 1, 300])).tolist()
    [0, 1, 1, 2]
    """
    classes = [np.floor(np.log2(np.maximum(counts, 1))).astype(np.int64) for counts in (n_active, n_documents)]
    return np.unique(classes[0] * 64 + classes[1], return_inverse=True)[1].astype(np.int64)


def feature_tests(real: Floats, draws: Floats, strata: Ints) -> Mapping[str, Floats]:
    """Return p of each feature's best r, and q, its p after Benjamini and Hochberg over all features."""
    p = pooled_p(real, draws, strata)
    return {"p": p, "q": benjamini_hochberg(p)}
