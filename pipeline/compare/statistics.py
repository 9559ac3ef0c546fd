"""What a score means beside its null distribution, and many tests at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

Floats = NDArray[np.float64]

#: Scores this close to the null's count as equal: where every pairing scores the same, rounding must not decide.
TIE = 1e-6
#: Runs that effects rest on where a null may end early: always the first ones, since stopping biases what is averaged.
EFFECT_RUNS = 100
#: The level at which results are called significant, and at which :func:`power_note` judges.
LEVEL = 0.05
#: Beyond this bias (in standard deviations of the draws) an interval would rest on a handful of extreme draws.
LARGEST_BIAS = 2.0


class Interval(NamedTuple):
    """A confidence interval, NaN at both ends where there is none; the note says why."""

    low: float
    high: float
    note: str = ""


class Range(NamedTuple):
    """A mean with the interval in which a real value is expected that is a draw too; NaN where there is none."""

    mean: float
    low: float
    high: float


def p_value(score: float, null: ArrayLike) -> float:
    """Return the one-sided p of a score against shuffled runs, (b + 1) / (N + 1).

    b is the number of runs that score at least as high. The score itself counts as one of N + 1 equally likely
    arrangements, so that p is never 0 and its null distribution is uniform (Phipson and Smyth, Statistical
    Applications in Genetics and Molecular Biology 9, 2010). Where the null ended early (:func:`ended_after`), after
    l runs, p is b / l (Besag and Clifford, Biometrika 78, 1991), or (b + 1) / (l + 1) if l is the fixed number that is
    drawn before the null may end. Each of these values is reached with just the probability that it states.

    Parameters
    ----------
    score
        The score of the real pairing.
    null
        The scores of the shuffled ones, shape (run,); NaN from where the null ended.

    Returns
    -------
    float
        Between 1 / (N + 1) and 1; NaN if the score is undefined.

    Examples
    --------
    >>> p_value(0.9, [0.1, 0.2, 0.3])
    0.25
    >>> p_value(0.9, [*np.linspace(0, 1, 110), np.nan, np.nan])
    0.1
    """
    runs = np.asarray(null, np.float64)
    if np.isnan(score):
        return float("nan")
    at_least, drawn = int(np.count_nonzero(runs >= score - TIE)), int(np.count_nonzero(~np.isnan(runs)))
    if EFFECT_RUNS < drawn < len(runs):
        return at_least / drawn
    return (at_least + 1) / (drawn + 1)


def ended_after(score: float, null: ArrayLike, stop_after: int) -> int | None:
    """Return after how many runs a null ended: `stop_after` of them scored at least as high; None if it has not ended.

    It does not end before :data:`EFFECT_RUNS`, and never with `stop_after` 0.

    Examples
    --------
    >>> ended_after(0.5, np.linspace(0, 1, 301), stop_after=10), ended_after(0.1, np.linspace(0, 1, 301), stop_after=10)
    (160, 100)
    >>> ended_after(0.5, np.zeros(301), stop_after=10) is None
    True
    """
    exceedances = np.cumsum(np.asarray(null, np.float64) >= score - TIE)
    if not stop_after or len(exceedances) < EFFECT_RUNS or exceedances[-1] < stop_after:
        return None
    return max(EFFECT_RUNS, int(np.searchsorted(exceedances, stop_after)) + 1)


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


def difference(score: float, null: ArrayLike) -> float:
    """Return how far the score lies above the null's mean, in units of the score.

    Unlike :func:`effect_size` it does not grow with the number of pairs or tokens.

    Parameters
    ----------
    score
        The score of the real pairing.
    null
        The scores of the shuffled ones, shape (run,).

    Returns
    -------
    float

    Examples
    --------
    >>> difference(4.0, [1.0, 3.0])
    2.0
    """
    return score - float(np.mean(np.asarray(null, np.float64)))


def calibrated(score: ArrayLike, null: ArrayLike, level: float = LEVEL) -> Floats:
    """Return (score − τ) ÷ (1 − τ): 0 where chance alone gets in a share `level` of all runs, 1 for likeness itself.

    τ is the 1 − `level` quantile of the null's runs and the score together (Gröger, Wen and Brbić, arXiv 2602.14486;
    they set negative values to 0). It is for metrics whose largest value is 1.

    Parameters
    ----------
    score
        Scores of real pairings, any shape.
    null
        Those of shuffled ones, the runs along one more, last axis.
    level
        The share of runs that are at least as high as τ.

    Returns
    -------
    ndarray of float64
        Of the shape of `score`; NaN where τ is 1, so that chance gets as high as anything can.

    Examples
    --------
    >>> calibrated([0.6, 0.1], [np.linspace(0, 0.2, 99)] * 2).round(3).tolist()
    [0.505, -0.111]
    """
    values = np.asarray(score, np.float64)
    tau = _tau(values, np.asarray(null, np.float64), level)
    return (values - tau) / (1 - tau)


def _tau(scores: Floats, null: Floats, level: float) -> Floats:
    """Return what calibrates scores, NaN where nothing can be above it."""
    tau = np.quantile(np.concatenate([null, scores[..., None]], axis=-1), 1 - level, axis=-1)
    return np.where(tau < 1 - TIE, tau, np.nan)


def max_p(scores: Floats, nulls: Floats, level: float = LEVEL) -> Floats:
    """Return p of scores against the highest score that chance finds among all of them.

    Each score is held against the maximum over all tests of the same run: (b + 1) / (N + 1), with b of N runs in which
    any calibrated score is at least as high. The smallest of these p is that of the best score, whose choice it
    counts; any p below a level is false with no more than that probability (Westfall and Young 1993, single step), at
    any number of tests, if run k pairs alike in all of them. Where tests that are alike are drawn apart, it is too
    large.

    Parameters
    ----------
    scores
        (test,), NaN for those that are undefined.
    nulls
        (test, run), none of them NaN where the score is defined.
    level
        As in :func:`calibrated`, by which tests with other numbers of pairs are comparable.

    Returns
    -------
    ndarray of float64
        (test,), NaN where the score or its calibration is undefined.

    Examples
    --------
    >>> null = np.random.default_rng(0).normal(0, 0.1, (20, 99))
    >>> max_p(np.array([0.5, *np.zeros(19)]), null)[:2].tolist()
    [0.01, 1.0]
    """
    tau = _tau(scores, nulls, level)
    heights = (scores - tau) / (1 - tau)
    p = np.full(len(scores), np.nan)
    tests = np.flatnonzero(np.isfinite(heights))
    if len(tests):
        highest = ((nulls[tests] - tau[tests, None]) / (1 - tau[tests, None])).max(axis=0)
        above = np.count_nonzero(highest >= heights[tests, None] - TIE, axis=1)
        p[tests] = (above + 1) / (len(highest) + 1)
    return p


def expected_range(draws: Floats, overlap: float = 0.0, level: float = 0.95) -> Range:
    """Return the mean of some draws, and the interval that a real value is in, if it is one of them, with 95 %.

    Student's prediction interval, mean ± t(n − 1) · s · √((1 + ρ)/(1 − ρ) + 1/n). Draws in which a share ρ of the units
    have the same partner are alike: with the variance V of one, they differ by (1 − ρ) V, and their mean is as far from
    a value that shares no partner with them as V (1 + ρ + (1 − ρ)/n) says.

    Parameters
    ----------
    draws
        (draw,). Undefined ones take no part; with fewer than two there is no interval.
    overlap
        ρ, the share that two draws have in common and the real data with none of them. At 1 there is no interval.
    level
        The probability.

    Returns
    -------
    Range

    Examples
    --------
    >>> draws = np.array([1.0, 2.0, 3.0, np.nan])
    >>> [round(value, 2) for value in expected_range(draws)], [round(value, 2) for value in expected_range(draws, 0.5)]
    ([2.0, -2.97, 6.97], [2.0, -5.86, 9.86])
    """
    defined = draws[~np.isnan(draws)]
    n = len(defined)
    if n < 2 or overlap >= 1:
        return Range(float(defined.mean()) if n else np.nan, np.nan, np.nan)
    reach = stdtrit(n - 1, (1 + level) / 2) * _error(defined, overlap)
    return Range(float(defined.mean()), float(defined.mean() - reach), float(defined.mean() + reach))


def variance_of_mean(draws: Floats, overlap: float = 0.0) -> float:
    """Return the variance of the mean of draws that overlap, V (ρ + (1 − ρ)/n), as in :func:`expected_range`.

    Parameters
    ----------
    draws
        (draw,), at least two.
    overlap
        ρ, below 1.

    Returns
    -------
    float

    Examples
    --------
    >>> draws = np.array([1.0, 2.0, 3.0])
    >>> [round(variance_of_mean(draws, overlap), 2) for overlap in (0, 0.5)]
    [0.33, 1.33]
    """
    return float(draws.var(ddof=1) * (overlap / (1 - overlap) + 1 / len(draws)))


def _error(draws: Floats, overlap: float) -> float:
    """Return the standard error of a real value less the mean of draws that overlap with each other alone."""
    return float(np.sqrt(draws.var(ddof=1) / (1 - overlap) + variance_of_mean(draws, overlap)))


def p_of_overlapping(real: float, draws: Floats, overlap: float) -> float:
    """Return the one-sided p of a real value against draws that overlap with each other, and not with it.

    The ranks of such draws are no test: draws are more like each other than like the real data, so that the real value
    lies outside of them too often. p is the larger of Student's, by the interval of :func:`expected_range`, and
    (b + 1) / (N + 1), below which nothing can be said from N draws. An undefined draw counts as one that is at least
    as high.

    Parameters
    ----------
    real
        Of the real data.
    draws
        (draw,).
    overlap
        As in :func:`expected_range`.

    Returns
    -------
    float
        NaN where the real value is not defined, or no interval is.

    Examples
    --------
    >>> draws = np.linspace(0, 1, 39)
    >>> [round(p_of_overlapping(real, draws, overlap), 3) for real, overlap in ((1.2, 0), (1.2, 0.5), (9, 0))]
    [0.025, 0.094, 0.025]
    """
    defined = draws[~np.isnan(draws)]
    if np.isnan(real) or len(defined) < 2 or overlap >= 1:
        return float("nan")
    by_rank = p_value(real, np.where(np.isnan(draws), np.inf, draws))
    error = _error(defined, overlap)
    above = real - float(defined.mean())
    return max(by_rank, float(stdtr(len(defined) - 1, -above / error))) if error > TIE else by_rank


def runs_needed(n_tests: int, level: float = LEVEL) -> int:
    """Return how many null runs let the smallest possible p pass Holm's correction over so many tests.

    The smallest p of N runs is 1 / (N + 1); Holm's first step multiplies it by the number of tests.

    Examples
    --------
    >>> runs_needed(1), runs_needed(175)
    (19, 3499)
    """
    return math.ceil(n_tests / level - 1e-9) - 1


def power_note(n_tests: int, null_runs: int, level: float = LEVEL) -> str:
    """Say so if no score, however high, could be significant after the correction; an empty string where runs suffice.

    Examples
    --------
    >>> power_note(175, 1000)
    '1000 null runs cannot give p below 0.000999, and over 175 tests that is 0.175 after Holm: run at least 3499'
    >>> power_note(175, 3499)
    ''
    """
    if n_tests == 0 or null_runs >= runs_needed(n_tests, level):
        return ""
    smallest = 1 / (null_runs + 1)
    return (
        f"{null_runs} null runs cannot give p below {smallest:.3g}, and over {n_tests} tests that is "
        f"{min(1.0, n_tests * smallest):.3g} after Holm: run at least {runs_needed(n_tests, level)}"
    )


def jackknife_interval(score: float, left_out: ArrayLike, level: float = 0.95) -> Interval:
    """Return the interval of a score from its values without each of g groups of the data in turn.

    The score ± Student's t with g - 1 degrees of freedom times √((g - 1) / g · Σ (value - mean)²).

    Parameters
    ----------
    score
        The score of the data.
    left_out
        Scores of the data without each group, shape (group,).
    level
        Nominal coverage.

    Examples
    --------
    >>> low, high, _ = jackknife_interval(5.0, [4.9, 5.0, 5.1])
    >>> round(low, 2), round(high, 2)
    (4.5, 5.5)
    >>> jackknife_interval(1.0, [1.0, 1.0, 1.0]).note
    'no interval: the score is the same whichever pairs are left out'
    """
    values = np.asarray(left_out, np.float64)
    if np.isnan(score) or np.isnan(values).any():
        return Interval(np.nan, np.nan, "no interval: the score is undefined where pairs are left out")
    n = len(values)
    error = float(np.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2)))
    if error <= TIE:
        return Interval(np.nan, np.nan, "no interval: the score is the same whichever pairs are left out")
    reach = float(stdtrit(n - 1, (1 + level) / 2)) * error
    return Interval(score - reach, score + reach)


def bca_interval(score: float, draws: ArrayLike, left_out: ArrayLike, level: float = 0.95) -> Interval:
    """Return the bias-corrected and accelerated bootstrap interval of a score.

    Efron, Better bootstrap confidence intervals (Journal of the American Statistical Association 82, 1987),
    equations 6.4 and 6.6: quantiles of the draws, moved for the share of draws below the score (bias) and for the
    skewness of the jackknife (acceleration).

    Parameters
    ----------
    score
        The score of the data.
    draws
        Scores of resampled data, shape (run,). Undefined ones (NaN) are left out.
    left_out
        Scores of the data without each of its units, or groups of equally many units, in turn; shape (unit,).
    level
        Share of the draws within an interval without bias and skewness.

    Returns
    -------
    Interval
        Without ends, and with a note, where draws are missing or where nearly all of them lie on one side of the
        score, as for metrics that repeated rows inflate.

    Examples
    --------
    >>> draws = np.random.default_rng(0).normal(5, 2, size=4000)
    >>> low, high, _ = bca_interval(5.0, draws, [4.0, 5.0, 6.0])
    >>> round(low), round(high)
    (1, 9)
    >>> bca_interval(0.2, draws, [4.0, 5.0, 6.0]).note
    'no interval: 99 % of the resampled scores lie above the score; repeated rows inflate it at this size'
    """
    values = np.asarray(draws, np.float64)
    values = values[~np.isnan(values)]
    if np.isnan(score) or not len(values):
        return Interval(np.nan, np.nan, "no interval: the score is undefined")
    above = float(np.mean(values > score) + np.mean(values == score) / 2)
    bias = -float(ndtri(above))
    if abs(bias) > LARGEST_BIAS:
        side = "above" if above > 0.5 else "below"
        share = math.floor(100 * max(above, 1 - above))
        return Interval(
            np.nan, np.nan, f"no interval: {share} % of the resampled scores lie {side} the score; repeated rows "
            f"{'inflate' if above > 0.5 else 'lower'} it at this size"
        )  # fmt: skip
    normal = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(values, ndtr(bias + normal / (1 - _acceleration(left_out) * normal)))
    return Interval(float(low), float(high))


def _acceleration(left_out: ArrayLike) -> float:
    """Return the skewness of the jackknife values over 6, 0 where they do not vary (Efron 1987, equation 6.6)."""
    values = np.asarray(left_out, np.float64)
    values = values[~np.isnan(values)]
    deviation = values.mean() - values if len(values) else values
    spread = float(np.sum(deviation**2))
    return float(np.sum(deviation**3)) / (6 * spread**1.5) if spread > 0 else 0.0


def benjamini_hochberg(p: ArrayLike) -> Floats:
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
    return _adjust(
        p, lambda ordered: np.minimum.accumulate((ordered * len(ordered) / np.arange(1, len(ordered) + 1))[::-1])[::-1]
    )


def holm(p: ArrayLike) -> Floats:
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
    return _adjust(p, lambda ordered: np.maximum.accumulate(ordered * np.arange(len(ordered), 0, -1)))


def _adjust(p: ArrayLike, step: Callable[[Floats], Floats]) -> Floats:
    """Adjust the defined p-values in ascending order; none exceeds 1."""
    adjusted = np.array(p, np.float64)
    defined = np.flatnonzero(~np.isnan(adjusted.ravel()))
    places = defined[np.argsort(adjusted.ravel()[defined], kind="stable")]
    adjusted.flat[places] = np.minimum(step(adjusted.ravel()[places]), 1.0)
    return adjusted
