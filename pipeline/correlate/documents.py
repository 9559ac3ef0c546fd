"""Sums over each document for chosen pairs of features: enough for r of any set of documents, without the stores.

Tokens of one document are not independent, so what is resampled or left out is whole documents. r of a pair over any
documents follows from six numbers of each, n, Σx, Σy, Σx², Σy², Σxy, which one pass over the stores collects for all
pairs. A task holds them for as many pairs as its memory allows; every task reads both stores once.

Where the stores have no documents, or only one, blocks of :data:`BLOCK_ROWS` rows stand for them.
"""

# ruff: noqa: PLR0917  (compiled functions take everything by position)

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import ArrayLike, NDArray

from pipeline.correlate.job import Store
from pipeline.correlate.kernels.csr import EXCLUDED, Rows
from pipeline.correlate.measures import RULES
from pipeline.correlate.plan import nth_slice, slices
from pipeline.correlate.resources import find_resources, parse_memory
from pipeline.correlate.rows import Texts, read_halves, read_texts
from pipeline.settings.correlate import Measure, Select
from pipeline.settings.match import heldout_note_of
from pipeline.work.pairs import feature_ids
from pipeline.work.workers import run_tasks
from storage import BudgetError, InputError, check_same_rows, fingerprint, open_activations, open_result
from storage.identity import hash_of_ids
from storage.jit import cached_njit
from storage.rows import check_order

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Floats = NDArray[np.float64]
#: Pairs of features as a result on disk, an open one, or ids of A and of B.
Pairs = str | Path | xr.Dataset | tuple[ArrayLike, ArrayLike]

#: Rows of a block that stands for a document where there are none.
BLOCK_ROWS = 256
#: Pairs that are worked on together; fixed, so that results do not depend on the memory.
PAIRS = 16
#: Rows that are read at a time, and values of a dense slab.
SLAB_ROWS, SLAB_VALUES = 4096, 2**23
#: Sums of a document and pair, in their order.
SUMS = X, Y, XX, YY, XY = range(5)
#: A variance below this share of the mean square is rounding.
CONSTANT = 1e-12


@dataclass(frozen=True)
class Units:
    """What is resampled: documents or groups of them, or blocks of rows, each within one half.

    Attributes
    ----------
    kind
        ``documents``, ``groups`` of documents, or ``blocks of 256 rows``.
    of_row
        (token,) int32 the unit of each row, those of the selecting half first; -1 where the row counts in no half.
    rows
        (unit,) int64 rows of each.
    number
        (unit,) int64 the number of the document or group.
    n_selecting
        How many units are in the selecting half.
    """

    kind: str
    of_row: NDArray[np.int32]
    rows: NDArray[np.int64]
    number: NDArray[np.int64]
    n_selecting: int

    def half(self, h: int) -> slice:
        """Return the units of a half."""
        return slice(0, self.n_selecting) if h == 0 else slice(self.n_selecting, len(self.rows))


def find_units(half: NDArray[np.int8], texts: Texts | None) -> Units:
    """Return the units of rows with these halves and documents.

    >>> units = find_units(np.array([1, 1, 0, -1], np.int8), Texts("document", np.array([3, 3, 8, 9])))
    >>> units.of_row.tolist(), units.rows.tolist(), units.number.tolist()
    ([1, 1, 0, -1], [1, 2], [8, 3])
    """
    counted = half != EXCLUDED
    kind, unit_of_row = f"blocks of {BLOCK_ROWS} rows", np.arange(len(half)) // BLOCK_ROWS
    if texts is not None and len(np.unique(texts.of_row[counted])) > 1:
        kind, unit_of_row = f"{texts.kind}s", texts.of_row.astype(np.int64)
    keys = np.stack([half[counted].astype(np.int64), unit_of_row[counted]])
    distinct, unit, rows = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
    of_row = np.full(len(half), EXCLUDED, np.int32)
    of_row[counted] = unit.ravel()
    return Units(kind, of_row, rows, distinct[1], int(np.count_nonzero(distinct[0] == 0)))


