"""The tasks: one panel of A features against all B features, from stores to reduced results on disk.

A panel's kept pairs are one shard of the result's sparse arrays; its other reduced results are one file. That file is
written last, so it says that the panel is done: a run that was stopped goes on with the panels that have none.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import zarr
from numpy.typing import NDArray

from pipeline.correlate.job import Job, Shared, Store, joined, load_rows, save_arrays, scan_rows, shared
from pipeline.correlate.kernels import dense, scatter
from pipeline.correlate.kernels.csr import Columns, Rows, by_feature, cut
from pipeline.correlate.kernels.device import Device, find_device
from pipeline.correlate.kernels.reduce import (
    COPIES,
    Best,
    Half,
    Kept,
    Output,
    Scratch,
    Side,
    empty_best,
    reduce_tile,
    scratch,
)
from pipeline.correlate.kernels.sparse import add_products, correlate_resident
from pipeline.correlate.kernels.touched import Order, correlate_touched, reduce_touched
from pipeline.correlate.measures import Scaling, make_half, make_standardised_half, scaling_of
from pipeline.correlate.moments import (
    Moments,
    add_dense,
    in_double,
    repeated,
    shift_and_add,
)
from pipeline.correlate.plan import MATRIX_ROWS, fetched_rows, kept_buffer
from pipeline.correlate.resources import compiled_kernels, is_compiled
from pipeline.correlate.rows import SELECTING
from pipeline.correlate.topk import compact
from storage import write_sparse_shard

logger = logging.getLogger(__name__)

Array = NDArray[Any]
#: Reduces A features from the given one on; returns the first that is not reduced.
Step = Callable[[int, Output, Scratch], int]

#: Rows of each piece that are looked at for repeated values.
SAMPLED = 256
#: Bins of the histogram over [-1, 1].
BINS = 2000
R, R_HELD_OUT, MATRIX = "r", "r_heldout", "r_all"


@dataclass(frozen=True)
class Summary:
    """What a task tells the caller; everything else is on disk.

    Attributes
    ----------
    n_done
        A features that were reduced: all of the panel, unless its kept pairs outgrew their budget.
    n_kept
        Kept pairs.
    histogram
        (bin,) int64 of the features that were reduced.
    overflow
        Whether the kept pairs outgrew the panel's budget. Nothing is on disk then.
    """

    n_done: int
    n_kept: int
    histogram: NDArray[np.int64]
    overflow: bool


def correlate_panel(i: int, job: Job) -> Summary:
    """Task: correlate panel `i` of the A features with all B features, and put the results on disk."""
    announce_compilation()
    mine = shared(job)
    features = job.features(i)
    moments, step = _METHODS[job.plan.method](mine, features)
    output = _empty_output(mine, features.stop - features.start)
    pieces, n_done = _run(step, output, features, job)
    histogram = _fold(output.histogram)
    n_kept = int(output.kept.length.sum())
    if n_kept > job.plan.kept_per_panel:
        return Summary(n_done, n_kept, histogram, overflow=True)
    _write_kept(i, job, mine, output.kept.length, pieces)
    save_arrays(_reduced(mine, moments, output, features, histogram), job.panel_file(i))
    mine.give_lists(output.column)
    return Summary(n_done, n_kept, histogram, overflow=False)


@functools.cache
def announce_compilation() -> None:
    """Say, once in a process, that the kernels are to be compiled, unless an earlier run left them in the cache."""
    if not is_compiled():
        folder = compiled_kernels()
        later = f"; later runs find them in {folder}" if folder is not None else ""
        logger.info("Compiling the kernels for this machine%s", later)


def measure_panel(i: int, job: Job) -> int:
    """Task: put the statistics of panel `i` of the B features on disk; return `i`.

    Only streaming and dense plans need it: a resident one sees all rows of B anyway.
    """
    mine = shared(job)
    features = job.panels_b[i]
    if job.plan.method == "dense":
        moments = dense_statistics(mine, job.b, features)
    else:
        moments = _sparse_extremes(mine, job.b, features)
        for slab in mine.slabs():
            shift_and_add(moments, (job.b.read_rows(slab, features), mine.half[slab]), moments.places())
    save_arrays(moments.to_arrays(), job.moments_file(i))
    return i


def _resident(mine: Shared, features: slice) -> tuple[Moments, Step]:
    """All of B is in memory: read the panel of A, and correlate feature by feature."""
    rows, moments = load_rows(mine, mine.job.a, features)
    rows = shift_and_add(moments, (rows, mine.half), moments.places())
    n_halves = mine.job.settings.n_halves
    if mine.job.plan.device == "cuda":
        mine.load()
        slabs = ((cut(rows, slab), cut(mine.rows, slab), mine.half[slab]) for slab in mine.slabs())
        return moments, _sums_step(mine, features, _sums(mine, features, slabs), halves_of(mine, moments))
    columns = by_feature(rows, mine.half, features.stop - features.start, n_halves)
    del rows
    mine.load()
    halves = halves_of(mine, moments)

    def all_pairs(start: int, output: Output, work: Scratch) -> int:
        return correlate_resident(columns, mine.rows, start, features.start, halves, n_halves > 1, output, work)

    def touched(start: int, output: Output, work: Scratch) -> int:
        return correlate_touched(
            columns, mine.rows, start, features.start, halves, n_halves > 1, mine.order, output, work
        )

    return moments, touched if mine.job.plan.touched else all_pairs


def _streaming(mine: Shared, features: slice) -> tuple[Moments, Step]:
    """Neither side is in memory: add products slab by slab, then reduce the tile."""
    moments = _sparse_extremes(mine.load(), mine.job.a, features)
    tiles = _sums(mine, features, shifted_slabs(mine, moments, features))
    return moments, _sums_step(mine, features, tiles, halves_of(mine, moments))


def shifted_slabs(mine: Shared, moments: Moments, features: slice) -> Iterator[tuple[Rows, Rows, Array]]:
    """Read rows of a panel of A and of B slab by slab, with their halves; the sums of the panel are added up."""
    job, places, ignored = mine.job, moments.places(), mine.moments.without_sums()
    for slab in mine.slabs():
        half = mine.half[slab]
        a = shift_and_add(moments, (job.a.read_rows(slab, features), half), places)
        yield a, shift_and_add(ignored, (job.b.read_rows(slab), half), mine.positions), half


def _sums(mine: Shared, features: slice, slabs: Iterable[tuple[Rows, Rows, Array]]) -> list[Any]:
    """Return the sums of products of a panel with all B features, a tile for each half, on the job's device."""
    device, width = find_device(mine.job.plan.device), features.stop - features.start
    shape = width, len(mine.defined)
    tiles = [device.xp.zeros(shape, dtype=device.xp.float64) for _ in range(mine.job.settings.n_halves)]
    for a, b, half in slabs:
        columns = by_feature(a, half, width, mine.job.settings.n_halves)
        _add_products(device, tiles, columns, b)
    return tiles


