"""Many small comparisons at one pair of sites: every subset of pairs against its nulls, without a task for each run.

The runs of one small subset take less time than sending them to a worker one by one, so that a task here scores a
subset with all pairings of its rows, or hundreds of draws. Draws of other rows depend on the number of pairs alone:
they are made once for each number, for all subsets that have it. Draws that are a subset's own (nulls of keywords)
are given, and end early where p is not small.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.utils import format_bytes
from distributed import Client
from numpy.typing import ArrayLike, NDArray

from pipeline.compare.base import Family, Metric, families
from pipeline.compare.batched import STACK_BYTES
from pipeline.compare.engine import (
    SUMMARY,
    Outcome,
    allowed_memory,
    draws_per_task,
    keep,
    score_draws,
    score_rows,
    to_dataset,
)
from pipeline.compare.nulls import SAME_ROWS, Draws, Floats, Null, check_finite, split_runs
from pipeline.compare.rows import DecoderRows
from pipeline.compare.statistics import EFFECT_RUNS, ended_after
from pipeline.settings.compare import CompareSettings
from pipeline.settings.registries import NULLS
from pipeline.settings.semantics import NOT_OF_SUBSETS
from pipeline.work.workers import Planned, ensure_client, run_tasks, tell
from storage import open_activations
from storage.errors import BudgetError, InputError

#: Fewer pairs than this have scores that chance alone may make anything of.
MIN_PAIRS = 10
#: Runs of a subset's own draws that score at least as high as it does, which end them.
STOP_AFTER = 20
#: Features that a subset cannot do without: fewer have no correlation worth the name.
LEAST = 3

Ids = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class _Job:
    """One task: a subset with all pairings of its rows, or some draws of a null for a number of pairs."""

    name: str
    ids: Ids | None = None
    draws: Draws | None = None
    runs: range = range(0)


@dataclass(frozen=True)
class _Shared:
    """What is the same for every task: the metrics by family, the nulls, and what each draws from."""

    groups: tuple[Family, ...]
    nulls: tuple[Null, ...]
    banks: Mapping[str, Ids]
    runs: int
    seed: int

    def draws(self, n: int) -> list[Draws]:
        """Return the draws of all nulls for a number of pairs."""
        sizes = {source: (len(a), len(b)) for source, (a, b) in self.banks.items()} | dict.fromkeys(SAME_ROWS, (n, n))
        shared = (null for null in self.nulls if null.source != "keywords")
        return [Draws(null, n, sizes[null.source], self.runs, self.seed) for null in shared]

    def own_draws(self, null: str, places: NDArray[np.int64]) -> Draws:
        """Return draws of a null that are a subset's own, (run, pair) places in the pool."""
        sizes = (len(self.banks["pool"][0]),) * 2
        return Draws(NULLS[null], places.shape[1], sizes, len(places), self.seed, places)


def compare_subsets(
    subsets: Mapping[str, tuple[ArrayLike, ArrayLike]],
    a: str | Path,
    b: str | Path,
    *,
    pool: tuple[ArrayLike, ArrayLike] | None = None,
    keywords: Mapping[str, Mapping[str, NDArray[np.int64]]] | None = None,
    metrics: Sequence[str] = ("svcca", "rsa", "svcca_pc1"),
    nulls: Sequence[str] = ("shuffled", "random_features"),
    null_runs: int = 1000,
    seed: int = 0,
    min_pairs: int = MIN_PAIRS,
    client: Client | None = None,
    memory: str | int = "auto",
) -> xr.Dataset:
    """Score subsets of matched features, each score beside its nulls.

    A subset is the paired features of A and of B, shape (pair,) each; with fewer than `min_pairs` it has no score. The
    stores have decoder rows. The null ``random_pairs`` draws from `pool`, the pairs of the whole space; a null of
    keywords takes those places in the pool, (run, pair), that `keywords` has of it and a subset, and no more of them
    than a small p needs. Subsets that it has nothing of are without this null. The memory of a worker holds both
    stores' decoder rows, and for each of its threads what a metric needs of the largest subset. The rest is as in
    :func:`pipeline.compare`.

    Returns
    -------
    xarray.Dataset
        ``score(subset, metric)``; ``null_mean``, ``null_std``, ``null_q05``, ``null_q95``, ``z``, ``difference``,
        ``p`` (subset, metric, null), float64, NaN where undefined; ``note(subset, metric)`` text says why;
        ``n_pairs(subset)`` int64. The same whatever the number of workers.

    Raises
    ------
    InputError
        If a setting is wrong, a store has no decoder rows or not the features of a subset, or a metric fails on runs
        of a null.
    BudgetError
        If the largest subset does not fit in memory; before anything is computed.
    """
    settings = CompareSettings.make(metrics=metrics, nulls=nulls, null_runs=null_runs, seed=seed)
    chosen = tuple(NULLS[name] for name in settings.nulls)
    _check_nulls(chosen, pool)
    ids = {name: _checked(name, own, a, b) for name, own in subsets.items()}
    parsed = settings.parsed()
    shared = _Shared(tuple(families(parsed.values())), chosen, _banks(a, b, pool), null_runs, seed)
    scored = {name: own for name, own in ids.items() if len(own[0]) >= max(min_pairs, LEAST)}
    with ensure_client(client) as used:
        _check_memory(shared.groups, ids, (a, b), max(used.nthreads().values(), default=1), memory)
        rows = [DecoderRows.of(path) for path in (a, b)]
        jobs = list(_jobs(scored, shared, rows[0].d_model, rows[1].d_model))
        args = (*(side.on(used) for side in rows), shared)
        score = functools.partial(
            run_tasks, used, _run, name="compare-subsets", label="Subsets against chance", args=args
        )
        outcomes = _outcomes(scored, shared.groups, list(score(jobs)))
        own = [
            (null.name, name, places)
            for null in chosen
            for name, places in (keywords or {}).get(null.name, {}).items()
            if name in scored
        ]
        for part in (slice(0, EFFECT_RUNS), slice(EFFECT_RUNS, None)):
            _add_own(outcomes, shared.groups, list(score(list(_own_jobs(own, shared, outcomes, part)))))
    few = {text: Outcome(notes=[f"undefined: fewer than {min_pairs} pairs"]) for text in parsed}
    texts = {name: {text: of[metric] for text, metric in parsed.items()} for name, of in outcomes.items()}
    return _dataset(ids, {**dict.fromkeys(ids, few), **texts}, settings).assign_attrs(min_pairs=min_pairs)


