"""What becomes of every feature: nothing vanishes without a reason."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from pipeline.match.edges import Edges


class Fate(IntEnum):
    """Why a feature is, or is not, in a pair."""

    matched = 0
    dead = 1
    below_min_r = 2
    taken = 3


#: What each fate means, for the attributes of the result.
FATE_MEANINGS = {
    Fate.matched: "in at least one pair",
    Fate.dead: "never varies on the rows that choose candidates, so that its correlations are undefined",
    Fate.below_min_r: "varies, but reaches the minimum r with no feature of the other side",
    Fate.taken: "reaches the minimum r, but the method gave its partners to other features",
}


def fates(edges: Edges, chosen: NDArray[np.int64], defined: NDArray[np.bool_], side: str) -> NDArray[np.int8]:
    """Return the fate of every feature of one side.

    Parameters
    ----------
    edges
        The candidate pairs, all of them at or above the minimum r.
    chosen
        Positions of the edges that became pairs.
    defined
        Which features vary, so that a correlation with them exists, shape (feature,).
    side
        ``"a"`` or ``"b"``.

    Returns
    -------
    ndarray of int8, shape (feature,)
        Values of :class:`Fate`.

    Examples
    --------
    >>> from pipeline.match.edges import make_edges
    >>> edges = make_edges([0, 1], [0, 0], [0.9, 0.5], n_a=4, n_b=1)
    >>> alive = np.array([True, True, False, True])
    >>> [Fate(fate).name for fate in fates(edges, np.array([0]), alive, "a")]
    ['matched', 'taken', 'dead', 'below_min_r']
    """
    ids = edges.ids_a if side == "a" else edges.ids_b
    fate = np.where(defined, Fate.below_min_r, Fate.dead).astype(np.int8)
    fate[ids] = Fate.taken
    fate[ids[chosen]] = Fate.matched
    return fate


def count_fates(fate: NDArray[np.int8]) -> dict[str, int]:
    """Return how many features met each fate.

    Examples
    --------
    >>> count_fates(np.array([0, 0, 3], np.int8))
    {'matched': 2, 'dead': 0, 'below_min_r': 0, 'taken': 1}
    """
    return {each.name: int(np.count_nonzero(fate == each)) for each in Fate}
