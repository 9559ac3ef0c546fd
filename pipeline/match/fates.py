"""What becomes of every feature: nothing vanishes without a reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.match.edges import Edges


class Fate(NamedTuple):
    """Why a feature is, or is not, in a pair.

    Attributes
    ----------
    name
        What results call it.
    meaning
        What it means, for the attributes of the result. Of a filter: the filter took the last of its pairs.
    code
        Number in a result. A fate of a filter from outside has none, and gets the next free one in each result.
    """

    name: str
    meaning: str
    code: int = -1


MATCHED = Fate("matched", "in at least one pair", 0)
DEAD = Fate("dead", "has no correlation: never varies on the selection half, or fires in fewer than min_firing", 1)
BELOW_MIN_R = Fate("below_min_r", "varies, but reaches the minimum r with no feature of the other side", 2)
TAKEN = Fate("taken", "reaches the minimum r, but the method gave its partners to other features", 3)
#: What may become of a feature without any filter; results always count these.
FATES = (MATCHED, DEAD, BELOW_MIN_R, TAKEN)
#: Codes below this belong to the filters of this package.
FIRST_FREE = 12


def numbered(fates: Iterable[Fate]) -> dict[str, Fate]:
    """Return fates by name, those without a code numbered in their order, after :data:`FATES`.

    Examples
    --------
    >>> [fate.code for fate in numbered([Fate("a", "…"), Fate("b", "…", 5)]).values()]
    [0, 1, 2, 3, 12, 5]
    """
    free = itertools.count(FIRST_FREE)
    different = {fate.name: fate for fate in (*FATES, *fates)}
    return {name: fate if fate.code >= 0 else fate._replace(code=next(free)) for name, fate in different.items()}


class Fates:
    """Follows the features of both sides through the steps of a matching; `known` are all fates by name.

    `edges` are all candidate pairs at or above the minimum r; `defined_a` and `defined_b`, shape (feature,), say which
    features vary, so that a correlation with them exists; `others` are the fates that filters give.

    Examples
    --------
    >>> from pipeline.match.edges import make_edges
    >>> edges = make_edges([0, 1], [0, 0], [0.9, 0.5], n_a=4, n_b=1)
    >>> alive = np.array([True, True, False, True])
    >>> fates = Fates(edges, alive, np.array([True]))
    >>> fates.step(np.array([0, 1]), np.array([0]), TAKEN)
    >>> [FATES[code].name for code in fates.finish(np.array([0]))["a"]]
    ['matched', 'taken', 'dead', 'below_min_r']
    """

    def __init__(
        self, edges: Edges, defined_a: NDArray[np.bool_], defined_b: NDArray[np.bool_], others: Iterable[Fate] = ()
    ) -> None:
        self.known = numbered(others)
        self.ids = {"a": edges.ids_a, "b": edges.ids_b}
        self.of = {
            side: np.where(defined, BELOW_MIN_R.code, DEAD.code).astype(np.int8)
            for side, defined in (("a", defined_a), ("b", defined_b))
        }

    def step(self, before: NDArray[np.int64], after: NDArray[np.int64], fate: Fate) -> None:
        """Give `fate` to every feature that was in the edges at positions `before` and is in none of `after`."""
        for side, ids in self.ids.items():
            lost = np.zeros(len(self.of[side]), bool)
            lost[ids[before]] = True
            lost[ids[after]] = False
            self.of[side][lost] = self.known[fate.name].code

    def finish(self, pairs: NDArray[np.int64]) -> dict[str, NDArray[np.int8]]:
        """Return the fate of every feature by side, given the positions of the edges that are pairs in the end."""
        for side, ids in self.ids.items():
            self.of[side][ids[pairs]] = MATCHED.code
        return self.of


def count_fates(codes: NDArray[np.int8], fates: Iterable[Fate] = FATES) -> dict[str, int]:
    """Return how many features met each fate: all of :data:`FATES`, and others that any feature met.

    Examples
    --------
    >>> count_fates(np.array([0, 0, 3], np.int8))
    {'matched': 2, 'dead': 0, 'below_min_r': 0, 'taken': 1}
    """
    counts = {fate: int(np.count_nonzero(codes == fate.code)) for fate in sorted(fates, key=lambda fate: fate.code)}
    return {fate.name: n for fate, n in counts.items() if n or fate in FATES}