@dataclass(frozen=True)
class PairJob:
    """Chosen pairs of two stores, as tasks see them.

    Attributes
    ----------
    a, b
        The stores.
    ids_a, ids_b
        (pair,) int32.
    select, split_seed, measure
        As in the correlation that the pairs are from.
    step
        Pairs of a task.
    settings
        What the task does with the sums.
    """

    a: Store
    b: Store
    ids_a: NDArray[np.int32]
    ids_b: NDArray[np.int32]
    select: Select
    split_seed: int
    measure: Measure
    step: int
    settings: Mapping[str, Any]

    @property
    def n_halves(self) -> int:
        """2 if half of the rows is held out, else 1."""
        return 2 if self.select == "half" else 1

    def pairs(self, i: int) -> slice:
        """Return the pairs of task `i`."""
        return nth_slice(i, self.step, len(self.ids_a))

    def units(self) -> Units:
        """Read what is resampled."""
        paths = self.a.path, self.b.path
        return find_units(read_halves(*paths, self.select, seed=self.split_seed), read_texts(*paths))


def sum_documents(job: PairJob, pairs: slice, units: Units) -> Floats:
    """Read both stores once and return the sums of some pairs over every unit: Σx, Σy, Σx², Σy², Σxy, (unit, pair, 5).

    Dense values are taken less their mean in the store, where the measure allows it, so that nothing is lost where a
    mean is far from 0.
    """
    ids_a, ids_b = job.ids_a[pairs], job.ids_b[pairs]
    of_a, of_b = _by_feature(ids_a, job.a.n_features), _by_feature(ids_b, job.b.n_features)
    sums = np.zeros((len(units.rows), len(ids_a), len(SUMS)))
    current = np.zeros(job.b.n_features)
    for slab in _slabs(job, len(units.of_row)):
        rows = [_read(store, slab, ids, job.measure) for store, ids in ((job.a, ids_a), (job.b, ids_b))]
        add_sums(*rows, units.of_row[slab], of_a, of_b, ids_b, current, sums)
    return sums


def _by_feature(ids: NDArray[np.int32], n_features: int) -> tuple[Array, Array]:
    """Return where each feature's pairs begin, and the pairs in that order."""
    start = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=n_features))])
    return start, np.argsort(ids, kind="stable")