def _add_products(device: Device, tiles: Sequence[Any], columns: Columns, b: Rows) -> None:
    """Add the products of a slab to the tile of each half, on the device."""
    if device.name == "cuda":
        scatter.add_products(device, tiles, columns, b)
    else:
        for h, tile in enumerate(tiles):
            add_products(tile, h, columns, b)


def _dense(mine: Shared, features: slice) -> tuple[Moments, Step]:
    """Standardise slabs of both sides, add matrix products of the selecting rows, then reduce the tile.

    Of the other half, r is wanted for the pairs alone that are listed or kept: :mod:`pipeline.correlate.rescore`.
    """
    job, device = mine.load().job, find_device(mine.job.plan.device)
    moments = dense_statistics(mine, job.a, features)
    scaling = scaling_of(job.settings.measure, moments, job.a.working)
    double_a = in_double(moments, dense.FEATURES)
    shape = (features.stop - features.start, len(mine.defined))
    tile = device.xp.zeros(shape, dtype=device.xp.float64)
    room_a, room_b = _room(mine, shape[0]), _room(mine, min(job.plan.panel_b, job.b.n_features))
    for slab in mine.slabs():
        a = _standardised(mine, job.a, (slab, features), scaling, room_a)
        for b_features, at in b_panels(mine):
            b = _standardised(mine, job.b, (slab, b_features), mine.scaling.of(b_features), room_b)
            double = [bool(rough) or mine.double_b[b_features.start] for rough in double_a]
            dense.add_products(device.xp, tile[:, at.columns], a, at.varying(b, device), double)
    selecting = make_standardised_half(
        job.settings.measure, (moments, mine.moments), (scaling, mine.scaling), SELECTING, mine.defined
    )
    return moments, _tile_step(features, [device.get(tile)], (selecting, selecting))


def _room(mine: Shared, width: int) -> Any:
    """Return (row, feature) float32 on the device, for the selecting rows of any slab: allocated once a panel."""
    xp = find_device(mine.job.plan.device).xp
    most = max(int(np.count_nonzero(mine.half[slab] == SELECTING)) for slab in mine.slabs())
    return xp.empty((most, width), dtype=xp.float32)


