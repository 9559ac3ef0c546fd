"""How certain is an estimate over documents? Its variance from the influence of each document, without any draws.

The influence of a document is how much the estimate moves, to first order, with the document's weight (Hampel 1974).
Over independent documents, the sum of the squares estimates the variance (the infinitesimal jackknife: Efron, The
jackknife, the bootstrap and other resampling plans, 1982, chapter 6; "sandwich" and "cluster-robust" elsewhere).

A variance that a few documents make up is itself uncertain. Satterthwaite's (Biometrics Bulletin 2, 1946) degrees of
freedom allow for this, as those of Bell and McCaffrey (Survey Methodology 28, 2002) do for regressions on few
clusters: from the effective number of documents::

    n_effective = (sum of squared influences)² / sum of their fourth powers

which is the number of equally influential documents of the same concentration, and n_effective - 1 degrees of freedom.
It is far below the number of documents of a text where a pair of features fires in few of them.
"""

from __future__ import annotations

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: With fewer effective documents, an estimate has neither interval nor p: t with less than 1 degree of freedom has
#: intervals that are nearly all of the range.
FEWEST_EFFECTIVE = 2.0
#: Correlations this near to 1 or -1 are those of a copy.
COPY = 1e-9
#: A sum of squared influences on a correlation that is no more than this is rounding.
NO_INFLUENCE = 1e-24


def effective_number(squares: Floats, fourths: Floats) -> Floats:
    """Return the effective number of documents from sums of squared influences and of their fourth powers.

    They are of influences on a correlation. NaN where no document has any.

    >>> influence = np.array([[1.0, 1.0], [-1.0, 0.1], [1.0, 0.0]])
    >>> effective_number((influence**2).sum(axis=0), (influence**4).sum(axis=0)).round(2)
    array([3.  , 1.02])
    """
    some = squares > NO_INFLUENCE
    return np.divide(squares * squares, fourths, out=np.full_like(squares, np.nan), where=some)


def fisher_interval(r: Floats, squares: Floats, n_effective: Floats, level: float) -> Floats:
    """Return the ends of intervals of correlations, (2, …): Student's on Fisher's scale, atanh r.

    Parameters
    ----------
    r
        Estimates, in [-1, 1].
    squares
        Sums of squared influences on r: its variances.
    n_effective
        Effective numbers of documents. With fewer than :data:`FEWEST_EFFECTIVE` there is no interval: NaN.
    level
        Nominal coverage.

    Examples
    --------
    >>> fisher_interval(np.array([0.5, 1.0]), np.array([0.01, 0.0]), np.array([20.0, np.nan]), 0.95).round(2)
    array([[0.26, 1.  ],
           [0.68, 1.  ]])
    """
    t = scipy.stats.t.ppf((1 + level) / 2, _degrees(n_effective))
    copy = 1 - np.abs(r) < COPY
    inside = np.where(copy, 0.0, r)
    half_width = t * np.sqrt(squares) / (1 - inside * inside)
    ends = np.tanh(np.stack([np.arctanh(inside) - half_width, np.arctanh(inside) + half_width]))
    return np.where(copy, r, ends)


def p_above_zero(estimate: Floats, squares: Floats, n_effective: Floats) -> Floats:
    """Return one-sided p of estimates that are 0 under the null hypothesis; NaN where there is no interval either.

    Influences that are skewed to the right, as products of features that seldom fire are, make it conservative.

    >>> p_above_zero(np.array([3.0, -3.0, 3.0]), np.ones(3), np.array([20.0, 20.0, 1.5])).round(4)
    array([0.0037, 0.9963,    nan])
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        t = estimate / np.sqrt(squares)
    return np.asarray(scipy.stats.t.sf(t, _degrees(n_effective)))


def _degrees(n_effective: Floats) -> Floats:
    """Return degrees of freedom; NaN with too few effective documents."""
    return np.where(n_effective >= FEWEST_EFFECTIVE, n_effective - 1, np.nan)
