"""What the panels of the dense kernel leave open, in float64: r where their rounding could decide, and held-out r.

::

    lists of all panels (top_k + SPARE partners, r to ERROR)          kept pairs (r ≥ keep_above − ERROR)
        │  neighbours closer than 2·ERROR, r near 1                       │  r near keep_above, r near 1
        └───────────────▶ pairs in doubt, by panel ◀──────────────────────┘
                                   │ one task a panel: both sides once more, only the features concerned:
                                   │ r of pairs in doubt, held-out r of all pairs in lists and of all kept ones
                                   ▼
                  lists sorted again and cut to top_k; kept pairs corrected

So ids in lists, and which pairs are kept, are those of float64, and the r of a feature with its copy is exactly 1. A
feature with more ties than there are spare places (copies, mostly) is correlated with *all* features of the other side
again. Other r keep the error of float32 products, less than :data:`~pipeline.correlate.kernels.dense.ERROR`.

Pairs that are listed or kept are one in a hundred or fewer. Their products over the held-out rows, one by one and in
float64, take a small part of the time of a second matrix product over all pairs: half of the dense kernel's work is
never done.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from distributed import Client
from numpy.typing import NDArray

from pipeline.correlate.job import Job, Store, Strip, arrays_of, load_arrays, save_arrays, shared
from pipeline.correlate.kernels.dense import ERROR, NEAR_ONE
from pipeline.correlate.kernels.exact import add_all, add_pairs, centre_columns
from pipeline.correlate.kernels.reduce import Best, Half, correlate_pairs, empty_best
from pipeline.correlate.measures import RULES
from pipeline.correlate.moments import Moments
from pipeline.correlate.panel import R_HELD_OUT, R, b_panels, halves_of
from pipeline.correlate.plan import RESCORED_AT_ONCE as AT_ONCE
from pipeline.correlate.rows import HELD_OUT, SELECTING
from pipeline.correlate.topk import best_of, compact, merge_all
from pipeline.work.workers import run_tasks
from storage import read_csr, write_sparse_shard

logger = logging.getLogger(__name__)

Array = NDArray[Any]

#: |r| nearer to 1 than this is 1: rounding of float64 sums of squares in another order than sums of products.
SNAP = 1e-12


class Open(NamedTuple):
    """What panels left open: pairs in lists, sorted, and features with the whole other side. Ids as in the stores.

    Attributes
    ----------
    pair_a, pair_b
        (pair,) int64, pairs in doubt, and, where rows are held out, all that may be in a list in the end.
    again
        (pair,) bool, whether the pair is in doubt.
    whole_a, whole_b
        Features whose lists hold more doubts than places.
    """

    pair_a: Array
    pair_b: Array
    again: Array
    whole_a: Array
    whole_b: Array

    def within(self, features: slice) -> Open:
        """Return what a panel of A features is to compute."""
        mine, whole = (((ids >= features.start) & (ids < features.stop)) for ids in (self.pair_a, self.whole_a))
        return Open(self.pair_a[mine], self.pair_b[mine], self.again[mine], self.whole_a[whole], self.whole_b)


class Pairs(NamedTuple):
    """r of pairs in float64, sorted by key (see :func:`_keys`); NaN what was not computed, or is not defined."""

    key: Array
    r: Array
    held_out: Array


def rescore(job: Job, rows: Best, columns: Best, client: Client) -> tuple[Best, Best, int]:
    """Make the lists of all features, and the kept pairs, final; all panels of the job are on disk.

    Returns both lists with `top_k` partners in place of ``job.n_candidates``, and the number of kept pairs.
    """
    left = find_open(job, rows, columns)
    logger.info(
        "Computing r of %d pairs, and of %d features with all others, again in float64: ties, thresholds, near 1%s",
        np.count_nonzero(left.again), len(left.whole_a) + len(left.whole_b),
        "; and held-out r of all pairs that are listed or kept" if job.settings.n_halves > 1 else "",
    )  # fmt: skip
    panels = range(job.plan.n_panels)
    for i in panels:
        save_arrays(left.within(job.features(i))._asdict(), _file("open", i, job))
    finished = run_tasks(client, rescore_panel, panels, name="correlate-rescore", label="Re-scoring", args=(job,))
    n_kept = sum(n for _, n in finished)
    pairs = _read_pairs(job)
    _replace_whole(job, left, rows, columns)
    final_rows = _final(rows, pairs, job.b.n_features, job.settings.top_k)
    return final_rows, _final(columns, _swapped(pairs, job), job.a.n_features, job.settings.top_k), n_kept


def _file(kind: str, i: int, job: Job) -> Path:
    """Return the file of what a panel's task is to compute (``open``) or has computed (``exact``)."""
    return job.panels / f"{kind}-{i:05d}.npz"


