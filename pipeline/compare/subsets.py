"""Many small comparisons at one pair of sites: every subset of pairs against its nulls, without a task for each run.

The runs of one small subset take less time than sending them to a worker one by one, so that a task here scores all
shuffled pairings of a subset, or hundreds of draws. What is drawn at random depends on the number of pairs alone: the
nulls ``random_features`` and ``random_pairs`` are made once for each number, for all subsets that have it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr
from dask.utils import format_bytes
from distributed import Client
from distributed.system import MEMORY_LIMIT
from numpy.typing import ArrayLike, NDArray

from pipeline.compare.base import Family, Metric, families
from pipeline.compare.batched import STACK_BYTES, runs_at_once, scores_of_stack
from pipeline.compare.nulls import Draws, Shuffles, blocks, check_finite
from pipeline.compare.rows import DecoderRows, paired_rows
from pipeline.compare.scoring import DEFAULT_METRICS, SUMMARY, Settings, check_settings, summary, too_few
from pipeline.config import Null
from pipeline.workers import Planned, ensure_client, run_tasks, tell
from storage import open_activations
from storage.bounds import parse_size
from storage.errors import BudgetError, InputError

logger = logging.getLogger(__name__)

#: Nulls that subsets may be compared against.
SUBSET_NULLS: tuple[Null, ...] = ("shuffled", "random_features", "random_pairs")
#: Fewer pairs than this have scores that chance alone may make anything of.
MIN_PAIRS = 10
#: Draws of one task: about a second for 100 pairs.
DRAWS_PER_TASK = 250

#: Features that a subset cannot do without: fewer have no correlation worth the name.
LEAST = 3

Ids = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class _Job:
    """One task: the shuffled pairings of a subset, or draws of a null for a number of pairs."""

    null: Null
    n: int
    name: str
    ids: Ids | None
    runs: range


@dataclass(frozen=True)
class _Found:
    """What a task returns: scores of a null, (metric, run), and of a subset also its own scores and notes."""

    null: NDArray[np.float64]
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Task:
    """What is the same for every task.

    Attributes
    ----------
    groups
        The metrics by family.
    runs, seed
        Of the nulls.
    banks
        Features of A and of B that each null draws from.
    """

    groups: tuple[Family, ...]
    runs: int
    seed: int
    banks: Mapping[Null, Ids]

    def draws(self, null: Null, n: int) -> Draws:
        """Return the draws of a null for a number of pairs."""
        bank_a, bank_b = self.banks[null]
        return Draws(null, n, (len(bank_a), len(bank_b)), self.runs, self.seed)

    def shuffles(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> _Found:
        """Score paired rows and their shuffled pairings; a metric that is undefined on the rows has no null."""
        shuffles, rows = Shuffles(len(x), self.runs, self.seed), paired_rows(x, y)
        scores: list[float] = []
        notes: list[str] = []
        null = []
        for family in self.groups:
            state = family.prepare(*rows)
            own = family.scores(state, np.arange(len(x)))
            scores += own
            notes += [
                metric.warning(state)
                if np.isfinite(score)
                else "undefined: the rows of a side do not vary, or one is zero"
                for metric, score in zip(family.metrics, own, strict=True)
            ]
            compact = family.compact(state)
            null.append(np.array([family.scores(compact, shuffles.pairing(run)) for run in range(self.runs)]).T)
        return _Found(np.concatenate(null), np.array(scores), tuple(notes))


def compare_subsets(
    subsets: Mapping[str, tuple[ArrayLike, ArrayLike]],
    a: str | Path,
    b: str | Path,
    *,
    pool: tuple[ArrayLike, ArrayLike] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    nulls: Sequence[str] = ("shuffled", "random_features"),
    null_runs: int = 1000,
    seed: int = 0,
    min_pairs: int = MIN_PAIRS,
    client: Client | None = None,
    memory: str | int = "auto",
) -> xr.Dataset:
    """Score subsets of matched features, each score beside its nulls.

    Parameters
    ----------
    subsets
        By name, the paired features of A and of B, shape (pair,) each.
    a, b
        Activation stores with decoder rows.
    pool
        The pairs of the whole space, features of A and of B; for the null ``random_pairs``.
    metrics, null_runs, seed
        As in :func:`pipeline.compare`.
    nulls
        ``shuffled``: the same rows paired at random; ``random_features``: as many live features of either side, paired
        as drawn; ``random_pairs``: as many pairs of the pool.
    min_pairs
        Subsets with fewer pairs have no score.
    client
        Where the tasks run; threads of this process by default.
    memory
        What one worker may use, as ``"4GB"`` or bytes; half of what is free if ``"auto"``. It holds both stores'
        decoder rows, and for each of its threads what a metric needs of the largest subset.

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
        If the largest subset does not fit the memory; before anything is computed.

    Examples
    --------
    >>> import tempfile, storage
    >>> folder = Path(tempfile.mkdtemp())
    >>> decoder = np.random.default_rng(0).normal(size=(60, 4))
    >>> for name, rows in {"a": decoder, "b": decoder[:, ::-1]}.items():
    ...     storage.write_activations(folder / f"{name}.zarr", np.eye(60), decoder=rows)
    >>> same, wrong = np.arange(20), np.roll(np.arange(20), 1)
    >>> found = compare_subsets({"same": (same, same), "wrong": (same, wrong)}, folder / "a.zarr", folder / "b.zarr",
    ...                         metrics=["rsa"], nulls=["shuffled"], null_runs=99)
    >>> found.score.values.ravel().round(2).tolist()[0], found.p.values.ravel().tolist()[0]
    (1.0, 0.01)
    """
    settings = check_settings(metrics, nulls, null_runs, seed)
    _check_nulls(settings.nulls, pool)
    ids = {name: _checked(name, own, a, b) for name, own in subsets.items()}
    groups = tuple(families(settings.metrics.values()))
    task = _Task(groups, settings.null_runs, settings.seed, _banks(a, b, pool))
    jobs = list(_jobs(ids, settings, task, max(min_pairs, LEAST)))
    results = _Results(settings, [metric for family in groups for metric in family.metrics])
    with ensure_client(client) as used:
        _check_memory(groups, ids, (a, b), max(used.nthreads().values(), default=1), memory)
        rows = [_all_rows(path).on(used) for path in (a, b)]
        done = run_tasks(used, _run, jobs, name="compare-subsets", label="subsets against chance", args=(*rows, task))
        for job, found in done:
            results.add(job, found)
    return _dataset(ids, settings, results, min_pairs)


def _check_nulls(nulls: Sequence[str], pool: object) -> None:
    unknown = [null for null in nulls if null not in SUBSET_NULLS]
    if unknown:
        raise InputError(f"subsets are compared against {', '.join(SUBSET_NULLS)}, not {unknown[0]}")
    if "random_pairs" in nulls and pool is None:
        raise InputError(
            "the null random_pairs needs pool=(features of A, features of B), the pairs of the whole space"
        )


def _check_memory(
    groups: Sequence[Family],
    ids: Mapping[str, Ids],
    stores: tuple[str | Path, str | Path],
    threads: int,
    memory: str | int,
) -> None:
    """Refuse subsets that do not fit a worker whose threads each have one of the largest."""
    shapes = [_all_rows(path).shape for path in stores]
    largest = max(ids, key=lambda name: len(ids[name][0]), default="")
    n = len(ids[largest][0]) if ids else 0
    rows = sum(4 * count * width for count, width in shapes)
    each = max(family.memory(n, shapes[0][1], shapes[1][1]) for family in groups) + STACK_BYTES
    allowed = min(psutil.virtual_memory().available, MEMORY_LIMIT) // 2 if memory == "auto" else parse_size(memory)
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
        n = _all_rows(path).shape[0]
        if len(side) and not 0 <= side.min() <= side.max() < n:
            raise InputError(f"{name} holds features {side.min()} to {side.max()}, but {path} has {n}")
    return sides[0], sides[1]


def _all_rows(path: str | Path) -> DecoderRows:
    """Return the recipe of all decoder rows of a store."""
    with open_activations(path) as store:
        if "decoder" not in store:
            raise InputError(f"{path} has no decoder rows, which the metrics compare; harvest it with a dictionary")
        return DecoderRows(str(path), np.arange(store.sizes["feature"], dtype=np.int32), store.sizes["d_model"])


def _banks(a: str | Path, b: str | Path, pool: tuple[ArrayLike, ArrayLike] | None) -> dict[Null, Ids]:
    """Return the features that each null draws from: those that ever fire, and the pairs of the pool."""
    banks: dict[Null, Ids] = {"random_features": (_live(a), _live(b))}
    if pool is not None:
        banks["random_pairs"] = _checked("the pool", pool, a, b)
    return banks


def _live(path: str | Path) -> NDArray[np.int64]:
    with open_activations(path) as store:
        return np.flatnonzero(store["n_active"].values > 0)


def _jobs(ids: Mapping[str, Ids], settings: Settings, task: _Task, least: int) -> Iterator[_Job]:
    """Yield all tasks, the largest first: what ends last is then short."""
    scored = {name: own for name, own in ids.items() if len(own[0]) >= least}
    for name in sorted(scored, key=lambda name: -len(scored[name][0])):
        yield _Job("shuffled", len(ids[name][0]), name, ids[name], range(settings.null_runs))
    for n in sorted({len(own[0]) for own in scored.values()}, reverse=True):
        for null in settings.nulls:
            if null != "shuffled" and not too_few(task.draws(null, n)):
                for runs in blocks(settings.null_runs, DRAWS_PER_TASK):
                    yield _Job(null, n, "", None, runs)


def _run(job: _Job, rows_a: Any, rows_b: Any, task: _Task) -> _Found:
    """Score a subset and its shuffled pairings, or draws."""
    if job.ids is not None:
        return task.shuffles(rows_a[job.ids[0]], rows_b[job.ids[1]])
    draws = task.draws(job.null, job.n)
    banks = [rows[ids] for rows, ids in zip((rows_a, rows_b), task.banks[job.null], strict=True)]
    at_once = runs_at_once(job.n, banks[0].shape[1], banks[1].shape[1])
    scores = []
    for start in range(job.runs.start, job.runs.stop, at_once):
        places = [draws.places(run) for run in range(start, min(start + at_once, job.runs.stop))]
        stacks = [
            np.stack([bank[own] for own in side]).astype(np.float64)
            for bank, side in zip(banks, zip(*places, strict=True), strict=True)
        ]
        scores += scores_of_stack(task.groups, stacks[0], stacks[1])
    return _Found(np.array(scores).T)


@dataclass
class _Results:
    """What the tasks found, put in order.

    Attributes
    ----------
    settings
        Of the comparison.
    order
        The metrics as tasks return them.
    subsets
        By subset, what its task found.
    draws
        By null and number of pairs, then by the first run, the scores of draws.
    """

    settings: Settings
    order: list[Metric]
    subsets: dict[str, _Found] = field(default_factory=dict)
    drawn: dict[tuple[Null, int], dict[int, NDArray[np.float64]]] = field(default_factory=dict)

    def add(self, job: _Job, found: _Found) -> None:
        """Keep what a task found, after checking that no run failed."""
        if job.ids is not None:
            self.subsets[job.name] = found
        else:
            self.drawn.setdefault((job.null, job.n), {})[job.runs.start] = found.null

    def null(self, name: str, n: int, null: Null) -> NDArray[np.float64] | None:
        """Return the scores of one null for a subset, shape (metric, run), in the order of the settings; or None."""
        if name not in self.subsets:
            return None
        if null == "shuffled":
            return self.subsets[name].null[self.places]
        parts = self.drawn.get((null, n), {})
        return np.concatenate([parts[start] for start in sorted(parts)], axis=1)[self.places] if parts else None

    @property
    def places(self) -> list[int]:
        """Where the metrics of the settings are among those of the tasks."""
        return [self.order.index(metric) for metric in self.settings.metrics.values()]


def _dataset(ids: Mapping[str, Ids], settings: Settings, results: _Results, min_pairs: int) -> xr.Dataset:
    names, metrics, nulls = list(ids), list(settings.metrics), settings.nulls
    score = np.full((len(names), len(metrics)), np.nan)
    note = np.full(score.shape, f"undefined: fewer than {min_pairs} pairs", object)
    columns = {name: np.full((*score.shape, len(nulls)), np.nan) for name in SUMMARY}
    for i, name in enumerate(names):
        n, found = len(ids[name][0]), results.subsets.get(name)
        if found is not None:
            score[i], note[i] = found.scores[results.places], np.array(found.notes, object)[results.places]
        for k, null in enumerate(nulls):
            runs = results.null(name, n, null)
            if runs is None:
                continue
            # what is undefined on the rows themselves has no null
            for j in np.flatnonzero(np.isfinite(score[i])).tolist():
                check_finite(runs[j], metrics[j], null)
                for column, value in summary(score[i, j], runs[j]).items():
                    columns[column][i, j, k] = value
    dims = ("subset", "metric", "null")
    return xr.Dataset(
        {
            "score": (dims[:2], score),
            **{name: (dims, values) for name, values in columns.items()},
            "note": (dims[:2], note),
            "n_pairs": ("subset", np.array([len(ids[name][0]) for name in names], np.int64)),
        },
        coords={name: np.array(values, object) for name, values in zip(dims, (names, metrics, nulls), strict=True)},
        attrs={**settings.record(), "min_pairs": min_pairs},
    )
