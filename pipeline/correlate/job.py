"""What the tasks of one correlation share: paths, plan, and the data that each worker process loads once."""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.correlate.kernels.csr import Rows
from pipeline.correlate.kernels.dense import ERROR
from pipeline.correlate.kernels.reduce import Best, Side, empty_best
from pipeline.correlate.kernels.touched import Order, make_order
from pipeline.correlate.measures import RULES, Scaling, make_side_of, scaling_of
from pipeline.correlate.moments import (
    Moments,
    add_extremes,
    finish_extremes,
    in_double,
    join,
    shift_and_add,
    working_type,
)
from pipeline.correlate.plan import DENSE_ROWS, SPARE, Plan, nth_slice, slices
from pipeline.correlate.rows import SELECTING
from pipeline.settings.correlate import CorrelateSettings
from storage import iter_dense, read_csr, read_dense
from storage.activations import reads_by_chunk

Array = NDArray[Any]


@dataclass(frozen=True)
class Store:
    """One side of a job.

    Attributes
    ----------
    path
        The activation store.
    n_features
        Its features.
    sparse
        Whether its rows are kept as csr.
    value_bytes
        Bytes of a value in memory: 4 or 8.
    piece_rows
        Rows that are best read at a time where they are made dense: those of a chunk on disk.
    piece_features
        Features that are read at a time then: those of a chunk, or None for all that are wanted.
    firing
        Whether what is read is 1 where the value is not 0, in place of the value.
    """

    path: Path
    n_features: int
    sparse: bool
    value_bytes: int
    piece_rows: int
    piece_features: int | None = None
    firing: bool = False

    @classmethod
    def of(cls, path: Path, ds: xr.Dataset, *, firing: bool = False) -> Store:
        """Return the store at `path`, which was opened as `ds`."""
        array = ds["activation"]
        rows, columns = array.encoding["chunks"]
        return cls(
            path=path.absolute(),
            n_features=ds.sizes["feature"],
            sparse=ds.attrs["layout"] == "csr",
            value_bytes=max(4, array.dtype.itemsize),
            piece_rows=min(rows, DENSE_ROWS),
            piece_features=columns if reads_by_chunk(path) else None,
            firing=firing,
        )

    def read_rows(self, rows: slice, features: slice = slice(None)) -> Rows:
        """Read sparse rows; ids count from the start of `features`."""
        csr = read_csr(self.path, rows, features)
        ids = np.uint16 if csr.shape[1] <= 2**16 else np.uint32
        return Rows(csr.indptr.astype(np.int64), csr.indices.astype(ids), self._of(csr.data))

    def read_block(self, rows: slice, features: slice) -> Array:
        """Read a dense block of rows, whatever the layout of the store; float32 or float64."""
        block = read_csr(self.path, rows, features).toarray() if self.sparse else read_dense(self.path, rows, features)
        return self._of(block).astype(self.working, copy=False)

    def iter_blocks(self, rows: slice, features: slice) -> Iterator[tuple[slice, slice, Array]]:
        """Yield the same in blocks, with their rows and features; each is valid until the next."""
        for inside, part, block in iter_dense(self.path, rows, features, self.piece_rows):
            yield inside, part, self._of(block).astype(self.working, copy=False)

    def _of(self, values: Array) -> Array:
        return (values != 0).astype(np.float32) if self.firing else values

    @property
    def working(self) -> type[np.float32 | np.float64]:
        """The type in which dense values are centred."""
        return working_type(self.value_bytes)

    def pieces(self, slab: slice) -> Iterator[slice]:
        """Yield a slab of rows in pieces that are read at a time."""
        return slices(slab.start, slab.stop, self.piece_rows)


