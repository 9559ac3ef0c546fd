"""What a score means beside its null distribution, and many tests at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Scores this close to the null's count as equal: where every pairing scores the same, rounding must not decide.
TIE = 1e-6


def p_value(score: float, null: ArrayLike) -> float:
    """Return the one-sided p of a score against shuffled runs, (b + 1) / (N + 1).

    b is the number of runs that score at least as high. The score itself counts as one of N + 1 equally likely
    arrangements, so that p is never 0 and its null distribution is uniform (Phipson and Smyth, Statistical
    Applications in Genetics and Molecular Biology 9, 2010).

    Parameters
    ----------
    score
        The score of the real pairing.
    null
        The scores of the shuffled ones, shape (run,).

    Returns
    -------
    float
        Between 1 / (N + 1) and 1; NaN if the score is undefined.

    Examples
    --------
    >>> p_value(0.9, [0.1, 0.2, 0.3])
    0.25
    """
    runs = np.asarray(null, np.float64)
    if np.isnan(score):
        return float("nan")
    at_least = np.count_nonzero(runs >= score - TIE)
    return (int(at_least) + 1) / (len(runs) + 1)


def effect_size(score: float, null: ArrayLike) -> float:
    """Return the score's distance from the null's mean in standard deviations of the null.

    Parameters
    ----------
    score
        The score of the real pairing.
    null
        The scores of the shuffled ones, shape (run,).

    Returns
    -------
    float
        NaN where the null does not vary.

    Examples
    --------
    >>> effect_size(4.0, [1.0, 3.0])
    2.0
    """
    runs = np.asarray(null, np.float64)
    spread = float(runs.std())
    return (score - float(runs.mean())) / spread if spread > TIE else float("nan")


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values so that rejecting those below a level keeps the false discovery rate at it.

    The step-up procedure of Benjamini and Hochberg (Journal of the Royal Statistical Society B 57, 1995), for
    independent or positively dependent tests. Undefined p-values (NaN) stay so and do not count as tests.

    Parameters
    ----------
    p
        p-values, any shape.

    Returns
    -------
    ndarray of float64
        Adjusted p-values, of the same shape.

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.5]).round(4).tolist()
    [0.04, 0.0533, 0.0533, 0.5]
    """
    values, defined, order = _ascending(p)
    n = len(order)
    scaled = values[defined][order] * n / np.arange(1, n + 1)
    return _restore(values, defined, order, np.minimum.accumulate(scaled[::-1])[::-1])


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values so that rejecting those below a level keeps the chance of any false rejection at it.

    The step-down procedure of Holm (Scandinavian Journal of Statistics 6, 1979), whatever the dependence of the
    tests. Undefined p-values (NaN) stay so and do not count as tests.

    Parameters
    ----------
    p
        p-values, any shape.

    Returns
    -------
    ndarray of float64
        Adjusted p-values, of the same shape.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03, 0.5]).round(4).tolist()
    [0.04, 0.09, 0.09, 0.5]
    """
    values, defined, order = _ascending(p)
    n = len(order)
    scaled = values[defined][order] * np.arange(n, 0, -1)
    return _restore(values, defined, order, np.maximum.accumulate(scaled))


def _ascending(p: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Return the p-values, which of them are defined, and the order that sorts those."""
    values = np.asarray(p, np.float64)
    defined = ~np.isnan(values)
    return values, defined, np.argsort(values[defined], kind="stable")


def _restore(
    values: NDArray[np.float64], defined: NDArray[np.bool_], order: NDArray[np.int64], adjusted: NDArray[np.float64]
) -> NDArray[np.float64]:
    in_place = np.empty(len(order))
    in_place[order] = np.minimum(adjusted, 1.0)
    result = values.copy()
    result[defined] = in_place
    return result
