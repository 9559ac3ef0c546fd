"""The nulls: scores of rows that are paired, or drawn, at random; run in blocks on Dask, whatever the workers.

``shuffled`` pairs the same rows at random and reuses all that was prepared from them. The others draw other rows, so
that every run prepares its own:

* ``random_features``: as many live features of either side, paired as drawn;
* ``random_pairs``: as many of the pairs of a larger matching, for which the compared ones are a subset;
* ``random_dictionary``: as many rows of a control dictionary in place of a side's own.

Every run has a random generator of its own, seeded by the null and its number, so that it does not matter where, or in
which order, runs are made.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from distributed import Client, Future
from numpy.typing import NDArray

from pipeline.compare.base import Family, Pairing
from pipeline.compare.rows import paired_rows
from pipeline.config import Null
from pipeline.workers import in_order, run_tasks
from storage.errors import InputError

NULLS: tuple[Null, ...] = get_args(Null)

#: Shuffled runs in one task: some tenths of a second for 2,000 pairs; and runs that prepare their own rows.
RUNS_PER_TASK, DRAWS_PER_TASK = 20, 4


@dataclass(frozen=True)
class Shuffles:
    """Random pairings of n rows, drawn without replacement.

    Attributes
    ----------
    n
        Number of pairs.
    runs
        Number of shuffled pairings.
    seed
        Seed of all of them.
    """

    n: int
    runs: int
    seed: int

    def pairing(self, run: int) -> Pairing:
        """Return the pairing of one run, int64, shape (n,).

        Examples
        --------
        >>> shuffles = Shuffles(n=5, runs=10, seed=0)
        >>> shuffles.pairing(3).tolist() == shuffles.pairing(3).tolist() != shuffles.pairing(4).tolist()
        True
        """
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(run,))).permutation(self.n)


@dataclass(frozen=True)
class Draws:
    """Rows of two banks, n of either, drawn without replacement.

    Attributes
    ----------
    null
        Which null they are for.
    n
        Number of rows of a draw.
    sizes
        Rows in the bank of A and of B; None where a side keeps the rows that are compared.
    runs, seed
        As in :class:`Shuffles`.
    """

    null: Null
    n: int
    sizes: tuple[int | None, int | None]
    runs: int
    seed: int

    def places(self, run: int) -> tuple[Pairing, Pairing]:
        """Return where in either bank the rows of one run are; the same places where pairs are drawn.

        Examples
        --------
        >>> a, b = Draws("random_features", n=3, sizes=(8, None), runs=10, seed=0).places(4)
        >>> len(set(a.tolist())), b.tolist()
        (3, [0, 1, 2])
        """
        key = (NULLS.index(self.null), run)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
        a = self._draw(rng, self.sizes[0])
        return a, a if self.null == "random_pairs" else self._draw(rng, self.sizes[1])

    def _draw(self, rng: np.random.Generator, size: int | None) -> Pairing:
        return np.arange(self.n) if size is None else rng.permutation(size)[: self.n]


def shuffled_scores(
    client: Client, family: Family, state: Future, shuffles: Shuffles, label: str = "shuffled pairings"
) -> NDArray[np.float64]:
    """Score shuffled pairings; all metrics see the same ones.

    Parameters
    ----------
    client
        Where the tasks run.
    family
        The metrics.
    state
        What they prepared from the rows, as a future on `client`: nothing of it is computed again.
    shuffles
        The pairings.
    label
        What the progress bar says.

    Returns
    -------
    ndarray of float64, shape (metric, run)
        NaN where a metric is undefined; see :func:`check_finite`.
    """
    return _run_blocks(client, _score_shuffles, blocks(shuffles.runs, RUNS_PER_TASK), (state, family, shuffles), label)


def drawn_scores(
    client: Client, groups: Sequence[Family], banks: tuple[Future, Future], draws: Draws, label: str
) -> NDArray[np.float64]:
    """Score rows drawn at random; all metrics see the same ones.

    Parameters
    ----------
    client
        Where the tasks run.
    groups
        The metrics, by family.
    banks
        All rows of either side that may be drawn, as futures on `client`.
    draws
        Which rows are drawn.
    label
        What the progress bar says.

    Returns
    -------
    ndarray of float64, shape (metric, run)
        In the order of the families; NaN where a metric is undefined.
    """
    tasks = blocks(draws.runs, DRAWS_PER_TASK)
    return _run_blocks(client, _score_draws, tasks, (*banks, tuple(groups), draws), label)


def blocks(runs: int, per_task: int) -> list[range]:
    """Return the runs of each task.

    Examples
    --------
    >>> blocks(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(start, min(start + per_task, runs)) for start in range(0, runs, per_task)]


def check_finite(values: NDArray[np.float64], metric: str, null: str) -> None:
    """Refuse a null that some runs are missing from: leaving them out would bend it, drawing again may never end.

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


def _run_blocks(client: Client, function: Any, tasks: list[range], args: tuple[Any, ...], label: str) -> Any:
    done = run_tasks(client, function, list(enumerate(tasks)), name="compare-null", label=label, args=args)
    return np.concatenate(list(in_order((number, values) for (number, _), values in done)), axis=1)


def _score_shuffles(block: tuple[int, range], state: Any, family: Family, shuffles: Shuffles) -> NDArray[np.float64]:
    return np.array([family.scores(state, shuffles.pairing(run)) for run in block[1]]).T


def _score_draws(
    block: tuple[int, range], bank_a: Any, bank_b: Any, groups: Sequence[Family], draws: Draws
) -> NDArray[np.float64]:
    return np.array([_score_draw(draws.places(run), (bank_a, bank_b), groups) for run in block[1]]).T


def _score_draw(places: tuple[Pairing, Pairing], banks: tuple[Any, Any], groups: Sequence[Family]) -> list[float]:
    x, y = paired_rows(*(bank[at] for bank, at in zip(banks, places, strict=True)))
    return list(itertools.chain.from_iterable(family.scores_of(x, y) for family in groups))