@dataclass(frozen=True)
class Job:
    """One correlation, as its tasks see it. Small: it travels with every task.

    Attributes
    ----------
    key
        Names the data that a worker process keeps for this job.
    a, b
        The two stores, of values, firing or ranks.
    plan
        How the work is cut.
    settings
        Of the correlation; the stores are already those that its measure is made of.
    folder
        The unfinished result.
    b_key
        Names the rows of B as the kernels read them, if a process that has them all is to keep them for the next job;
        else empty.
    """

    key: str
    a: Store
    b: Store
    plan: Plan
    settings: CorrelateSettings
    folder: Path
    b_key: str = ""

    @property
    def n_candidates(self) -> int:
        """Partners that panels keep for each feature: more than asked for, where their order is not yet final."""
        return self.settings.top_k + (SPARE if self.plan.method == "dense" else 0)

    @property
    def keep_from(self) -> float:
        """Lowest r of a pair that panels keep: a little less than asked for, where r is not yet final."""
        return self.settings.keep_above - (ERROR if self.plan.method == "dense" else 0.0)

    def features(self, i: int) -> slice:
        """Return the A features of panel `i`."""
        return nth_slice(i, self.plan.panel, self.a.n_features)

    def strip(self, j: int) -> slice:
        """Return the B features of column `j` of tiles."""
        return nth_slice(j, self.plan.strip, self.b.n_features)

    @property
    def strips(self) -> list[slice]:
        """The B features of all columns of tiles."""
        return [self.strip(j) for j in range(self.plan.n_strips)]

    def panels_b(self, features: slice) -> list[slice]:
        """Return the panels of B features, of those that a strip has, that are made dense at a time."""
        return list(slices(features.start, features.stop, self.plan.panel_b))

    @property
    def halves_file(self) -> Path:
        """The file with the half of each row."""
        return self.panels / "halves.npy"

    @property
    def panels(self) -> Path:
        """Where finished panels, and what workers share, are kept until the result is complete."""
        return self.folder / "panels"

    def panel_file(self, i: int) -> Path:
        """Return the file with the reduced results of panel `i`; it exists once all of the panel is on disk."""
        return self.panels / f"panel-{i:05d}.npz"

    def tile_file(self, t: int) -> Path:
        """Return the file with the results of tile `t`, one of several of its panel."""
        return self.panels / f"tile-{t:07d}.npz"

    def done(self) -> list[int]:
        """Return the panels whose results are on disk."""
        return [i for i in range(self.plan.n_panels) if self.panel_file(i).is_file()]

    def tiles_of(self, i: int) -> range:
        """Return the tiles of panel `i`, in the order of their B features."""
        return range(i * self.plan.n_strips, (i + 1) * self.plan.n_strips)

    def measured_file(self, side: str, i: int) -> Path:
        """Return the file with what is known of some features of a side before the tiles: the i-th `panel_b` of them.

        All statistics of dense features; of sparse ones counts, extremes and pivots, without sums.
        """
        return self.panels / f"measured-{side}-{self.plan.panel_b}-{i:05d}.npz"

    def read_measured(self, side: str, features: slice) -> Moments:
        """Read what is known of some features of a side before the tiles."""
        step = self.plan.panel_b
        first, last = features.start // step, -(-features.stop // step)
        parts = join(Moments(**load_arrays(self.measured_file(side, i))) for i in range(first, last))
        return parts.of(slice(features.start - first * step, features.stop - first * step))

    def moments_file(self, features: slice) -> Path:
        """Return the file with all statistics of some B features: those of a strip, or all."""
        return self.panels / f"moments-{features.start}-{features.stop}.npz"

    @property
    def all_moments_file(self) -> Path:
        """The file with the statistics of all B features, where something knows them all."""
        return self.moments_file(slice(0, self.b.n_features))

    def read_moments(self, features: slice | None = None) -> Moments:
        """Read the statistics of some B features, all by default; before a tile has seen them, what is measured."""
        every = slice(0, self.b.n_features)
        wanted = every if features is None else features
        for parts in ([every], [part for part in self.strips if wanted.start <= part.start < wanted.stop]):
            if all(self.moments_file(part).is_file() for part in parts):
                known = join(Moments(**load_arrays(self.moments_file(part))) for part in parts)
                return known.of(slice(wanted.start - parts[0].start, wanted.stop - parts[0].start))
        return self.read_measured("b", wanted)


