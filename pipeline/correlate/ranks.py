"""Spearman: ranks of every feature in each half of the rows, out of core, kept as sparse as the values.

The average ranks of a feature's values, less the rank of its zeros, are 0 wherever the value is 0 and never elsewhere.
Pearson's r does not see the difference, so Spearman's is Pearson's of a store of these shifted ranks, which has the
same entries as the store of values. It is written below the unfinished result and deleted with its other working
files; an interrupted run resumes with the panels that are not ranked yet::

    store ──▶ panels of features, all rows: ranks ──▶ (csr) shards of all features ──▶ what the kernels read
               one task each                           one task each

Ranks are multiples of ½, which float32 holds exactly up to 2²³ rows; above that they are float64.

A task holds all rows of a panel of features: their values twice, their ids, ranks and order (28 bytes an entry of a
csr store with float32 values, 12 a value of a dense one), 48 bytes a row, and a slab as it is read; or a shard of all
features as it is joined, 48 bytes an entry. :func:`plan_ranks` makes panels as narrow as the memory asks for.
"""

# ruff: noqa: PLR0917  (compiled functions take everything by position)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import zarr
from distributed import Client
from numpy.typing import NDArray

from pipeline.correlate.job import Store
from pipeline.correlate.measures import RULES
from pipeline.correlate.plan import CHUNK, DENSE_BUFFERS, Plan, Resources, StoreSize, nth_slice, slices
from pipeline.settings.correlate import Measure
from pipeline.work.workers import run_tasks
from storage import BudgetError, create_sparse_array, missing_shards, read_csr, write_sparse_shard
from storage.files import remove_folder
from storage.jit import cached_njit

Array = NDArray[Any]

#: Beyond so many rows float32 does not hold every multiple of ½.
FLOAT32_ROWS = 2**23
#: Entries of a shard of ranks that are aimed at, and bytes of an entry while a shard is joined and encoded.
SHARD_ENTRIES, SHARD_BYTES = 1_000_000, 48
#: Panels are no narrower than this for the sake of more tasks alone.
NARROWEST_FOR_TASKS = 256
VALUES, PARTS = "activation", "parts"
DIMS = ("token", "feature")


def rank_dtype(n_rows: int) -> np.dtype[Any]:
    """Return the type that holds shifted ranks among so many rows exactly.

    >>> rank_dtype(300_000), rank_dtype(10**8)
    (dtype('float32'), dtype('float64'))
    """
    return np.dtype(np.float32 if n_rows <= FLOAT32_ROWS else np.float64)


@dataclass(frozen=True)
class RankPlan:
    """How the ranking of a store is cut, and what it takes.

    Attributes
    ----------
    width
        Features that a task ranks.
    slab_rows, shard_rows
        Rows that are read at a time, and rows of a shard of the ranks.
    projected
        Peak memory of each process while it ranks, bytes.
    """

    width: int
    slab_rows: int
    shard_rows: int
    projected: int


