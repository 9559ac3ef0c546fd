"""Lists of best partners: made empty, kept on disk for each finished panel, merged into those of all features.

Lists of all B features pass from panel to panel of a process, so that only what is better enters. Of them, a panel puts
on disk what it entered itself; most places are other panels'.
"""

from __future__ import annotations

from collections.abc import Iterable
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