@dataclass
class Shared:
    """What a worker process loads once for a job and shares among its threads.

    The strips are those that tasks work on, and the last one: no more of them than threads.
    """

    job: Job
    lock: threading.Lock = field(default_factory=threading.Lock)
    strips: weakref.WeakValueDictionary[tuple[int, int], Strip] = field(default_factory=weakref.WeakValueDictionary)
    latest: Strip | None = None

    def half(self, rows: slice = slice(None)) -> NDArray[np.int8]:
        """Read the half that each of some rows belongs to; a process holds no more of them than it works on."""
        return np.array(np.load(self.job.halves_file, mmap_mode="r", allow_pickle=False)[rows])

    @cached_property
    def n_rows(self) -> int:
        """How many rows there are."""
        return int(np.load(self.job.halves_file, mmap_mode="r", allow_pickle=False).size)

    @cached_property
    def n(self) -> NDArray[np.int64]:
        """How many rows each half has; (halves,)."""
        halves = np.arange(self.job.settings.n_halves)[:, None]
        counts = [np.count_nonzero(self.half(slab) == halves, axis=1) for slab in self.slabs()]
        return np.sum(counts, axis=0, dtype=np.int64)

    def empty_moments(self, n_features: int) -> Moments:
        """Return the statistics of no rows, to be filled as the measure needs them."""
        settings = self.job.settings
        fewest = settings.fewest_firing(int(self.n[0]))
        return Moments.empty(self.n, n_features, fewest=fewest, with_zero=not RULES[settings.measure].centred)

    def slabs(self) -> Iterator[slice]:
        """Yield the slabs of rows, in order."""
        return slices(0, self.n_rows, self.job.plan.slab_rows)

    def strip(self, features: slice) -> Strip:
        """Return some B features, which threads that ask for the same ones share."""
        key = features.start, features.stop
        with self.lock:
            _ = self.n
            strip = self.strips.get(key)
            if strip is None:
                self.latest = None  # let go of, before the next one is loaded
                strip = self.strips[key] = Strip(self, features)
            self.latest = strip
        return strip


@dataclass(eq=False)
class Strip:
    """B features that a tile is made of: their statistics, and their rows where the plan is resident.

    Attributes
    ----------
    mine
        What the process shares.
    features
        Which ones; all, where a panel has one tile.
    """

    mine: Shared
    features: slice
    lock: threading.Lock = field(default_factory=threading.Lock)
    lists: list[Best] = field(default_factory=list)

    @property
    def job(self) -> Job:
        """The job."""
        return self.mine.job

    @cached_property
    def _resident(self) -> tuple[Rows, Moments]:
        is_all = self.job.plan.n_strips == 1
        rows, moments = (PROCESS.rows.get(self.job.b_key) if is_all else None) or self._load_rows()
        if is_all:
            PROCESS.keep_rows(self.job, (rows, moments))
        self.keep_moments(moments)
        return rows, moments

    def _load_rows(self) -> tuple[Rows, Moments]:
        rows, moments = load_rows(self.mine, self.job.b, self.features)
        return shift_and_add(moments, (rows, self.mine.half()), moments.positions()), moments

    def keep_moments(self, moments: Moments) -> None:
        """Put all statistics of the features on disk; each tile of them finds the same."""
        if not self.job.moments_file(self.features).is_file():
            save_arrays(moments.to_arrays(), self.job.moments_file(self.features))

    @property
    def rows(self) -> Rows:
        """All rows, values shifted, features in the order of `defined`; only where the plan is resident."""
        return self._resident[0]

    def _known(self) -> Moments:
        resident = self.job.plan.method == "resident"
        return self._resident[1] if resident else self.job.read_moments(self.features)

    @cached_property
    def extremes(self) -> Moments:
        """What is known of the features before sums of sparse rows are."""
        return self._known()

    @cached_property
    def moments(self) -> Moments:
        """Statistics of the features; where the plan is streaming, once a tile has seen all rows."""
        return self._known()

    @cached_property
    def scaling(self) -> Scaling:
        """How the features are standardised."""
        return scaling_of(self.job.settings.measure, self.moments, self.job.b.working)

    @cached_property
    def double(self) -> dict[int, bool]:
        """Whether a panel of the features is multiplied in float64, by its first feature."""
        panels = self.job.panels_b(self.features)
        rough = in_double(self.moments, self.job.plan.panel_b)
        return {panel.start: bool(each) for panel, each in zip(panels, rough, strict=True)}

    @cached_property
    def positions(self) -> NDArray[np.int32]:
        """Where each feature is in the kernels' output, or nowhere; (feature,)."""
        return self.extremes.positions()

    @cached_property
    def defined(self) -> NDArray[np.int32]:
        """The ids of the features that have a place in the kernels' output, in their order."""
        return (self.features.start + np.flatnonzero(self.positions >= 0)).astype(np.int32)

    @cached_property
    def bar(self) -> NDArray[np.float64]:
        """Lower bound of the last r in the final list of each defined feature, which tiles of this process raise."""
        return np.full(len(self.defined), -np.inf)

    def load(self) -> Strip:
        """Load what tiles need before their sums are complete, in one thread; the others wait."""
        with self.lock:
            _ = self.bar
        return self

    def load_sides(self) -> Strip:
        """Load what makes r of sums, in one thread; the others wait."""
        with self.lock:
            _ = self.sides, self.order if self.job.plan.touched else None
        return self

    @cached_property
    def order(self) -> Order:
        """The defined features by their level in the selecting half."""
        return make_order(self.sides[SELECTING].level, self.sides[SELECTING].scale)

    @cached_property
    def sides(self) -> list[Side]:
        """What the kernels need of the defined features in each half."""
        measure, local = self.job.settings.measure, self.defined - self.features.start
        return [make_side_of(measure, self.moments, h, local) for h in range(self.job.settings.n_halves)]

    def take_lists(self) -> Best:
        """Return lists of the defined features for a tile: those that an earlier one gave back, or empty ones.

        What they hold keeps worse partners out. They are one tile's at a time, so there are as many as threads.
        """
        with self.lock:
            return self.lists.pop() if self.lists else empty_best(len(self.defined), self.job.n_candidates)

    def give_lists(self, lists: Best) -> None:
        """Give the lists of a tile back that is on disk."""
        with self.lock:
            self.lists.append(lists)


