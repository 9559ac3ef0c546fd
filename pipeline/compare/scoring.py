"""The engine of a comparison: scores of the real pairs, of the nulls, and what they mean together."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import psutil
import xarray as xr
from dask.utils import format_bytes
from distributed import Client, Future
from distributed.system import MEMORY_LIMIT
from numpy.typing import NDArray

from pipeline.compare.base import Family, Metric, families
from pipeline.compare.intervals import bootstrap_interval
from pipeline.compare.metrics import parse_metrics, settings_of
from pipeline.compare.nulls import NULLS, Draws, Shuffles, check_finite, drawn_scores, shuffled_scores
from pipeline.compare.rows import MIN_PAIRS, RowSource, paired_rows
from pipeline.config import Null
from pipeline.statistics import effect_size, p_value
from pipeline.workers import Planned, ensure_client, tell
from storage.bounds import parse_size
from storage.errors import BudgetError, InputError

logger = logging.getLogger(__name__)

QUANTILES = {"null_q05": 0.05, "null_q95": 0.95}
#: What is said of a score beside one null; see :func:`summary`.
SUMMARY = ("null_mean", "null_std", *QUANTILES, "z", "difference", "p")
DEFAULT_METRICS = ("svcca", "rsa", "svcca_pc1")


@dataclass(frozen=True)
class Bank:
    """What the rows of a null are drawn from; a side without rows of its own keeps those that are compared."""

    a: RowSource | None
    b: RowSource | None

    def sizes(self) -> tuple[int | None, int | None]:
        """Return the number of rows of either side."""
        a, b = (None if side is None else side.shape[0] for side in (self.a, self.b))
        return a, b


@dataclass(frozen=True)
class Settings:
    """How the rows are compared, checked."""

    metrics: Mapping[str, Metric]
    nulls: tuple[Null, ...]
    null_runs: int
    seed: int
    intervals: int

    def record(self) -> dict[str, Any]:
        """Return the settings as results keep them."""
        return {
            "metrics": {text: settings_of(metric) for text, metric in self.metrics.items()},
            "nulls": list(self.nulls),
            "null_runs": self.null_runs,
            "seed": self.seed,
            "intervals": self.intervals,
        }


@dataclass
class Outcome:
    """One metric's score, its nulls, and what to know about them."""

    score: float = float("nan")
    interval: tuple[float, float] = (float("nan"), float("nan"))
    null: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check_settings(
    metrics: Sequence[str], nulls: Sequence[str], null_runs: int, seed: int, intervals: int = 0
) -> Settings:
    """Return the settings of a comparison.

    Raises
    ------
    InputError
        If a metric or null is unknown or given twice, there is none, or a number is out of range.

    Examples
    --------
    >>> check_settings(["rsa"], ["shuffled"], 10, seed=0).record()["nulls"]
    ['shuffled']
    """
    if not nulls or not set(nulls) <= set(NULLS) or len(set(nulls)) < len(nulls):
        raise InputError(f"nulls are some of {', '.join(NULLS)}, each once; not {list(nulls)}")
    if null_runs < 1:
        raise InputError(f"null_runs is {null_runs}: a score means nothing without at least one run of a null")
    for name, value in {"seed": seed, "intervals": intervals}.items():
        if value < 0:
            raise InputError(f"{name} is {value}: give 0 or a positive whole number")
    return Settings(parse_metrics(metrics), tuple(cast(Sequence[Null], nulls)), null_runs, seed, intervals)


