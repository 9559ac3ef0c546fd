"""Scores of shuffled pairings, run in blocks on Dask, the same whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client, Future
from numpy.typing import NDArray

from pipeline.workers import in_order, run_tasks
from storage.errors import InputError

#: A metric of prepared rows under a pairing: ``score(state, pairing)`` with ``pairing[i]`` the B row of A row i.
Score = Callable[[Any, NDArray[np.int64]], float]

#: Shuffled runs in one task: some tenths of a second for 2,000 pairs.
RUNS_PER_TASK = 20


@dataclass(frozen=True)
class Shuffles:
    """Random pairings of n rows, drawn without replacement.

    Every run has a random generator of its own, so that it does not matter where, or in which order, runs are made.

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

    def pairing(self, run: int) -> NDArray[np.int64]:
        """Return the pairing of one run, int64, shape (n,).

        Examples
        --------
        >>> shuffles = Shuffles(n=5, runs=10, seed=0)
        >>> shuffles.pairing(3).tolist() == shuffles.pairing(3).tolist() != shuffles.pairing(4).tolist()
        True
        """
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(run,))).permutation(self.n)

    @property
    def blocks(self) -> list[range]:
        """The runs of each task."""
        return [range(start, min(start + RUNS_PER_TASK, self.runs)) for start in range(0, self.runs, RUNS_PER_TASK)]


def null_scores(
    client: Client,
    scores: Mapping[str, Score],
    state: Future,
    shuffles: Shuffles,
    label: str = "shuffled pairings",
) -> NDArray[np.float64]:
    """Score shuffled pairings; all metrics see the same ones.

    Parameters
    ----------
    client
        Where the tasks run.
    scores
        The metrics, by name.
    state
        What the metrics prepared from the rows, as a future on `client`: nothing of it is computed again.
    shuffles
        The pairings.
    label
        What the progress bar says.

    Returns
    -------
    ndarray of float64, shape (metric, run)

    Raises
    ------
    InputError
        If a metric is not finite on some runs; the message counts them.
    """
    done = run_tasks(
        client,
        _score_block,
        list(enumerate(shuffles.blocks)),
        name="compare-null",
        label=label,
        args=(state, tuple(scores.values()), shuffles),
    )
    null = np.concatenate(list(in_order((number, values) for (number, _), values in done)), axis=1)
    _check_finite(null, list(scores))
    return null


def score_once(state: Any, scores: Sequence[Score], pairing: NDArray[np.int64]) -> list[float]:
    """Return every metric of one pairing.

    Examples
    --------
    >>> score_once(np.array([5.0, 7.0]), [lambda state, pairing: float(state[pairing[0]])], np.array([1, 0]))
    [7.0]
    """
    return [score(state, pairing) for score in scores]


def _score_block(
    block: tuple[int, range], state: Any, scores: Sequence[Score], shuffles: Shuffles
) -> NDArray[np.float64]:
    return np.array([score_once(state, scores, shuffles.pairing(run)) for run in block[1]]).T


def _check_finite(null: NDArray[np.float64], names: Sequence[str]) -> None:
    """Refuse a null that some draws are missing from: leaving them out would bend it, drawing again may never end."""
    for name, values in zip(names, null, strict=True):
        failed = np.flatnonzero(~np.isfinite(values))
        if len(failed):
            raise InputError(
                f"{name} is undefined in {len(failed)} of {len(values)} shuffled runs (the first is run {failed[0]}); "
                "look for rows that are zero or equal, or leave this metric out"
            )
