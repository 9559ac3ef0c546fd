"""Scores of a matching beside those of its floors and ceilings, all at the same number of pairs.

A metric depends on the number of pairs. So as many pairs are drawn as every matching that is compared has, whatever
their r: those of highest r would be better the more there are to choose from. Intervals are those of the grouped
jackknife (:mod:`pipeline.compare.intervals`), with the pairs of the same features left out of all matchings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import stdtrit

from pipeline.compare.base import Family, families
from pipeline.compare.intervals import FEWEST_PAIRS, leave_out_scores
from pipeline.compare.rows import DecoderRows, paired_rows
from pipeline.compare.statistics import variance_of_mean
from pipeline.settings.compare import parse_metric
from pipeline.work.workers import run_tasks
from pipeline.yardsticks.base import Matching
from storage import open_activations

Floats = NDArray[np.float64]
#: What is measured of pairs besides the metrics.
MEANS = ("r", "r_heldout")
COUNT = "pairs"
#: What is said of a quantity between floor and ceiling.
BETWEEN = ("score", "floor", "ceiling", "normalised", "low", "high", "note")
#: Fewer pairs have no score worth comparing.
FEWEST = 10
#: More features are too many for an optimal assignment of their directions.
MOST_ASSIGNED = 8192
LEVEL = 0.95


class Comparison(NamedTuple):
    """Pairs of the run, and those of a yardstick that they are compared with.

    Attributes
    ----------
    real
        The pairs of the run, on the rows that the yardstick uses.
    made
        The matchings of the yardstick: draws of a floor, sides of a ceiling.
    overlap
        The share of partners that two draws have in common.
    """

    real: Matching
    made: Sequence[Matching]
    overlap: float = 0.0

    def __len__(self) -> int:
        """Return how many pairs all of them have."""
        return min(map(len, (self.real, *self.made)))


class Normalised(NamedTuple):
    """A score between a floor and a ceiling, with its interval; NaN where they overlap, and why."""

    value: float
    low: float
    high: float
    note: str = ""


def normalise(score: Floats, floor: Floats, ceiling: Floats, *, overlap: float = 0.0) -> Normalised:
    """Return (score - floor) / (ceiling - floor), with an interval.

    The variance is that over groups of pairs, and that of the mean of the floor's draws
    (:func:`pipeline.compare.statistics.variance_of_mean`); Student's t has the degrees of freedom of both
    (Satterthwaite, Biometrics Bulletin 2, 1946).

    Parameters
    ----------
    score
        The score, and then without each group of pairs, (1 + group,); with no groups there is no interval.
    floor, ceiling
        The same of every matching, (matching, 1 + group): draws of the floor, sides of the ceiling.
    overlap
        The share of partners that two draws of the floor have in common.

    Returns
    -------
    Normalised
        Undefined where the 95 % interval of ceiling - floor reaches 0. The note says what is wrong, too, with a value
        that has an interval.

    Examples
    --------
    >>> groups = np.array([0, -0.01, 0.01, 0, 0])
    >>> normalise(0.5 + groups, np.array([0.2 + groups, 0.22 + groups]), np.array([0.8 + groups]))
    Normalised(value=0.49..., low=0.38..., high=0.60..., note='')
    >>> normalise(0.5 + groups, np.array([0.7 + groups]), np.array([0.6 + groups])).note
    'undefined: floor and ceiling overlap'
    """
    low, high = floor.mean(axis=0), ceiling.mean(axis=0)
    if not np.isfinite([score[0], low[0], high[0]]).all():
        return _undefined("a score, or that of the floor or the ceiling, is")
    gap = high - low
    drawn = variance_of_mean(floor[:, 0], overlap) if len(floor) > 1 and overlap < 1 else 0.0
    freedom = len(floor) - 1
    reach = _reach(gap, drawn, freedom)
    if gap[0] <= 0 or not np.isfinite(gap).all() or gap[0] - np.nan_to_num(reach) <= 0:
        return _undefined("floor and ceiling overlap")
    values = (score - low) / gap
    value = float(values[0])
    notes = _outside(value)
    reach = _reach(values, drawn * ((score[0] - high[0]) / gap[0] ** 2) ** 2, freedom)
    if overlap >= 1:
        notes.append("no interval: all draws of the floor are the same permutation")
        reach = np.nan
    elif len(floor) == 1 and np.isfinite(reach):
        notes.append("one draw of the floor: the spread of draws is not in the interval")
    return Normalised(value, value - reach, value + reach, "; ".join(notes))


def _outside(value: float) -> list[str]:
    """Return what is to be said of a value that is not between floor and ceiling."""
    return ["below the floor"] if value < 0 else ["above the ceiling"] if value > 1 else []


def _undefined(why: str) -> Normalised:
    return Normalised(np.nan, np.nan, np.nan, f"undefined: {why}")


def _reach(values: Floats, drawn: float, freedom: int) -> float:
    """Return half the interval of a value, (1 + group,), NaN without groups.

    The jackknife does not see the variance `drawn`, which has `freedom` degrees of freedom.
    """
    left_out = values[1:]
    n = len(left_out)
    if not n:
        return float("nan")
    variances = np.array([(n - 1) / n * float(np.sum((left_out - left_out.mean()) ** 2)), drawn])
    total = variances.sum()
    if not total > 0:
        return 0.0
    spread = float(np.sum(variances**2 / (n - 1, max(1, freedom))))
    return float(stdtrit(total**2 / spread, (1 + LEVEL) / 2) * np.sqrt(total))


@dataclass(frozen=True)
class _Job:
    """Pairs that are to be scored, and without how many groups in turn: 0 for none."""

    matching: Matching
    groups: int


def _score(job: _Job, groups: Sequence[Family]) -> Floats:
    """Task: return each metric's score and its scores without each group, (metric, 1 + group)."""
    sides = zip(job.matching.stores, (job.matching.a, job.matching.b), strict=True)
    rows = [DecoderRows(str(path), ids, 0).read() for path, ids in sides]
    x, y = paired_rows(*rows)
    whole = np.array([score for family in groups for score in family.scores_of(x, y)])[:, None]
    if not job.groups:
        return whole
    return np.hstack([whole, leave_out_scores(range(job.groups), x, y, groups, job.matching.groups(job.groups))])