@dataclass
class Process:
    """What a worker process keeps for the jobs that run in it, each by the job's own key: no job sees another's.

    Attributes
    ----------
    jobs
        The data of each job.
    released
        Keys of jobs that are over: a task that was cancelled too late must not put its data back.
    rows
        Rows of the last B store and their statistics, by :attr:`Job.b_key`.
    """

    jobs: dict[str, Shared] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    rows: dict[str, tuple[Rows, Moments]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def shared(self, job: Job) -> Shared:
        """Return the data of a job; of one that is over, to be dropped with the task that asks."""
        with self.lock:
            if job.b_key not in self.rows:
                self.rows.clear()
            return Shared(job) if job.key in self.released else self.jobs.setdefault(job.key, Shared(job))

    def keep_rows(self, job: Job, rows: tuple[Rows, Moments]) -> None:
        """Keep the rows of B for the next job, if this one asks for it."""
        if job.b_key and job.key not in self.released:
            self.rows[job.b_key] = rows

    def release(self, key: str) -> None:
        """Forget a job, for good."""
        with self.lock:
            self.released.add(key)
            self.jobs.pop(key, None)


#: That of this worker process: tasks are functions, and find their job's data here.
PROCESS = Process()


def shared(job: Job) -> Shared:
    """Return what this process keeps for a job; :meth:`Shared.load` fills it."""
    return PROCESS.shared(job)


def release(key: str) -> None:
    """Forget what this process keeps for a job, for good."""
    PROCESS.release(key)


def forget_rows() -> None:
    """Let go of the rows that this process keeps for the next job."""
    PROCESS.rows.clear()


def scan_rows(mine: Shared, store: Store, features: slice, moments: Moments) -> Iterator[Rows]:
    """Yield the rows of some sparse features slab by slab, and put their counts, extremes and pivots into `moments`."""
    for slab in mine.slabs():
        rows = store.read_rows(slab, features)
        add_extremes(moments, (rows, mine.half(slab)))
        yield rows
    finish_extremes(moments)


def load_rows(mine: Shared, store: Store, features: slice) -> tuple[Rows, Moments]:
    """Read all rows of some features, with their counts, extremes and pivots."""
    moments = mine.empty_moments(features.stop - features.start)
    starts, ids, values = [np.zeros(1, np.int64)], [], []
    for rows in scan_rows(mine, store, features, moments):
        starts.append(rows.start[1:] + starts[-1][-1])
        ids.append(rows.feature)
        values.append(rows.value)
    return Rows(np.concatenate(starts), joined(ids), joined(values)), moments


def joined(parts: list[Array]) -> Array:
    """Join arrays and drop the parts, before the next ones are joined."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def save_arrays(arrays: Mapping[str, Array], file: Path) -> None:
    """Write arrays to an ``.npz`` file that is there whole or not at all; several processes may write the same."""
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def load_arrays(file: Path) -> dict[str, Array]:
    """Read what :func:`save_arrays` wrote."""
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def arrays_of(stored: Mapping[str, Array], group: str) -> dict[str, Array]:
    """Return the arrays whose names begin with that of a group, by the rest of their names.

    >>> arrays_of({"row_id": np.array([1]), "column_id": np.array([2])}, "row")
    {'id': array([1])}
    """
    return {name.removeprefix(f"{group}_"): array for name, array in stored.items() if name.startswith(f"{group}_")}
