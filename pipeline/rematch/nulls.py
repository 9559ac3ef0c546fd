"""Which rows of B may change places, and the permutations that are drawn.

A null cuts rows into *units*, and units into *groups*::

    token      a unit is a row; a group is the rows of one half with the same text
    document   a unit is a document, or the documents of an article; a group is those of one half of about like length

A draw moves every unit to the place of another one of its group, row by row, so that no row stays beside its own
partner: a uniformly random permutation would leave one unit of every group where it is, and of groups of two every
second one, and what is meant to be chance would hold real likeness. The units of a group go round in a circle, in a
random order, which is a uniformly random cyclic permutation (Sattolo, Information Processing Letters 22, 1986).

To add a null, write a function as those at the end of this module; see ``docs/extending.md``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.compare.arrangement import first_of_each, strata
from pipeline.match.segments import number_texts
from pipeline.settings.registries import ROW_NULLS
from pipeline.text.spans import first_in_window
from storage import Corpus
from storage.errors import InputError

Ints = NDArray[np.int64]
#: A row that is in no unit, or to whose place no row is moved.
LEFT_OUT = -1
#: Documents that change places with each other.
DOCUMENTS_A_GROUP = 5


class Units(NamedTuple):
    """What changes places.

    Attributes
    ----------
    unit
        The unit of each row, int64, (token,); -1 for a row that is left out. Rows of a unit keep their order.
    group
        The group of each unit, int64, (unit,). All units of a group have the same number of rows, in the same half.
    """

    unit: Ints
    group: Ints

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which rows change places, (token,)."""
        return self.unit != LEFT_OUT

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return len(np.unique(self.group))

    @property
    def overlap(self) -> float:
        """How many units of a group have the same partner in two draws: 1 / (units − 1), on average over groups.

        A group counts once, however large: a feature that fires on one text rests on one group.

        >>> Units(np.arange(5), np.array([0, 0, 0, 1, 1])).overlap
        0.75
        """
        return float(np.mean(1 / (np.unique(self.group, return_counts=True)[1] - 1)))


@dataclass(frozen=True)
class Rows:
    """The rows of two stores, as nulls see them.

    Attributes
    ----------
    half
        The half of each row, int8, (token,); below 0 where it counts in neither.
    store
        A store, for the coordinates of its rows.
    corpus
        The text, if it is at hand.
    previous
        How many segments before a row must have the same text too.
    """

    half: NDArray[np.int8]
    store: xr.Dataset
    corpus: Corpus | None = None
    previous: int = 0

    @property
    def document(self) -> Ints:
        """The document of each row, (token,).

        Raises
        ------
        InputError
            If the store does not know it.
        """
        if "document" not in self.store.variables:
            raise InputError(
                f"{self.store.encoding['source']} has no token coordinates, so whole documents cannot change places; "
                "leave the null document out (--null token), or harvest the store"
            )
        return np.asarray(self.store["document"].values, np.int64)

    @property
    def texts(self) -> Ints:
        """The document of each row, or the group of its document where the store knows it, (token,)."""
        return np.asarray(self.store["group"].values, np.int64) if "group" in self.store.variables else self.document

    def same_text(self) -> Ints:
        """Return a number for the text of each row, with the :attr:`previous` segments of its window; (token,).

        Raises
        ------
        InputError
            If there is no text.
        """
        if self.corpus is None or "char_start" not in self.store.variables:
            raise InputError(
                "The null token moves rows among those of the same text: give the corpus (--corpus CORPUS.zarr) that "
                "the stores were harvested from, or leave this null out (--null document)"
            )
        text = number_texts(self.store, self.corpus).astype(np.int64)
        first, before, numbers = first_in_window(self.store), text, text
        for _ in range(self.previous):
            before = np.where(first, LEFT_OUT, np.roll(before, 1))
            numbers = _numbered(numbers, before)
        return numbers


def _numbered(*columns: NDArray[np.integer]) -> Ints:
    """Return a number for each row of some columns of integers from -1 up, equal for equal rows.

    >>> _numbered(np.array([5, 5, 2]), np.array([-1, -1, 7])).tolist()
    [1, 1, 0]
    """
    numbers = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        # numbered anew in every step, so that no product overflows
        joined = numbers * (int(column.max(initial=0)) + 2) + column + 1
        numbers = np.unique(joined, return_inverse=True)[1].astype(np.int64)
    return numbers


#: Cuts rows into units and groups.
Cut = Callable[[Rows], Units]


@dataclass(frozen=True)
class RowNull:
    """One answer to "which likeness is left?".

    Attributes
    ----------
    name
        What users write.
    function
        Cuts rows into units and groups.
    needs_text
        Whether it reads the corpus.
    """

    name: str
    function: Cut
    needs_text: bool = False

    def order(self, units: Units, seed: int, draw: int) -> Ints:
        """Return which row stands at each place in a draw, int64, (token,); -1 where none does.

        Examples
        --------
        >>> units = Units(np.array([0, 1, -1, 2, 3]), np.array([0, 0, 1, 1]))
        >>> ROW_NULLS["token"].order(units, seed=0, draw=0).tolist()
        [1, 0, -1, 4, 3]
        """
        sequence = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(self.name.encode()), draw))
        return moved(units, _next_of_group(units.group, np.random.default_rng(sequence)))


