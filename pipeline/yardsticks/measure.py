"""Scores of a matching beside those of its floors and ceilings, all at the same number of pairs.

A metric depends on the number of pairs, and mean r on how many weak ones there are. So the pairs of highest r are
taken, as many as every matching that is compared has. Intervals are those of the grouped jackknife
(:mod:`pipeline.compare.intervals`), with the same groups, by their place in the order of r, left out of all of them.
"""

from __future__ import annotations

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
from pipeline.settings.compare import parse_metric
from pipeline.work.workers import run_tasks
from pipeline.yardsticks.base import Matching
from storage import open_activations

Floats = NDArray[np.float64]
#: What is measured of pairs besides the metrics.
MEANS = ("r", "r_heldout")
COUNT, COSINE = "pairs", "decoder_cosine"
#: Fewer pairs have no score worth comparing.
FEWEST = 10
#: More features are too many for an optimal assignment of their directions.
MOST_ASSIGNED = 8192
LEVEL = 0.95


class Normalised(NamedTuple):
    """A score between a floor and a ceiling, with its interval; NaN where they overlap, and why."""

    value: float
    low: float
    high: float
    note: str = ""


def normalise(score: Floats, floor: Floats, ceiling: Floats) -> Normalised:
    """Return (score - floor) / (ceiling - floor), with an interval.

    The variance is that over groups of pairs, and that of the mean of the floor's draws.

    Parameters
    ----------
    score
        The score, and then without each group of pairs, (1 + group,).
    floor, ceiling
        The same of every matching, (matching, 1 + group): draws of the floor, sides of the ceiling.

    Returns
    -------
    Normalised
        Undefined where the 95 % interval of ceiling - floor reaches 0.

    Examples
    --------
    >>> groups = np.array([0, -0.01, 0.01, 0, 0])
    >>> normalise(0.5 + groups, np.array([0.2 + groups, 0.22 + groups]), np.array([0.8 + groups]))
    Normalised(value=0.49..., low=0.4..., high=0.5..., note='')
    >>> normalise(0.5 + groups, np.array([0.7 + groups]), np.array([0.6 + groups])).note
    'undefined: the floor, 0.700, and the ceiling, 0.600, overlap'
    """
    low, high = floor.mean(axis=0), ceiling.mean(axis=0)
    gap, drawn = high - low, float(np.var(floor[:, 0], ddof=1) / len(floor)) if len(floor) > 1 else 0.0
    if not np.isfinite([score[0], low[0], high[0]]).all():
        return Normalised(np.nan, np.nan, np.nan, "undefined: a score, or that of the floor or the ceiling, is")
    if not np.isfinite(gap).all() or gap[0] - _reach(gap, drawn) <= 0:
        note = f"undefined: the floor, {low[0]:.3f}, and the ceiling, {high[0]:.3f}, overlap"
        return Normalised(np.nan, np.nan, np.nan, note)
    values = (score - low) / gap
    reach = _reach(values, drawn * ((score[0] - high[0]) / gap[0] ** 2) ** 2)
    return Normalised(float(values[0]), float(values[0] - reach), float(values[0] + reach))


def _reach(values: Floats, more: float) -> float:
    """Return half the interval of a value, (1 + group,), from the jackknife and a variance that it does not see."""
    left_out = values[1:]
    n = len(left_out)
    variance = (n - 1) / n * float(np.sum((left_out - left_out.mean()) ** 2)) + more
    return float(stdtrit(n - 1, (1 + LEVEL) / 2) * np.sqrt(variance))


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
    return np.hstack([whole, leave_out_scores(range(job.groups), x, y, groups, job.groups)]) if job.groups else whole