def measure(
    comparisons: Mapping[str, Comparison],
    named: tuple[str | None, str | None],
    *,
    metrics: Sequence[str],
    groups: int,
    client: Client | None,
) -> xr.Dataset:
    """Return what pairs score beside each yardstick, and between one floor and one ceiling.

    Parameters
    ----------
    comparisons
        The pairs of the run and the matchings of each yardstick, by its name.
    named
        The floor and the ceiling of normalised scores, if there are both.
    metrics
        As in compare; none where a store has no decoder rows.
    groups
        Groups of pairs that are left out for intervals.
    client
        Where scores are computed; without one, here, one after the other.

    Returns
    -------
    xarray.Dataset
        Over yardstick: ``n_pairs`` int64, at which the scores are compared, ``matchings`` int64. Over (yardstick,
        quantity), float64: ``raw``, the run's value there, ``value``, the mean of the yardstick's matchings, ``least``
        and ``most`` of them. Over quantity: ``score``, which is that beside the floor, ``floor``, ``ceiling``,
        ``normalised``, ``low``, ``high`` float64 and ``note``, text, at ``n_compared`` pairs. The quantity ``pairs`` is
        the number of all pairs.
    """
    ordered = families(map(parse_metric, metrics))
    texts = {parse_metric(text): text for text in metrics}
    names = [texts[metric] for family in ordered for metric in family.metrics]
    both = [comparisons[name] for name in named if name is not None] if None not in named else []
    n_compared = min(map(len, both), default=0)
    at = [min(n_compared, len(each)) if both else len(each) for each in comparisons.values()]
    left_out = groups if n_compared >= FEWEST_PAIRS else 0
    needed = {
        (id(each), n): _Job(each, 0)
        for comparison, n in zip(comparisons.values(), at, strict=True)
        for each in _all(comparison)
    }
    if both:
        compared = [both[0].real, *both[0].made, *both[1].made]
        needed |= {(id(each), n_compared): _Job(each, left_out) for each in compared}
    jobs = {key: _Job(job.matching.sample(key[1]), job.groups) for key, job in needed.items()}
    scored = _scored(jobs, ordered, client)
    quantities = [COUNT, *MEANS, *names]

    def table(made: Sequence[Matching], n: int) -> Floats:
        """Return the values of matchings, (matching, quantity, 1 + group)."""
        return np.array([_values(each, jobs[id(each), n], scored[id(each), n]) for each in made])

    raw = np.array(
        [table([comparison.real], n)[0, :, 0] for comparison, n in zip(comparisons.values(), at, strict=True)]
    )
    tables = [table(comparison.made, n)[..., 0] for comparison, n in zip(comparisons.values(), at, strict=True)]
    columns: dict[str, Callable[..., Floats]] = {"value": np.mean, "least": np.min, "most": np.max}
    summary = {name: np.array([of(each, axis=0) for each in tables]) for name, of in columns.items()}
    variables: dict[str, Any] = {
        name: (("yardstick", "quantity"), values) for name, values in {"raw": raw, **summary}.items()
    }
    variables |= {
        "n_pairs": ("yardstick", np.array(at, np.int64)),
        "matchings": ("yardstick", np.array([len(each.made) for each in comparisons.values()], np.int64)),
    }
    variables |= _between(quantities, both, n_compared, functools.partial(table, n=n_compared))
    coords = {"yardstick": np.array(list(comparisons), object), "quantity": np.array(quantities, object)}
    return xr.Dataset(variables, coords).assign(n_compared=np.int64(n_compared))


def _all(comparison: Comparison) -> list[Matching]:
    return [comparison.real, *comparison.made]


