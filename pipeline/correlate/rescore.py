"""Where the dense kernel's rounding could decide, r is computed again in float64.

::

    lists of all panels (top_k + SPARE partners, r to ERROR)          kept pairs (r ≥ keep_above − ERROR)
        │  neighbours closer than 2·ERROR, r near 1                       │  r near keep_above, r near 1
        └───────────────▶ doubtful pairs, by panel ◀──────────────────────┘
                                   │ one task a panel: both sides once more, only the features concerned
                                   ▼
                  lists sorted again and cut to top_k; kept pairs corrected

So ids in lists, and which pairs are kept, are those of float64, and the r of a feature with its copy is exactly 1. A
feature with more ties than there are spare places (copies, mostly) is correlated with *all* features of the other side
again. Other r keep the error of float32 products, less than :data:`~pipeline.correlate.kernels.dense.ERROR`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from distributed import Client
from numpy.typing import NDArray

from pipeline.correlate.job import Job, Shared, load_arrays, save_arrays, shared
from pipeline.correlate.kernels.dense import ERROR, NEAR_ONE
from pipeline.correlate.kernels.exact import add_all, add_pairs, centred_columns
from pipeline.correlate.kernels.reduce import Best, Half, correlate_pairs
from pipeline.correlate.measures import RULES, Rule
from pipeline.correlate.moments import Moments, join
from pipeline.correlate.panel import R_HELD_OUT, Places, R, b_panels, halves_of
from pipeline.correlate.topk import best_of, compact, empty_best, merge_all
from pipeline.workers import n_slots, run_tasks
from storage import read_csr, write_sparse_shard

logger = logging.getLogger(__name__)

Array = NDArray[Any]

#: |r| nearer to 1 than this is 1: rounding of float64 sums of squares in another order than sums of products.
SNAP = 1e-12
#: Features that are correlated with all others again in one pass over the rows; bounds the memory of their sums.
AT_ONCE = 64
#: How often a piece of rows of A is held, in float64.
ROW_COPIES = 3


class Doubts(NamedTuple):
    """What is to be computed again: pairs, and features with the whole other side. Ids as in the stores."""

    pair_a: Array
    pair_b: Array
    whole_a: Array
    whole_b: Array

    @property
    def none(self) -> bool:
        """Whether nothing is in doubt."""
        return not any(len(part) for part in self)

    def within(self, features: slice) -> Doubts:
        """Return those that a panel of A features is to compute."""
        mine, whole = (((ids >= features.start) & (ids < features.stop)) for ids in (self.pair_a, self.whole_a))
        return Doubts(self.pair_a[mine], self.pair_b[mine], self.whole_a[whole], self.whole_b)


class Pairs(NamedTuple):
    """r of pairs in float64, sorted by key (see :func:`_keys`); held-out r is NaN where there is none."""

    key: Array
    r: Array
    held_out: Array


def rescore(job: Job, rows: Best, columns: Best, client: Client) -> tuple[Best, Best, int]:
    """Make lists and kept pairs final.

    Parameters
    ----------
    job
        A job whose panels are all on disk.
    rows, columns
        Partners of all A and of all B features, ``job.n_candidates`` each; ids of the stores, r -inf where empty.
    client
        Where to run.

    Returns
    -------
    tuple
        Both lists with `top_k` partners, and the number of kept pairs.
    """
    doubts = find_doubts(job, rows, columns)
    groups = [group for group in _groups(job, n_slots(client)) if _write_doubts(group, job, doubts)]
    if groups:
        logger.info(
            "Computing r of %d pairs, and of %d features with all others, again in float64: ties, thresholds, near 1",
            len(doubts.pair_a), len(doubts.whole_a) + len(doubts.whole_b),
        )  # fmt: skip
    for _ in run_tasks(client, rescore_group, groups, name="correlate-rescore", label="Re-scoring", args=(job,)):
        pass
    pairs = _read_pairs(job, groups)
    _replace_whole(job, groups, doubts, rows, columns)
    final_rows = _final(rows, pairs, job.b.n_features, job.top_k)
    final_columns = _final(columns, _swapped(pairs, job), job.a.n_features, job.top_k)
    return final_rows, final_columns, sum(_correct_kept(i, job, pairs) for i in range(job.plan.n_panels))


def _keys(first: Array, second: Array, n_second: int) -> Array:
    """Return one number for each pair of ids, in the order of the pairs."""
    return first.astype(np.int64) * n_second + second


def find_doubts(job: Job, rows: Best, columns: Best) -> Doubts:
    """Return what float64 may decide otherwise than the panels did."""
    in_rows, whole_a = doubtful(rows, job.top_k)
    in_columns, whole_b = doubtful(columns, job.top_k)
    a, place = np.nonzero(in_rows)
    b, place_b = np.nonzero(in_columns)
    keys = [_keys(a, rows.id[a, place], job.b.n_features), _keys(columns.id[b, place_b], b, job.b.n_features)]
    keys += [_doubtful_kept(i, job) for i in range(job.plan.n_panels)]
    pair_a, pair_b = np.divmod(np.unique(np.concatenate(keys)), job.b.n_features)
    return Doubts(pair_a, pair_b, np.flatnonzero(whole_a), np.flatnonzero(whole_b))


def doubtful(best: Best, top_k: int) -> tuple[Array, Array]:
    """Return which places of lists float64 may change, and which lists have too many of them to know all.

    Parameters
    ----------
    best
        (feature, place), r descending, each within ERROR of the truth.
    top_k
        Places that count.

    Returns
    -------
    tuple
        (feature, place) bool: neighbours in a chain of r so close that their order is open, if the chain reaches a
        place that counts; and r beyond NEAR_ONE. (feature,) bool: the chain reaches the end of a full list.

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
    near_one = used & (_near_one(r) | _near_one(best.held_out))
    full = used[:, -1] & (r.shape[1] > top_k)
    return (in_chain & (chain <= last) & used) | near_one, full & (chain[:, -1] == last[:, 0])


