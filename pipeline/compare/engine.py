"""The engine of every comparison: scores of the real rows, of each null, and what they mean together.

A comparison says what is scored: paired rows (:func:`score_pairs`), many small sets of them
(:mod:`pipeline.compare.subsets`), or the second moments of activations (:mod:`pipeline.compare.activations`). How
paired rows and draws of them are scored, in which blocks runs are made, which nulls are refused, and what a result says
of a score beside its nulls, is the same for all and stands here and in :mod:`pipeline.compare.nulls`.
"""

from __future__ import annotations

import itertools
import logging
import uuid
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import xarray as xr
from dask.utils import format_bytes
from distributed import Client, Future
from distributed.system import MEMORY_LIMIT
from numpy.typing import NDArray

from pipeline.compare.base import Family, Metric, families
from pipeline.compare.batched import runs_at_once, scores_of_stack
from pipeline.compare.intervals import pair_intervals
from pipeline.compare.nulls import SAME_ROWS, Draws, Floats, Sizes, score_null
from pipeline.compare.rows import MIN_PAIRS, RowSource, paired_rows
from pipeline.compare.statistics import EFFECT_RUNS, Interval, difference, effect_size, p_value
from pipeline.settings.compare import CompareSettings
from pipeline.settings.registries import NULLS
from pipeline.text.top_tokens import NONE, effective_pairs
from pipeline.work.workers import ClientSource, Planned, ensure_client, tell
from storage.bounds import parse_size
from storage.errors import BudgetError, InputError

logger = logging.getLogger(__name__)

QUANTILES = {"null_q05": 0.05, "null_q95": 0.95}
#: What is said of a score beside one null; see :func:`summary`.
SUMMARY = ("null_mean", "null_std", *QUANTILES, "z", "difference", "p")
#: Pairings of the same rows in one task: some tenths of a second for 2,000 pairs.
RUNS_PER_TASK = 20
NO_INTERVAL = Interval(float("nan"), float("nan"))
UNDEFINED = "undefined: the rows of a side do not vary, or one is zero"


@dataclass(frozen=True)
class Bank:
    """What the rows of a null are drawn from; a side without rows of its own keeps those that are compared."""

    a: RowSource | None
    b: RowSource | None

    def sizes(self) -> Sizes:
        """Return the number of rows of either side."""
        a, b = (None if side is None else side.shape[0] for side in (self.a, self.b))
        return a, b


@dataclass
class Outcome:
    """One metric's score, its interval, the scores of its nulls by their names, and what to know about them."""

    score: float = float("nan")
    interval: Interval = NO_INTERVAL
    null: dict[str, Floats] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def defined(self) -> bool:
        """Whether there is a score, and so a null to hold it against."""
        return bool(np.isfinite(self.score))


def score_pairs(
    sides: tuple[RowSource, RowSource],
    banks: Mapping[str, Bank],
    settings: CompareSettings,
    client: ClientSource = None,
    *,
    words: NDArray[np.int64] | None = None,
    ids: NDArray[np.int64] | None = None,
) -> xr.Dataset:
    """Score paired rows, each score beside its nulls; the rest is as in :func:`pipeline.compare`.

    The rows of A and of B are paired in their order. A null draws from its bank; without one, it pairs the same rows,
    and may know the word of each, (pair,), negative numbers for none, and the feature of each row of A, (pair,), none
    twice.
    """
    n, metrics = sides[0].shape[0], settings.parsed()
    _check_sources(settings.nulls, words)
    if n < MIN_PAIRS:
        logger.warning("%d pairs are too few to compare; the scores are undefined", n)
        note = f"undefined: {n} pairs, at least {MIN_PAIRS} are needed"
        outcomes = {text: Outcome(notes=[note]) for text in metrics}
    else:
        groups = families(metrics.values())
        fitted = _fit_memory(groups, sides, banks, settings.memory)
        with ensure_client(client) as used:
            scored = _score(used, sides, banks, fitted, settings, words=words, ids=ids)
        of_metric = dict(zip(itertools.chain(*(family.metrics for family in groups)), scored.values(), strict=True))
        outcomes = {text: of_metric[metric] for text, metric in metrics.items()}
    scores = to_dataset(outcomes, settings.nulls, settings.null_runs, ends_early=settings.stop_after > 0)
    effective = np.nan if words is None else effective_pairs(np.maximum(words, NONE))
    counts = {"n_pairs": ((), np.int64(n)), "n_effective": ((), effective)}
    return scores.assign(counts).assign_attrs(n_pairs=n, **settings.record())