def measure(
    real: Matching,
    yardsticks: Mapping[str, Sequence[Matching]],
    named: tuple[str | None, str | None],
    *,
    metrics: Sequence[str],
    groups: int,
    client: Client,
) -> xr.Dataset:
    """Return what pairs score beside each yardstick, and between one floor and one ceiling.

    Parameters
    ----------
    real
        The pairs of the run.
    yardsticks
        The matchings of each, by its name.
    named
        The floor and the ceiling of normalised scores, if there are both.
    metrics
        As in compare; none where a store has no decoder rows.
    groups
        Groups of pairs that are left out for intervals.
    client
        Where scores are computed.

    Returns
    -------
    xarray.Dataset
        Over yardstick: ``n_pairs`` int64, at which the scores are compared, ``matchings`` int64. Over (yardstick,
        quantity), float64: ``raw``, the run's value there, ``value``, the mean of the yardstick's matchings, ``least``
        and ``most`` of them. Over quantity: ``score``, ``floor``, ``ceiling``, ``normalised``, ``low``, ``high``
        float64 and ``note``, text, at ``n_compared`` pairs. The quantity ``pairs`` is the number of all pairs.
    """
    ordered = families(map(parse_metric, metrics))
    texts = {parse_metric(text): text for text in metrics}
    names = [texts[metric] for family in ordered for metric in family.metrics]
    counts = {name: min(map(len, made), default=0) for name, made in yardsticks.items()}
    between = [name for name in named if name is not None] if None not in named else []
    n_compared = min([len(real), *(counts[name] for name in between)]) if between else 0
    at = {name: min(n_compared or len(real), n) for name, n in counts.items()}
    jobs: dict[tuple[str, int, int], _Job] = {}
    for n in {*at.values(), n_compared}:
        jobs["", 0, n] = _Job(real.top(n), groups if n == n_compared >= FEWEST_PAIRS else 0)
    for name, made in yardsticks.items():
        with_groups = name in between and n_compared >= FEWEST_PAIRS
        for i, matching in enumerate(made):
            jobs[name, i, at[name]] = _Job(matching.top(at[name]), groups if with_groups else 0)
    scored = _scored(jobs, ordered, client)
    quantities = [COUNT, *MEANS, *names]

    def table(key: str, made: Sequence[Matching], n: int) -> Floats:
        """Return the values of matchings, (matching, quantity, 1 + group)."""
        return np.array([_values(matching, scored[key, i, n]) for i, matching in enumerate(made)])

    raw = np.array([table("", [real], n)[0, :, 0] for n in at.values()]).reshape(len(at), -1)
    tables = {name: table(name, made, at[name]) for name, made in yardsticks.items()}
    columns: dict[str, Callable[..., Floats]] = {"value": np.mean, "least": np.min, "most": np.max}
    none = np.full((1, len(quantities)), np.nan)
    summary = {
        name: np.array([of(each[..., 0] if len(each) else none, axis=0) for each in tables.values()])
        for name, of in columns.items()
    }
    variables: dict[str, Any] = {
        name: (("yardstick", "quantity"), values) for name, values in {"raw": raw, **summary}.items()
    }
    variables |= {
        "n_pairs": ("yardstick", np.array(list(at.values()), np.int64)),
        "matchings": ("yardstick", np.array([len(made) for made in yardsticks.values()], np.int64)),
        **_between(table("", [real], n_compared)[0], [tables[name] for name in between], n_compared),
    }
    coords = {"yardstick": np.array(list(yardsticks), object), "quantity": np.array(quantities, object)}
    return xr.Dataset(variables, coords).assign(n_compared=np.int64(n_compared))


def _between(real: Floats, both: Sequence[Floats], n: int) -> dict[str, Any]:
    """Return the score of each quantity between floor and ceiling, as variables."""
    columns = {name: np.full(len(real), np.nan) for name in ("score", "floor", "ceiling", "normalised", "low", "high")}
    notes = ["there is no floor, or no ceiling, to normalise by"] * len(real)
    for i in range(len(real)) if both else ():
        floor, ceiling = (each[:, i] for each in both)
        figures = real[i, 0], floor[:, 0].mean(), ceiling[:, 0].mean()
        found = _count(*figures) if i == 0 else _enough(real[i], floor, ceiling, n)
        values = (*figures, found.value, found.low, found.high)
        for name, value in zip(columns, values, strict=True):
            columns[name][i] = value
        notes[i] = found.note
    variables: dict[str, Any] = {name: ("quantity", values) for name, values in columns.items()}
    return variables | {"note": ("quantity", np.array(notes, object))}


def _count(score: float, floor: float, ceiling: float) -> Normalised:
    """Return the number of pairs between those of floor and ceiling, which leaving pairs out says nothing of."""
    if ceiling <= floor:
        return Normalised(np.nan, np.nan, np.nan, "undefined: the floor has as many pairs as the ceiling")
    return Normalised((score - floor) / (ceiling - floor), np.nan, np.nan, "no interval: pairs are counted once")


def _enough(score: Floats, floor: Floats, ceiling: Floats, n: int) -> Normalised:
    if n < FEWEST_PAIRS:
        note = f"undefined: {n} pairs, at least {FEWEST_PAIRS} are needed for an interval"
        return Normalised(np.nan, np.nan, np.nan, note)
    return normalise(score, floor, ceiling)


def _scored(
    jobs: Mapping[tuple[str, int, int], _Job], groups: Sequence[Family], client: Client
) -> dict[tuple[str, int, int], tuple[_Job, Floats]]:
    """Return the scores of every job, (metric, 1 + group), NaN where there are too few pairs."""
    n_metrics = sum(len(family.metrics) for family in groups)
    made = {key: (job, np.full((n_metrics, 1 + job.groups), np.nan)) for key, job in jobs.items()}
    todo = [(key, job) for key, job in jobs.items() if len(job.matching) >= FEWEST and n_metrics]
    label = "Scores of floors and ceilings"
    for (key, job), scores in run_tasks(client, _score_of, todo, name="yardsticks", label=label, args=(list(groups),)):
        made[key] = job, scores
    return made


def _score_of(item: tuple[Any, _Job], groups: Sequence[Family]) -> Floats:
    return _score(item[1], groups)


def _values(matching: Matching, scored: tuple[_Job, Floats]) -> Floats:
    """Return the quantities of a matching, (quantity, 1 + group): the number of all its pairs, means, and scores."""
    job, scores = scored
    n = len(job.matching)
    left_out = [np.arange(n) % job.groups != group for group in range(job.groups)]
    kept = [np.ones(n, bool), *left_out]
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
