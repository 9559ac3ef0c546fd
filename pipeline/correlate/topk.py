"""Lists of best partners: made empty, kept on disk for each finished panel, merged into those of all features.

Lists of all B features pass from panel to panel of a process, so that only what is better enters. Of them, a panel puts
on disk what it entered itself; most places are other panels'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.correlate.kernels.reduce import Best, empty_best, merge

Array = NDArray[Any]


def compact(best: Best, feature: Array, partners: slice) -> dict[str, Array]:
    """Return the places of some partners, one feature's after the other's, where each feature's begin, and its id."""
    used = (best.id >= partners.start) & (best.id < partners.stop)
    start = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    return {"feature": feature, "start": start, "id": best.id[used], "r": best.r[used], "held_out": best.held_out[used]}


def beside(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Join what :func:`compact` returned for features that follow each other."""
    starts, before = [np.zeros(1, np.int64)], 0
    for part in parts:
        starts.append(part["start"][1:] + before)
        before += int(part["start"][-1])
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("feature", "id", "r", "held_out")}
    return joined | {"start": np.concatenate(starts)}


def best_of_all(parts: Sequence[Best]) -> Best:
    """Return the best of lists of the same features, which list different partners; ties to the lower id.

    >>> one, two = empty_best(1, 2), empty_best(1, 2)
    >>> one.id[0, 0], one.r[0, 0] = 3, 0.5
    >>> two.id[0], two.r[0] = [7, 8], [0.9, 0.5]
    >>> best_of_all([one, two]).id
    array([[7, 3]], dtype=int32)
    """
    every = Best(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))
    order = np.lexsort((every.id, -every.r), axis=-1)[:, : parts[0].id.shape[1]]
    return Best(*(np.take_along_axis(array, order, axis=1) for array in every))


def merge_all(n_features: int, top_k: int, panels: Iterable[dict[str, Array]]) -> Best:
    """Merge what :func:`compact` returned for every panel.

    Examples
    --------
    >>> one, two = empty_best(1, 2), empty_best(1, 2)
    >>> one.id[0, 0], one.r[0, 0] = 3, 0.5
    >>> two.id[0], two.r[0] = [7, 8], [0.9, 0.5]
    >>> feature = np.array([1], dtype=np.int32)
    >>> every = slice(0, 10)
    >>> merge_all(2, 2, [compact(one, feature, every), compact(two, feature, every)]).id
    array([[-1, -1],
           [ 7,  3]], dtype=int32)
    """
    best = empty_best(n_features, top_k)
    for panel in panels:
        merge(best, panel["feature"], panel["start"], panel["id"], panel["r"], panel["held_out"])
    return best


def best_of(ids: Array, r: Array, held_out: Array, top_k: int) -> Best:
    """Return the best of all partners, ties to the lower id: `ids` ascending, `r` (feature, partner), NaN never ranked.

    >>> r = np.array([[0.1, np.nan, 0.5, 0.5]])
    >>> best_of(np.array([2, 4, 6, 8], np.int32), r, r, 3).id
    array([[6, 8, 2]], dtype=int32)
    """
    best = empty_best(len(r), top_k)
    order = np.argsort(np.where(np.isnan(r), np.inf, -r), axis=1, kind="stable")[:, :top_k]
    places = np.nonzero(~np.isnan(np.take_along_axis(r, order, axis=1)))
    chosen = (places[0], order[places])
    best.id[places], best.r[places], best.held_out[places] = ids[chosen[1]], r[chosen], held_out[chosen]
    return best


def nan_where_empty(best: Best) -> Best:
    """Return the lists with NaN in place of -inf."""
    return best._replace(r=np.where(best.id >= 0, best.r, np.nan))