def _slabs(job: PairJob, n_rows: int) -> Iterator[slice]:
    widest = max([store.n_features for store in (job.a, job.b) if not store.sparse], default=1)
    step = max(1, min(SLAB_ROWS, SLAB_VALUES // widest))
    return slices(0, n_rows, step)


def _read(store: Store, slab: slice, ids: NDArray[np.int32], measure: Measure) -> Rows:
    """Return the rows of a slab; of a dense store only the columns that are asked for."""
    if store.sparse:
        return store.read_rows(slab)
    used = np.unique(ids)
    block = store.read_block(slab, slice(0, store.n_features))[:, used].astype(np.float64)
    rule = RULES[measure]
    if rule.centred and not rule.firing:
        block -= open_activations(store.path)["mean"].values[used]
    start = np.arange(0, block.size + 1, len(used))
    return Rows(start, np.tile(used.astype(np.uint32), len(block)), block.ravel())


@cached_njit
def add_sums(
    a: Rows,
    b: Rows,
    unit: Array,
    of_a: tuple[Array, Array],
    of_b: tuple[Array, Array],
    ids_b: Array,
    current: Array,
    sums: Array,
) -> None:
    """Add the rows of a slab to the sums of their units, (unit, pair, 5); `unit` is -1 where a row belongs to none.

    `of_a` and `of_b` are where each feature's pairs begin, and all pairs in that order. `current`, (feature_b,), is
    zeros before and after.
    """
    for row in range(unit.size):
        u = unit[row]
        if u < 0:
            continue
        for at in range(b.start[row], b.start[row + 1]):
            f, value = b.feature[at], np.float64(b.value[at])
            current[f] = value
            for i in range(of_b[0][f], of_b[0][f + 1]):
                sums[u, of_b[1][i], 1] += value
                sums[u, of_b[1][i], 3] += value * value
        for at in range(a.start[row], a.start[row + 1]):
            f, value = a.feature[at], np.float64(a.value[at])
            for i in range(of_a[0][f], of_a[0][f + 1]):
                pair = of_a[1][i]
                sums[u, pair, 0] += value
                sums[u, pair, 2] += value * value
                sums[u, pair, 4] += value * current[ids_b[pair]]
        for at in range(b.start[row], b.start[row + 1]):
            current[b.feature[at]] = 0.0


def r_of_sums(measure: Measure, n: Floats, sums: Floats) -> Floats:
    """Return r of sums over some documents, (…, pair, 5), of `n` rows, (…, 1); NaN where it is not defined.

    >>> x, y = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 5.0])
    >>> sums = np.array([[x.sum(), y.sum(), x @ x, y @ y, x @ y]])
    >>> bool(np.isclose(r_of_sums("pearson", np.array([3.0]), sums)[0], np.corrcoef(x, y)[0, 1]))
    True
    """
    x, y, xx, yy, xy = (sums[..., i] for i in SUMS)
    rule = RULES[measure]
    if rule.overlap:
        either = x + y - xy
        defined = (x > 0) & (y > 0)
        return np.divide(xy, either, out=np.full_like(xy, np.nan), where=defined)
    if rule.centred:
        left, right, product = n * xx - x * x, n * yy - y * y, n * xy - x * y
        defined = (left > CONSTANT * n * xx) & (right > CONSTANT * n * yy)
    else:
        left, right, product = xx, yy, xy
        defined = (xx > 0) & (yy > 0)
    root = np.sqrt(np.where(defined, left, 1.0)) * np.sqrt(np.where(defined, right, 1.0))
    return np.where(defined, np.clip(product / root, -1.0, 1.0), np.nan)


@dataclass(frozen=True)
class ChosenPairs:
    """Pairs, where they are from, and how they were chosen.

    Attributes
    ----------
    ids_a, ids_b
        (pair,) int32.
    attrs
        Attributes of the result that they are from; empty for ids.
    fingerprint
        Identifies them.
    """

    ids_a: NDArray[np.int32]
    ids_b: NDArray[np.int32]
    attrs: Mapping[str, Any]
    fingerprint: str

    def measure(self, chosen: Measure | None) -> Measure:
        """Return the measure that was chosen; if none was, that of the result that the pairs are from."""
        return chosen or self.attrs.get("measure", "pearson")

    def split_seed(self, chosen: int | None) -> int:
        """Return the seed of the halves that was chosen; if none was, that of the result that the pairs are from."""
        return int(self.attrs.get("split_seed", 0)) if chosen is None else chosen

    @property
    def note(self) -> dict[str, Any]:
        """The attribute that says that held-out r took part in choosing the pairs; empty if it did not."""
        return heldout_note_of(self.attrs)

    def inputs(self, paths: tuple[Path, Path]) -> dict[str, str]:
        """Return the fingerprints of all that a result is made from."""
        return {"pairs": self.fingerprint, "a": fingerprint(paths[0]), "b": fingerprint(paths[1])}


def read_pairs(pairs: Pairs) -> ChosenPairs:
    """Return the pairs of a `match` result, the mutually best partners of a `correlate` result, or given ids.

    Raises
    ------
    InputError
        If it is neither, or there are none.
    """
    if isinstance(pairs, tuple):
        ids = [np.asarray(side, np.int32) for side in pairs]
        if len(ids) != 2 or ids[0].ndim != 1 or ids[0].shape != ids[1].shape:
            raise InputError(f"Pairs as ids are two lists of one length, not of shapes {[side.shape for side in ids]}")
        chosen = _chosen(ids[0], ids[1], {})
    else:
        chosen = _of_result(pairs if isinstance(pairs, xr.Dataset) else open_result(pairs))
    if not len(chosen.ids_a):
        raise InputError("There are no pairs: nothing to measure. Match with a lower min_correlation")
    return chosen


def _of_result(ds: xr.Dataset) -> ChosenPairs:
    if "feature_a" in ds.variables and ds["feature_a"].dims == ("pair",):
        return _chosen(feature_ids(ds, "a"), feature_ids(ds, "b"), ds.attrs)
    if "best_b" not in ds or "best_a" not in ds:
        raise InputError(
            f"{ds.encoding.get('source', 'The dataset')} holds no pairs: give the result of `match` or `correlate`"
        )
    best_b, best_a = (ds[side].isel(rank=0).values for side in ("best_b", "best_a"))
    feature = np.flatnonzero(best_b >= 0)
    mutual = feature[best_a[best_b[feature]] == feature].astype(np.int32)
    return _chosen(mutual, best_b[mutual].astype(np.int32), ds.attrs)


def _chosen(ids_a: NDArray[np.int32], ids_b: NDArray[np.int32], attrs: Mapping[str, Any]) -> ChosenPairs:
    """Return pairs whose fingerprint is that of their ids: a dataset in memory may hold a part of a result."""
    return ChosenPairs(ids_a, ids_b, attrs, hash_of_ids(ids_a, ids_b))


def check_pairs(chosen: ChosenPairs, paths: tuple[Path, Path], measure: Measure) -> None:
    """Raise an InputError unless the pairs are of these stores, and the measure is made of sums."""
    if measure not in RULES:
        raise InputError(f"There is no measure {measure!r}; it is one of {', '.join(RULES)}")
    if RULES[measure].ranked:
        raise InputError(
            "Ranks change with the rows that are drawn, so Spearman's is not made of sums over documents: "
            "give measure='pearson' for Pearson's r of the same pairs"
        )
    check_same_rows(*paths)
    for side, path, ids in zip("ab", paths, (chosen.ids_a, chosen.ids_b), strict=True):
        n_features = open_activations(path).sizes["feature"]
        if ids.min() < 0 or ids.max() >= n_features:
            raise InputError(
                f"The pairs have {side.upper()} features {ids.min()} to {ids.max()}, and {path} has 0 to "
                f"{n_features - 1}: these are not the stores that the pairs were found in"
            )
    given = {side: fingerprint(path) for side, path in zip("ab", paths, strict=True)}
    check_order(chosen.attrs.get("stores"), given, "the activations")


def make_job(
    chosen: ChosenPairs, paths: tuple[Path, Path], select: Select, measure: Measure, settings: Mapping[str, Any]
) -> PairJob:
    """Return the job of some pairs; the widths of its tasks are set when it is run. `settings` has `split_seed`."""
    a, b = (Store.of(path, open_activations(path), firing=RULES[measure].firing) for path in paths)
    return PairJob(
        a=a,
        b=b,
        ids_a=chosen.ids_a,
        ids_b=chosen.ids_b,
        select=select,
        split_seed=settings["split_seed"],
        measure=measure,
        step=PAIRS,
        settings=settings,
    )


def run_blocks(
    job: PairJob,
    function: Callable[..., dict[str, Array]],
    client: Client,
    memory: str | int,
    extra: tuple[int, int],
    label: str,
) -> dict[str, Array]:
    """Run a function over blocks of pairs, as wide as the memory allows, and join its arrays along the last axis.

    `extra`: bytes that a task takes besides the sums, in all and for each pair.
    """
    resources = find_resources(client, parse_memory(memory))
    units = job.units()
    allowed = (resources.allowed - resources.reserved) // resources.threads
    fixed, per_pair = extra[0] + _reading_bytes(job, len(units.of_row)), extra[1] + 8 * len(SUMS) * len(units.rows)
    fitting = (allowed - fixed) // per_pair // PAIRS * PAIRS
    if fitting < PAIRS:
        projected, reserved = (number / 1e9 for number in (fixed + PAIRS * per_pair, resources.reserved))
        raise BudgetError(
            f"Sums over {len(units.rows)} {units.kind} for {PAIRS} pairs take {projected:.2f} GB for each task "
            f"(projected), and {allowed / 1e9:.2f} GB is allowed, after {reserved:.2f} GB that is reserved for the "
            "interpreter and libraries of each process. Raise memory"
        )
    share = -(-len(job.ids_a) // resources.slots // PAIRS) * PAIRS
    sized = replace(job, step=max(PAIRS, min(fitting, share)))
    blocks = range(-(-len(job.ids_a) // sized.step))
    done = dict(run_tasks(client, function, blocks, name="correlate-pairs", label=label, args=(sized,)))
    return {name: np.concatenate([done[i][name] for i in blocks], axis=-1) for name in done[0]}


def _reading_bytes(job: PairJob, n_rows: int) -> int:
    """Return the bytes of a slab of both stores, and of the units of all rows while they are found."""
    total = 64 * n_rows
    for store in (job.a, job.b):
        total += 64 * store.n_features
        if not store.sparse:
            total += 24 * SLAB_VALUES
        else:
            entries = open_activations(store.path)["n_active"].values.sum() / max(1, n_rows)
            total += int(40 * entries * min(SLAB_ROWS, n_rows))
    return total
