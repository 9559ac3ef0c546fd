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
from numpy.typing import NDArray

from pipeline.correlate.kernels.csr import EXCLUDED
from pipeline.settings.correlate import Select
from storage import InputError, open_activations

logger = logging.getLogger(__name__)

SELECTING, HELD_OUT = 0, 1
FEWEST_ROWS = 2
#: A half with a smaller share of the rows is warned of.
SMALL_SHARE = 0.25
#: How many seeds are tried, to name one that makes the halves less unequal.
SEEDS_TRIED = 256


class Texts(NamedTuple):
    """What is never cut: the document of each row, or the group of its document; (token,)."""

    kind: Literal["document", "group"]
    of_row: NDArray[np.integer]


def read_halves(path_a: Path, path_b: Path, select: Select, *, seed: int) -> NDArray[np.int8]:
    """Return the half that each row of two stores belongs to, (token,) int8.

    0 chooses, 1 is held out, -1 is left out since either store marks the row as a sink.

    Raises
    ------
    InputError
        If a half has fewer than two rows, all rows are of one group, or the stores have different groups.
    """
    a, b = open_activations(path_a), open_activations(path_b)
    sink = a["sink"].values | b["sink"].values
    texts = read_texts(path_a, path_b)
    if select == "half" and texts is not None and texts.kind == "group" and _n_texts(texts.of_row[~sink]) == 1:
        raise InputError(
            f"All rows of {path_a} are of one group of documents, so none can be held out: harvest text of several "
            "groups, leave the group out (corpus: group), or use select='all'"
        )
    half = split_rows(None if texts is None else texts.of_row, sink, select, seed=seed)
    for number, name in enumerate(("choose", "are held out") if select == "half" else ("count",)):
        rows = int(np.count_nonzero(half == number))
        if rows < FEWEST_ROWS:
            remedy = "" if texts is None or select == "all" else _other_seed(texts, half, seed, FEWEST_ROWS)
            raise InputError(
                f"Only {rows} of {len(half)} rows of {path_a} {name}, with select={select!r} and "
                f"{int(sink.sum())} attention sinks; correlation needs at least {FEWEST_ROWS}. {remedy}Harvest more "
                "text, or use select='all'"
            )
    return half


def read_texts(path_a: Path, path_b: Path) -> Texts | None:
    """Return what is never cut, of two stores of the same rows: groups if either has them, else documents, if any.

    Raises
    ------
    InputError
        If the stores have different groups.
    """
    a, b = open_activations(path_a), open_activations(path_b)
    if "group" in a.variables and "group" in b.variables and not np.array_equal(a["group"].values, b["group"].values):
        row = int(np.flatnonzero(a["group"].values != b["group"].values)[0])
        raise InputError(
            f"{path_a} and {path_b} have different groups from row {row} on, so whole groups cannot be kept in one "
            "half: give both the same groups, or one of them none"
        )
    kinds: tuple[Literal["group", "document"], ...] = ("group", "document")
    there = ((kind, store) for kind in kinds for store in (a, b) if kind in store.variables)
    return next((Texts(kind, store[kind].values) for kind, store in there), None)


def split_rows(
    texts: NDArray[np.integer] | None, excluded: NDArray[np.bool_], select: Select, *, seed: int
) -> NDArray[np.int8]:
    """Assign rows to halves, by their documents or groups if there are several; `excluded` ones count in neither.

    >>> split_rows(np.array([7, 7, 8, 9, 9, 5]), np.zeros(6, bool), "half", seed=0)
    array([0, 0, 1, 1, 1, 0], dtype=int8)
    >>> split_rows(None, np.array([True, False, False, False, False]), "half", seed=0)
    array([-1,  0,  0,  1,  1], dtype=int8)
    """
    half = np.full(len(excluded), SELECTING, np.int8)
    counted = np.flatnonzero(~excluded)
    if select == "half" and texts is not None and _n_texts(texts[counted]) > 1:
        half = half_of(texts, seed)
    elif select == "half":
        half[counted[(len(counted) + 1) // 2 :]] = HELD_OUT
    half[excluded] = EXCLUDED
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


def log_halves(half: NDArray[np.int8], texts: Texts | None, *, seed: int) -> None:
    """Log how rows were split, and warn where the held-out half is not of other text, or a half is small."""
    rows = [int(np.count_nonzero(half == number)) for number in (SELECTING, HELD_OUT)]
    n_texts = 0 if texts is None else _n_texts(texts.of_row[half != EXCLUDED])
    if texts is None:
        logger.info("The stores know no documents: the first %d rows choose, and %d are held out", *rows)
    elif n_texts == 1:
        logger.warning(
            "All rows are of one document: its first %d rows choose, and %d are held out, so held-out r is of the "
            "same text and too high. Harvest more documents", *rows,
        )  # fmt: skip
    else:
        logger.info("Of %d %ss, %d rows choose, and %d are held out", n_texts, texts.kind, *rows)
        if min(rows) < SMALL_SHARE * sum(rows):
            other = _other_seed(texts, half, seed, int(SMALL_SHARE * sum(rows)))
            logger.warning(
                "The smaller half has only %d of %d rows, so its r is uncertain. %sHarvest more text",
                min(rows), sum(rows), other,
            )  # fmt: skip


def _n_texts(texts: NDArray[np.integer]) -> int:
    return len(np.unique(texts))


def _other_seed(texts: Texts, half: NDArray[np.int8], seed: int, fewest: int) -> str:
    """Return advice on the next seed with so many rows in either half; none if a few hundred seeds have fewer."""
    numbers, rows = np.unique(texts.of_row[half != EXCLUDED], return_counts=True)
    if len(numbers) < 2:
        return ""
    for other in range(seed + 1, seed + 1 + SEEDS_TRIED):
        held_out = int(rows[half_of(numbers, other) == HELD_OUT].sum())
        if fewest <= held_out <= rows.sum() - fewest:
            return (
                f"That is how split_seed={seed} assigns {len(numbers)} {texts.kind}s; with split_seed={other}, "
                f"{rows.sum() - held_out} rows choose and {held_out} are held out. "
            )
    return ""
