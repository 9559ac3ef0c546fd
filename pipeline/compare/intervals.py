"""How sure is a score of these pairs? Intervals from the score without each of some groups of pairs in turn.

The grouped jackknife (Shao and Wu, Annals of Statistics 17, 1989), of groups that are drawn at random: pairs are sorted
by r, and groups of every g-th pair would each have the same r, so that intervals would be too narrow. No pair is ever
there twice, unlike in a bootstrap. Copies would change what is estimated: they are each other's nearest neighbours,
agree by construction, and of n drawn pairs only 0.63 n are different ones, on fewer of which chance inflates SVCCA, CCA
and CKA.

What is estimated is the score that n such pairs have on average. Less the null's mean, which is that of n pairs too, it
is the interval of the difference. It takes pairs for independent of each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from distributed import Client
from numpy.typing import ArrayLike, NDArray

from pipeline.compare.base import Family, Metric
from pipeline.compare.nulls import Floats, run_blocks
from pipeline.compare.rows import paired_rows
from pipeline.compare.statistics import Interval, jackknife_interval
from storage.errors import InputError

#: Of fewer pairs, intervals of a difference hold less than they say: 90 and 91 % for Procrustes, 20 pairs, and CKA, 40.
FEWEST_PAIRS = 60


def pair_intervals(
    x: ArrayLike,
    y: ArrayLike,
    families: Sequence[Family],
    *,
    groups: int = 20,
    level: float = 0.95,
    client: Client | None = None,
) -> dict[Metric, Interval]:
    """Return an interval for each metric, in the order of the families.

    The paired rows have shapes (n, d_x) and (n, d_y). Memory is that of one copy of the rows and of one score, for each
    task at a time; without a client, groups are left out here one after the other, with the same results.

    Raises
    ------
    InputError
        If there are fewer than 2 groups, the level is out of range, or the rows cannot be compared.

    Examples
    --------
    >>> from pipeline.compare.base import families
    >>> from pipeline.settings.compare import parse_metric
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 4))
    >>> (low, high, _), = pair_intervals(x, x + rng.normal(size=(200, 4)), families([parse_metric("rsa")])).values()
    >>> round(low, 1), round(high, 1)
    (0.4, 0.5)
    """
    if groups < 2 or not 0 < level < 1:
        raise InputError(f"intervals need at least 2 groups and a level between 0 and 1, not {groups} and {level}")
    rows = paired_rows(x, y)
    if len(rows[0]) < FEWEST_PAIRS:
        few = Interval(np.nan, np.nan, f"no interval: {len(rows[0])} pairs, at least {FEWEST_PAIRS} are needed")
        return {metric: few for family in families for metric in family.metrics}
    groups = min(groups, len(rows[0]))
    group = np.random.default_rng(0).permutation(len(rows[0])) % groups
    shared = rows if client is None else client.scatter(rows, broadcast=False)
    left_out = run_blocks(
        client, leave_out_scores, range(groups), *shared, list(families), group,
        per_task=1, label="Leaving out pairs", name="compare-intervals",
    )  # fmt: skip
    scores = itertools.chain(*(family.scores_of(*rows) for family in families))
    metrics = itertools.chain(*(family.metrics for family in families))
    return {
        metric: jackknife_interval(score, values, level)
        for metric, score, values in zip(metrics, scores, left_out, strict=True)
    }


def leave_out_scores(
    left_out: Sequence[int], x: Floats, y: Floats, families: Sequence[Family], group: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return every metric without some of the groups in turn, shape (metric, group); NaN where it is undefined.

    `group` is the group of each pair, (n,).
    """
    columns = []
    for number in left_out:
        rest = np.flatnonzero(group != number)
        columns.append([score for family in families for score in family.scores_of(x[rest], y[rest])])
    return np.array(columns).T