def _keys(first: Array, second: Array, n_second: int) -> Array:
    """Return one number for each pair of ids, in the order of the pairs."""
    return first.astype(np.int64) * n_second + second


def find_open(job: Job, rows: Best, columns: Best) -> Open:
    """Return what float64 may decide otherwise than the panels did, and the pairs whose held-out r is wanted."""
    keys: tuple[list[Array], list[Array]] = ([], [])
    whole = []
    for best, is_row in ((rows, True), (columns, False)):
        in_doubt, too_many = doubtful(best, job.settings.top_k)
        whole.append(np.flatnonzero(too_many))
        listed = (best.id >= 0) & (np.arange(best.id.shape[1]) < job.settings.top_k) & (job.settings.n_halves > 1)
        for part, chosen in zip(keys, (in_doubt, listed), strict=True):
            feature, place = np.nonzero(chosen)
            a, b = (feature, best.id[feature, place]) if is_row else (best.id[feature, place], feature)
            part.append(_keys(a, b, job.b.n_features))
    again = np.unique(np.concatenate(keys[0]))
    every = np.union1d(again, np.concatenate(keys[1]))
    return Open(*np.divmod(every, job.b.n_features), np.isin(every, again, assume_unique=True), *whole)


def doubtful(best: Best, top_k: int) -> tuple[Array, Array]:
    """Return which places of lists float64 may change, and which lists have too many of them to know all.

    The first, (feature, place): neighbours in a chain of r so close that their order is open, if the chain reaches a
    place that counts; and r beyond NEAR_ONE. The second, (feature,): the chain reaches the end of a full list.

    Examples
    --------
    >>> r = np.array([[0.9, 0.5, 0.5 - 1e-8, 0.2], [0.9, 0.5, 0.3, 0.3]])
    >>> doubtful(Best(np.zeros((2, 4), np.int32), r, r), top_k=2)
    (array([[False,  True,  True, False],
           [False, False, False, False]]), array([False, False]))
    """
    used = best.id >= 0
    r = np.where(used, best.r, -9.0)  # lists are full from the left
    close = (r[:, :-1] - r[:, 1:] <= 2 * ERROR) & used[:, 1:]
    edge = np.zeros((len(r), 1), bool)
    chain = np.concatenate([edge, ~close], axis=1).cumsum(axis=1)
    last = chain[:, [min(top_k, r.shape[1]) - 1]]
    in_chain = np.concatenate([edge, close], axis=1) | np.concatenate([close, edge], axis=1)
    near_one = used & _near_one(r)
    full = used[:, -1] & (r.shape[1] > top_k)
    return (in_chain & (chain <= last) & used) | near_one, full & (chain[:, -1] == last[:, 0])


def _near_one(r: Array) -> Array:
    """Say which r are so near to 1 or -1 that they are computed again; NaN are not."""
    return (np.abs(r) > NEAR_ONE) & (np.abs(r) < 2)


