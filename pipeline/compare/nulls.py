"""The nulls: which rows stand beside which by chance, and the runs of all draws in blocks on Dask.

A null that pairs the compared rows otherwise reuses all that was prepared from them. One that draws other rows
prepares its own in every run. Every run has a random generator of its own, seeded by the null and the run's number, so
that it does not matter where, or in which order, runs are made.

To add one, write a function as those at the end of this module; see ``docs/extending.md``.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from pipeline.compare.base import Family, Metric, Pairing
from pipeline.compare.random_keywords import random_lists
from pipeline.compare.statistics import EFFECT_RUNS, ended_after
from pipeline.settings.registries import NULLS
from pipeline.work.workers import run_tasks
from storage.errors import InputError

Floats = NDArray[np.float64]
#: Rows in what is drawn from, of A and of B; None for a side that keeps the rows that are compared.
Sizes = tuple[int | None, int | None]
#: Where in A and in B the rows of one run are, shape (n,) each, from a generator, the number of rows, and what is drawn
#: from: sizes; of the source ``words`` the word of each pair, int64, (n,), a negative number for none; of ``ids`` a
#: number for each row of A, int64, (n,), no two the same, or None.
Places = Callable[[np.random.Generator, int, Any], tuple[Pairing, Pairing]]
#: Of the source ``keywords``: places in the pool of the pairs of all runs at once, (run, n), or None and why; see
#: :func:`pipeline.compare.random_keywords.random_lists`.
Lists = Callable[..., tuple[NDArray[np.int64] | None, str]]
#: What the rows of a run are drawn from: those compared, those with their words, or with the features that A's rows are
#: of; all live features; a larger matching, or the pairs of lists of words in it; another dictionary; blocks of text.
Source = Literal["rows", "words", "ids", "features", "pool", "keywords", "control", "blocks"]
#: Sources of nulls that pair the compared rows otherwise.
SAME_ROWS: tuple[Source, ...] = ("rows", "words", "ids")


@dataclass(frozen=True)
class Null:
    """One answer to "by chance?".

    Attributes
    ----------
    name
        What users write.
    function
        Draws one run (:data:`Places`); for ``keywords``, all of them (:data:`Lists`). For ``rows``, ``words`` and
        ``ids`` A keeps its order, and only B's places count.
    source
        What it draws from. Whoever compares gives that to the function, or refuses the null.
    stream
        Sets the random numbers of this null apart from those of others.
    """

    name: str
    function: Callable[..., Any]
    source: Source
    stream: tuple[int, ...]


Function = TypeVar("Function", bound=Callable[..., Any])


def null(source: Source, stream: tuple[int, ...] | None = None) -> Callable[[Function], Function]:
    """Register a function as a null, by its name; its random numbers are its own, unless `stream` says which."""

    def register(function: Function) -> Function:
        name = function.__name__
        NULLS.add(name, Null(name, function, source, (zlib.crc32(name.encode()),) if stream is None else stream))
        return function

    return register


@dataclass(frozen=True)
class Draws:
    """All runs of a null for `n` rows; `sizes` are the rows that are drawn from, None of a side that keeps its own.

    `drawn`, (run, n), has the places of all runs of a null of keywords, `words`, (n,), the word of each row, for a null
    of words, and `ids`, (n,), the feature of each row of A, None where it is not known.
    """

    null: Null
    n: int
    sizes: Sizes
    runs: int
    seed: int
    drawn: NDArray[np.int64] | None = None
    words: NDArray[np.int64] | None = None
    ids: NDArray[np.int64] | None = None

    def places(self, run: int) -> tuple[Pairing, Pairing]:
        """Return where the rows of one run are, int64, shape (n,) each.

        Examples
        --------
        >>> draws = Draws(NULLS["random_features"], n=3, sizes=(8, None), runs=10, seed=0)
        >>> a, b = draws.places(4)
        >>> len(set(a.tolist())), b.tolist()
        (3, [0, 1, 2])
        """
        if self.drawn is not None:
            return self.drawn[run], self.drawn[run]
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(*self.null.stream, run)))
        draw: Places = self.null.function
        given = {"words": self.words, "ids": self.ids}
        return draw(rng, self.n, given.get(self.null.source, self.sizes))

    def too_few(self) -> str:
        """Say why the rows of a run cannot be drawn; an empty string where they can."""
        if self.null.source == "pool" and (self.sizes[0] or 0) <= self.n:
            return f"the pool has {self.sizes[0]} pairs, not more than the {self.n} that are compared"
        for side, size in zip("AB", self.sizes, strict=True):
            if size is not None and size < self.n:
                return f"{self.n} rows cannot be drawn from the {size} of side {side}"
        return ""


def run_blocks(
    client: Client | None,
    score: Callable[..., Floats],
    runs: range,
    *args: Any,
    per_task: int,
    label: str,
    name: str = "compare-null",
) -> Floats:
    """Return the scores of some runs, shape (metric, run), from tasks of `per_task` consecutive runs each.

    The module-level function `score` makes scores, shape (metric, run), from a range of runs and `args`, which may be
    futures. Without a client it runs here, once for all. `label` and `name` are for the progress bar and task keys.
    """
    if client is None:
        return score(runs, *args)
    blocks = split_runs(runs, per_task)
    scores = dict(run_tasks(client, score, blocks, name=name, label=label, args=args))
    return np.concatenate([scores[block] for block in blocks], axis=1)


def split_runs(runs: range, per_task: int) -> list[range]:
    """Return the runs of each task.

    Examples
    --------
    >>> split_runs(range(5), 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [runs[start : start + per_task] for start in range(0, len(runs), per_task)]


def score_null(
    client: Client | None,
    score: Callable[..., Floats],
    draws: Draws,
    groups: Sequence[Family],
    *args: Any,
    observed: Mapping[Metric, float],
    stop_after: int,
    per_task: int,
    label: str,
) -> dict[Metric, Floats]:
    """Return the scores of a null's runs by metric, shape (run,) each; NaN from where a metric's null has ended.

    The module-level function `score` makes scores, shape (metric, run), from a range of runs, `args` and the families
    that are still to be scored. Where nulls may end early (:func:`pipeline.compare.statistics.ended_after`), runs are
    made in parts that double, which keeps many workers busy too; no part depends on the number of workers, and runs
    that were made beyond the end are left out.

    Raises
    ------
    InputError
        If a metric is undefined in some of the runs that are needed.
    """
    scores = {metric: np.full(draws.runs, np.nan) for family in groups for metric in family.metrics}
    ended: dict[Metric, int] = {}
    going = list(groups)
    for part in _parts(draws.runs, per_task if stop_after else draws.runs):
        made = run_blocks(client, score, part, *args, going, per_task=per_task, label=label)
        for metric, values in zip(itertools.chain(*(family.metrics for family in going)), made, strict=True):
            scores[metric][part.start : part.stop] = values
            if runs := ended_after(observed[metric], scores[metric][: part.stop], stop_after):
                ended[metric] = runs
        left = [family.only(scores.keys() - ended.keys()) for family in going]
        going = [family for family in left if family.metrics]
        if not going:
            break
    for metric, values in scores.items():
        runs = ended.get(metric, draws.runs)
        check_finite(values[:runs], metric.name, draws.null.name)
        values[runs:] = np.nan
    return scores


def _parts(runs: int, per_task: int) -> Iterator[range]:
    """Yield parts of all runs, whole tasks: the first has those that are always needed, each other as many as before.

    Examples
    --------
    >>> list(_parts(1000, 30))
    [range(0, 120), range(120, 240), range(240, 480), range(480, 960), range(960, 1000)]
    """
    start, stop = 0, per_task * -(-EFFECT_RUNS // per_task)
    while start < runs:
        yield range(start, min(stop, runs))
        start, stop = stop, 2 * stop


def check_finite(values: Floats, metric: str, null: str) -> None:
    """Refuse a null that some runs are missing from: leaving them out would bias it, drawing again may never end.

    Raises
    ------
    InputError
        If a run is not finite; the message counts them.

    Examples
    --------
    >>> check_finite(np.array([0.5, np.nan, np.nan]), "rsa", "shuffled")
    Traceback (most recent call last):
    storage.errors.InputError: rsa is undefined in 2 of 3 shuffled runs (the first is run 1); look for rows that are ...
    """
    failed = np.flatnonzero(~np.isfinite(values))
    if len(failed):
        raise InputError(
            f"{metric} is undefined in {len(failed)} of {len(values)} {null} runs (the first is run {failed[0]}); "
            "look for rows that are zero or equal, or leave this metric out"
        )


def draw(rng: np.random.Generator, n: int, size: int | None) -> Pairing:
    """Return n of `size` places, drawn without replacement; all in their order where a side keeps its rows."""
    return np.arange(n) if size is None else rng.permutation(size)[:n]


@null("ids", stream=())
def shuffled(rng: np.random.Generator, n: int, ids: NDArray[np.int64] | None) -> tuple[Pairing, Pairing]:
    """Pair the same rows at random; in one run, features of A change places alike at all sites of B."""
    return np.arange(n), rng.permutation(n) if ids is None else shuffle_ids(rng, ids)


def shuffle_ids(rng: np.random.Generator, ids: NDArray[np.int64]) -> Pairing:
    """Return a uniformly random permutation, (n,), that is the same for rows of the same ids wherever it is drawn.

    A random key of each id puts the rows in order, and each takes the place of the next, unless that has a larger id
    than all before it: there a cycle closes. Every order gives a permutation of its own (Foata's fundamental bijection;
    Lothaire, Combinatorics on Words, section 10.2), so that all are equally likely. A generator in the same state draws
    the same keys, and most neighbours in their order stay neighbours where other rows are left out. Takes 8 bytes for
    each number up to the largest id.

    Examples
    --------
    >>> few, more = np.array([2, 5, 7]), np.array([2, 3, 5, 7])
    >>> [ids[shuffle_ids(np.random.default_rng(1), ids)].tolist() for ids in (few, more)]
    [[2, 7, 5], [2, 7, 3, 5]]
    """
    order = np.argsort(rng.random(int(ids.max(initial=-1)) + 1)[ids], kind="stable")
    starts = np.flatnonzero(ids[order] == np.maximum.accumulate(ids[order]))
    following = np.roll(order, -1)
    following[np.append(starts[1:], len(order)) - 1] = order[starts]
    places = np.empty(len(order), np.int64)
    places[order] = following
    return places


def shuffle_clumps(rng: np.random.Generator, clumps: NDArray[np.int64]) -> Pairing:
    """Return a random order in which clumps take the place of clumps with as many rows, rows in random order, (n,).

    Examples
    --------
    >>> shuffle_clumps(np.random.default_rng(0), np.array([7, 7, 2, 5, 5, 9])).tolist()
    [1, 0, 2, 4, 3, 5]
    """
    _, clump, size = np.unique(clumps, return_inverse=True, return_counts=True)
    key = rng.permutation(len(size))[clump]
    places, taken = np.lexsort((clump, size[clump])), np.lexsort((rng.random(len(clump)), key, size[clump]))
    order = np.empty(len(clump), np.int64)
    order[places] = taken
    return order


@null("words")
def shuffled_words(rng: np.random.Generator, n: int, words: NDArray[np.int64]) -> tuple[Pairing, Pairing]:
    """Pair the same rows at random, all of one word with all of another: what clumps of one word give is kept."""
    return np.arange(n), shuffle_clumps(rng, words)


@null("features", stream=(1,))
def random_features(rng: np.random.Generator, n: int, sizes: Sizes) -> tuple[Pairing, Pairing]:
    """Draw as many live features of either side, paired as drawn."""
    return draw(rng, n, sizes[0]), draw(rng, n, sizes[1])


@null("pool", stream=(2,))
def random_pairs(rng: np.random.Generator, n: int, sizes: Sizes) -> tuple[Pairing, Pairing]:
    """Draw as many of the pairs of a larger matching, of which the compared ones are a part."""
    places = draw(rng, n, sizes[0])
    return places, places


@null("control", stream=(3,))
def random_dictionary(rng: np.random.Generator, n: int, sizes: Sizes) -> tuple[Pairing, Pairing]:
    """Draw as many rows of a control dictionary in place of a side's own."""
    return draw(rng, n, sizes[0]), draw(rng, n, sizes[1])


@null("keywords", stream=(4,))
def random_keywords(rng: np.random.Generator, runs: int, **pool: Any) -> tuple[NDArray[np.int64] | None, str]:
    """Take the pairs of random lists of words that are like a concept's."""
    return random_lists(rng, runs, **pool)