def _near_one(r: Array) -> Array:
    """Say which r are so near to 1 or -1 that they are computed again; NaN are not."""
    return (np.abs(r) > NEAR_ONE) & (np.abs(r) < 2)


class _Kept(NamedTuple):
    """A panel's kept pairs as they are on disk: the pattern of ``r``, keys, r, and held-out r (NaN if there is none).

    ``r`` is always written first: where a run died between the two, ``r_heldout`` has pairs that ``r`` has not, and
    `stale` says so.
    """

    pattern: scipy.sparse.csr_array
    key: Array
    r: Array
    held_out: Array
    stale: bool


def _read_kept(i: int, job: Job) -> _Kept:
    """Read a panel's kept pairs; of the held-out ones, those that ``r`` has."""
    features = job.plan.features(i, job.a.n_features)
    pattern = read_csr(job.folder, features, name=R)
    key = _kept_keys(pattern, i, job)
    if job.n_halves == 1:
        return _Kept(pattern, key, pattern.data, np.full(pattern.nnz, np.nan), stale=False)
    other = read_csr(job.folder, features, name=R_HELD_OUT)
    held_out = other.data[np.searchsorted(_kept_keys(other, i, job), key)]
    return _Kept(pattern, key, pattern.data, held_out, stale=other.nnz != pattern.nnz)


def _doubtful_kept(i: int, job: Job) -> Array:
    """Return the keys of a panel's kept pairs that may be below the threshold, or are near 1."""
    kept = _read_kept(i, job)
    return kept.key[(np.abs(kept.r - job.keep_above) <= ERROR) | _near_one(kept.r) | _near_one(kept.held_out)]


