"""The tasks: a panel of A features against a strip of B features, from stores to reduced results on disk.

A strip is all of B, or a part where that takes fewer bytes from the stores. What the tiles of a panel found is joined::

    tile (panel 3, strip 0) ──▶ tile file ──┐
    tile (panel 3, strip 1) ──▶ tile file ──┴─▶ shard of kept pairs, then the file of panel 3

A panel's kept pairs are one shard of the result's sparse arrays; its other reduced results are one file. That file is
written last, so it says that the panel is done: an interrupted run resumes with the tiles that have neither a file
of their own nor one of their panel. Whatever order tiles end in, they are joined in the order of their B features.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import zarr
from numpy.typing import NDArray

from pipeline.correlate.job import (
    Job,
    Shared,
    Store,
    Strip,
    arrays_of,
    joined,
    load_arrays,
    load_rows,
    save_arrays,
    scan_rows,
    shared,
)
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
from pipeline.correlate.plan import MATRIX_ROWS, fetched_rows, kept_buffer, nth_slice
from pipeline.correlate.resources import compiled_kernels, is_compiled
from pipeline.correlate.rows import SELECTING
from pipeline.correlate.topk import beside, best_of_all, compact
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
    n_pairs
        Pairs that were reduced: all of the tile, unless its kept pairs outgrew their budget.
    n_kept
        Kept pairs.
    histogram
        (bin,) int64 of the pairs that were reduced.
    overflow
        Whether the kept pairs outgrew the tile's budget. Nothing is on disk then.
    """

    n_pairs: int
    n_kept: int
    histogram: NDArray[np.int64]
    overflow: bool


def correlate_tile(t: int, job: Job) -> Summary:
    """Task: correlate the A features of tile `t` with its B features, and put the results on disk."""
    announce_compilation()
    i, j = divmod(t, job.plan.n_strips)
    features, strip = job.features(i), shared(job).strip(job.strip(j))
    moments, step = _METHODS[job.plan.method](strip, features)
    output = _empty_output(strip, features.stop - features.start)
    pieces, n_done = _run(step, output, features, strip)
    histogram = _fold(output.histogram)
    n_kept = int(output.kept.length.sum())
    n_pairs = n_done * (strip.features.stop - strip.features.start)
    if n_kept > job.plan.kept_per_tile:
        return Summary(n_pairs, n_kept, histogram, overflow=True)
    arrays = _reduced(strip, moments, output, features, histogram) | _kept(strip, output.kept.length, pieces)
    if job.plan.n_strips == 1:
        _finish(i, job, [arrays])
    else:
        save_arrays(arrays, job.tile_file(t))
    strip.give_lists(output.column)
    return Summary(n_pairs, n_kept, histogram, overflow=False)


def join_tiles(i: int, job: Job) -> int:
    """Task: put what the tiles of panel `i` left on disk together as the panel's results; return `i`."""
    tiles = [job.tile_file(t) for t in job.tiles_of(i)]
    if not job.panel_file(i).is_file():
        _finish(i, job, [load_arrays(file) for file in tiles])
    for file in tiles:
        file.unlink(missing_ok=True)
    return i


@functools.cache
def announce_compilation() -> None:
    """Say, once in a process, that the kernels are to be compiled, unless an earlier run left them in the cache."""
    if not is_compiled():
        folder = compiled_kernels()
        cached = f" (first run only); cached in {folder}" if folder is not None else ""
        logger.info("Compiling kernels%s", cached)


def measure_panel(which: tuple[str, int], job: Job) -> tuple[str, int]:
    """Task: put what tiles need to know of a panel of a side, ``a`` or ``b``, before they begin on disk.

    Only streaming and dense plans need it: a resident tile sees all rows of its features anyway.
    """
    mine, (side, i) = shared(job), which
    store = job.a if side == "a" else job.b
    features = nth_slice(i, job.plan.panel_b, store.n_features)
    if job.plan.method == "dense":
        moments = dense_statistics(mine, store, features)
    else:
        moments = mine.empty_moments(features.stop - features.start)
        for _ in scan_rows(mine, store, features, moments):
            pass
    save_arrays(moments.to_arrays(), job.measured_file(side, i))
    return which


