"""How sure is a score of these pairs? Bootstrap intervals over pairs (Efron 1987; Efron and Tibshirani 1993).

Pairs are drawn with replacement, as many as there are, and every metric is computed on what is drawn; all metrics see
the same draws. The interval says how the score would move had other pairs of the same kind been matched. It says
nothing about chance: that is the null's part.

A pair that is drawn twice counts twice. Two consequences:

* Between two copies of one pair the similarity is exactly 1 on both sides. RSA would take them for agreement, so a
  score is told which rows are copies, and leaves them out, as rsatoolbox does.
* Of n drawn pairs about 0.63 n are different ones. Metrics that chance inflates on few pairs (SVCCA, CCA) score
  higher on them than on n different pairs. BCa corrects for a moderate bias of this kind; where nearly all draws lie
  above the score there is no honest interval, and the note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from distributed import Client
from numpy.typing import ArrayLike, NDArray

from pipeline.compare.nulls import Floats, run_blocks
from pipeline.compare.rows import paired_rows
from pipeline.compare.statistics import Interval, bca_interval
from storage.errors import InputError

#: A metric of drawn rows: x (n, d_x), y (n, d_y), and the number (n,) of the pair that each row is; copies share it.
RowScore = Callable[[Floats, Floats, NDArray[np.int64]], float]

#: Groups of pairs that are left out in turn for the acceleration; pair by pair would cost more than the draws.
GROUPS = 20
#: Draws of one task.
RUNS_PER_TASK = 10


def bootstrap_interval(
    x: ArrayLike,
    y: ArrayLike,
    scores: Mapping[str, RowScore],
    *,
    runs: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    client: Client | None = None,
) -> dict[str, Interval]:
    """Return an interval for each metric, by name, from pairs drawn with replacement `runs` times.

    Every run has a random generator of its own. The paired rows have shapes (n, d_x) and (n, d_y). Memory is that of
    one drawn copy of the rows and of one score, for each task at a time; without a client, draws run here one after
    the other, with the same results. See :func:`pipeline.compare.statistics.bca_interval`.

    Raises
    ------
    InputError
        If a setting is out of range, or the rows cannot be compared.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 1))
    >>> y = x + rng.normal(size=(200, 1))
    >>> r = lambda x, y, _: float(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    >>> found = bootstrap_interval(x, y, {"r": r}, runs=500)["r"]
    >>> bool(found.low < 0.5**0.5 < found.high), round(found.high - found.low, 1)
    (True, 0.1)
    """
    if runs < 1 or not 0 < level < 1:
        raise InputError(f"runs must be at least 1 and level between 0 and 1, not {runs} and {level}")
    rows = paired_rows(x, y)
    shared = rows if client is None else client.scatter(rows, broadcast=False)
    draws = run_blocks(
        client, draw_scores, range(runs), *shared, dict(scores), seed,
        per_task=RUNS_PER_TASK, label="Bootstrap over pairs", name="compare-bootstrap",
    )  # fmt: skip
    jackknife = leave_out_scores(*rows, scores)
    everything = np.arange(len(rows[0]))
    return {
        name: bca_interval(score(*rows, everything), draws[i], jackknife[i], level)
        for i, (name, score) in enumerate(scores.items())
    }


def draw_scores(runs: Sequence[int], x: Floats, y: Floats, scores: Mapping[str, RowScore], seed: int) -> Floats:
    """Return every metric of the pairs drawn in some runs, shape (score, run); NaN where a metric is undefined."""
    found = np.empty((len(scores), len(runs)))
    for at, run in enumerate(runs):
        pair = np.sort(
            np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(run,))).integers(len(x), size=len(x))
        )
        found[:, at] = [score(x[pair], y[pair], pair) for score in scores.values()]
    return found


def leave_out_scores(x: Floats, y: Floats, scores: Mapping[str, RowScore]) -> Floats:
    """Return every metric without each group of pairs in turn, shape (score, group).

    Groups are every 20th pair, so that pairs sorted by r are spread over all of them. The skewness of group sums over
    √groups is that of single pairs over √pairs, so they serve the acceleration as well.
    """
    n = len(x)
    groups = min(n, GROUPS)
    found = np.empty((len(scores), groups))
    for group in range(groups):
        kept = np.flatnonzero(np.arange(n) % groups != group)
        found[:, group] = [score(x[kept], y[kept], kept) for score in scores.values()]
    return found
