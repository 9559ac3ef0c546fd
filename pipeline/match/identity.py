"""How much of a pair's r is no more than "both know which token this is".

Two features that fire on the same words correlate, whatever the models do with those words. So r of a pair is set
beside what it would be if B read the same segment in another document::

    r = token part + excess

A pair without excess agrees on nothing but spelling. :mod:`pipeline.match.excess` defines both and says how certain
they are; :mod:`pipeline.match.segments`, which rows are of the same segment.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr
from numpy.typing import NDArray

from pipeline.correlate.documents import Units, find_units
from pipeline.correlate.influence import FEWEST_EFFECTIVE
from pipeline.correlate.rows import read_halves, read_texts
from pipeline.match.excess import Cells, excess_of_pairs, make_cells
from pipeline.match.run import check_stores
from pipeline.match.segments import number_segments
from pipeline.settings.correlate import Select
from pipeline.settings.match import heldout_note_of
from pipeline.work.pairs import feature_ids
from storage import (
    fingerprint,
    is_sparse,
    make_result,
    new_manifest,
    open_activations,
    open_result,
    read_csr,
    read_dense,
)
from storage.codec import is_sparse_matrix
from storage.errors import InputError

logger = logging.getLogger(__name__)

STAGE = "token_identity"
SUFFIXES = ("", "_heldout")

Sparse = scipy.sparse.csc_array


def token_identity(
    pairs: xr.Dataset | str | Path,
    a: str | Path,
    b: str | Path,
    out: str | Path | None = None,
    *,
    corpus: str | Path | None = None,
    previous: bool = False,
    level: float = 0.95,
    overwrite: bool = False,
) -> xr.Dataset:
    """Split every pair's r into what the token's identity explains and the rest.

    Streams both stores once. Memory: one shard of either, 32 bytes per non-zero value of a paired feature (for dense
    stores, per value), and 100 bytes per row.

    Parameters
    ----------
    pairs
        The result of ``match``, or its path.
    a, b
        The stores that were correlated.
    out
        Path of the result; an up-to-date one is left unchanged. Without it, the result is only in memory.
    corpus
        The text of the stores: rows are compared with rows of the same text. Without it, with rows of the same token
        ids on both sides, which with two tokenizers are fragments of the text.
    previous
        Whether rows must have the same previous segment too.
    level
        Nominal coverage of the intervals.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.

    Returns
    -------
    xarray.Dataset
        Over ``pair``, float64, on the rows that chose the pairs, and with the suffix ``_heldout`` on the others (quote
        these): ``r``; ``token_part``, r with B's value in a row of the same segment in another document; ``excess``,
        the difference, and ``excess_low`` and ``excess_high``, the ends of its interval; ``excess_p``, one-sided p of
        no excess; ``n_effective``, how many documents carry the pair. All leave out sinks and rows whose segment no
        other document has. Interval and p are NaN with fewer than two effective documents, and everything is where a
        feature does not vary. Attributes, over the halves: ``n_rows`` that are used, ``n_rows_left_out``,
        ``n_documents``; ``segments_known_by``, ``unit``, and ``note``.

    Raises
    ------
    InputError
        If a store is not the correlated one, there is neither a corpus nor token ids, or no segment is in two
        documents.
    RowMismatchError
        If the stores are of another corpus.

    Examples
    --------
    Both features know the token; the second pair also agrees on where in the text it stands.

    >>> import tempfile, storage
    >>> folder, place = tempfile.mkdtemp(), np.arange(600)
    >>> rows = {"document": place // 6, "char_start": place, "char_end": place + 1, "token_id": place % 2}
    >>> sense = np.random.default_rng(0).random(600)
    >>> for name in "ab":
    ...     values = np.stack([place % 2 + 0.1, (place % 2) * sense], axis=1)
    ...     storage.write_activations(f"{folder}/{name}.zarr", values, tokens=rows)
    >>> same = xr.Dataset({f"feature_{side}": ("pair", [0, 1]) for side in "ab"})
    >>> found = token_identity(same, f"{folder}/a.zarr", f"{folder}/b.zarr")
    >>> found.token_part_heldout.values.round(1), found.excess_heldout.values.round(1)
    (array([1. , 0.6]), array([0. , 0.4]))
    """
    matched = pairs if isinstance(pairs, xr.Dataset) else open_result(pairs, "match")
    if "stores" in matched.attrs:
        check_stores((a, b), matched.attrs["stores"])
    if not 0 < level < 1:
        raise InputError(f"level is between 0 and 1, not {level}")
    ids = [feature_ids(matched, side).astype(np.int64) for side in "ab"]
    select = matched.attrs.get("select", "half")
    digest = {f"feature_{side}": values.tolist() for side, values in zip("ab", ids, strict=True)} if out else {}
    inputs = {"a": fingerprint(a), "b": fingerprint(b)} | ({"corpus": fingerprint(corpus)} if corpus else {})
    split_seed = int(matched.attrs.get("split_seed", 0))
    settings = {"select": select, "split_seed": split_seed, "previous": previous, "level": level}
    manifest = new_manifest(STAGE, inputs, digest | settings)

    def make() -> xr.Dataset:
        paths = Path(a), Path(b)
        segments = number_segments(a, b, corpus, previous=previous)
        units = find_units(read_halves(*paths, select, seed=split_seed), read_texts(*paths))
        cells = _cells_of_halves(segments.number, units, select)
        if not all(len(half.cell) for half in cells):
            raise InputError(
                f"No segment ({segments.known_by}) of {a} is in two {units.kind} of one half, so there is nothing to "
                f"compare with: {[half.n_left_out for half in cells]} rows in the halves. Harvest more documents"
            )
        estimates = _estimate(paths, ids, cells, level)
        attrs = settings | {"segments_known_by": segments.known_by, "unit": units.kind}
        return _dataset(ids, estimates, cells).assign_attrs(attrs | heldout_note_of(matched.attrs))

    return make_result(out, manifest, make, overwrite=overwrite)


def _cells_of_halves(segment: NDArray[np.int32], units: Units, select: Select) -> list[Cells]:
    halves = [units.half(h) for h in range(2 if select == "half" else 1)]
    return [make_cells(segment, _within(half, units.of_row)) for half in halves]


def _within(half: slice, unit: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return units of a half counted from its first; -1 for all others."""
    return np.where((unit >= half.start) & (unit < half.stop), unit - half.start, -1)


def _estimate(
    paths: tuple[Path, Path], ids: Sequence[NDArray[np.int64]], cells: Sequence[Cells], level: float
) -> list[dict[str, NDArray[np.float64]]]:
    """Return the estimates of each half by name; sides are read, and halves estimated, at the same time."""
    used, columns = zip(*(np.unique(features, return_inverse=True) for features in ids), strict=True)
    with ThreadPoolExecutor(2) as pool:
        sides = pool.map(_read_columns, paths, used, [cells, cells])
        halves = pool.map(lambda half: excess_of_pairs(*half, level=level), _halves(sides, columns, cells))
        return [estimates._asdict() for estimates in halves]


def _halves(sides: Iterable[list[Sparse]], columns: Sequence[Any], cells: Sequence[Cells]) -> list[tuple[Any, ...]]:
    """Return what the estimates of each half are made from."""
    return [(a, b, tuple(columns), half) for a, b, half in zip(*sides, cells, strict=True)]


def _read_columns(path: Path, features: NDArray[np.int64], cells: Sequence[Cells]) -> list[Sparse]:
    """Read a store once, and return some features in the rows of each half, (place, feature)."""
    parts: list[list[tuple[Any, ...]]] = [[] for _ in cells]
    for rows, shard in _shards(path, features):
        for half, part in zip(cells, parts, strict=True):
            place = half.place[rows][shard.row]
            used = place >= 0
            part.append((shard.data[used], place[used], shard.col[used]))
    return [_join(part, (len(half.cell), len(features))) for half, part in zip(cells, parts, strict=True)]


def _shards(path: Path, features: NDArray[np.int64]) -> Iterator[tuple[slice, scipy.sparse.coo_array]]:
    """Yield some features of a store, shard by shard; of a dense store less their means."""
    store, sparse = open_activations(path), is_sparse(path)
    step, n = store["activation"].encoding["shards"][0], store.sizes["token"]
    mean = store["mean"].values[features]
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        shard: Any = read_csr(path, rows) if sparse else read_dense(path, rows)[:, features] - mean
        values = shard.tocsc()[:, features] if is_sparse_matrix(shard) else shard
        yield rows, scipy.sparse.coo_array(values.astype(np.float32))


def _join(parts: Sequence[tuple[Any, ...]], shape: tuple[int, int]) -> Sparse:
    values, place, column = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    joined = Sparse((values, (place, column)), shape=shape)
    joined.sort_indices()
    return joined


def _dataset(
    ids: Sequence[NDArray[np.int64]], estimates: Sequence[dict[str, NDArray[np.float64]]], cells: Sequence[Cells]
) -> xr.Dataset:
    variables: dict[str, Any] = {f"feature_{side}": ("pair", values) for side, values in zip("ab", ids, strict=True)}
    for suffix, half in zip(SUFFIXES, estimates, strict=False):
        variables |= {f"{name}{suffix}": ("pair", values) for name, values in half.items()}
    attrs: dict[str, Any] = {
        "n_rows": [len(half.cell) for half in cells],
        "n_rows_left_out": [half.n_left_out for half in cells],
        "n_documents": [len(half.weight) for half in cells],
    }
    if note := _few_documents(estimates[-1]):
        attrs["note"] = note
        logger.warning("%s", note)
    return xr.Dataset(variables, attrs=attrs)


def _few_documents(estimates: dict[str, NDArray[np.float64]]) -> str:
    """Say how many pairs have an excess, but no interval, in the half to quote; nothing if none."""
    few = np.isfinite(estimates["excess"]) & np.isnan(estimates["excess_p"])
    if not few.any():
        return ""
    return (
        f"{np.count_nonzero(few)} of {len(few)} pairs have fewer than {FEWEST_EFFECTIVE:g} effective documents in the "
        "half to quote, so no interval and no p; harvest more documents"
    )