def _check_nulls(nulls: Sequence[Null], pool: object) -> None:
    if unknown := [null.name for null in nulls if null.source in NOT_OF_SUBSETS]:
        known = ", ".join(name for name, null in NULLS.items() if null.source not in NOT_OF_SUBSETS)
        raise InputError(f"subsets are compared against {known}, not {unknown[0]}")
    if pool is None and (lacking := [null.name for null in nulls if null.source == "pool"]):
        raise InputError(
            f"the null {lacking[0]} needs pool=(features of A, features of B), the pairs of the whole space"
        )


def _check_memory(
    groups: Sequence[Family],
    ids: Mapping[str, Ids],
    stores: tuple[str | Path, str | Path],
    threads: int,
    memory: str | int,
) -> None:
    """Refuse subsets that do not fit a worker whose threads each have one of the largest."""
    shapes = [DecoderRows.of(path).shape for path in stores]
    largest = max(ids, key=lambda name: len(ids[name][0]), default="")
    n = len(ids[largest][0]) if ids else 0
    rows = sum(4 * count * width for count, width in shapes)
    each = max(family.memory(n, shapes[0][1], shapes[1][1]) for family in groups) + STACK_BYTES
    allowed = allowed_memory(memory)
    if (needed := rows + threads * each) > allowed:
        raise BudgetError(
            f"{largest} with {n} pairs needs {format_bytes(needed)} in each worker of {threads} threads (of this "
            f"{format_bytes(rows)} for decoder rows), allowed are {format_bytes(allowed)}; narrow the subset, leave a "
            "metric out, or allow more memory"
        )
    tell(Planned("Comparing subsets", needed))


def _checked(name: str, ids: tuple[ArrayLike, ArrayLike], a: str | Path, b: str | Path) -> Ids:
    """Return the ids of a subset, after checking that they are pairs of features of the stores."""
    sides = tuple(np.asarray(side, np.int64) for side in ids)
    if sides[0].shape != sides[1].shape or sides[0].ndim != 1:
        raise InputError(
            f"{name} has ids of shapes {sides[0].shape} and {sides[1].shape}; give one a pair on either side"
        )
    for side, path in zip(sides, (a, b), strict=True):
        n = DecoderRows.of(path).shape[0]
        if len(side) and not 0 <= side.min() <= side.max() < n:
            raise InputError(f"{name} holds features {side.min()} to {side.max()}, but {path} has {n}")
    return sides[0], sides[1]


def _banks(a: str | Path, b: str | Path, pool: tuple[ArrayLike, ArrayLike] | None) -> dict[str, Ids]:
    """Return the features that nulls draw from, by source: those that ever fire, and the pairs of the pool."""
    banks = {"features": (_live(a), _live(b))}
    return banks if pool is None else banks | {"pool": _checked("the pool", pool, a, b)}


def _live(path: str | Path) -> NDArray[np.int64]:
    with open_activations(path) as store:
        return np.flatnonzero(store["n_active"].values > 0)


def _jobs(scored: Mapping[str, Ids], shared: _Shared, d_a: int, d_b: int) -> Iterator[_Job]:
    """Yield all tasks, the largest first: what ends last is then short."""
    for name in sorted(scored, key=lambda name: -len(scored[name][0])):
        yield _Job(name, scored[name])
    for n in sorted({len(own[0]) for own in scored.values()}, reverse=True):
        for draws in shared.draws(n):
            if draws.null.source not in SAME_ROWS and not draws.too_few():
                for runs in split_runs(range(draws.runs), draws_per_task(n, d_a, d_b)):
                    yield _Job(draws.null.name, draws=draws, runs=runs)