def _standardised(mine: Shared, store: Store, where: tuple[slice, slice], scaling: Scaling, room: Any) -> Any:
    """Put the selecting rows of a slab of some features into the room, read block by block; return what is filled."""
    device, (slab, features) = find_device(mine.job.plan.device), where
    scale, offset = device.put(scaling.scale[SELECTING]), device.put(scaling.offset[SELECTING])
    before = np.concatenate([[0], np.cumsum(mine.half[slab] == SELECTING)])
    for rows, part, block in store.iter_blocks(slab, features):
        chosen = np.flatnonzero(mine.half[rows] == SELECTING)
        columns = slice(part.start - features.start, part.stop - features.start)
        first = int(before[rows.start - slab.start])
        out = room[first : first + len(chosen), columns]
        dense.standardise(device.xp, device.put(block), device.put(chosen), (scale[columns], offset[columns]), out)
    return room[: int(before[-1]), : features.stop - features.start]


_METHODS = {"resident": _resident, "streaming": _streaming, "dense": _dense}


@dataclass(frozen=True)
class Places:
    """Which features of a panel of B vary: their ids, their places within the panel, and in the kernels' output."""

    features: NDArray[np.intp]
    within: NDArray[np.intp]
    columns: slice

    def varying(self, block: Any, device: Device) -> Any:
        """Return the columns of a (row, feature of the panel) block that vary; the block itself where all do."""
        if block.shape[1] == len(self.within):
            return block
        return device.xp.take(block, device.put(self.within), axis=1)


def b_panels(mine: Shared) -> Iterator[tuple[slice, Places]]:
    """Yield the panels of B features that are made dense together."""
    for panel in mine.job.panels_b:
        positions = mine.positions[panel]
        within = np.flatnonzero(positions >= 0)
        if len(within):
            first = int(positions[within[0]])
            yield panel, Places(panel.start + within, within, slice(first, first + len(within)))


def _sparse_extremes(mine: Shared, store: Any, features: slice) -> Moments:
    """First pass over a panel of sparse features: counts, extremes, pivots."""
    moments = mine.empty_moments(features.stop - features.start)
    for _ in scan_rows(mine, store, features, moments):
        pass
    return moments


def dense_statistics(mine: Shared, store: Store, features: slice) -> Moments:
    """Return the statistics of a panel of dense features, their means as pivots: one pass."""
    moments = mine.empty_moments(features.stop - features.start)
    counted, n_sampled = 0, 0
    before, halves = np.zeros_like(mine.n), np.arange(mine.job.settings.n_halves)[:, None]
    for slab in mine.slabs():
        for rows, part, block in store.iter_blocks(slab, features):
            if rows.start > counted:
                before += (mine.half[counted : rows.start] == halves).sum(axis=1)
                counted = rows.start
            columns = slice(part.start - features.start, part.stop - features.start)
            add_dense(moments, columns, block, mine.half[rows], before)
            moments.repeats[:, columns] += repeated(block[:SAMPLED])
            n_sampled += min(SAMPLED, len(block)) * (columns.start == 0)
    moments.repeats /= n_sampled
    return moments


def halves_of(mine: Shared, a: Moments) -> tuple[Half, Half]:
    """Return what the kernels need of both halves; where all rows select, the second is never used."""
    job = mine.job
    halves = range(job.settings.n_halves)
    both = [make_half(job.settings.measure, (a, h, slice(None)), mine.sides[h]) for h in halves]
    return both[0], both[-1]


def _sums_step(mine: Shared, features: slice, tiles: Sequence[Any], halves: tuple[Half, Half]) -> Step:
    """Return the step that reduces tiles on the job's device, whose rows come to the host some at a time."""
    device, n_rows = find_device(mine.job.plan.device), fetched_rows(tiles[0].shape[1])

    @functools.lru_cache(maxsize=1)
    def fetch(first: int) -> list[Array]:
        return [np.ascontiguousarray(device.get(tile[first : first + n_rows])) for tile in tiles]

    def step(start: int, output: Output, work: Scratch) -> int:
        first = start - start % n_rows
        rows = slice(first, first + n_rows)
        order = mine.order if mine.job.plan.touched else None
        within = _tile_step(slice(features.start + first, features.stop), fetch(first), _of_rows(halves, rows), order)
        return first + within(start - first, _rows_of(output, rows), work)

    return step


def _of_rows(halves: tuple[Half, Half], rows: slice) -> tuple[Half, Half]:
    """Return what the kernels need of both halves with some of the panel's A features."""
    first, last = (half._replace(a=Side(*(array[rows] for array in half.a))) for half in halves)
    return first, last