def _between(
    quantities: Sequence[str], both: Sequence[Comparison], n: int, table: Callable[[Sequence[Matching]], Floats]
) -> dict[str, Any]:
    """Return the score of each quantity between floor and ceiling, if there are both, as variables."""
    if both:
        floor, ceiling = both
        few, tables = _few(floor, ceiling, n), [table(each) for each in ([floor.real], floor.made, ceiling.made)]
        of_each = [[values[:, i] for values in tables] for i in range(len(quantities))]
        placed = [
            _placed(name, *values, n=n, few=few, overlap=floor.overlap)
            for name, values in zip(quantities, of_each, strict=True)
        ]
    else:
        placed = [(*np.full(3, np.nan), *_undefined("there is no floor, or no ceiling"))] * len(quantities)
    return {
        name: ("quantity", np.array(column, object if name == "note" else np.float64))
        for name, column in zip(BETWEEN, zip(*placed, strict=True), strict=True)
    }


def _few(floor: Comparison, ceiling: Comparison, n: int) -> str:
    """Return why n pairs are too few for any score, empty where they are not."""
    if n:
        return f"{n} pairs, at least {FEWEST} are needed" if n < FEWEST else ""
    if not len(floor.real):
        return "the run has no pairs"
    what, draws = ("ceiling", ceiling.made) if min(map(len, floor.made)) else ("floor", floor.made)
    return f"the {what} has no pairs" if not max(map(len, draws)) else f"a draw or side of the {what} has no pairs"


def _placed(
    quantity: str, real: Floats, floor: Floats, ceiling: Floats, *, n: int, few: str, overlap: float
) -> tuple[float, float, float, float, float, float, str]:
    """Return what is said of a quantity between floor and ceiling, in the order of :data:`BETWEEN`.

    The values are (matching, 1 + group), at n pairs; `few` says why these are too few, if they are.
    """
    figures = float(real[0, 0]), float(floor[:, 0].mean()), float(ceiling[:, 0].mean())
    if quantity == COUNT:
        return *figures, *_count(*figures)
    if few:
        return *figures, *_undefined(few)
    found = normalise(real[0], floor, ceiling, overlap=overlap)
    if n < FEWEST_PAIRS and np.isfinite(found.value):
        few = f"no interval: {n} pairs, at least {FEWEST_PAIRS} are needed"
        found = found._replace(note="; ".join(filter(None, (found.note, few))))
    return *figures, *found


def _count(score: float, floor: float, ceiling: float) -> Normalised:
    """Return the number of pairs between those of floor and ceiling, which leaving pairs out says nothing of."""
    if ceiling <= floor:
        return _undefined("the floor has at least as many pairs as the ceiling")
    value = (score - floor) / (ceiling - floor)
    notes = [*_outside(value), "no interval: pairs are counted once"]
    return Normalised(value, np.nan, np.nan, "; ".join(notes))


def _scored(
    jobs: Mapping[tuple[int, int], _Job], groups: Sequence[Family], client: Client | None
) -> dict[tuple[int, int], Floats]:
    """Return the scores of every job, (metric, 1 + group), NaN where there are too few pairs."""
    n_metrics = sum(len(family.metrics) for family in groups)
    made = {key: np.full((n_metrics, 1 + job.groups), np.nan) for key, job in jobs.items()}
    todo = [(key, job) for key, job in jobs.items() if len(job.matching) >= FEWEST and n_metrics]
    if client is None:
        return made | {key: _score(job, groups) for key, job in todo}
    label = "Scores of floors and ceilings"
    for (key, _), scores in run_tasks(client, _score_of, todo, name="yardsticks", label=label, args=(list(groups),)):
        made[key] = scores
    return made


def _score_of(item: tuple[Any, _Job], groups: Sequence[Family]) -> Floats:
    return _score(item[1], groups)


def _values(matching: Matching, job: _Job, scores: Floats) -> Floats:
    """Return the quantities of a matching, (quantity, 1 + group): the number of all its pairs, means, and scores."""
    group = job.matching.groups(job.groups) if job.groups else np.empty(0)
    kept = [np.ones(len(job.matching), bool), *(group != number for number in range(job.groups))]
    means = [[_mean(getattr(job.matching, name)[here]) for here in kept] for name in MEANS]
    return np.vstack([np.full((1, len(kept)), float(len(matching))), means, scores])


def _mean(values: Floats) -> float:
    """Return the mean of what is defined: some features do not vary on the rows that are held out."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else np.nan


def decoder_cosine(stores: tuple[Path, Path]) -> float:
    """Return the mean absolute cosine of two dictionaries' directions, under the assignment that makes it highest.

    PW-MCC (arXiv 2505.20254), of the features that ever fire; NaN for more than 8,192 of them.
    """
    rows = []
    for path in stores:
        with open_activations(path) as store:
            live = store["n_active"].values > 0
            directions = store["decoder"].values[live].astype(np.float32)
        norms = np.linalg.norm(directions, axis=1, keepdims=True)
        rows.append(directions[norms[:, 0] > 0] / norms[norms[:, 0] > 0])
    if max(map(len, rows)) > MOST_ASSIGNED or not min(map(len, rows)):
        return float("nan")
    cosines = np.abs(rows[0] @ rows[1].T)
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())