def _check_sources(nulls: Sequence[str], words: NDArray[np.int64] | None) -> None:
    """Refuse nulls that draw from what these pairs do not have."""
    for null in map(NULLS.__getitem__, nulls):
        if null.source == "keywords":
            raise InputError(f"{null.name} is a null of concepts (`semantics`): these pairs have no keywords")
        if null.source == "words" and words is None:
            raise InputError(f"{null.name} moves pairs by their words, and knows no words here: leave it out")


def _score(
    client: Client,
    sides: tuple[RowSource, RowSource],
    banks: Mapping[str, Bank],
    groups: Sequence[Family],
    settings: CompareSettings,
    *,
    words: NDArray[np.int64] | None,
    ids: NDArray[np.int64] | None,
) -> dict[Metric, Outcome]:
    """Return the outcome of every metric, in the order of the families."""
    rows = [side.on(client) for side in sides]
    (n, d_a), (_, d_b) = sides[0].shape, sides[1].shape
    # a null without a bank pairs the same rows
    sizes = {name: banks[name].sizes() if name in banks else (n, n) for name in settings.nulls}
    draws = [
        Draws(NULLS[name], n, sizes[name], settings.null_runs, settings.seed, words=words, ids=ids)
        for name in settings.nulls
    ]
    outcomes = score_rows(rows, n, groups, draws, client, stop_after=settings.stop_after)
    defined = {metric: outcome for metric, outcome in outcomes.items() if outcome.defined}
    for metric in outcomes.keys() - defined.keys():
        logger.warning("%s is %s", metric.name, UNDEFINED)
    left = [family for family in (family.only(defined) for family in groups) if family.metrics]
    if settings.intervals and left:
        _add_intervals(client, rows, settings, left, outcomes)
    for drawn in draws if left else ():
        name = drawn.null.name
        if name not in banks:
            continue
        if reason := drawn.too_few():
            logger.warning("There is no null %s: %s", name, reason)
            for outcome in defined.values():
                outcome.notes.append(f"without the null {name}: {reason}")
            continue
        sources = zip((banks[name].a, banks[name].b), rows, strict=True)
        drawn_from = [compared if source is None else source.on(client) for source, compared in sources]
        scores = score_null(
            client, score_draws, drawn, left, *drawn_from, drawn, observed=observed(defined),
            stop_after=settings.stop_after, per_task=draws_per_task(n, d_a, d_b),
            label=f"the null {name.replace('_', ' ')}",
        )  # fmt: skip
        keep(defined, name, scores)
    return outcomes


def score_rows(
    rows: Sequence[Any],
    n: int,
    groups: Sequence[Family],
    draws: Sequence[Draws],
    client: Client | None = None,
    *,
    stop_after: int = 0,
) -> dict[Metric, Outcome]:
    """Score paired rows, and all nulls that pair the same rows otherwise: what was prepared serves every pairing.

    The rows have shapes (n, d_a) and (n, d_b), and are futures where there is a client; without one, everything runs
    here. The outcomes come in the order of the families; a metric that is undefined on these rows has no nulls.

    Raises
    ------
    InputError
        If a metric is undefined in some runs of a null.
    """
    # all are submitted before the first is waited for: what one family computes in one thread, others overlap
    states = [_call(client, "prepare", _prepare, *rows, family) for family in groups]
    outcomes: dict[Metric, Outcome] = {}
    for family, state in zip(groups, states, strict=True):
        scored = _call(client, "score", _observe, state, family, n)
        scored = scored.result() if isinstance(scored, Future) else scored
        outcomes |= scored
        defined = family.only(metric for metric in scored if scored[metric].defined)
        pairings = [drawn for drawn in draws if drawn.null.source in SAME_ROWS] if defined.metrics else []
        compact = _call(client, "compact", defined.compact, state) if pairings else None
        for drawn in pairings:
            names = " and ".join(metric.name for metric in defined.metrics)
            scores = score_null(
                client, _score_pairings, drawn, [defined], compact, drawn, observed=observed(outcomes),
                stop_after=stop_after, per_task=RUNS_PER_TASK, label=f"{names} of {drawn.null.name} pairs",
            )  # fmt: skip
            keep(outcomes, drawn.null.name, scores)
    return outcomes