def _resident(strip: Strip, features: slice) -> tuple[Moments, Step]:
    """All rows of the strip are in memory: read the panel of A, and correlate feature by feature."""
    mine = strip.mine
    half = mine.half()
    rows, moments = load_rows(mine, mine.job.a, features)
    rows = shift_and_add(moments, (rows, half), moments.places())
    n_halves = mine.job.settings.n_halves
    if mine.job.plan.device == "cuda":
        strip.load()
        slabs = ((cut(rows, slab), cut(strip.rows, slab), half[slab]) for slab in mine.slabs())
        return moments, _sums_step(strip, features, _sums(strip, features, slabs), halves_of(strip, moments))
    columns = by_feature(rows, half, features.stop - features.start, n_halves)
    del rows
    strip.load()
    halves = halves_of(strip, moments)

    def all_pairs(start: int, output: Output, work: Scratch) -> int:
        return correlate_resident(columns, strip.rows, start, features.start, halves, n_halves > 1, output, work)

    def touched(start: int, output: Output, work: Scratch) -> int:
        return correlate_touched(
            columns, strip.rows, start, features.start, halves, n_halves > 1, strip.order, output, work
        )

    return moments, touched if mine.job.plan.touched else all_pairs


def _streaming(strip: Strip, features: slice) -> tuple[Moments, Step]:
    """Neither side is in memory: add products slab by slab, with the sums of both sides, then reduce the tile."""
    moments = strip.load().job.read_measured("a", features)
    of_strip = strip.extremes.without_sums()
    tiles = _sums(strip, features, shifted_slabs(strip, (moments, of_strip), features))
    strip.keep_moments(of_strip)
    return moments, _sums_step(strip, features, tiles, halves_of(strip, moments))


def shifted_slabs(
    strip: Strip, moments: tuple[Moments, Moments], features: slice
) -> Iterator[tuple[Rows, Rows, Array]]:
    """Read rows of a panel and of a strip slab by slab, with their halves; the sums of both sides are added up."""
    mine, job, (of_a, of_b) = strip.mine, strip.job, moments
    places = of_a.places()
    for slab in mine.slabs():
        half = mine.half(slab)
        a = shift_and_add(of_a, (job.a.read_rows(slab, features), half), places)
        yield a, shift_and_add(of_b, (job.b.read_rows(slab, strip.features), half), strip.positions), half


def _sums(strip: Strip, features: slice, slabs: Iterable[tuple[Rows, Rows, Array]]) -> list[Any]:
    """Return the sums of products of a panel with a strip, for each half, on the job's device."""
    job, width = strip.job, features.stop - features.start
    device, shape = find_device(job.plan.device), (width, len(strip.defined))
    tiles = [device.xp.zeros(shape, dtype=device.xp.float64) for _ in range(job.settings.n_halves)]
    for a, b, half in slabs:
        columns = by_feature(a, half, width, job.settings.n_halves)
        _add_products(device, tiles, columns, b)
    return tiles


def _add_products(device: Device, tiles: Sequence[Any], columns: Columns, b: Rows) -> None:
    """Add the products of a slab to the tile of each half, on the device."""
    if device.name == "cuda":
        scatter.add_products(device, tiles, columns, b)
    else:
        for h, tile in enumerate(tiles):
            add_products(tile, h, columns, b)


def _dense(strip: Strip, features: slice) -> tuple[Moments, Step]:
    """Standardise slabs of both sides, add matrix products of the selecting rows, then reduce the tile.

    Of the other half, r is wanted for the pairs alone that are listed or kept: :mod:`pipeline.correlate.rescore`.
    """
    mine, job, device = strip.mine, strip.load().job, find_device(strip.job.plan.device)
    moments = job.read_measured("a", features)
    scaling = scaling_of(job.settings.measure, moments, job.a.working)
    double_a = in_double(moments, dense.FEATURES)
    shape = (features.stop - features.start, len(strip.defined))
    tile = device.xp.zeros(shape, dtype=device.xp.float64)
    room_a, room_b = _room(mine, shape[0]), _room(mine, min(job.plan.panel_b, job.b.n_features))
    for slab in mine.slabs():
        a = _standardised(mine, job.a, (slab, features), scaling, room_a)
        for b_features, at in b_panels(strip):
            b = _standardised(mine, job.b, (slab, b_features), strip.scaling.of(at.panel), room_b)
            double = [bool(rough) or strip.double[b_features.start] for rough in double_a]
            dense.add_products(device.xp, tile[:, at.columns], a, at.varying(b, device), double)
    selecting = make_standardised_half(
        job.settings.measure,
        (moments, strip.moments),
        (scaling, strip.scaling),
        SELECTING,
        strip.defined - strip.features.start,
    )
    return moments, _tile_step(features, [device.get(tile)], (selecting, selecting))


def _room(mine: Shared, width: int) -> Any:
    """Return (row, feature) float32 on the device, for the selecting rows of any slab: allocated once a tile."""
    xp = find_device(mine.job.plan.device).xp
    most = max(int(np.count_nonzero(mine.half(slab) == SELECTING)) for slab in mine.slabs())
    return xp.empty((most, width), dtype=xp.float32)