def score_pairs(
    sides: tuple[RowSource, RowSource],
    banks: Mapping[Null, Bank],
    settings: Settings,
    *,
    client: Client | None = None,
    memory: str | int = "auto",
) -> xr.Dataset:
    """Score paired rows, each score beside its nulls.

    Parameters
    ----------
    sides
        The rows of A and of B, paired in their order.
    banks
        What the rows of each null but ``shuffled`` are drawn from.
    settings
        From :func:`check_settings`.
    client
        Where the tasks run; threads of this process by default.
    memory
        What one worker may use, as ``"4GB"`` or bytes; half of what is free if ``"auto"``.

    Returns
    -------
    xarray.Dataset
        As :func:`pipeline.compare` describes it.

    Raises
    ------
    InputError
        If a metric is undefined in some runs of a null.
    BudgetError
        If the rows do not fit the memory; before anything is computed.
    """
    n = sides[0].shape[0]
    outcomes = {text: Outcome() for text in settings.metrics}
    if n < MIN_PAIRS:
        logger.warning("%d pairs are too few to compare; the scores are undefined", n)
        for outcome in outcomes.values():
            outcome.notes.append(f"undefined: {n} pairs, at least {MIN_PAIRS} are needed")
        return _dataset(outcomes, settings, n)
    groups = families(settings.metrics.values())
    fitted = _fit_memory(groups, sides, banks, memory)
    texts = {metric: text for text, metric in settings.metrics.items()}
    by_metric = {
        form: outcomes[texts[metric]]
        for family, fit in zip(groups, fitted, strict=True)
        for metric, form in zip(family.metrics, fit.metrics, strict=True)
    }
    with ensure_client(client) as used:
        _Comparison(used, settings, sides, by_metric).run(fitted, banks)
    return _dataset(outcomes, settings, n)


@dataclass
class _Comparison:
    """One comparison on its way through a cluster."""

    client: Client
    settings: Settings
    sides: tuple[RowSource, RowSource]
    outcomes: dict[Metric, Outcome]

    def run(self, groups: Sequence[Family], banks: Mapping[Null, Bank]) -> None:
        rows = [side.on(self.client) for side in self.sides]
        # all are submitted before the first is waited for: what one family computes in one thread, others overlap
        states = [self._submit(_prepare, "prepare", *rows, family) for family in groups]
        defined = []
        for family, state in zip(groups, states, strict=True):
            defined.append(self._observe(family, state))
            if "shuffled" in self.settings.nulls:
                self._shuffle(defined[-1], state)
        if self.settings.intervals:
            self._bootstrap([metric for family in defined for metric in family.metrics], rows)
        for null in self.settings.nulls:
            if null in banks:
                self._draw(null, banks[null], [family for family in defined if family.metrics], rows)

    def _submit(self, function: Any, step: str, *args: Any) -> Future:
        return self.client.submit(function, *args, pure=False, key=f"compare-{step}-{uuid.uuid4().hex}")

    def _observe(self, family: Family, state: Future) -> Family:
        """Score the real pairing; return the metrics that are defined on these rows."""
        scores, warnings = self._submit(_observed, "score", state, family, self.sides[0].shape[0]).result()
        for metric, score, warning in zip(family.metrics, scores, warnings, strict=True):
            outcome = self.outcomes[metric]
            outcome.score = score
            if not np.isfinite(score):
                warning = "undefined: the rows of a side do not vary, or one is zero"  # noqa: PLW2901
                logger.warning("%s is %s", metric.name, warning)
            outcome.notes.extend([warning] if warning else [])
        return family.only(metric for metric in family.metrics if np.isfinite(self.outcomes[metric].score))

    def _shuffle(self, family: Family, state: Future) -> None:
        if family.metrics:
            shuffles = Shuffles(self.sides[0].shape[0], self.settings.null_runs, self.settings.seed)
            label = f"{' and '.join(metric.name for metric in family.metrics)} of shuffled pairs"
            compact = self._submit(_compact, "compact", state, family)
            self._keep("shuffled", family.metrics, shuffled_scores(self.client, family, compact, shuffles, label))

    def _bootstrap(self, metrics: Sequence[Metric], rows: Sequence[Future]) -> None:
        scores = {str(i): metric.score_drawn for i, metric in enumerate(metrics)}
        x, y = (side.result() for side in rows)
        found = bootstrap_interval(
            x, y, scores, runs=self.settings.intervals, seed=self.settings.seed, client=self.client
        )
        for metric, interval in zip(metrics, found.values(), strict=True):
            outcome = self.outcomes[metric]
            outcome.interval = interval.low, interval.high
            outcome.notes.extend([interval.note] if interval.note else [])

    def _draw(self, null: Null, bank: Bank, groups: Sequence[Family], rows: Sequence[Future]) -> None:
        metrics = [metric for family in groups for metric in family.metrics]
        draws = Draws(null, self.sides[0].shape[0], bank.sizes(), self.settings.null_runs, self.settings.seed)
        if reason := too_few(draws):
            for metric in metrics:
                self.outcomes[metric].notes.append(f"without the null {null}: {reason}")
            logger.warning("There is no null %s: %s", null, reason)
        elif metrics:
            sides = zip((bank.a, bank.b), rows, strict=True)
            a, b = (own if side is None else side.on(self.client) for side, own in sides)
            found = drawn_scores(self.client, groups, (a, b), draws, f"the null {null.replace('_', ' ')}")
            self._keep(null, metrics, found)

    def _keep(self, null: Null, metrics: Sequence[Metric], found: NDArray[np.float64]) -> None:
        for metric, values in zip(metrics, found, strict=True):
            check_finite(values, metric.name, null)
            self.outcomes[metric].null[null] = values