def _call(client: Client | None, step: str, function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function makes of its arguments, or its future."""
    if client is None:
        return function(*args)
    return client.submit(function, *args, pure=False, key=f"compare-{step}-{uuid.uuid4().hex}")


def _prepare(x: Any, y: Any, family: Family) -> Any:
    return family.prepare(*paired_rows(x, y))


def _observe(state: Any, family: Family, n: int) -> dict[Metric, Outcome]:
    scores = zip(family.metrics, family.scores(state, np.arange(n)), strict=True)
    outcomes = {metric: Outcome(score) for metric, score in scores}
    for metric, outcome in outcomes.items():
        note = metric.warning(state) if outcome.defined else UNDEFINED
        outcome.notes.extend([note] if note else [])
    return outcomes


def _score_pairings(runs: range, state: Any, draws: Draws, groups: Sequence[Family]) -> Floats:
    """Task: score pairings of the same rows by the metrics of one family, shape (metric, run)."""
    (family,) = groups
    return np.array([family.scores(state, draws.places(run)[1]) for run in runs]).T


def score_draws(runs: range, bank_a: Any, bank_b: Any, draws: Draws, groups: Sequence[Family]) -> Floats:
    """Task: score rows drawn from two banks, shape (metric, run); as many draws are prepared at once as fit a stack."""
    at_once = runs_at_once(draws.n, bank_a.shape[1], bank_b.shape[1])
    scores: list[list[float]] = []
    for start in range(runs.start, runs.stop, at_once):
        places = map(draws.places, range(start, min(start + at_once, runs.stop)))
        sides = zip(*(paired_rows(bank_a[a], bank_b[b]) for a, b in places), strict=True)
        scores += scores_of_stack(groups, *map(np.stack, sides))
    return np.array(scores).T


def draws_per_task(n: int, d_a: int, d_b: int) -> int:
    """Return how many draws make a task of about a second, from how many fit a stack.

    Examples
    --------
    >>> draws_per_task(4793, 512, 768), draws_per_task(100, 576, 384)
    (4, 225)
    """
    return min(250, max(4, 25 * (runs_at_once(n, d_a, d_b) - 1)))


def keep(outcomes: Mapping[Metric, Outcome], null: str, scores: Mapping[Metric, Floats]) -> None:
    """Put the scores of a null, shape (run,) each, to the outcomes; of metrics without a score they do not count."""
    for metric, values in scores.items():
        if outcomes[metric].defined:
            outcomes[metric].null[null] = values


def observed(outcomes: Mapping[Metric, Outcome]) -> dict[Metric, float]:
    """Return the scores that nulls are held against."""
    return {metric: outcome.score for metric, outcome in outcomes.items()}


def _add_intervals(
    client: Client,
    rows: Sequence[Future],
    settings: CompareSettings,
    groups: Sequence[Family],
    outcomes: Mapping[Metric, Outcome],
) -> None:
    x, y = (side.result() for side in rows)
    for metric, interval in pair_intervals(x, y, groups, groups=settings.intervals, client=client).items():
        outcomes[metric].interval = interval
        outcomes[metric].notes.extend([interval.note] if interval.note else [])


def allowed_memory(memory: str | int) -> int:
    """Return the bytes that may be used: as given, or half of what is free with ``"auto"``.

    Examples
    --------
    >>> allowed_memory("4GB")
    4000000000
    """
    if memory == "auto":
        return int(min(psutil.virtual_memory().available, MEMORY_LIMIT) // 2)
    return int(parse_size(memory))


def _fit_memory(
    groups: Sequence[Family], sides: tuple[RowSource, RowSource], banks: Mapping[str, Bank], memory: str | int
) -> list[Family]:
    """Return the families in the forms that fit in memory together, or refuse."""
    n, (d_a, d_b) = sides[0].shape[0], (side.shape[1] for side in sides)
    fitted, allowed = list(groups), allowed_memory(memory)
    drawn_from = [side.shape for bank in banks.values() for side in (bank.a, bank.b) if side is not None]
    banked = sum(8 * rows * d for rows, d in drawn_from)
    for i, family in enumerate(fitted):
        others = banked + sum(other.memory(n, d_a, d_b) for other in fitted if other is not family)
        fitted[i] = family.within(allowed - others, n, d_a, d_b)
    needed = {"/".join(metric.name for metric in family.metrics): family.memory(n, d_a, d_b) for family in fitted}
    needed |= {"rows to draw from": banked} if banked else {}
    if (total := sum(needed.values())) > allowed:
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in needed.items())
        raise BudgetError(
            f"{n} pairs need {format_bytes(total)} ({parts}), allowed are {format_bytes(allowed)}; match fewer pairs "
            "(a higher min_correlation), leave a metric out, or allow more memory"
        )
    tell(Planned("Comparing", total))
    return fitted


def to_dataset(
    outcomes: Mapping[str, Outcome], nulls: Sequence[str], runs: int, *, ends_early: bool | Container[str] = False
) -> xr.Dataset:
    """Return outcomes as a dataset over ``metric``, ``null`` and ``run``; NaN where a null was not drawn, or ended.

    Where nulls (all, or those named) may end early, effects rest on the first
    :data:`~pipeline.compare.statistics.EFFECT_RUNS` in any case.
    """
    early = (lambda _: ends_early) if isinstance(ends_early, bool) else ends_early.__contains__
    none = np.full(runs, np.nan)
    null_scores = np.array([[outcome.null.get(null, none) for outcome in outcomes.values()] for null in nulls])
    summaries = [
        [
            summary(outcome.score, values, EFFECT_RUNS if early(null) else runs)
            for outcome, values in zip(outcomes.values(), of_null, strict=True)
        ]
        for null, of_null in zip(nulls, null_scores, strict=True)
    ]
    each = outcomes.values()
    variables: dict[str, Any] = {
        "score": ("metric", np.array([outcome.score for outcome in each])),
        "null_score": (("null", "metric", "run"), null_scores),
        "p_runs": (("null", "metric"), np.isfinite(null_scores).sum(axis=-1)),
        **{
            name: (("null", "metric"), np.array([[one[name] for one in of_null] for of_null in summaries]))
            for name in SUMMARY
        },
        "low": ("metric", np.array([outcome.interval.low for outcome in each])),
        "high": ("metric", np.array([outcome.interval.high for outcome in each])),
        "note": ("metric", np.array(["; ".join(outcome.notes) for outcome in each], object)),
    }
    return xr.Dataset(variables, {"metric": np.array(list(outcomes), object), "null": np.array(nulls, object)})


def summary(score: float, null: Floats, effect_runs: int | None = None) -> dict[str, float]:
    """Return what a score means beside one null, effects by its first `effect_runs`; NaN where there is none.

    Examples
    --------
    >>> said = summary(0.9, np.array([0.1, 0.2, 0.3]))
    >>> round(said["difference"], 3), said["p"]
    (0.7, 0.25)
    """
    if not len(null) or np.isnan(null[0]):
        return dict.fromkeys(SUMMARY, float("nan"))
    first = null[:effect_runs]
    return {
        "null_mean": float(first.mean()),
        "null_std": float(first.std()),
        **{name: float(np.quantile(first, level)) for name, level in QUANTILES.items()},
        "z": effect_size(score, first),
        "difference": difference(score, first),
        "p": p_value(score, null),
    }