def rescore_panel(i: int, job: Job) -> int:
    """Task: compute what a panel left open in float64, put it on disk, make its kept pairs final; return their number.

    Memory is that of the panel's own task or less: a block of rows of either side in float64, the pairs, and the sums
    of :data:`~pipeline.correlate.plan.RESCORED_AT_ONCE` features with all others.
    """
    work = _Work.load(i, job)
    left = Open(**load_arrays(_file("open", i, job)))
    kept = read_csr(job.folder, work.features, name=R)
    n_b, kept_a = job.b.n_features, np.repeat(np.arange(kept.shape[0]), np.diff(kept.indptr))
    listed_keys = _keys(left.pair_a, left.pair_b, n_b)
    kept_keys = _keys(work.features.start + kept_a, kept.indices, n_b)
    kept_again = (np.abs(kept.data - job.settings.keep_above) <= ERROR) | _near_one(kept.data)
    wanted = kept_keys if job.settings.n_halves > 1 else kept_keys[kept_again]
    keys = np.union1d(listed_keys, wanted)
    again = np.zeros(len(keys), bool)
    again[np.searchsorted(keys, listed_keys[left.again])] = True
    again[np.searchsorted(keys, kept_keys[kept_again])] = True
    pairs = Pairs(keys, *work.pairs(*np.divmod(keys, n_b), again))
    listed = np.searchsorted(keys, listed_keys)
    exact = {"key": listed_keys, "r": pairs.r[listed], "held_out": pairs.held_out[listed]}
    for side, ids in (("a", left.whole_a - work.features.start), ("b", work.strip.positions[left.whole_b])):
        lists = work.whole(side, ids)
        exact |= {f"whole_{side}_{name}": array for name, array in lists._asdict().items()}
    save_arrays(exact, _file("exact", i, job))
    return _finish_kept(i, job, kept, *_updated(pairs, kept_keys, kept.data, np.full(kept.nnz, np.nan)))


def _finish_kept(i: int, job: Job, kept: scipy.sparse.csr_array, r: Array, held_out: Array) -> int:
    """Drop kept pairs that are below the threshold after all, write what has changed, return how many are left.

    A task that died between the two shards finds ``r`` cut already, and does the same again.
    """
    left = r >= job.settings.keep_above
    if not np.array_equal(r, kept.data) or not left.all():
        _rewrite(i, job, R, kept, r, left)
    if job.settings.n_halves > 1:
        _rewrite(i, job, R_HELD_OUT, kept, held_out, left)
    return int(left.sum())


class _Part(NamedTuple):
    """Pairs whose B feature lies in one panel of B, in one half.

    Attributes
    ----------
    panel
        Features of the panel.
    pairs
        Which pairs these are.
    columns_b
        B features that occur, as columns of the panel; each once.
    at_a, at_b
        Where the features of each pair are, among those that occur.
    sums
        (pair,) float64.
    """

    panel: slice
    pairs: Array
    columns_b: Array
    at_a: Array
    at_b: Array
    sums: Array


