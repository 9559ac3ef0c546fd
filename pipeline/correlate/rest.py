"""Lists of B features made whole where only pairs with products were reduced.

The panels of :mod:`~pipeline.correlate.kernels.touched` list, for every B feature, its pairs with products. A feature
with fewer of these than places, or with poorer ones than a pair without products can be, has room for such pairs::

    lists of all panels ──▶ the last r is below what a pair without products can have, and below keep_above (rarely)
                                │ the A features that would come first, by their order of levels
                                ▼
                 one task a tile: sums of products of these pairs, in both halves
                                │ 0: into the list, with held-out r; else the pair was not good enough, and the next
                                ▼ A features are looked at

Pairs without products that reach keep_above, or are in the list of their A feature, are in the lists already.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from pipeline.correlate.job import Job, Strip, arrays_of, load_arrays, load_rows, save_arrays, shared
from pipeline.correlate.kernels.csr import Rows, by_feature
from pipeline.correlate.kernels.reduce import Best, Half, correlate_pairs, insert
from pipeline.correlate.kernels.sparse import add_chosen
from pipeline.correlate.kernels.touched import Order, make_order, take_rest
from pipeline.correlate.measures import make_half, make_side_of
from pipeline.correlate.moments import Moments, shift_and_add
from pipeline.correlate.panel import halves_of, shifted_slabs
from pipeline.correlate.rows import HELD_OUT, SELECTING
from pipeline.work.workers import run_tasks
from storage.jit import cached_njit

logger = logging.getLogger(__name__)

Array = NDArray[Any]

#: Pairs that are looked at in one pass over the rows, at most.
AT_ONCE = 2**20
#: How many times as many A features are looked at for a B feature in every further round.
GROWTH = 4


class Pairs(NamedTuple):
    """Pairs that may belong in lists, by ids; each (pair,)."""

    a: Array
    b: Array


def complete(job: Job, columns: Best, moments: tuple[Moments, Moments], client: Client) -> None:
    """Put the pairs without products that belong there into the lists of all B features, which are changed in place.

    `moments` are those of all features of both sides.
    """
    measure, every = job.settings.measure, slice(None)
    side_b = make_side_of(measure, moments[1], SELECTING, every)
    half = make_half(measure, (moments[0], SELECTING, every), side_b)
    looked_at, limit = [np.zeros(0, np.int32)] * job.b.n_features, job.settings.top_k
    ids_a = np.flatnonzero(half.a.scale).astype(np.int32)
    order = make_order(half.a.level[ids_a], half.a.scale[ids_a])
    left = open_lists(columns, half, job.settings.keep_above)
    while len(left):
        logger.info("Looking for partners of %d B features among pairs that never fire together", len(left))
        step, following = max(1, AT_ONCE // limit), []
        for first in range(0, len(left), step):
            some = left[first : first + step]
            pairs = _propose(some, columns, half, order, (ids_a, looked_at, job.settings.keep_above, limit))
            following.append(_enter(job, columns, pairs, looked_at, client))
        left = np.intersect1d(np.concatenate(following), open_lists(columns, half, job.settings.keep_above))
        limit *= GROWTH


def open_lists(columns: Best, half: Half, keep: float) -> NDArray[np.int64]:
    """Return the B features in whose lists a pair without products may belong, and need not be yet."""
    a, b = (side.level[side.scale != 0] for side in (half.a, half.b))
    if not len(a) or not len(b):
        return np.zeros(0, np.int64)
    best = np.maximum(*(np.clip(0.0 - half.b.level * extreme, -1, 1) for extreme in (a.min(), a.max())))
    last = columns.r[:, -1]
    return np.flatnonzero((half.b.scale != 0) & (last < keep) & (best >= last))


def _propose(
    some: Array, columns: Best, half: Half, order: Order, bounds: tuple[Array, list[Array], float, int]
) -> Pairs:
    """Return the pairs of some B features that come first in the order of levels of the A features."""
    ids_a, looked_at, keep, limit = bounds
    proposed, buffer = [], np.empty(len(ids_a), np.int32)
    for b in some:
        known = np.union1d(columns.id[b][columns.id[b] >= 0], looked_at[b])
        left_out = np.searchsorted(ids_a, known).astype(np.int32)
        rules = (np.inf, keep, columns.r[b, -1], limit)
        end = take_rest(half.b.level[b], order, left_out, rules, buffer, 0)
        proposed.append(ids_a[buffer[:end]])
    b = np.repeat(some, [len(part) for part in proposed])
    a = np.concatenate(proposed)
    by_a = np.lexsort((b, a))
    return Pairs(a[by_a], b[by_a].astype(np.int32))


def _enter(job: Job, columns: Best, pairs: Pairs, looked_at: list[Array], client: Client) -> Array:
    """Look pairs up, put those without products into the lists; return the B features that had others."""
    if not len(pairs.a):
        return np.zeros(0, np.int64)
    tile = pairs.a // job.plan.panel * job.plan.n_strips + pairs.b // job.plan.strip
    tiles = np.unique(tile)
    for t in tiles:
        save_arrays(Pairs(pairs.a[tile == t], pairs.b[tile == t])._asdict(), _file("pairs", t, job))
    finished = run_tasks(client, look_up, tiles.tolist(), name="correlate-rest", label="Rest", args=(job,))
    r, held_out = np.full((2, len(tile)), np.nan)
    for t, _ in finished:
        looked_up = load_arrays(_file("rest", t, job))
        r[tile == t], held_out[tile == t] = looked_up["r"], looked_up["held_out"]
    rest = ~np.isnan(r)
    _insert_all(columns, pairs.b[rest], pairs.a[rest], r[rest], held_out[rest])
    by_b = np.flatnonzero(~rest)[np.argsort(pairs.b[~rest], kind="stable")]
    others, first = np.unique(pairs.b[by_b], return_index=True)
    for b, partners in zip(others, np.split(pairs.a[by_b], first[1:]), strict=False):  # no others: one empty part
        looked_at[b] = np.union1d(looked_at[b], partners).astype(np.int32)
    return others


@cached_njit
def _insert_all(best: Best, feature: Array, partner: Array, r: Array, held_out: Array) -> None:
    """Put partners into lists of features."""
    for i in range(feature.size):
        insert(best, feature[i], partner[i], r[i], held_out[i])


def _file(kind: str, t: int, job: Job) -> Any:
    """Return the file of the pairs that are asked of a tile, or of what is known of them (``rest``)."""
    return job.panels / f"{kind}-{t:07d}.npz"


def look_up(t: int, job: Job) -> int:
    """Task: add up the products of pairs of a tile, and put r on disk: NaN where there are products; return `t`."""
    i, j = divmod(t, job.plan.n_strips)
    strip, features = shared(job).strip(job.strip(j)).load(), job.features(i)
    pairs = Pairs(**load_arrays(_file("pairs", t, job)))
    moments = Moments(**arrays_of(load_arrays(job.panel_file(i)), "moments"))
    a, b = pairs.a - features.start, strip.positions[pairs.b - strip.features.start]
    sums = _sums(strip, moments, features, (a, b))
    halves, r = halves_of(strip, moments), np.full((2, len(a)), np.nan)
    for h, products in enumerate(sums):
        correlate_pairs(products, halves[h], a, b, r[h])
    r[SELECTING, sums[SELECTING] != 0] = np.nan
    save_arrays({"r": r[SELECTING], "held_out": r[HELD_OUT]}, _file("rest", t, job))
    return t


def _sums(strip: Strip, moments: Moments, features: slice, pairs: tuple[Array, Array]) -> NDArray[np.float64]:
    """Return the sums of products of pairs, sorted by their places in the panel, in each half; (halves, pair)."""
    a, b = pairs
    width, n_halves = features.stop - features.start, strip.job.settings.n_halves
    start = np.searchsorted(a, np.arange(width + 1))
    sums = np.zeros((n_halves, len(a)))
    marks = np.zeros(-(-len(strip.defined) // 64), np.uint64), np.empty(len(strip.defined), np.int32)
    for rows_a, rows_b, half in _slabs(strip, moments, features):
        columns = by_feature(rows_a, half, width, n_halves)
        for h in range(n_halves):
            add_chosen(sums[h], start, b, h * width, columns, rows_b, marks)
    return sums


def _slabs(strip: Strip, moments: Moments, features: slice) -> Iterator[tuple[Rows, Rows, Array]]:
    """Yield the rows of a panel and of a strip as their own task saw them, with their halves."""
    if strip.job.plan.method == "streaming":
        yield from shifted_slabs(strip, (moments.without_sums(), strip.moments.without_sums()), features)
        return
    mine = strip.mine
    half = mine.half()
    rows, again = load_rows(mine, mine.job.a, features)
    yield shift_and_add(again, (rows, half), again.places()), strip.rows, half