def _run(job: _Job, rows_a: Any, rows_b: Any, shared: _Shared) -> dict[Metric, Outcome] | Floats:
    """Task: score a subset and the pairings of its rows, or some draws, shape (metric, run)."""
    if job.draws is not None:
        ids = shared.banks["pool" if job.draws.null.source == "keywords" else job.draws.null.source]
        return score_draws(job.runs, rows_a[ids[0]], rows_b[ids[1]], job.draws, shared.groups)
    a, b = job.ids or ((), ())
    return score_rows((rows_a[a], rows_b[b]), len(a), shared.groups, shared.draws(len(a)))


def _outcomes(
    scored: Mapping[str, Ids], groups: Sequence[Family], done: Sequence[tuple[_Job, Any]]
) -> dict[str, dict[Metric, Outcome]]:
    """Return the outcome of every metric by subset, with the draws for its number of pairs."""
    outcomes: dict[str, dict[Metric, Outcome]] = {job.name: result for job, result in done if job.draws is None}
    drawn: dict[tuple[str, int], dict[int, Floats]] = {}
    for job, result in done:
        if job.draws is not None:
            drawn.setdefault((job.name, job.draws.n), {})[job.runs.start] = result
    nulls = {key: np.concatenate([parts[start] for start in sorted(parts)], axis=1) for key, parts in drawn.items()}
    for (null, n), scores in nulls.items():
        for name in (name for name in scored if len(scored[name][0]) == n):
            keep(outcomes[name], null, _defined(outcomes[name], groups, scores, null))
    return outcomes


def _defined(
    outcomes: Mapping[Metric, Outcome], groups: Sequence[Family], scores: Floats, null: str
) -> dict[Metric, Floats]:
    """Return the scores of runs, (metric, run), by those metrics that are defined; all of them must be finite."""
    ordered = [metric for family in groups for metric in family.metrics]
    defined = {m: values for m, values in zip(ordered, scores, strict=True) if outcomes[m].defined}
    for metric, values in defined.items():
        check_finite(values, metric.name, null)
    return defined


def _own_jobs(
    own: Sequence[tuple[str, str, NDArray[np.int64]]],
    shared: _Shared,
    outcomes: Mapping[str, Mapping[Metric, Outcome]],
    part: slice,
) -> Iterator[_Job]:
    """Yield tasks for some runs of the subsets' own draws, but of those that have ended for every metric.

    `own` has nulls, subsets and places.
    """
    for null, name, places in own:
        draws = shared.own_draws(null, places[part])
        if not draws.runs:
            continue
        before = [outcome.null.get(null) for outcome in outcomes[name].values() if outcome.defined]
        if part.start == 0 or any(values is not None and np.isfinite(values[-1]) for values in before):
            yield _Job(name, draws=draws, runs=range(draws.runs))


def _add_own(
    outcomes: Mapping[str, dict[Metric, Outcome]], groups: Sequence[Family], done: Sequence[tuple[_Job, Any]]
) -> None:
    """Put runs of the subsets' own draws behind those that are there; NaN from where a metric's null has ended."""
    for job, scores in done:
        null = job.draws.null.name if job.draws is not None else ""
        for metric, values in _defined(outcomes[job.name], groups, scores, null).items():
            outcome = outcomes[job.name][metric]
            joined = np.concatenate([outcome.null.get(null, np.empty(0)), values])
            ended = ended_after(outcome.score, joined, STOP_AFTER)
            joined[len(joined) if ended is None else ended :] = np.nan
            outcome.null[null] = joined


def _filled(outcomes: Mapping[str, Outcome], settings: CompareSettings) -> Mapping[str, Outcome]:
    """Return outcomes whose nulls have as many runs as were asked for, NaN after their end."""
    runs = settings.null_runs
    for outcome in outcomes.values():
        for null, values in outcome.null.items():
            outcome.null[null] = np.concatenate([values, np.full(runs - len(values), np.nan)])
    return outcomes


def _dataset(
    ids: Mapping[str, Ids], outcomes: Mapping[str, Mapping[str, Outcome]], settings: CompareSettings
) -> xr.Dataset:
    sizes = {"metric": len(settings.metrics), "null": len(settings.nulls)}
    own = [name for name in settings.nulls if NULLS[name].source == "keywords"]
    tables = [
        to_dataset(_filled(outcomes[name], settings), settings.nulls, settings.null_runs, ends_early=own)
        for name in ids
    ]

    def column(name: str, *dims: str) -> tuple[tuple[str, ...], NDArray[Any]]:
        values = [table[name].transpose(*dims).values for table in tables]
        return ("subset", *dims), np.array(values).reshape(len(ids), *(sizes[dim] for dim in dims))

    return xr.Dataset(
        {
            "score": column("score", "metric"),
            **{name: column(name, "metric", "null") for name in SUMMARY},
            "note": column("note", "metric"),
            "n_pairs": ("subset", np.array([len(own[0]) for own in ids.values()], np.int64)),
        },
        coords={
            "subset": np.array(list(ids), object),
            "metric": np.array(settings.metrics, object),
            "null": np.array(settings.nulls, object),
        },
        attrs=settings.record(),
    )