def _rows_of(output: Output, rows: slice) -> Output:
    """Return the same output with the places of some of the panel's A features."""
    row = Best(*(array[rows] for array in output.row))
    return output._replace(row=row, kept=output.kept._replace(length=output.kept.length[rows]))


def _tile_step(features: slice, tiles: Sequence[Array], halves: tuple[Half, Half], order: Order | None = None) -> Step:
    """Return the step that reduces tiles: all pairs, or with an order of the B features those with products alone."""
    held_out = tiles[1] if len(tiles) > 1 else tiles[0][:0]

    def all_pairs(start: int, output: Output, work: Scratch) -> int:
        return reduce_tile(tiles[0], held_out, start, features.start, halves, output, work)

    def touched(start: int, output: Output, work: Scratch) -> int:
        return reduce_touched(tiles[0], held_out, start, features.start, halves, order, output, work)

    return all_pairs if order is None else touched


def _empty_output(mine: Shared, width: int) -> Output:
    """Return room for the results of a panel; lists of B features and bars go on from those of earlier panels."""
    job, n = mine.job, len(mine.defined)
    size = kept_buffer(n)
    return Output(
        row=empty_best(width, job.n_candidates),
        column=mine.take_lists(),
        bar=mine.bar,
        keep=job.keep_from,
        kept=Kept(np.zeros(width, np.int64), np.empty(size, np.int32), np.empty(size), np.empty(size)),
        histogram=np.zeros((COPIES, BINS + 1), np.int64),
        matrix=np.full((min(MATRIX_ROWS, width) if job.settings.full else 0, n), np.nan, np.float32),
    )


def _run(step: Step, output: Output, features: slice, job: Job) -> tuple[list[list[Array]], int]:
    """Reduce the whole panel, moving kept pairs out of the buffer whenever it is full.

    Returns column, r and held-out r of the kept pairs, each in pieces; and how many A features were done.
    """
    pieces: list[list[Array]] = [[], [], []]
    work = scratch(len(output.bar), job.n_candidates)
    done, n_kept = 0, 0
    while done < features.stop - features.start and n_kept <= job.plan.kept_per_panel:
        following = step(done, output, work)
        new = int(output.kept.length[done:following].sum())
        for piece, buffer in zip(pieces, output.kept[1:], strict=True):
            piece.append(buffer[:new].copy())
        if job.settings.full:
            _write_matrix(job, slice(features.start + done, features.start + following), output.matrix)
        done, n_kept = following, n_kept + new
    return pieces, done


def _write_matrix(job: Job, rows: slice, done: Array) -> None:
    """Write r of some A features with all B features, NaN where it is not defined, and clear the buffer."""
    whole = np.full((rows.stop - rows.start, job.b.n_features), np.nan, np.float32)
    whole[:, shared(job).defined] = np.clip(done[: len(whole)], -1, 1)
    zarr.open_array(str(job.folder / MATRIX), mode="r+")[rows] = whole
    done[:] = np.nan


def _fold(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join the copies of the histogram, and the last bin with the one before: r that rounding put beyond 1."""
    bins = histogram.sum(axis=0)
    bins[-2] += bins[-1]
    return bins[:-1]


def _write_kept(i: int, job: Job, mine: Shared, length: NDArray[np.int64], pieces: list[list[Array]]) -> None:
    """Write a panel's kept pairs as a shard of ``r`` and, if it is known yet, one of ``r_heldout``; of one pattern."""
    start = np.concatenate([[0], np.cumsum(length)])
    feature = mine.defined[joined(pieces[0])]
    names = (R,) if job.plan.method == "dense" else (R, R_HELD_OUT)[: job.settings.n_halves]
    for name, parts in zip(names, pieces[1:], strict=False):
        shape = (len(length), job.b.n_features)
        write_sparse_shard(job.folder, name, i, scipy.sparse.csr_array((joined(parts), feature, start), shape=shape))


def _reduced(
    mine: Shared, moments: Moments, output: Output, features: slice, histogram: NDArray[np.int64]
) -> dict[str, Array]:
    """Return a panel's reduced results by name, with B features by their own ids."""
    row = output.row
    row = row._replace(id=np.where(row.id >= 0, mine.defined[row.id] if len(mine.defined) else row.id, -1))
    parts: dict[str, dict[str, Array]] = {
        "row": row._asdict(),
        "column": compact(output.column, mine.defined, features),
        "moments": moments.to_arrays(),
    }
    named = {f"{part}_{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
    complete = not mine.job.plan.touched
    return named | {"histogram": histogram, "n_kept": output.kept.length.sum(), "complete": np.array(complete)}
