"""Which rows choose the candidates, which ones check them, and which count in neither.

Choosing the best of tens of thousands of partners inflates r. So half of the text chooses, and r is stated on the
other half as well. Whole documents go to one half, since tokens of one document are not independent, and so do whole
groups of documents, such as the sections of an article, where the stores have them. The half of a document is one bit
of a hash (SplitMix64, Steele et al. 2014) of its number, or of its group, and a seed, and of nothing else: whatever
text is added, an old document stays in its half.

So the halves are of about one size where there are many documents, and may not be where there are few:

===============================  ==================================================================================
documents, or groups of them     halves
===============================  ==================================================================================
not known                        the first half of the rows chooses
one document                     the same, and a warning: both halves are of one text
several, two rows in each half   one bit each; a warning where one half has less than a quarter of the rows
several, all in one half         refused, with a seed that separates them
one group                        refused
===============================  ==================================================================================
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.correlate.kernels.csr import EXCLUDED
from pipeline.correlate.plan import slices
from pipeline.settings.correlate import Select
from storage import InputError, open_activations

logger = logging.getLogger(__name__)

SELECTING, HELD_OUT = 0, 1
FEWEST_ROWS = 2
#: A half with a smaller share of the rows is warned of.
SMALL_SHARE = 0.25
#: Rows whose texts are looked at at a time.
ROWS_AT_ONCE = 2**22
#: How many seeds are tried, to name one that makes the halves less unequal.
SEEDS_TRIED = 256


class Texts(NamedTuple):
    """What is never cut: the document of each row, or the group of its document; (token,)."""

    kind: Literal["document", "group"]
    of_row: NDArray[np.integer]


class Split(NamedTuple):
    """The halves of rows, and the texts that they are made of.

    Attributes
    ----------
    half
        (token,) int8: 0 chooses, 1 is held out, -1 is left out since either store marks the row as a sink.
    kind
        What the texts are; None where the stores know neither.
    numbers, rows
        (text,) int64, ascending: documents or groups, and how many rows each has that count.
    """

    half: NDArray[np.int8]
    kind: Literal["document", "group"] | None
    numbers: NDArray[np.int64]
    rows: NDArray[np.int64]


def read_halves(path_a: Path, path_b: Path, select: Select, *, seed: int) -> NDArray[np.int8]:
    """Return the half that each row of two stores belongs to, as :func:`read_split` does."""
    return read_split(path_a, path_b, select, seed=seed).half


def read_split(path_a: Path, path_b: Path, select: Select, *, seed: int) -> Split:
    """Return the half that each row of two stores belongs to.

    Memory is a byte a row, and what is read of :data:`ROWS_AT_ONCE` rows.

    Raises
    ------
    InputError
        If a half has fewer than two rows, all rows are of one group, or the stores have different groups.
    """
    a, b = open_activations(path_a), open_activations(path_b)
    kind, of_row = _texts_of(a, b) or (None, None)
    half = np.full(a.sizes["token"], SELECTING, np.int8)
    numbers = rows = np.zeros(0, np.int64)
    for part in slices(0, len(half), ROWS_AT_ONCE):
        excluded = a["sink"][part].values | b["sink"][part].values
        if of_row is not None:
            _check_groups((path_a, a), (path_b, b), part)
            texts = of_row[part].values
            counted = texts[~excluded]
            numbers, rows = _count(np.append(numbers, counted), np.append(rows, np.ones(len(counted), np.int64)))
            half[part] = half_of(texts, seed)
        half[part][excluded] = EXCLUDED
    split = Split(_settled(half, len(numbers), select), kind, numbers, rows)
    if select == "half" and kind == "group" and len(numbers) == 1:
        raise InputError(
            f"All rows of {path_a} are of one group of documents, so none can be held out: harvest text of several "
            "groups, leave the group out (corpus: group), or use select='all'"
        )
    for number, name in enumerate(("choose", "are held out") if select == "half" else ("count",)):
        n_rows = int(np.count_nonzero(half == number))
        if n_rows < FEWEST_ROWS:
            remedy = "" if select == "all" else _other_seed(split, seed, FEWEST_ROWS)
            raise InputError(
                f"Only {n_rows} of {len(half)} rows of {path_a} {name}, with select={select!r} and "
                f"{np.count_nonzero(half == EXCLUDED)} attention sinks; correlation needs at least {FEWEST_ROWS}. "
                f"{remedy}Harvest more text, or use select='all'"
            )
    return split


def read_texts(path_a: Path, path_b: Path) -> Texts | None:
    """Return what is never cut, of two stores of the same rows: groups if either has them, else documents, if any.

    Raises
    ------
    InputError
        If the stores have different groups.
    """
    a, b = open_activations(path_a), open_activations(path_b)
    _check_groups((path_a, a), (path_b, b), slice(None))
    known = _texts_of(a, b)
    return None if known is None else Texts(known[0], known[1].values)


def _texts_of(a: xr.Dataset, b: xr.Dataset) -> tuple[Literal["document", "group"], xr.DataArray] | None:
    """Return what is never cut, not read yet."""
    kinds: tuple[Literal["group", "document"], ...] = ("group", "document")
    there = ((kind, store[kind]) for kind in kinds for store in (a, b) if kind in store.variables)
    return next(there, None)


def _check_groups(a: tuple[Path, xr.Dataset], b: tuple[Path, xr.Dataset], part: slice) -> None:
    """Raise an InputError if two stores have different groups in some rows."""
    if not all("group" in store.variables for _, store in (a, b)):
        return
    one, other = (store["group"][part].values for _, store in (a, b))
    if not np.array_equal(one, other):
        row = (part.start or 0) + int(np.flatnonzero(one != other)[0])
        raise InputError(
            f"{a[0]} and {b[0]} have different groups from row {row} on, so whole groups cannot be kept in one "
            "half: give both the same groups, or one of them none"
        )


def _count(numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each number once, ascending, with the sum of its rows.

    >>> _count(np.array([7, 3, 7]), np.array([1, 2, 4]))
    (array([3, 7]), array([2, 5]))
    """
    known, place = np.unique(numbers, return_inverse=True)
    return known, np.bincount(place, rows, len(known)).astype(np.int64)