def _prepare(x: Any, y: Any, family: Family) -> Any:
    return family.prepare(*paired_rows(x, y))


def _compact(state: Any, family: Family) -> Any:
    return family.compact(state)


def _observed(state: Any, family: Family, n: int) -> tuple[list[float], list[str]]:
    pairing = np.arange(n)
    return family.scores(state, pairing), [metric.warning(state) for metric in family.metrics]


def too_few(draws: Draws) -> str:
    """Say why the rows of a null cannot be drawn; an empty string where they can."""
    if draws.null == "random_pairs" and (draws.sizes[0] or 0) <= draws.n:
        return f"the pool has {draws.sizes[0]} pairs, not more than the {draws.n} that are compared"
    for side, size in zip("AB", draws.sizes, strict=True):
        if size is not None and size < draws.n:
            return f"{draws.n} rows cannot be drawn from the {size} of side {side}"
    return ""


def _fit_memory(
    groups: Sequence[Family], sides: tuple[RowSource, RowSource], banks: Mapping[Null, Bank], memory: str | int
) -> list[Family]:
    """Return the families in the forms that fit the memory together, or refuse."""
    n, (d_a, d_b) = sides[0].shape[0], (side.shape[1] for side in sides)
    fitted = list(groups)
    allowed = min(psutil.virtual_memory().available, MEMORY_LIMIT) // 2 if memory == "auto" else parse_size(memory)
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


def _dataset(outcomes: Mapping[str, Outcome], settings: Settings, n: int) -> xr.Dataset:
    none = np.full(settings.null_runs, np.nan)
    found = {(null, text): outcomes[text].null.get(null, none) for null in settings.nulls for text in outcomes}
    shape = len(settings.nulls), len(outcomes)
    columns = {name: np.empty(shape) for name in summary(0.0, none)}
    for at, ((_, text), values) in zip(np.ndindex(shape), found.items(), strict=True):
        for name, value in summary(outcomes[text].score, values).items():
            columns[name][at] = value
    each = outcomes.values()
    variables: dict[str, Any] = {
        "score": ("metric", np.array([outcome.score for outcome in each])),
        "null_score": (("null", "metric", "run"), np.array(list(found.values())).reshape(*shape, -1)),
        **{name: (("null", "metric"), values) for name, values in columns.items()},
        "low": ("metric", np.array([outcome.interval[0] for outcome in each])),
        "high": ("metric", np.array([outcome.interval[1] for outcome in each])),
        "note": ("metric", np.array(["; ".join(outcome.notes) for outcome in each], object)),
        "n_pairs": ((), np.int64(n)),
    }
    coords = {"metric": np.array(list(outcomes), object), "null": np.array(settings.nulls, object)}
    return xr.Dataset(variables, coords, attrs={"n_pairs": n, **settings.record()})


def summary(score: float, null: NDArray[np.float64]) -> dict[str, float]:
    """Return what a score means beside one null; NaN where that null could not be drawn."""
    drawn = np.isfinite(null).all()
    mean = float(null.mean())
    return {
        "null_mean": mean,
        "null_std": float(null.std()),
        **{name: float(np.quantile(null, level)) for name, level in QUANTILES.items()},
        "z": effect_size(score, null),
        "difference": score - mean,
        "p": p_value(score, null) if drawn else float("nan"),
    }