def _standardised(mine: Shared, store: Store, where: tuple[slice, slice], scaling: Scaling, room: Any) -> Any:
    """Put the selecting rows of a slab of some features into the room, read block by block; return what is filled."""
    device, (slab, features) = find_device(mine.job.plan.device), where
    scale, offset = device.put(scaling.scale[SELECTING]), device.put(scaling.offset[SELECTING])
    selects = mine.half(slab) == SELECTING
    before = np.concatenate([[0], np.cumsum(selects)])
    for rows, part, block in store.iter_blocks(slab, features):
        top = rows.start - slab.start
        chosen = np.flatnonzero(selects[top : rows.stop - slab.start])
        columns = slice(part.start - features.start, part.stop - features.start)
        first = int(before[top])
        out = room[first : first + len(chosen), columns]
        dense.standardise(device.xp, device.put(block), device.put(chosen), (scale[columns], offset[columns]), out)
    return room[: int(before[-1]), : features.stop - features.start]


_METHODS = {"resident": _resident, "streaming": _streaming, "dense": _dense}


@dataclass(frozen=True)
class Places:
    """Which features of a panel of B vary: their places within the panel, and in the kernels' output.

    `panel` is the panel itself, counted from the first feature of the strip.
    """

    panel: slice
    within: NDArray[np.intp]
    columns: slice

    def varying(self, block: Any, device: Device) -> Any:
        """Return the columns of a (row, feature of the panel) block that vary; the block itself where all do."""
        if block.shape[1] == len(self.within):
            return block
        return device.xp.take(block, device.put(self.within), axis=1)


def b_panels(strip: Strip) -> Iterator[tuple[slice, Places]]:
    """Yield the panels of a strip that are made dense together."""
    for features in strip.job.panels_b(strip.features):
        panel = slice(features.start - strip.features.start, features.stop - strip.features.start)
        positions = strip.positions[panel]
        within = np.flatnonzero(positions >= 0)
        if len(within):
            first = int(positions[within[0]])
            yield features, Places(panel, within, slice(first, first + len(within)))


def dense_statistics(mine: Shared, store: Store, features: slice) -> Moments:
    """Return the statistics of a panel of dense features, their means as pivots: one pass."""
    moments = mine.empty_moments(features.stop - features.start)
    counted, n_sampled = 0, 0
    before, halves = np.zeros_like(mine.n), np.arange(mine.job.settings.n_halves)[:, None]
    for slab in mine.slabs():
        half = mine.half(slab)
        for rows, part, block in store.iter_blocks(slab, features):
            if rows.start > counted:
                before += (mine.half(slice(counted, rows.start)) == halves).sum(axis=1)
                counted = rows.start
            columns = slice(part.start - features.start, part.stop - features.start)
            add_dense(moments, columns, block, half[rows.start - slab.start : rows.stop - slab.start], before)
            moments.repeats[:, columns] += repeated(block[:SAMPLED])
            n_sampled += min(SAMPLED, len(block)) * (columns.start == 0)
    moments.repeats /= n_sampled
    return moments


def halves_of(strip: Strip, a: Moments) -> tuple[Half, Half]:
    """Return what the kernels need of both halves; where all rows select, the second is never used."""
    settings, sides = strip.job.settings, strip.load_sides().sides
    both = [make_half(settings.measure, (a, h, slice(None)), sides[h]) for h in range(settings.n_halves)]
    return both[0], both[-1]


def _sums_step(strip: Strip, features: slice, tiles: Sequence[Any], halves: tuple[Half, Half]) -> Step:
    """Return the step that reduces tiles on the job's device, whose rows come to the host some at a time."""
    plan = strip.job.plan
    device, n_rows = find_device(plan.device), fetched_rows(tiles[0].shape[1])

    @functools.lru_cache(maxsize=1)
    def fetch(first: int) -> list[Array]:
        return [np.ascontiguousarray(device.get(tile[first : first + n_rows])) for tile in tiles]

    def step(start: int, output: Output, work: Scratch) -> int:
        first = start - start % n_rows
        rows = slice(first, first + n_rows)
        order = strip.order if plan.touched else None
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


def _empty_output(strip: Strip, width: int) -> Output:
    """Return room for the results of a tile; lists of B features and bars go on from those of earlier ones."""
    job, n = strip.job, len(strip.defined)
    size = kept_buffer(n)
    return Output(
        row=empty_best(width, job.n_candidates),
        column=strip.take_lists(),
        bar=strip.bar,
        keep=job.keep_from,
        kept=Kept(np.zeros(width, np.int64), np.empty(size, np.int32), np.empty(size), np.empty(size)),
        histogram=np.zeros((COPIES, BINS + 1), np.int64),
        matrix=np.full((min(MATRIX_ROWS, width) if job.settings.full else 0, n), np.nan, np.float32),
    )