@dataclass(frozen=True)
class _Work:
    """A panel of A features, to be correlated in float64 with some or all B features.

    Attributes
    ----------
    strip
        All B features.
    features
        The panel.
    moments
        Their statistics.
    halves
        What makes r of sums.
    """

    strip: Strip
    features: slice
    moments: Moments
    halves: tuple[Half, Half]

    @classmethod
    def load(cls, i: int, job: Job) -> _Work:
        """Read the statistics that the panel's own task left."""
        strip = shared(job).strip(slice(0, job.b.n_features)).load()
        moments = Moments(**arrays_of(load_arrays(job.panel_file(i)), "moments"))
        return cls(strip, job.features(i), moments, halves_of(strip, moments))

    def pairs(self, a: Array, b: Array, again: Array) -> tuple[Array, Array]:
        """Return r of pairs of ids, NaN but for those in doubt, and held-out r, NaN where no rows are held out."""
        a, b = a - self.features.start, self.strip.positions[b]
        chosen = [np.flatnonzero(again), np.arange(len(a))][: self.strip.job.settings.n_halves]
        columns_a = [np.unique(a[some]) for some in chosen]
        parts = [
            {part.panel.start: part for part in self._parts(a, b, *half)}
            for half in zip(chosen, columns_a, strict=True)
        ]
        self._add_up(columns_a, parts)
        r = np.full((2, len(a)), np.nan)
        for h, some in enumerate(parts):
            for part in some.values():
                r[h, part.pairs] = _correlation(part.sums, self.halves[h], a[part.pairs], b[part.pairs])
        return r[SELECTING], r[HELD_OUT]

    def _parts(self, a: Array, b: Array, chosen: Array, columns_a: Array) -> Iterator[_Part]:
        """Yield the chosen pairs by the panel of their B features."""
        for panel, at in b_panels(self.strip):
            here = chosen[(b[chosen] >= at.columns.start) & (b[chosen] < at.columns.stop)]
            if len(here):
                columns_b, at_b = np.unique(b[here] - at.columns.start, return_inverse=True)
                at_a = np.searchsorted(columns_a, a[here])
                yield _Part(panel, here, at.within[columns_b], at_a, at_b, np.zeros(len(here)))

    def _add_up(self, columns_a: Sequence[Array], parts: Sequence[dict[int, _Part]]) -> None:
        """Add products to the sums of all parts, by half and start of their panel, in one pass over the rows."""
        panels = {start: part.panel for some in parts for start, part in some.items()}
        for piece in self._pieces() if panels else ():
            x = self._read_a(piece, columns_a)
            for start, panel in panels.items():
                here = [some.get(start) for some in parts]
                y = self._read_b(piece, panel, [_NONE if part is None else part.columns_b for part in here])
                for part, of_a, of_b in zip(here, x, y, strict=True):
                    if part is not None:
                        add_pairs(part.sums, of_a, of_b, part.at_a, part.at_b)

    def whole(self, side: str, some: Array) -> Best:
        """Return the best partners of some features of of_a side, in this panel if they are of B."""
        k = self.strip.job.n_candidates
        batches = [self._whole_batch(side, some[i : i + AT_ONCE], k) for i in range(0, len(some), AT_ONCE)]
        return Best(*(np.concatenate(parts) for parts in zip(empty_best(0, k), *batches, strict=True)))

    def _whole_batch(self, side: str, some: Array, k: int) -> Best:
        width, n_b = self.features.stop - self.features.start, len(self.strip.defined)
        sums = np.zeros((self.strip.job.settings.n_halves, len(some), n_b if side == "a" else width))
        add = self._add_whole_a if side == "a" else self._add_whole_b
        for piece in self._pieces():
            add(sums, piece, some)
        others = np.arange(sums.shape[2])
        ids = self.strip.defined if side == "a" else np.arange(self.features.start, self.features.stop)
        a, b = (some[:, None], others) if side == "a" else (others, some[:, None])
        r = np.full((2, *sums.shape[1:]), np.nan)
        for h, products in enumerate(sums):
            r[h] = _correlation(products, self.halves[h], a, b)
        return best_of(ids.astype(np.int32), r[SELECTING], r[HELD_OUT], k)

    def _add_whole_a(self, sums: Array, piece: slice, some: Array) -> None:
        columns, place = np.unique(some, return_inverse=True)
        x = self._read_a(piece, [columns] * len(sums))
        for panel, at in b_panels(self.strip):
            y = self._read_b(piece, panel, [at.within] * len(sums))
            for h, (of_a, of_b) in enumerate(zip(x, y, strict=True)):
                add_all(sums[h, :, at.columns], of_a[place], of_b)

    def _add_whole_b(self, sums: Array, piece: slice, some: Array) -> None:
        x = self._read_a(piece, [np.arange(self.features.stop - self.features.start)] * len(sums))
        for panel, at in b_panels(self.strip):
            chosen = np.flatnonzero((some >= at.columns.start) & (some < at.columns.stop))
            if len(chosen):
                columns, place = np.unique(some[chosen] - at.columns.start, return_inverse=True)
                y = self._read_b(piece, panel, [at.within[columns]] * len(sums))
                for h, (of_a, of_b) in enumerate(zip(x, y, strict=True)):
                    part = np.zeros((len(chosen), len(of_a)))
                    add_all(part, of_b[place], of_a)
                    sums[h, chosen] += part

    def _pieces(self) -> Iterator[slice]:
        """Yield pieces of rows, the same for every panel and side: sums are added up in one order only."""
        for slab in self.strip.mine.slabs():
            yield from self.strip.job.a.pieces(slab)

    def _read_a(self, piece: slice, columns: Sequence[Array]) -> list[Array]:
        return self._read(self.strip.job.a, piece, self.features, columns, self.moments.pivot)

    def _read_b(self, piece: slice, panel: slice, columns: Sequence[Array]) -> list[Array]:
        return self._read(self.strip.job.b, piece, panel, columns, self.strip.moments.pivot[:, panel])

    def _read(self, store: Store, piece: slice, features: slice, columns: Sequence[Array], mean: Array) -> list[Array]:
        """Return (column, row) float64 for each half: some columns of some rows, less their means if the measure is.

        `columns` are those of `features` that are wanted in each half, ascending; `mean` is (halves, feature).
        """
        half, centred = self.strip.mine.half(piece), RULES[self.strip.job.settings.measure].centred
        rows = [np.flatnonzero(half == h) for h in range(len(columns))]
        out = [np.empty((len(some), len(taken))) for some, taken in zip(columns, rows, strict=True)]
        for inside, part, block in store.iter_blocks(piece, features):
            top, left = inside.start - piece.start, part.start - features.start
            for h, (some, taken) in enumerate(zip(columns, rows, strict=True)):
                i, j = np.searchsorted(some, [left, part.stop - features.start])
                t, u = np.searchsorted(taken, [top, inside.stop - piece.start])
                centre_columns(
                    block, taken[t:u] - top, some[i:j] - left, centred * mean[h, some[i:j]], out[h][i:j, t:u]
                )
        return out


