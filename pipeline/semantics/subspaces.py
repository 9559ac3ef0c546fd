"""The pairs of features that make up a meaning's subspace, found in either of two ways.

**global**: the pairs of the whole space are made first, and those are kept whose features belong to the concept. It
asks whether the one map between the spaces that fits best overall also carries this meaning. A concept's feature that
went to a partner of another meaning is lost.

**within**: the concept's features are found on each side, and paired among themselves. It asks whether the two sets
can be brought together at all. Partners are chosen from fewer candidates, so r is lower, and no pair can show that the
meaning was missed.

A concept that is shared looks alike in both; where they differ, see their overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.settings.semantics import Sides

Mask = NDArray[np.bool_]
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Subspace:
    """The pairs of one meaning at one pair of sites, from the highest r down, in arrays of shape (pair,)."""

    name: str
    approach: str
    feature_a: NDArray[np.int32]
    feature_b: NDArray[np.int32]
    r: NDArray[np.float64]
    r_heldout: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.feature_a)

    @property
    def pairs(self) -> set[tuple[int, int]]:
        """The pairs of ids."""
        return set(zip(self.feature_a.tolist(), self.feature_b.tolist(), strict=True))


def from_pairs(name: str, approach: str, pairs: xr.Dataset) -> Subspace:
    """Return the subspace that a dataset of pairs holds."""
    columns = {key: np.asarray(pairs[key].values) for key in ("feature_a", "feature_b", "r", "r_heldout")}
    return Subspace(name, approach, **columns)


def cut_out(pairs: xr.Dataset, name: str, member_a: Mask, member_b: Mask, sides: Sides = "both") -> Subspace:
    """Keep the global pairs whose features belong to a concept: ``both`` of them, or ``either``.

    With ``either`` a pair enters on the word of one model alone: the set is larger, and shows where the other model's
    partner means something else. `member_a` and `member_b` are bool, shape (feature,).

    >>> columns = {"feature_a": [0, 1, 2], "feature_b": [2, 1, 0], "r": [0.9, 0.8, 0.7], "r_heldout": [0.8, 0.7, 0.7]}
    >>> pairs = xr.Dataset({key: ("pair", values) for key, values in columns.items()})
    >>> a, b = np.array([True, True, False]), np.array([True, False, True])
    >>> cut_out(pairs, "time", a, b).feature_a.tolist(), cut_out(pairs, "time", a, b, "either").feature_a.tolist()
    ([0], [0, 1, 2])
    """
    pairs_of_both = pairs["feature_a"].values, pairs["feature_b"].values
    return from_pairs(name, "global", pairs.isel(pair=inside(pairs_of_both, (member_a, member_b), sides)))


def inside(pairs: tuple[Ids, Ids], member: tuple[Mask, Mask], sides: Sides) -> NDArray[np.int64]:
    """Return the places of the pairs whose features, of A and of B, belong to a concept: ``both``, or ``either``."""
    on_a, on_b = member[0][pairs[0]], member[1][pairs[1]]
    return np.flatnonzero(on_a & on_b if sides == "both" else on_a | on_b)


def overlap(first: Subspace, second: Subspace) -> float:
    """Return how far two subspaces consist of the same pairs: pairs in both ÷ pairs in either; NaN if both are empty.

    Examples
    --------
    >>> none = np.zeros(2)
    >>> one = Subspace("x", "global", np.array([0, 1]), np.array([0, 1]), none, none)
    >>> overlap(one, Subspace("x", "within", np.array([0, 2]), np.array([0, 2]), none, none)).__round__(2)
    0.33
    """
    either = first.pairs | second.pairs
    return len(first.pairs & second.pairs) / len(either) if either else float("nan")


def members(concepts: xr.Dataset) -> Mapping[str, Mask]:
    """Return, by concept, which features belong to it, from the ``member(feature, concept)`` of a membership result."""
    member = concepts["member"].transpose("concept", "feature").values.astype(bool)
    return {str(name): mask for name, mask in zip(concepts["concept"].values, member, strict=True)}