def split_rows(
    texts: NDArray[np.integer] | None, excluded: NDArray[np.bool_], select: Select, *, seed: int
) -> NDArray[np.int8]:
    """Assign rows to halves, by their documents or groups if there are several; `excluded` ones count in neither.

    >>> split_rows(np.array([7, 7, 8, 9, 9, 5]), np.zeros(6, bool), "half", seed=0)
    array([0, 0, 1, 1, 1, 0], dtype=int8)
    >>> split_rows(None, np.array([True, False, False, False, False]), "half", seed=0)
    array([-1,  0,  0,  1,  1], dtype=int8)
    """
    half = np.full(len(excluded), SELECTING, np.int8) if texts is None else half_of(texts, seed)
    half[excluded] = EXCLUDED
    return _settled(half, 0 if texts is None else len(np.unique(texts[~excluded])), select)


def _settled(half: NDArray[np.int8], n_texts: int, select: Select) -> NDArray[np.int8]:
    """Return halves by texts, changed in place to what they are with so many texts, and with all rows that choose."""
    if select == "all" or n_texts < 2:
        half[half != EXCLUDED] = SELECTING
    if select == "half" and n_texts < 2:
        counted = np.flatnonzero(half != EXCLUDED)
        half[counted[(len(counted) + 1) // 2 :]] = HELD_OUT
    return half


def half_of(texts: NDArray[np.integer], seed: int) -> NDArray[np.int8]:
    """Return the half of each document or group: the highest bit of a hash of its number and the seed.

    >>> half_of(np.arange(10), 0)
    array([1, 0, 1, 1, 0, 0, 0, 0, 1, 1], dtype=int8)
    """
    mixed = splitmix64(texts.astype(np.int64) ^ splitmix64(np.array([seed])).view(np.int64))
    return (mixed >> np.uint64(63)).astype(np.int8)


def splitmix64(numbers: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return a well-mixed hash of each number."""
    mixed = numbers.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def log_halves(split: Split, *, seed: int) -> None:
    """Log how rows were split, and warn where the held-out half is not of other text, or a half is small."""
    rows = [int(np.count_nonzero(split.half == number)) for number in (SELECTING, HELD_OUT)]
    if split.kind is None:
        logger.info("The stores know no documents: the first %d rows choose, and %d are held out", *rows)
    elif len(split.numbers) == 1:
        logger.warning(
            "All rows are of one document: its first %d rows choose, and %d are held out, so held-out r is of the "
            "same text and too high. Harvest more documents", *rows,
        )  # fmt: skip
    else:
        logger.info("Of %d %ss, %d rows choose, and %d are held out", len(split.numbers), split.kind, *rows)
        if min(rows) < SMALL_SHARE * sum(rows):
            logger.warning(
                "The smaller half has only %d of %d rows, so its r is uncertain. %sHarvest more text",
                min(rows), sum(rows), _other_seed(split, seed, int(SMALL_SHARE * sum(rows))),
            )  # fmt: skip


def _other_seed(split: Split, seed: int, fewest: int) -> str:
    """Return advice on the next seed with so many rows in either half; none if a few hundred seeds have fewer."""
    numbers, rows = split.numbers, split.rows
    if len(numbers) < 2:
        return ""
    for other in range(seed + 1, seed + 1 + SEEDS_TRIED):
        held_out = int(rows[half_of(numbers, other) == HELD_OUT].sum())
        if fewest <= held_out <= rows.sum() - fewest:
            return (
                f"That is how split_seed={seed} assigns {len(numbers)} {split.kind}s; with split_seed={other}, "
                f"{rows.sum() - held_out} rows choose and {held_out} are held out. "
            )
    return ""