_NONE = np.zeros(0, np.intp)


def _correlation(sums: Array, half: Half, a: Array, b: Array) -> Array:
    """Return r of sums of products; `a` and `b` broadcast against them. NaN where it is not defined."""
    r = np.empty(sums.shape)
    ids = [np.broadcast_to(part, sums.shape).astype(np.intp).ravel() for part in (a, b)]
    correlate_pairs(sums.ravel(), half._replace(snap=SNAP), ids[0], ids[1], r.reshape(-1))
    return r


def _read_pairs(job: Job) -> Pairs:
    """Return the pairs in lists that were computed again; panels come in order, and so do keys."""
    stored = [load_arrays(_file("exact", i, job)) for i in range(job.plan.n_panels)]
    empty = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    named = zip(Pairs._fields, empty, strict=True)
    return Pairs(*(np.concatenate([none, *(part[name] for part in stored)]) for name, none in named))


def _swapped(pairs: Pairs, job: Job) -> Pairs:
    """Return the same with the B feature first."""
    a, b = np.divmod(pairs.key, job.b.n_features)
    key = _keys(b, a, job.a.n_features)
    order = np.argsort(key)
    return Pairs(key[order], pairs.r[order], pairs.held_out[order])


def _replace_whole(job: Job, left: Open, rows: Best, columns: Best) -> None:
    """Put the lists of features that were correlated with the whole other side in place."""
    if not len(left.whole_a) + len(left.whole_b):
        return
    parts = []
    for i in range(job.plan.n_panels):
        stored = load_arrays(_file("exact", i, job))
        a, b = (Best(*(stored[f"whole_{side}_{name}"] for name in Best._fields)) for side in "ab")
        for old, new in zip(rows, a, strict=True):
            old[left.within(job.features(i)).whole_a] = new
        parts.append(compact(b, np.arange(len(left.whole_b)), job.features(i)))
    if len(left.whole_b):
        for old, new in zip(columns, merge_all(len(left.whole_b), job.n_candidates, parts), strict=True):
            old[left.whole_b] = new


def _final(best: Best, pairs: Pairs, n_second: int, top_k: int) -> Best:
    """Put the new r into lists, sort them by descending r and ascending id, and cut them to length."""
    key = np.where(best.id >= 0, _keys(np.arange(len(best.id))[:, None], best.id, n_second), -1)
    r, held_out = _updated(pairs, key, best.r, best.held_out)
    order = np.lexsort((best.id, -r), axis=-1)[:, :top_k]
    return Best(*(np.take_along_axis(part, order, axis=1) for part in (best.id, r, held_out)))


def _updated(pairs: Pairs, key: Array, r: Array, held_out: Array) -> tuple[Array, Array]:
    """Return r and held-out r of the pairs of these keys, the new ones where there are."""
    if not len(pairs.key):
        return r, held_out
    at = np.searchsorted(pairs.key, key)
    at[at == len(pairs.key)] = 0
    computed = pairs.key[at] == key
    new = computed & ~np.isnan(pairs.r[at])
    return np.where(new, pairs.r[at], r), np.where(computed, pairs.held_out[at], held_out)


def _rewrite(  # noqa: PLR0917 - where, then what
    i: int, job: Job, name: str, pattern: scipy.sparse.csr_array, values: Array, left: Array
) -> None:
    """Write a panel's shard again, with those pairs of the pattern that are left."""
    row = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))[left]
    start = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=pattern.shape[0]))])
    shard = scipy.sparse.csr_array((values[left], pattern.indices[left], start), shape=pattern.shape)
    write_sparse_shard(job.folder, name, i, shard)