def _kept_keys(r: scipy.sparse.csr_array, i: int, job: Job) -> Array:
    """Return the keys of a panel's kept pairs."""
    a = i * job.plan.panel + np.repeat(np.arange(r.shape[0]), np.diff(r.indptr))
    return _keys(a, r.indices, job.b.n_features)


class Group(NamedTuple):
    """Panels that are computed again by one task, since each task reads all of B: from `first` to before `stop`."""

    first: int
    stop: int

    def features(self, job: Job) -> slice:
        """Return the A features of the group."""
        last = job.plan.features(self.stop - 1, job.a.n_features)
        return slice(self.first * job.plan.panel, last.stop)

    def file(self, kind: str, job: Job) -> Path:
        """Return the file of what the group is to compute (``doubts``) or has computed (``exact``)."""
        return job.panels / f"{kind}-{self.first:05d}.npz"


def _groups(job: Job, n_tasks: int) -> list[Group]:
    """Return groups of panels, one for each task that can run at once, unless their rows outgrow a panel's tile."""
    tile = 8 * job.plan.panel * job.b.n_features * job.n_halves
    fit = tile // (ROW_COPIES * 8 * max(job.a.piece_rows, job.b.piece_rows) * job.plan.panel)
    size = max(1, min(-(-job.plan.n_panels // n_tasks), fit))
    return [Group(i, min(i + size, job.plan.n_panels)) for i in range(0, job.plan.n_panels, size)]


def _write_doubts(group: Group, job: Job, doubts: Doubts) -> bool:
    """Put what a group has to compute again on disk; say whether there is any."""
    mine = doubts.within(group.features(job))
    if not mine.none:
        save_arrays(mine._asdict(), group.file("doubts", job))
    return not mine.none


def rescore_group(group: Group, job: Job) -> Group:
    """Task: compute what is in doubt in some panels in float64 and put it on disk; return the group.

    Memory is that of a panel's own task or less: a piece of rows of either side in float64, the sums of the pairs,
    and those of :data:`AT_ONCE` features with all others.
    """
    work = _Work.load(group, job)
    doubts = Doubts(**load_arrays(group.file("doubts", job)))
    pair_b = work.mine.positions[doubts.pair_b]
    r, held_out = work.pairs(doubts.pair_a - work.features.start, pair_b)
    found = {"key": _keys(doubts.pair_a, doubts.pair_b, job.b.n_features), "r": r, "held_out": held_out}
    for side, ids in (("a", doubts.whole_a - work.features.start), ("b", work.mine.positions[doubts.whole_b])):
        lists = work.whole(side, ids)
        found |= {f"whole_{side}_{name}": array for name, array in lists._asdict().items()}
    save_arrays(found, group.file("exact", job))
    return group


@dataclass(frozen=True)
class _Work:
    """A range of A features, to be correlated in float64 with some or all B features.

    Attributes
    ----------
    mine
        What this process shares.
    features
        The range.
    moments
        Their statistics.
    halves
        What makes r of sums.
    """

    mine: Shared
    features: slice
    moments: Moments
    halves: tuple[Half, Half]

    @classmethod
    def load(cls, group: Group, job: Job) -> _Work:
        """Read the statistics that the panels' own tasks left."""
        mine = shared(job).load()
        moments = join(_stored_moments(i, job) for i in range(group.first, group.stop))
        return cls(mine, group.features(job), moments, halves_of(mine, moments))

    def pairs(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Return r of pairs in both halves; `a` are places in the range, `b` places among the B features that vary."""
        sums = np.zeros((self.mine.job.n_halves, len(a)))
        columns_a, at_a = np.unique(a, return_inverse=True)
        parts = [(panel, at, *_part_of(at, b)) for panel, at in b_panels(self.mine)] if len(a) else []
        for piece in self._pieces() if len(a) else ():
            x = self._read_a(piece, columns_a)
            for panel, at, chosen, columns_b, at_b in parts:
                if len(chosen):
                    y = self._read_b(piece, panel, at, columns_b)
                    for h, (one, other) in enumerate(zip(x, y, strict=True)):
                        added = sums[h, chosen]
                        add_pairs(added, one, other, at_a[chosen], at_b)
                        sums[h, chosen] = added
        return self._r(sums, a, b)

    def whole(self, side: str, some: Array) -> Best:
        """Return the best partners of some features of one side, in this range if they are of B."""
        k = self.mine.job.n_candidates
        batches = [self._whole_batch(side, some[i : i + AT_ONCE], k) for i in range(0, len(some), AT_ONCE)]
        return Best(*(np.concatenate(parts) for parts in zip(empty_best(0, k), *batches, strict=True)))

    def _whole_batch(self, side: str, some: Array, k: int) -> Best:
        width, n_b = self.features.stop - self.features.start, len(self.mine.defined)
        sums = np.zeros((self.mine.job.n_halves, len(some), n_b if side == "a" else width))
        add = self._add_whole_a if side == "a" else self._add_whole_b
        for piece in self._pieces():
            add(sums, piece, some)
        others = np.arange(sums.shape[2])
        ids = self.mine.defined if side == "a" else np.arange(self.features.start, self.features.stop)
        a, b = (some[:, None], others) if side == "a" else (others, some[:, None])
        return best_of(ids.astype(np.int32), *self._r(sums, a, b), k)

    def _add_whole_a(self, sums: Array, piece: slice, some: Array) -> None:
        x = self._read_a(piece, some)
        for panel, at in b_panels(self.mine):
            y = self._read_b(piece, panel, at, np.arange(len(at.within)))
            for h, (one, other) in enumerate(zip(x, y, strict=True)):
                part = np.zeros((len(some), len(at.within)))
                add_all(part, one, np.ascontiguousarray(other.T))
                sums[h, :, at.columns] += part

    def _add_whole_b(self, sums: Array, piece: slice, some: Array) -> None:
        x = self._read_a(piece, np.arange(self.features.stop - self.features.start))
        for panel, at in b_panels(self.mine):
            chosen, columns_b, at_b = _part_of(at, some)
            if len(chosen):
                y = self._read_b(piece, panel, at, columns_b)
                for h, (one, other) in enumerate(zip(x, y, strict=True)):
                    part = np.zeros((len(chosen), one.shape[0]))
                    add_all(part, np.ascontiguousarray(other[at_b]), np.ascontiguousarray(one.T))
                    sums[h, chosen] += part

    def _pieces(self) -> Iterator[slice]:
        """Yield pieces of rows, the same for every panel and side: sums are added up in one order only."""
        for slab in self.mine.slabs():
            yield from self.mine.job.a.pieces(slab)

    def _read_a(self, piece: slice, columns: Array) -> list[Array]:
        block = self.mine.job.a.read_block(piece, self.features)[:, columns]
        return _centred(block, self.mine.half[piece], self.rule.centred * self.moments.pivot[:, columns])

    def _read_b(self, piece: slice, panel: slice, at: Places, columns: Array) -> list[Array]:
        block = self.mine.job.b.read_block(piece, panel)[:, at.within[columns]]
        mean = self.rule.centred * self.mine.moments.pivot[:, at.features[columns]]
        return _centred(block, self.mine.half[piece], mean)

    @property
    def rule(self) -> Rule:
        """What the measure subtracts and counts."""
        return RULES[self.mine.job.measure]

    def _r(self, sums: Array, a: Array, b: Array) -> tuple[Array, Array]:
        """Return r of sums of products in both halves; the second is NaN where no rows are held out."""
        both = [_correlation(part, half, a, b) for part, half in zip(sums, self.halves, strict=False)]
        return both[0], both[1] if len(both) > 1 else np.full_like(both[0], np.nan)


def _stored_moments(i: int, job: Job) -> Moments:
    stored = load_arrays(job.panel_file(i))
    return Moments(**{k.removeprefix("moments_"): v for k, v in stored.items() if k.startswith("moments_")})


def _part_of(at: Places, b: Array) -> tuple[Array, Array, Array]:
    """Return which of the features `b` lie in a panel, their columns there (each once), and where each one is."""
    chosen = np.flatnonzero((b >= at.columns.start) & (b < at.columns.stop))
    columns, place = np.unique(b[chosen] - at.columns.start, return_inverse=True)
    return chosen, columns, place


def _centred(block: Array, half: Array, mean: Array) -> list[Array]:
    """Return (feature, row) float64 for each half, less the means."""
    return [centred_columns(block, np.flatnonzero(half == h), mean[h]) for h in range(len(mean))]


def _correlation(sums: Array, half: Half, a: Array, b: Array) -> Array:
    """Return r of sums of products; `a` and `b` broadcast against them. NaN where it is not defined."""
    r = np.empty(sums.shape)
    ids = [np.broadcast_to(part, sums.shape).astype(np.intp).ravel() for part in (a, b)]
    correlate_pairs(sums.ravel(), half._replace(snap=SNAP), ids[0], ids[1], r.reshape(-1))
    return r


def _read_pairs(job: Job, groups: list[Group]) -> Pairs:
    """Return the pairs that were computed again; groups come in order, and so do keys."""
    stored = [load_arrays(group.file("exact", job)) for group in groups]
    empty = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    named = zip(Pairs._fields, empty, strict=True)
    return Pairs(*(np.concatenate([none, *(part[name] for part in stored)]) for name, none in named))


def _swapped(pairs: Pairs, job: Job) -> Pairs:
    """Return the same with the B feature first."""
    a, b = np.divmod(pairs.key, job.b.n_features)
    key = _keys(b, a, job.a.n_features)
    order = np.argsort(key)
    return Pairs(key[order], pairs.r[order], pairs.held_out[order])


def _replace_whole(job: Job, groups: list[Group], doubts: Doubts, rows: Best, columns: Best) -> None:
    """Put the lists of features that were correlated with the whole other side in place."""
    parts = []
    for group in groups:
        stored = load_arrays(group.file("exact", job))
        a, b = (Best(*(stored[f"whole_{side}_{name}"] for name in Best._fields)) for side in "ab")
        for old, new in zip(rows, a, strict=True):
            old[doubts.within(group.features(job)).whole_a] = new
        parts.append(compact(b, np.arange(len(doubts.whole_b))))
    if len(doubts.whole_b):
        for old, new in zip(columns, merge_all(len(doubts.whole_b), job.n_candidates, parts), strict=True):
            old[doubts.whole_b] = new


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
    found = pairs.key[at] == key
    return np.where(found, pairs.r[at], r), np.where(found, pairs.held_out[at], held_out)


def _correct_kept(i: int, job: Job, pairs: Pairs) -> int:
    """Put the new r into a panel's kept pairs, drop those below the threshold, return how many are left."""
    kept = _read_kept(i, job)
    changed = bool(np.isin(kept.key, pairs.key).any())
    r, held_out = _updated(pairs, kept.key, kept.r, kept.held_out)
    left = r >= job.keep_above
    if changed:
        _rewrite(i, job, R, kept.pattern, r, left)
    if job.n_halves > 1 and (changed or kept.stale):
        _rewrite(i, job, R_HELD_OUT, kept.pattern, held_out, left)
    return int(left.sum())


def _rewrite(  # noqa: PLR0917 - where, then what
    i: int, job: Job, name: str, pattern: scipy.sparse.csr_array, values: Array, left: Array
) -> None:
    """Write a panel's shard anew, with those pairs of the pattern that are left."""
    row = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))[left]
    start = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=pattern.shape[0]))])
    shard = scipy.sparse.csr_array((values[left], pattern.indices[left], start), shape=pattern.shape)
    write_sparse_shard(job.folder, name, i, shard)
