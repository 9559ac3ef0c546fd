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
    low_heldout_r = 4
    outside_fraction = 5
    overused = 6
    rarely_fires = 7
    not_reproducible = 8
    non_concept = 9
    no_shared_token = 10
    easy_kind = 11


#: What each fate means, for the attributes of the result. Those of filters: the filter took the last of its pairs.
FATE_MEANINGS = {
    Fate.matched: "in at least one pair",
    Fate.dead: "never varies on the rows that choose candidates, so that its correlations are undefined",
    Fate.below_min_r: "varies, but reaches the minimum r with no feature of the other side",
    Fate.taken: "reaches the minimum r, but the method gave its partners to other features",
    Fate.low_heldout_r: "r on the held-out rows is below the minimum, or undefined",
    Fate.outside_fraction: "not in the top or bottom fraction that was asked for",
    Fate.overused: "it or its partners are used by more features than allowed",
    Fate.rarely_fires: "it or its partners are active on fewer rows than asked for",
    Fate.not_reproducible: "r differs between the two halves by more than allowed",
    Fate.non_concept: "it or its partners fire mostly on tokens of the list",
    Fate.no_shared_token: "its top tokens are none of its partners' top tokens",
    Fate.easy_kind: "it or its partners fire on one token, one position or punctuation only",
}


class Fates:
    """Follows the features of both sides through the steps of a matching.

    Parameters
    ----------
    edges
        All candidate pairs at or above the minimum r.
    defined_a, defined_b
        Which features vary, so that a correlation with them exists, shape (feature,).

    Examples
    --------
    >>> from pipeline.match.edges import make_edges
    >>> edges = make_edges([0, 1], [0, 0], [0.9, 0.5], n_a=4, n_b=1)
    >>> alive = np.array([True, True, False, True])
    >>> fates = Fates(edges, alive, np.array([True]))
    >>> fates.step(np.array([0, 1]), np.array([0]), Fate.taken)
    >>> [Fate(fate).name for fate in fates.finish(np.array([0]))["a"]]
    ['matched', 'taken', 'dead', 'below_min_r']
    """

    def __init__(self, edges: Edges, defined_a: NDArray[np.bool_], defined_b: NDArray[np.bool_]) -> None:
        self.ids = {"a": edges.ids_a, "b": edges.ids_b}
        self.of = {
            side: np.where(defined, Fate.below_min_r, Fate.dead).astype(np.int8)
            for side, defined in (("a", defined_a), ("b", defined_b))
        }

    def step(self, before: NDArray[np.int64], after: NDArray[np.int64], fate: Fate) -> None:
        """Give `fate` to every feature that was in the edges at positions `before` and is in none of `after`."""
        for side, ids in self.ids.items():
            lost = np.zeros(len(self.of[side]), bool)
            lost[ids[before]] = True
            lost[ids[after]] = False
            self.of[side][lost] = fate

    def finish(self, pairs: NDArray[np.int64]) -> dict[str, NDArray[np.int8]]:
        """Return the fate of every feature by side, given the positions of the edges that are pairs in the end."""
        for side, ids in self.ids.items():
            self.of[side][ids[pairs]] = Fate.matched
        return self.of


def count_fates(fate: NDArray[np.int8]) -> dict[str, int]:
    """Return how many features met each fate, of those that any feature met, ``matched`` always among them.

    Examples
    --------
    >>> count_fates(np.array([0, 0, 3], np.int8))
    {'matched': 2, 'dead': 0, 'below_min_r': 0, 'taken': 1}
    """
    counts = {each: int(np.count_nonzero(fate == each)) for each in Fate}
    return {each.name: n for each, n in counts.items() if n or each <= Fate.taken}
