"""The comparison of activations over tokens: raw units of two models, or the features of matched pairs.

Decoder rows say in which direction a feature writes; activations say when it fires. Both stores are read once
(:mod:`pipeline.compare.moments`), and every metric is made from second moments, so that 300,000 tokens cost one matrix
product and no memory of their own.

**Chance.** Tokens of one document are alike, and so are neighbours. Shuffling single tokens destroys that, and what is
left is a chance level that no real text has: everything would be significant. Permuting the matched *features* is no
null either: these metrics do not change when columns are permuted. So the null keeps the order of the tokens, and
breaks only which document of A stands beside which document of B: blocks of whole documents are put beside one another
in random order (:mod:`pipeline.compare.arrangement`). All products of blocks are summed once, and rows turned into
orthonormal scores before that, as neither side alone changes: an order then costs sixteen additions of matrices, and
the singular values that the metrics ask for.

**Interval.** Documents are drawn, not tokens: groups of whole, consecutive documents are drawn with replacement, and
their moments added up (a block bootstrap: Künsch, Annals of Statistics 17, 1989). Groups keep the memory bounded,
whatever the number of documents.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.utils import format_bytes
from distributed import Client
from numpy.typing import NDArray

from pipeline.compare.arrangement import (
    FEWEST_BLOCKS,
    LENGTHS_PER_BLOCK,
    Blocks,
    correlation_length,
    dealt_documents,
    shifted_blocks,
)
from pipeline.compare.base import Family, Metric
from pipeline.compare.engine import Outcome, allowed_memory, to_dataset
from pipeline.compare.linear import Lengths, LinearMetric, LinearState, Product
from pipeline.compare.moment_scores import Decomposed, centred_lengths, decompose_moments, score_moments
from pipeline.compare.moments import (
    Columns,
    Crossed,
    Crossing,
    Moments,
    Pass,
    TokenRows,
    added,
    cross_blocks,
    cut_groups,
    ordered_results,
    sum_group,
    weighted_sum,
)
from pipeline.compare.nulls import Draws, Floats, Null, Sizes, run_blocks, score_null, split_runs
from pipeline.compare.rows import matched_features, open_pairs
from pipeline.compare.statistics import Interval, bca_interval
from pipeline.settings.base import keywords
from pipeline.settings.compare import ActivationsSettings
from pipeline.work.workers import ClientSource, Planned, ensure_client, n_slots, tell
from storage import (
    BudgetError,
    InputError,
    check_same_kind,
    check_same_rows,
    fingerprint,
    make_result,
    new_manifest,
    open_activations,
)
from storage.codec import is_sparse_matrix
from storage.rows import check_order

logger = logging.getLogger(__name__)

STAGE = "compare-activations"
#: Groups of documents; fewer units than this make intervals too narrow.
FEWEST_GROUPS = 20
#: Slabs of rows whose documents are dealt together.
SLABS_PER_REGION = 16
#: Values of both sides from which it is told for how long rows remain alike.
SAMPLED_VALUES = 2**23
RUNS_PER_TASK = 10
#: Tokens that can be compared at all.
FEWEST_TOKENS = 16


@dataclass(frozen=True)
class Work:
    """What is read, how it is cut, and what it takes."""

    reading: Pass
    blocks: Blocks | None
    groups: list[tuple[int, int]]
    n_documents: int
    n_sinks: int
    about_null: str
    settings: ActivationsSettings
    metrics: Mapping[str, LinearMetric]

    @property
    def sums_bytes(self) -> int:
        """Bytes of the sums over some rows."""
        a, b = self.reading.a.width, self.reading.b.width
        return 8 * (a * a + b * b + a * b)

    @property
    def n_blocks(self) -> int:
        """Blocks of the null; 0 without one."""
        return 0 if self.blocks is None else self.blocks.number

    @property
    def null(self) -> Null:
        """Random orders of B's blocks."""
        return Null("none" if self.blocks is None else self.blocks.null, _any_order, "blocks", stream=())

    @cached_property
    def slab_bytes(self) -> int:
        """Bytes of a slab of both sides, as stored and as read, and of the largest product of two."""
        sides = (self.reading.a, self.reading.b)
        rows = min(self.reading.step, len(self.reading.rows))
        slab = sum(_entry_bytes(side) * rows for side in sides)
        return int(slab + (4 if any(side.sparse for side in sides) else 1) * 8 * max(side.width for side in sides) ** 2)

    def memory(self, threads: int) -> int:
        """Return the bytes that this process takes at most, with so many threads at work.

        Reading: two sums and a slab for each thread; the running total and a result more than there are threads, or
        all groups where intervals are asked for. Null: all products of blocks, twice the row of them that each thread
        is summing, and six sums for each thread that scores.
        """
        a, b, sums = self.reading.a.width, self.reading.b.width, self.sums_bytes
        kept = len(self.groups) if self.settings.intervals else 2
        reading = threads * (2 * sums + self.slab_bytes) + (kept + threads + 2) * sums
        if self.blocks is None:
            return max(reading, (kept + 6 * threads) * sums)
        row = 4 * self.n_blocks * a * b
        null = self.n_blocks * row + kept * sums
        return max(reading, null + threads * max(self.crossing_bytes(threads), 6 * sums))

    def crossing_bytes(self, threads: int) -> int:
        """Return the bytes that a thread takes while it sums products of blocks, besides those that it sums."""
        a, b = self.reading.a, self.reading.b
        if a.sparse and b.sparse:
            return 8 * (self.n_blocks + 2) * a.width * b.width + self.slab_bytes
        block_rows = 0 if self.blocks is None else self.blocks.length
        scores = 4 * self.blocks_per_task(threads) * min(self.reading.step, block_rows) * a.width
        return scores + 4 * a.width * b.width + 2 * self.slab_bytes

    def blocks_per_task(self, threads: int) -> int:
        """Return how many blocks of A share one reading of B, so that there is work for every thread."""
        return -(-self.n_blocks // threads)


@keywords(ActivationsSettings)
def compare_activations(
    a: str | Path,
    b: str | Path,
    settings: ActivationsSettings,
    *,
    pairs: xr.Dataset | str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    client: ClientSource = None,
) -> xr.Dataset:
    """Score how alike two models' activations are over the same tokens, each score beside chance.

    Both stores are read once for the scores; the null reads A once more, and B once for each thread. Memory of this
    process: ``(3·threads + 4) · 8·(d_a² + d_b² + d_a·d_b)`` bytes and a slab of some thousand rows for each thread,
    never more with more tokens; with a null ``4·blocks²·d_a·d_b`` on top; with intervals one more sum for each group.
    Results do not depend on the number of workers.

    Parameters
    ----------
    a, b
        Activation stores of the same rows, with some thousands of features at most; or any, with `pairs`.
    pairs
        Matched pairs, or the path of a result of :func:`pipeline.match`: of either store, only the features of the
        pairs are compared, in the order of the pairs. All features if absent.
    settings
        Each setting of :class:`~pipeline.settings.compare.ActivationsSettings` is a keyword; or all of them as one.
    out
        Path of the result; an up-to-date one is left unchanged. Without it, the result is only in memory.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    client
        Where the tasks run; threads of this process by default.

    Returns
    -------
    xarray.Dataset
        As :func:`pipeline.compare`: ``score``, ``low``, ``high``, ``note`` over ``metric``; ``null_score(null, metric,
        run)`` and ``null_mean``, ``null_std``, ``null_q05``, ``null_q95``, ``z``, ``difference``, ``p``, ``p_runs``
        over ``null`` and ``metric``; ``n_tokens``. The null is ``permuted_documents`` where the stores know at least
        eight documents, else ``shifted_blocks``, and none where rows remain alike for too long to be cut into eight
        blocks: ``note`` then says so. Rows that the null has no place for count in no score; ``n_left_out``.

    Raises
    ------
    InputError
        If a setting is out of range, a metric is none of second moments, or the stores have not the pairs' features.
    RowMismatchError
        If the stores hold different rows.
    BudgetError
        If the sums do not fit in memory; before anything is read.

    Examples
    --------
    >>> import tempfile, storage
    >>> folder, rng = tempfile.mkdtemp(), np.random.default_rng(0)
    >>> x = rng.normal(size=(4000, 6))
    >>> storage.write_activations(f"{folder}/a.zarr", x)
    >>> storage.write_activations(f"{folder}/b.zarr", x @ np.linalg.qr(rng.normal(size=(6, 6)))[0])
    >>> paths = f"{folder}/a.zarr", f"{folder}/b.zarr"
    >>> scores = compare_activations(*paths, metrics=["svcca", "cka"], null_runs=99)
    >>> scores.score.values.round(3).tolist(), scores.p.values.tolist()
    ([1.0, 1.0], [[0.01, 0.01]])
    >>> bool((scores.null_mean < 0.05).all())
    True
    """
    check_same_rows(a, b)
    inputs = {"a": fingerprint(a), "b": fingerprint(b)}
    sides = _sides(str(a), str(b), pairs, inputs)
    ids = {f"features_{name}": side.features for name, side in zip("ab", sides, strict=True)}
    compared = {name: None if side is None else side.tolist() for name, side in ids.items()}
    cut = {"fewest_blocks": FEWEST_BLOCKS, "lengths_per_block": LENGTHS_PER_BLOCK}
    manifest = new_manifest(STAGE, inputs, {**settings.record(), **compared, **cut})

    def make() -> xr.Dataset:
        work = _plan(sides, settings)
        with ensure_client(client) as used:
            _check_memory(work, n_slots(used))
            return _compare(work, used).assign_attrs(manifest.to_attrs())

    return make_result(out, manifest, make, overwrite=overwrite)


def _sides(a: str, b: str, pairs: xr.Dataset | str | Path | None, inputs: Mapping[str, str]) -> tuple[Columns, Columns]:
    """Return which columns of either store are compared, after checking that they are there."""
    kinds = [open_activations(path).attrs.get("kind") for path in (a, b)]
    check_same_kind(*kinds)
    if pairs is None:
        return Columns.of(a), Columns.of(b)
    matched = open_pairs(pairs)
    check_order(matched.attrs.get("stores"), inputs, "the activations")
    if not matched.sizes["pair"]:
        raise InputError("There are no pairs: nothing to compare. Match with a lower min_correlation")
    first, second = (
        Columns.of(path, matched_features(matched, side, path, open_activations(path).sizes["feature"]))
        for path, side in ((a, "a"), (b, "b"))
    )
    return first, second


def _plan(sides: tuple[Columns, Columns], settings: ActivationsSettings) -> Work:
    """Find the rows that count, cut them into blocks for the null, and into groups of documents."""
    stores = [open_activations(side.path) for side in sides]
    sink = stores[0]["sink"].values | stores[1]["sink"].values
    rows = TokenRows(len(sink), np.flatnonzero(sink))
    if len(rows) < max(FEWEST_TOKENS, 2 * FEWEST_BLOCKS):
        raise InputError(
            f"{len(rows)} tokens ({len(rows.left_out)} more are attention sinks) are too few to compare: harvest more "
            "text"
        )
    source = next((store for store in stores if "document" in store.variables), None)
    documents = None if source is None else source["document"].values[~sink]
    group = None if source is None or "group" not in source.variables else source["group"].values[~sink]
    reading, blocks, about_null = Pass(*sides, rows), None, "no null was asked for"
    if settings.null_runs:
        blocks, about_null = _blocks(reading, documents, group, settings.blocks)
    if blocks is not None:
        reading, blocks, used = _only_rows_of(reading, blocks)
        documents = None if documents is None else documents[used]
    groups = cut_groups(documents, len(reading.rows), settings.groups)
    n_documents = 0 if documents is None else int(np.count_nonzero(np.diff(documents))) + 1
    return Work(
        reading, blocks, groups, n_documents, int(sink.sum()), about_null, settings, settings.parsed()
    )  # fmt: skip


def _blocks(
    reading: Pass, documents: NDArray[np.integer] | None, group: NDArray[np.integer] | None, most: int
) -> tuple[Blocks | None, str]:
    """Return the blocks of the null, or None, and what there is to know about it."""
    n = len(reading.rows)
    borders = np.array([], np.int64) if documents is None else np.flatnonzero(np.diff(documents)) + 1
    starts = np.array([0, *borders])
    lengths = np.diff([*starts, n])
    groups = None if group is None else group[starts].astype(np.int64)
    if dealt := dealt_documents(lengths, most, SLABS_PER_REGION * reading.step, groups):
        return dealt, ""
    sampled = np.arange(min(n, SAMPLED_VALUES // (reading.a.width + reading.b.width)))
    alike = correlation_length(*(_dense(side.read(reading.rows.ids(sampled))) for side in (reading.a, reading.b)))
    number = min(most, int(n / (LENGTHS_PER_BLOCK * alike)))
    known = "documents are unknown" if documents is None else f"there are {len(lengths)} documents"
    remedy = "import the stores with --documents or --tokens" if documents is None else "harvest more documents"
    if number < FEWEST_BLOCKS:
        reason = (
            f"no null: {known}, rows remain alike for about {alike:.0f} rows, and {n} rows have no {FEWEST_BLOCKS} "
            f"blocks of {LENGTHS_PER_BLOCK} times as many; {remedy}"
        )
        logger.warning("There is %s", reason)
        return None, reason
    about = (
        f"{known}: p takes rows that are {n // number} apart for independent, and any effect of the position in a "
        f"document for likeness; {remedy}"
    )
    return shifted_blocks(n, number), about


def _dense(values: Any) -> Floats:
    return np.asarray(values.toarray() if is_sparse_matrix(values) else values)


def _only_rows_of(reading: Pass, blocks: Blocks) -> tuple[Pass, Blocks, NDArray[np.bool_]]:
    """Leave out the rows that are in no block; return which of those that counted before still do, too."""
    n = len(reading.rows)
    used = np.zeros(n, bool)
    for rows_of_side in blocks.rows(0, blocks.length):
        used[rows_of_side] = True
    number = np.cumsum(used) - 1
    left_out = np.ones(reading.rows.total, bool)
    left_out[reading.rows.ids(np.flatnonzero(used))] = False
    rows = TokenRows(reading.rows.total, np.flatnonzero(left_out))
    numbered = replace(blocks, starts_a=number[blocks.starts_a], starts_b=number[blocks.starts_b])
    return replace(reading, rows=rows), numbered, used


def _entry_bytes(side: Columns) -> int:
    """Return the bytes of a row of a slab while it is read: as stored, and in float64."""
    with open_activations(side.path) as store:
        n_features, n_rows = store.sizes["feature"], store.sizes["token"]
        if not side.sparse:
            # as stored, without the sinks, the chosen columns; in float64, and joined around the end
            return (2 * n_features + side.width) * store["activation"].dtype.itemsize + 2 * 8 * side.width
        return int(4 * 20 * (store["n_active"].values.sum() / max(1, n_rows) + 1))


def _check_memory(work: Work, threads: int) -> None:
    allowed, needed = allowed_memory(work.settings.memory), work.memory(threads)
    if needed > allowed:
        a, b = work.reading.a.width, work.reading.b.width
        raise BudgetError(
            f"Second moments of {a} and {b} columns need {format_bytes(needed)} with {threads} threads, "
            f"{work.settings.blocks} blocks and {len(work.groups)} groups; allowed are {format_bytes(allowed)}. Give "
            "fewer blocks (their square counts), intervals=0, the features of fewer pairs, or more memory"
        )
    tell(Planned("Comparing activations", needed))


def _compare(work: Work, client: Client) -> xr.Dataset:
    settings = work.settings
    summed = ordered_results(
        client, sum_group, work.groups, [work.reading], name="moments-group", label="Second moments",
        total=len(work.groups),
    )  # fmt: skip
    parts: list[Moments] = []
    for part in summed:
        parts.append(part)
        if not settings.intervals and len(parts) == 2:
            parts = [weighted_sum(parts)]
    moments = weighted_sum(parts)
    decomposed = decompose_moments(moments)
    scores = score_moments(moments, list(work.metrics.values()), decomposed)
    null = _null(work, client, moments, decomposed, dict(zip(work.metrics.values(), scores, strict=True)))
    intervals = _intervals(work, client, parts, scores)
    outcomes = {
        text: Outcome(
            score,
            interval,
            {work.null.name: null[metric]} if metric in null else {},
            _notes(work, metric, score, decomposed.state, interval),
        )
        for (text, metric), score, interval in zip(work.metrics.items(), scores, intervals, strict=True)
    }
    reading = work.reading
    return (
        to_dataset(outcomes, [work.null.name], settings.null_runs, ends_early=settings.stop_after > 0)
        .assign(n_tokens=((), np.int64(len(reading.rows))))
        .assign_attrs(
            columns_a=reading.a.width,
            columns_b=reading.b.width,
            blocks=work.n_blocks,
            block_rows=0 if work.blocks is None else work.blocks.length,
            groups=len(work.groups),
            n_documents=work.n_documents,
            n_sinks=work.n_sinks,
            n_left_out=len(reading.rows.left_out) - work.n_sinks,
        )
    )


def _notes(work: Work, metric: Metric, score: float, state: Any, interval: Interval) -> list[str]:
    """Say what a score, its interval and its null rest on, where they mean little."""
    undefined = "undefined: a side does not vary over the tokens"
    own = metric.warning(state).replace(" pairs", " tokens") if np.isfinite(score) else undefined
    return list(filter(None, [own, interval.note, work.about_null]))


def _null(
    work: Work, client: Client, moments: Moments, decomposed: Decomposed, scores: Mapping[LinearMetric, float]
) -> dict[Metric, Floats]:
    """Return the scores of random orders of B's blocks by metric, shape (run,), but for undefined real scores."""
    settings, blocks = work.settings, work.blocks
    observed: dict[Metric, float] = {metric: score for metric, score in scores.items() if np.isfinite(score)}
    if blocks is None or not observed:
        return {}
    rows = _products(work, client, Crossing(work.reading, decomposed.whitenings, blocks))
    draws = Draws(work.null, blocks.number, (blocks.number, blocks.number), settings.null_runs, settings.seed)
    orders = _Orders(rows, decomposed.state, centred_lengths(moments), draws)
    shared = client.scatter([orders], broadcast=False, hash=False)
    return score_null(
        client, _score_orders, draws, [Family(tuple(observed))], *shared, observed=observed,
        stop_after=settings.stop_after, per_task=RUNS_PER_TASK, label="Orders of blocks",
    )  # fmt: skip


def _products(work: Work, client: Client, crossing: Crossing) -> list[Crossed]:
    """Return what each block of A sums to beside every block of B."""
    some = split_runs(range(work.n_blocks), work.blocks_per_task(n_slots(client)))
    parts = ordered_results(
        client, cross_blocks, some, [crossing], name="moments-null", label="Products of blocks", total=len(some)
    )
    return [row for part in parts for row in part]


def _any_order(rng: np.random.Generator, n: int, _: Sizes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.arange(n), rng.permutation(n)


@dataclass(frozen=True)
class _Orders:
    """What every order of B's blocks is scored from."""

    rows: list[Crossed]
    state: LinearState
    lengths: Lengths
    draws: Draws

    def product(self, run: int) -> Product:
        """Return what the metrics of one order are computed from."""
        order = self.draws.places(run)[1]
        parts = [(row.c[other], row.lengths[other]) for row, other in zip(self.rows, order, strict=True)]
        lengths = self.lengths._replace(ab=float(sum(of_rows for _, of_rows in parts)))
        return Product(self.state, added([c for c, _ in parts]), lengths)


def _score_orders(runs: range, orders: _Orders, groups: Sequence[Family]) -> Floats:
    """Task: score some orders of the blocks, shape (metric, run)."""
    metrics = [metric for family in groups for metric in family.metrics]
    return np.array([[metric.score(product) for metric in metrics] for product in map(orders.product, runs)]).T


def _intervals(work: Work, client: Client, parts: list[Moments], scores: Sequence[float]) -> list[Interval]:
    """Return an interval for each metric from groups of documents drawn with replacement."""
    settings = work.settings
    if not settings.intervals:
        return [Interval(np.nan, np.nan)] * len(scores)
    runs = settings.intervals
    draws = _Resamples(parts, list(work.metrics.values()), runs, settings.seed)
    shared = client.scatter([draws], broadcast=False, hash=False)
    drawn = run_blocks(
        client, _score_resamples, range(runs + len(parts)), *shared,  # the jackknife's runs come after the draws
        per_task=RUNS_PER_TASK, label="Bootstrap over documents", name="compare-bootstrap",
    )  # fmt: skip
    few = "" if len(parts) >= FEWEST_GROUPS else f"an interval from {len(parts)} groups of documents is too narrow"
    intervals = [
        bca_interval(score, values[:runs], values[runs:], settings.level)
        for score, values in zip(scores, drawn, strict=True)
    ]
    return [interval._replace(note=interval.note or few) for interval in intervals]


@dataclass(frozen=True)
class _Resamples:
    """What every draw of groups is scored from."""

    parts: list[Moments]
    metrics: Sequence[LinearMetric]
    runs: int
    seed: int

    def weights(self, run: int) -> list[float]:
        """Return how often each group counts; run `runs` + i leaves out group i."""
        n = len(self.parts)
        if run >= self.runs:
            return [float(group != run - self.runs) for group in range(n)]
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(run, 1)))
        return rng.multinomial(n, np.full(n, 1 / n)).astype(np.float64).tolist()


def _score_resamples(runs: range, draws: _Resamples) -> Floats:
    """Task: score some draws of the groups, shape (metric, run)."""
    return np.array([score_moments(weighted_sum(draws.parts, draws.weights(run)), draws.metrics) for run in runs]).T