@dataclass(frozen=True)
class RankJob:
    """The ranking of one store, as its tasks see it.

    Attributes
    ----------
    store
        The values.
    folder
        Where the ranks go; the folder that :func:`read_halves` wrote to is its parent.
    n_rows
        Its rows.
    plan
        How the ranking is cut.
    halves
        File with the half of each row.
    n_halves
        How many there are.
    """

    store: Store
    folder: Path
    n_rows: int
    plan: RankPlan
    halves: Path
    n_halves: int

    @property
    def n_panels(self) -> int:
        """How many panels of features there are."""
        return -(-self.store.n_features // self.plan.width)

    def features(self, i: int) -> slice:
        """Return the features of panel `i`."""
        return nth_slice(i, self.plan.width, self.store.n_features)

    def part(self, i: int) -> str:
        """Return the name of the array of panel `i`."""
        return f"{self.plan.width}-{i:05d}"

    def done_file(self, i: int) -> Path:
        """Return the file that is there once panel `i` is ranked."""
        return self.folder / f"done-{self.part(i)}"

    def slabs(self) -> Iterator[slice]:
        """Yield the slabs of rows, in order."""
        return slices(0, self.n_rows, self.plan.slab_rows)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the ranks."""
        return rank_dtype(self.n_rows)

    @property
    def ranks(self) -> Store:
        """The store of ranks."""
        return replace(self.store, path=self.folder, value_bytes=self.dtype.itemsize)


def rank_store(job: RankJob, client: Client, label: str) -> None:
    """Rank a store, or go on with it; `label` is what the progress says."""
    _prepare(job)
    if not job.store.sparse:
        _rank_panels(job, client, label)
    elif missing_shards(job.folder, VALUES):
        _rank_panels(job, client, label)
        missing = missing_shards(job.folder, VALUES)
        for _ in run_tasks(client, join_shard, missing, name="correlate-join-ranks", label=label, args=(job,)):
            pass
        remove_folder(job.folder / PARTS)


def _rank_panels(job: RankJob, client: Client, label: str) -> None:
    missing = [i for i in range(job.n_panels) if not job.done_file(i).is_file()]
    if job.store.sparse:
        _create_parts(job, missing)
    for _ in run_tasks(client, rank_panel, missing, name="correlate-rank", label=label, args=(job,)):
        pass


def _prepare(job: RankJob) -> None:
    """Create the groups and the array of ranks; work that has begun is left as it is, where it fits the panels."""
    shape = job.n_rows, job.store.n_features
    # No two tasks may write to one chunk
    chunks = (min(CHUNK, job.n_rows), job.plan.width)
    group = zarr.open_group(str(job.folder), mode="a", zarr_format=3)
    if VALUES in group and not job.store.sparse and group[VALUES].chunks != chunks:
        remove_folder(job.folder)
        group = zarr.open_group(str(job.folder), mode="a", zarr_format=3)
    group.require_group(PARTS)
    if VALUES not in group and job.store.sparse:
        create_sparse_array(job.folder, VALUES, shape, job.dtype, dims=DIMS, shard_rows=job.plan.shard_rows)
    elif VALUES not in group:
        group.create_array(VALUES, shape=shape, dtype=job.dtype, chunks=chunks, fill_value=0)


def _create_parts(job: RankJob, panels: list[int]) -> None:
    """Create the arrays of some panels here, so that a task only adds files: one that runs twice spoils nothing."""
    parts = job.folder / PARTS
    for i in panels:
        if not (parts / job.part(i) / "zarr.json").is_file():
            width = job.features(i).stop - job.features(i).start
            shape = job.n_rows, width
            create_sparse_array(parts, job.part(i), shape, job.dtype, dims=DIMS, shard_rows=job.plan.shard_rows)


def rank_panel(i: int, job: RankJob) -> None:
    """Task: rank panel `i` of the features over all rows of each half."""
    half = np.load(job.halves, allow_pickle=False)
    n = np.array([np.count_nonzero(half == h) for h in range(job.n_halves)])
    (_rank_sparse if job.store.sparse else _rank_dense)(i, job, half, n)
    job.done_file(i).touch()


def _rank_sparse(i: int, job: RankJob, half: Array, n: Array) -> None:
    """Rank a panel of csr rows; the ranks go to an array of this panel alone, since shards have all features."""
    features = job.features(i)
    width = features.stop - features.start
    slabs = [job.store.read_rows(slab, features) for slab in job.slabs()]
    start = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(slab.start) for slab in slabs]))])
    ids, values = (np.concatenate([getattr(slab, name) for slab in slabs]) for name in ("feature", "value"))
    slabs.clear()
    ranks = np.zeros(len(values), job.dtype)
    rank_entries(start, ids, values, half, n, width, ranks)
    whole = scipy.sparse.csr_array((ranks, ids, start), shape=(job.n_rows, width))
    for shard, rows in enumerate(slices(0, job.n_rows, job.plan.shard_rows)):
        write_sparse_shard(job.folder / PARTS, job.part(i), shard, whole[rows])


def join_shard(i: int, job: RankJob) -> None:
    """Task: join shard `i` of all panels into a shard of all features."""
    rows = nth_slice(i, job.plan.shard_rows, job.n_rows)
    panels = [read_csr(job.folder / PARTS, rows, name=job.part(panel)) for panel in range(job.n_panels)]
    write_sparse_shard(job.folder, VALUES, i, scipy.sparse.hstack(panels, format="csr"))


def _rank_dense(i: int, job: RankJob, half: Array, n: Array) -> None:
    features = job.features(i)
    ranks = np.concatenate([job.store.read_block(slab, features) for slab in job.slabs()])
    ranks = rank_columns(ranks, half, n, np.zeros(ranks.shape, job.dtype))
    array = zarr.open_array(str(job.folder / VALUES), mode="r+")
    for slab in job.slabs():
        array[slab, features] = ranks[slab]


@cached_njit
def shifted_ranks(values: Array, n: int, out: Array) -> None:
    """Set `out` to the average ranks of stored values, less the rank of zero, among `n` with the zeros not stored.

    They are 0 where the value is 0, and nowhere else.
    """
    order = np.argsort(values)
    negative, positive = 0, 0
    for value in values:
        negative += value < 0
        positive += value > 0
    rank_of_zero = negative + (n - negative - positive + 1) / 2
    first = 0
    while first < values.size:
        value = values[order[first]]
        last = first
        while last + 1 < values.size and values[order[last + 1]] == value:
            last += 1
        rank = rank_of_zero
        if value != 0:
            rank = (first + last) / 2 + 1 + (n - values.size if value > 0 else 0)
        for place in range(first, last + 1):
            out[order[place]] = rank - rank_of_zero
        first = last + 1


@cached_njit
def rank_entries(
    start: Array, feature: Array, value: Array, half: Array, n: Array, n_features: int, out: Array
) -> None:
    """Set `out` to the shifted rank of every entry of sparse rows among those of its feature in its half.

    Rows are as in :class:`~pipeline.correlate.kernels.csr.Rows`; entries of rows in neither half are left as they are.
    `n` is how many rows each half has.
    """
    begin = np.zeros(n.size * n_features + 1, np.int64)
    for row in range(half.size):
        if half[row] >= 0:
            for at in range(start[row], start[row + 1]):
                begin[half[row] * n_features + feature[at] + 1] += 1
    for i in range(begin.size - 1):
        begin[i + 1] += begin[i]
    cursor = begin[:-1].copy()
    entry = np.empty(begin[-1], np.int64)
    for row in range(half.size):
        if half[row] >= 0:
            for at in range(start[row], start[row + 1]):
                i = half[row] * n_features + feature[at]
                entry[cursor[i]] = at
                cursor[i] += 1
    for i in range(begin.size - 1):
        mine = entry[begin[i] : begin[i + 1]]
        ranks = np.empty(mine.size, out.dtype)
        shifted_ranks(value[mine], n[i // n_features], ranks)
        out[mine] = ranks


@cached_njit
def rank_columns(values: Array, half: Array, n: Array, out: Array) -> Array:
    """Set `out` to the shifted ranks of the columns of a dense block within each half, and return it."""
    for h in range(n.size):
        rows = np.flatnonzero(half == h)
        ranks = np.empty(rows.size, out.dtype)
        for column in range(values.shape[1]):
            shifted_ranks(values[:, column][rows], n[h], ranks)
            for i in range(rows.size):
                out[rows[i], column] = ranks[i]
    return out


def measured_sizes(sizes: tuple[StoreSize, StoreSize], measure: Measure, n_rows: int) -> tuple[StoreSize, StoreSize]:
    """Return the sizes of both stores as the kernels read them: their values, ranks or firing.

    >>> size = StoreSize(True, 8, np.full(3, 5))
    >>> [measured.value_bytes for measured in measured_sizes((size, size), "spearman", n_rows=100)]
    [4, 4]
    """
    rule = RULES[measure]
    if not (rule.ranked or rule.firing):
        return sizes
    value_bytes = rank_dtype(n_rows).itemsize if rule.ranked else 4
    return replace(sizes[0], value_bytes=value_bytes), replace(sizes[1], value_bytes=value_bytes)


def plan_ranks(size: StoreSize, *, n_rows: int, plan: Plan, resources: Resources, name: str = "a store") -> RankPlan:
    """Cut the ranking of a store to fit in memory: as many features for a task as fit, but tasks for all slots.

    Raises
    ------
    BudgetError
        If not even one feature fits; `name` is that of the store.

    Examples
    --------
    >>> from pipeline.correlate.plan import Resources, make_plan
    >>> from pipeline.settings.correlate import CorrelateSettings
    >>> size = StoreSize(sparse=True, value_bytes=4, entries=np.full(4096, 1000))
    >>> plan = make_plan(size, size, 100_000, CorrelateSettings(), Resources(10**9))
    >>> ranking = plan_ranks(size, n_rows=100_000, plan=plan, resources=Resources(10**9, reserved=4 * 10**8))
    >>> ranking.width, ranking.projected < 10**9
    (4096, True)
    """
    width, threads = min(CHUNK, size.n_features), resources.threads
    while width > NARROWEST_FOR_TASKS and -(-size.n_features // width) < resources.processes * threads:
        width //= 2
    while True:
        needed = _panel_bytes(size, n_rows, plan.slab_rows, width)
        projected = resources.reserved + threads * needed
        if projected <= plan.allowed:
            return RankPlan(width, plan.slab_rows, shard_rows(size, n_rows), projected)
        if width == 1:
            raise BudgetError(
                f"Ranking does not fit: one feature of {name} at a time takes {projected / 1e9:.2f} GB in each worker "
                f"process (projected), and {plan.allowed / 1e9:.2f} GB is allowed, of which "
                f"{resources.reserved / 1e9:.2f} GB is reserved for the interpreter and libraries. Raise memory to at "
                f"least {projected * resources.processes / 1e9:.2f} GB in total, use fewer threads, or use "
                "measure='pearson'"
            )
        width //= 2


def _panel_bytes(size: StoreSize, n_rows: int, slab_rows: int, width: int) -> int:
    """Return the peak memory of a task that ranks a panel, or joins a shard."""
    value, rank = size.value_bytes, rank_dtype(n_rows).itemsize
    if not size.sparse:
        read = min(slab_rows, n_rows) * min(CHUNK, size.n_features) * value
        return n_rows * width * (2 * value + rank) + 48 * n_rows + read + DENSE_BUFFERS
    a_row = int(size.n_entries / n_rows) + 1
    read = min(slab_rows, n_rows) * a_row * (8 + 2 * value)
    joined = min(shard_rows(size, n_rows), n_rows) * a_row * SHARD_BYTES
    return max(size.heaviest(width) * (12 + 2 * value + 2 * rank) + 48 * n_rows + read, joined)


def shard_rows(size: StoreSize, n_rows: int) -> int:
    """Return the rows of a shard of ranks: whole chunks of them, with about :data:`SHARD_ENTRIES` entries."""
    chunks = int(SHARD_ENTRIES / max(1.0, size.n_entries / n_rows) / CHUNK)
    return CHUNK * min(max(chunks, 1), 16)