def _next_of_group(group: Ints, rng: np.random.Generator) -> Ints:
    """Return, of each unit, the one that takes its place: all units of a group in a circle, in a random order."""
    shuffled = rng.permutation(len(group))
    ring = shuffled[np.argsort(group[shuffled], kind="stable")]
    first, last = (np.flatnonzero(np.diff(group[ring], **{edge: -1})) for edge in ("prepend", "append"))
    follower = np.roll(ring, -1)
    follower[last] = ring[first]
    following = np.empty_like(ring)
    following[ring] = follower
    return following


def moved(units: Units, following: Ints) -> Ints:
    """Return which row stands at each place, (token,), if unit ``following[i]`` takes the place of unit i."""
    order = np.full(len(units.unit), LEFT_OUT, np.int64)
    rows = np.flatnonzero(units.used)
    rows = rows[np.argsort(units.unit[rows], kind="stable")]
    unit = units.unit[rows]
    start = np.searchsorted(unit, np.arange(len(units.group)))
    order[rows] = rows[start[following[unit]] + np.arange(len(rows)) - start[unit]]
    return order


def check_units(name: str, units: Units, half: NDArray[np.int8]) -> None:
    """Refuse units that cannot change places.

    Raises
    ------
    InputError
        If the rows of a group are of two halves, its units differ in length, or it has only one.

    Examples
    --------
    >>> check_units("mine", Units(np.array([0, 0, 1]), np.array([0, 0])), np.zeros(3, np.int8))
    Traceback (most recent call last):
    storage.errors.InputError: the null mine puts units of 1 and 2 rows into one group: they cannot change places
    """
    unit, halves = units.unit[units.used], half[units.used]
    size = np.bincount(unit)
    for what, low, high in (
        ("{} and {} rows", size, size),
        ("halves {} and {}", _least(halves, unit), -_least(-halves, unit)),
    ):
        least, most = _least(low, units.group), -_least(-high, units.group)
        if len(apart := np.flatnonzero(least < most)):
            spread = what.format(least[apart[0]], most[apart[0]])
            raise InputError(f"the null {name} puts units of {spread} into one group: they cannot change places")
    if (np.bincount(units.group) == 1).any():
        raise InputError(f"the null {name} has groups of one unit, which has no place to go to: leave its rows out")


def _least(values: NDArray[np.integer], at: Ints) -> Ints:
    """Return the least of the values at each place from 0 on; a number above all others where there are none."""
    least = np.full(int(at.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, at, values.astype(np.int64))
    return least


def row_null(*, needs_text: bool = False) -> Callable[[Cut], Cut]:
    """Register a function as a null of rows, by its name."""

    def register(function: Cut) -> Cut:
        ROW_NULLS.add(function.__name__, RowNull(function.__name__, function, needs_text))
        return function

    return register


@row_null(needs_text=True)
def token(rows: Rows) -> Units:
    """Let rows of the same half change places whose segments have the same text; a row alone with its text is left out.

    Two tokenizers have different ids for the same segment, and a segment may be several tokens: the text decides.
    """
    counted = np.flatnonzero(rows.half >= 0)
    group = _numbered(rows.half[counted], rows.same_text()[counted])
    shared = np.bincount(group)[group] > 1
    unit = np.full(len(rows.half), LEFT_OUT, np.int64)
    unit[counted[shared]] = np.arange(np.count_nonzero(shared))
    return Units(unit, group[shared])


@row_null()
def document(rows: Rows) -> Units:
    """Let whole documents of a half change places with others of about the same length, row for row.

    Documents of one group, as the sections of an article, change places together. They are ordered by length and cut
    into strata of at least :data:`DOCUMENTS_A_GROUP`, as far as there are so many, and used up to the length of the
    shortest of their stratum (:func:`pipeline.compare.arrangement.strata`); what is left over, or alone, is left out.
    """
    unit, group = np.full(len(rows.half), LEFT_OUT, np.int64), [np.empty(0, np.int64)]
    n_units = 0
    for half in np.unique(rows.half[rows.half >= 0]):
        counted = np.flatnonzero(rows.half == half)
        documents = first_of_each(rows.document[counted])
        texts = first_of_each(rows.texts[counted][documents[:-1]])
        n_texts = len(texts) - 1
        size = n_texts // max(1, n_texts // DOCUMENTS_A_GROUP)
        for starts, lengths in strata(np.diff(documents), texts, size, len(counted)) if size > 1 else ():
            place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            unit[counted[np.repeat(starts, lengths, axis=0) + place[:, None]]] = n_units + np.arange(size)
            group.append(np.full(size, len(group)))
            n_units += size
    return Units(unit, np.concatenate(group))