def _run(step: Step, output: Output, features: slice, strip: Strip) -> tuple[list[list[Array]], int]:
    """Reduce the whole tile, moving kept pairs out of the buffer whenever it is full.

    Returns column, r and held-out r of the kept pairs, each in pieces; and how many A features were done.
    """
    pieces: list[list[Array]] = [[], [], []]
    job = strip.job
    work = scratch(len(output.bar), job.n_candidates)
    done, n_kept = 0, 0
    while done < features.stop - features.start and n_kept <= job.plan.kept_per_tile:
        following = step(done, output, work)
        new = int(output.kept.length[done:following].sum())
        for piece, buffer in zip(pieces, output.kept[1:], strict=True):
            piece.append(buffer[:new].copy())
        if job.settings.full:
            _write_matrix(strip, slice(features.start + done, features.start + following), output.matrix)
        done, n_kept = following, n_kept + new
    return pieces, done


def _write_matrix(strip: Strip, rows: slice, done: Array) -> None:
    """Write r of some A features with the B features of a strip, NaN where it is not defined, and clear the buffer."""
    columns = strip.features
    part = np.full((rows.stop - rows.start, columns.stop - columns.start), np.nan, np.float32)
    part[:, strip.defined - columns.start] = np.clip(done[: len(part)], -1, 1)
    zarr.open_array(str(strip.job.folder / MATRIX), mode="r+")[rows, columns] = part
    done[:] = np.nan


def _fold(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join the copies of the histogram, and the last bin with the one before: r that rounding put beyond 1."""
    bins = histogram.sum(axis=0)
    bins[-2] += bins[-1]
    return bins[:-1]


def _kept(strip: Strip, length: NDArray[np.int64], pieces: list[list[Array]]) -> dict[str, Array]:
    """Return a tile's kept pairs by name: where each A feature's begin, B features counted in the strip, and r."""
    start = np.concatenate([[0], np.cumsum(length)])
    feature = strip.defined[joined(pieces[0])] - strip.features.start
    values = zip(_kept_names(strip.job), pieces[1:], strict=False)
    return {"kept_start": start, "kept_feature": feature} | {f"kept_{name}": joined(parts) for name, parts in values}


def _kept_names(job: Job) -> tuple[str, ...]:
    """Return the arrays of kept pairs that are known when a panel is done; the dense kernel is not yet sure of r."""
    return (R,) if job.plan.method == "dense" else (R, R_HELD_OUT)[: job.settings.n_halves]


def _reduced(
    strip: Strip, moments: Moments, output: Output, features: slice, histogram: NDArray[np.int64]
) -> dict[str, Array]:
    """Return a tile's reduced results by name, with B features by their own ids."""
    row = output.row
    row = row._replace(id=np.where(row.id >= 0, strip.defined[row.id] if len(strip.defined) else row.id, -1))
    parts: dict[str, dict[str, Array]] = {
        "row": row._asdict(),
        "column": compact(output.column, strip.defined, features),
        "moments": moments.to_arrays(),
    }
    named = {f"{part}_{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
    complete = not strip.job.plan.touched
    return named | {"histogram": histogram, "n_kept": output.kept.length.sum(), "complete": np.array(complete)}


def _finish(i: int, job: Job, tiles: Sequence[Mapping[str, Array]]) -> None:
    """Put the results of a panel on disk, whose tiles come in the order of their B features: kept pairs first."""
    features = job.features(i)
    for name in _kept_names(job):
        parts = []
        for strip, tile in zip(job.strips, tiles, strict=True):
            shape = features.stop - features.start, strip.stop - strip.start
            pairs = (tile[f"kept_{name}"], tile["kept_feature"], tile["kept_start"])
            parts.append(scipy.sparse.csr_array(pairs, shape=shape))
        write_sparse_shard(job.folder, name, i, parts[0] if len(parts) == 1 else scipy.sparse.hstack(parts, "csr"))
    rows = best_of_all([Best(**arrays_of(tile, "row")) for tile in tiles])
    of_panel: dict[str, dict[str, Array]] = {
        "row": rows._asdict(),
        "column": beside([arrays_of(tile, "column") for tile in tiles]),
        "moments": arrays_of(tiles[0], "moments"),
    }
    named = {f"{part}_{name}": array for part, arrays in of_panel.items() for name, array in arrays.items()}
    summed = {name: np.sum([tile[name] for tile in tiles], axis=0) for name in ("histogram", "n_kept")}
    complete = np.array(all(tile["complete"] for tile in tiles))
    save_arrays(named | summed | {"complete": complete}, job.panel_file(i))
